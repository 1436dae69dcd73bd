"""What one sampled row hands on, and which rows of a plan speak for an arm."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.core.advantage import FULL, MALFORMED, REGION
from pipeline.core.reward import Reward
from pipeline.training.grpo.completions import Completion, mask_openings
from pipeline.training.grpo.groups import GroupPlan
from pipeline.training.grpo.reward import ranking_reward
from pipeline.types import Box, Crop, Decision, KeepFull, Malformed

_BOX = Box(0.1, 0.2, 0.6, 0.7)


def _complete(decision: Decision, code: int = MALFORMED, num_tokens: int = 1, reward: float = 0.1) -> Completion:
    return Completion("q", [5, 6, 7], "said", code, num_tokens, decision, Reward(reward, mrr=reward / 2))


@pytest.mark.parametrize(
    ("decision", "name", "box"),
    [(Crop(_BOX), "region", _BOX), (KeepFull(), "full", None), (Malformed("x"), "malformed", None)],
)
def test_a_rollout_keeps_the_decision_and_its_box(decision: Decision, name: str, box: Box | None) -> None:
    rollout = _complete(decision).build_rollout(step=3, arm="free")
    assert (rollout.decision, rollout.box, rollout.completion) == (name, box, "said")
    assert (rollout.step, rollout.query_id, rollout.arm) == (3, "q", "free")


def test_a_rollout_keeps_the_reward_that_the_trainer_learns_from() -> None:
    rollout = _complete(KeepFull(), reward=0.1).build_rollout(step=1, arm="full")
    assert rollout.reward == torch.tensor([0.1], dtype=torch.float32).item() != 0.1


def test_masks_cover_the_tokens_of_the_openings() -> None:
    rows = [_complete(KeepFull(), FULL, 1), _complete(Crop(_BOX), REGION, 3)]
    mask_BT = mask_openings(rows, torch.zeros(2, 4, dtype=torch.long))
    assert mask_BT.tolist() == [[True, False, False, False], [True, True, True, False]]


def test_trl_gets_one_reward_a_row_and_the_mean_of_every_part() -> None:
    logged: dict[str, float] = {}
    rows = [_complete(KeepFull(), reward=1.0), _complete(Crop(_BOX), reward=3.0)]
    assert ranking_reward(rows, logged.__setitem__, prompts=[]) == [1.0, 3.0]
    assert logged == {"reward/mrr": 1.0, "reward/ndcg": 0.0, "reward/rank": 0.0, "reward/margin": 0.0}


def test_the_first_forced_row_of_each_arm_speaks_for_it() -> None:
    plan = GroupPlan(8, 3, 2)
    rows = plan.list_arm_rows(16)
    assert rows == [0, 3, 8, 11]
    assert [plan.get_arm(row) for row in rows] == ["region", "full"] * 2
    np.testing.assert_array_equal(plan.list_codes()[[0, 3, 5]], [REGION, FULL, MALFORMED])
