"""Arms: what each one changes, and what it refuses."""

from __future__ import annotations

import pytest

from pipeline.ablation.arms import ARMS, apply_arm, find_arm
from pipeline.config import Params
from pipeline.errors import ConfigError


def _params(**train: object) -> Params:
    return Params.model_validate({"train": train, "ablation": {"seeds": [5, 6], "max_steps": 12}})


def test_full_changes_length_and_seed_alone() -> None:
    params = _params(warmup_steps=4)
    made = apply_arm(ARMS["full"], params, 5)
    assert made.seed == 5
    assert made.train.max_steps == 12
    length = {"max_steps": params.train.max_steps}
    assert made.train.model_copy(update=length) == params.train
    assert made.reward == params.reward


def test_the_rate_warms_up_for_at_most_half_of_the_steps() -> None:
    assert apply_arm(ARMS["full"], _params(warmup_steps=100), 5).train.warmup_steps == 6


def test_stock_forces_nothing() -> None:
    train = apply_arm(ARMS["stock"], _params(), 5).train
    assert (train.num_region, train.num_full, train.factorised) == (0, 0, False)


def test_reward_parts_are_added_one_by_one() -> None:
    parts = ("weight_mrr", "weight_ndcg", "weight_rank", "weight_margin")
    for number, name in enumerate(("reward_mrr", "reward_ndcg", "reward_rank", "full"), start=1):
        reward = apply_arm(ARMS[name], _params(), 5).reward
        assert [getattr(reward, part) > 0 for part in parts] == [index < number for index in range(4)]


@pytest.mark.parametrize(("name", "group_size", "num_queries"), [("group_4", 4, 32), ("group_16", 16, 8)])
def test_other_groups_keep_the_completions_of_a_step(name: str, group_size: int, num_queries: int) -> None:
    train = apply_arm(ARMS[name], _params(queries_per_step=16), 5).train
    assert (train.group_size, train.queries_per_step) == (group_size, num_queries)


def test_a_step_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"arm group_16: 24 completions a step do not divide"):
        apply_arm(ARMS["group_16"], _params(queries_per_step=3), 5)


def test_stock_parameters_leave_nothing_to_take_away() -> None:
    with pytest.raises(ConfigError, match=r"train.num_region is 0"):
        apply_arm(ARMS["full"], _params(num_region=0, num_full=0, factorised=False), 5)


def test_unknown_arms_are_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown arm 'fulll'; there are full, stock"):
        find_arm("fulll")


def test_equal_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ablation.seeds must differ"):
        Params.model_validate({"ablation": {"seeds": [7, 7]}})
