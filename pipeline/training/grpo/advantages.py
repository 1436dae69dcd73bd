"""What the rows of a step's groups teach, and the figures that are watched of them.

Shapes: B groups, G rows of a group, A = 2 arms, F free rows of a group.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.core.advantage import (
    FULL,
    MALFORMED,
    REGION,
    compute_box_advantages,
    compute_group_advantages,
    count_zero_signal,
    spread_over_rows,
)
from pipeline.core.decision import DecisionLoss
from pipeline.training.grpo.groups import GroupPlan, IntArray

FloatArray = npt.NDArray[np.float64]


def compute_plain_advantages(rewards_BG: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the advantages of openings and of boxes, (B, G) each: the same, as TRL has them."""
    advantages_BG = compute_group_advantages(rewards_BG)
    return advantages_BG, advantages_BG


def compute_factorised_advantages(
    rewards_BG: FloatArray, codes_BG: IntArray, decision: DecisionLoss, plan: GroupPlan, mean_length: float
) -> tuple[FloatArray, FloatArray]:
    """Return the advantages of openings and of boxes, (B, G) each.

    Args:
        rewards_BG: what each row earned.
        codes_BG: what each row opens.
        decision: gives what either arm's opening weighs.
        plan: how rows were made to open.
        mean_length: tokens of an answer.
    """
    # Free rows need not carry the decision: what they open with, forced rows open with too, or it is no arm's
    # canonical opening, of which alone the loss knows the probability.
    opening_BG = spread_over_rows(decision.weight_BA, np.broadcast_to(plan.list_codes(), codes_BG.shape))
    # TRL takes the mean over all tokens, in which one decision weighs the less the longer answers are. Times
    # the mean length of an answer, it is a mean over decisions.
    opening_BG *= mean_length
    return opening_BG, compute_box_advantages(rewards_BG, codes_BG)


def compute_group_figures(rewards_BG: FloatArray, codes_BG: IntArray, plan: GroupPlan) -> dict[str, float]:
    """Return the share of groups without a signal and, where rows are free, what those opened."""
    figures = {"group/zero_signal": count_zero_signal(rewards_BG) / len(codes_BG)}
    free_BF = codes_BG[:, plan.list_codes() == MALFORMED]
    if free_BF.size:
        figures["decision/region_rate"] = float((free_BF == REGION).mean())
        figures["decision/malformed_rate"] = float((free_BF == MALFORMED).mean())
    return figures


def compute_decision_figures(loss: DecisionLoss, p_BA: FloatArray) -> dict[str, float]:
    """Return means over groups: how likely either arm's opening is, and what the decision's loss is made of."""
    return {
        "decision/p_region": float(p_BA[:, REGION].mean()),
        "decision/p_full": float(p_BA[:, FULL].mean()),
        "decision/mass": float(p_BA.sum(axis=1).mean()),
        "decision/target": float(loss.target_B.mean()),
        "decision/loss": float(loss.loss_B.mean()),
        "decision/kl": float(loss.kl_B.mean()),
    }
