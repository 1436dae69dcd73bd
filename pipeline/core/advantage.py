"""Advantages of r-GRPO for what follows an opening, and of stock GRPO for everything.

The paper samples decision-balanced groups and subtracts the group's mean (not divided by its std). With forced arms
that mean depends on the arms' sizes and mixes two questions: crop or not, and where. So the decision has a loss of its
own (`core/decision.py`), and the box is compared with the other boxes of its group alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

REGION = 0
FULL = 1
MALFORMED = 2

F64 = npt.NDArray[np.float64]

_SPREAD_FLOOR = 0.05
"""Added to an arm's spread: two boxes that differ by less than this in reward are nearly as good as each other."""

_NO_SIGNAL = 1e-8


def compute_group_advantages(rewards_BG: npt.ArrayLike) -> F64:
    """Return `r - mean(group)`, (B, G): the paper's form, alike for all tokens of a row.

    Raises:
        ValueError: as for `compute_box_advantages`.
    """
    rewards = _check_rewards(rewards_BG)
    centred: F64 = rewards - rewards.mean(axis=1, keepdims=True)
    return centred


def compute_box_advantages(rewards_BG: npt.ArrayLike, decisions_BG: npt.ArrayLike) -> F64:
    """Return what the tokens after a row's opening are pulled by, (B, G).

    `(r - mean(arm)) / (std(arm) + 0.05)` over the rows of the same arm. It sums to 0 within an arm, so it says nothing
    of the decision. Rows that opened neither arm are compared among themselves.

    Why divided: a crop's reward is heavy-tailed (a jump from rank 10 to rank 1 earns about 3, a better margin 0.05),
    and undivided a few queries would move all boxes. The paper does not divide; its baseline is of decisions and boxes
    together, where dividing would let the decision set the scale of the box.

    Args:
        rewards_BG: (B, G) rewards.
        decisions_BG: (B, G) integer codes of the arm that a row's text opened: REGION 0, FULL 1, MALFORMED 2
            (neither). A REGION opening with a broken box belongs to the REGION arm.

    Raises:
        ValueError: shapes differ or are not (B, G) with G >= 1, a reward is not finite, or a code is unknown.
    """
    rewards = _check_rewards(rewards_BG)
    decisions = _check_decisions(decisions_BG, rewards.shape)
    advantages = np.zeros_like(rewards)
    for arm in (REGION, FULL, MALFORMED):
        members = decisions == arm
        num_B1 = np.maximum(members.sum(axis=1, keepdims=True), 1)
        mean_B1 = np.where(members, rewards, 0.0).sum(axis=1, keepdims=True) / num_B1
        centred = np.where(members, rewards - mean_B1, 0.0)
        std_B1 = np.sqrt((centred**2).sum(axis=1, keepdims=True) / num_B1)
        advantages += centred / (std_B1 + _SPREAD_FLOOR)
    return advantages


def compute_arm_values(rewards_BG: npt.ArrayLike, decisions_BG: npt.ArrayLike) -> F64:
    """Return the mean reward of the REGION and of the FULL rows of each group, (B, 2).

    Raises:
        ValueError: as for `compute_box_advantages`, or a group lacks an arm.
    """
    rewards = _check_rewards(rewards_BG)
    decisions = _check_decisions(decisions_BG, rewards.shape)
    members_BGA = decisions[..., None] == np.array([REGION, FULL])
    num_BA = members_BGA.sum(axis=1)
    if not num_BA.all():
        raise ValueError("every group must hold rows of both arms")
    values: F64 = (rewards[..., None] * members_BGA).sum(axis=1) / num_BA
    return values


def spread_over_rows(weights_BA: npt.ArrayLike, decisions_BG: npt.ArrayLike) -> F64:
    """Return advantages of openings, (B, G), whose sum over an arm's rows is G times the arm's weight.

    All rows of an arm open alike, so their pulls add up; the division makes the sum the same whatever the arm's size.

    Args:
        weights_BA: (B, 2) what each arm's log probability is to be pulled by.
        decisions_BG: (B, G) codes as above, of rows that open with the very tokens whose probability is pulled; all
            others MALFORMED. Those get 0, since what one arm gains is taken from all others.
    """
    weights = np.asarray(weights_BA, dtype=np.float64)
    decisions = np.asarray(decisions_BG)
    advantages = np.zeros(decisions.shape)
    for arm in (REGION, FULL):
        members = decisions == arm
        num_B1 = np.maximum(members.sum(axis=1, keepdims=True), 1)
        advantages += members * weights[:, arm, None] * decisions.shape[1] / num_B1
    return advantages


def count_zero_signal(rewards_BG: npt.ArrayLike) -> int:
    """Return the number of groups whose rows all earn the same (to 1e-8), which tell no row from another."""
    return int((np.ptp(np.asarray(rewards_BG), axis=1) <= _NO_SIGNAL).sum())


def _check_rewards(rewards_BG: npt.ArrayLike) -> F64:
    rewards = np.asarray(rewards_BG, dtype=np.float64)
    if rewards.ndim != 2 or rewards.shape[1] == 0:
        raise ValueError(f"rewards must have a shape (B, G), got {rewards.shape}")
    if not np.isfinite(rewards).all():
        raise ValueError("rewards must be finite")
    return rewards


def _check_decisions(decisions_BG: npt.ArrayLike, shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    decisions = np.asarray(decisions_BG, dtype=np.int64)
    if decisions.shape != shape:
        raise ValueError(f"rewards and decisions must share a shape (B, G), got {shape}, {decisions.shape}")
    if not np.isin(decisions, (REGION, FULL, MALFORMED)).all():
        raise ValueError("decision codes are 0 REGION, 1 FULL and 2 MALFORMED")
    return decisions
