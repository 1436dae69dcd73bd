"""Advantages of r-GRPO: what the decision's tokens and the box's tokens are each pulled by.

The paper samples decision-balanced groups and subtracts the group's mean (not divided by its std). With
forced arms that mean depends on the arms' sizes, so the factorised form compares arm with arm for the
decision and row with row inside an arm for the argument.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

REGION = 0
FULL = 1
MALFORMED = 2

_NO_SIGNAL = 1e-8


@dataclass(frozen=True, slots=True)
class Advantages:
    """Advantages by kind of token.

    Attributes:
        decision_BG: (B, G) for the tokens that open an arm.
        argument_BG: (B, G) for the tokens after them.
    """

    decision_BG: npt.NDArray[np.float64]
    argument_BG: npt.NDArray[np.float64]


def compute_advantages(rewards_BG: npt.ArrayLike, decisions_BG: npt.ArrayLike, *, factorised: bool) -> Advantages:
    """Return the advantages of B groups of G rows.

    Plain (paper, section 3): both are `r - mean(group)`.

    Factorised, for a row of an arm: `decision = G / (2 n_arm) * (mean(arm) - m)` with m the mean of the two
    arms' means, so that both arms pull equally whatever their sizes; `argument = r - mean(arm)`, which sums
    to 0 within an arm. A row that opened neither arm has `r - m` in both. In a group with an empty arm there
    is nothing to compare the other with: decision falls back to `r - mean(group)`, as do both for a row that
    opened neither.

    Args:
        rewards_BG: (B, G) rewards.
        decisions_BG: (B, G) integer codes of the arm that a row's text opened: REGION 0, FULL 1, MALFORMED 2
            (neither). A REGION opening with a broken box belongs to the REGION arm.
        factorised: which of the two forms.

    Raises:
        ValueError: shapes differ or are not (B, G) with G >= 1, a reward is not finite, or a code is unknown.
    """
    rewards, decisions = _check(rewards_BG, decisions_BG)
    group_mean_B1 = rewards.mean(axis=1, keepdims=True)
    from_group_BG = rewards - group_mean_B1
    if not factorised:
        return Advantages(decision_BG=from_group_BG, argument_BG=from_group_BG.copy())

    num_region_B1, region_mean_B1 = _compute_arm(rewards, decisions == REGION)
    num_full_B1, full_mean_B1 = _compute_arm(rewards, decisions == FULL)
    both_B1 = (num_region_B1 > 0) & (num_full_B1 > 0)
    centre_B1 = np.where(both_B1, (region_mean_B1 + full_mean_B1) / 2.0, group_mean_B1)

    in_arm_BG = decisions != MALFORMED
    arm_mean_BG = np.where(decisions == REGION, region_mean_B1, full_mean_B1)
    arm_size_BG = np.maximum(np.where(decisions == REGION, num_region_B1, num_full_B1), 1)
    weight_BG = rewards.shape[1] / (2.0 * arm_size_BG)
    balanced_BG = weight_BG * (arm_mean_BG - centre_B1)
    return Advantages(
        decision_BG=np.where(in_arm_BG & both_B1, balanced_BG, rewards - centre_B1),
        argument_BG=np.where(in_arm_BG, rewards - arm_mean_BG, rewards - centre_B1),
    )


def damp_decisions(
    decision_BG: npt.NDArray[np.float64],
    decisions_BG: npt.ArrayLike,
    p_opening_BG: npt.ArrayLike,
    *,
    saturation: float,
    anchor: float,
) -> npt.NDArray[np.float64]:
    """Return decision advantages as far as a policy still has to learn them, for rows whose opening was forced.

    Forced arms are drawn whatever the policy thinks, so their pull would never end and would drive the loser's
    probability down for ever. On the policy's own samples it is weighted by p (1 - p), which ends it, but which also
    leaves a policy alone that is sure and wrong, a collapsed one above all. So

        a' = w * clip(a / saturation, -1, 1) + anchor * w_arm * p
        w  = 1 where a speaks against what the policy leans to (a > 0 and p < 1/2, or a < 0 and p > 1/2)
             4 p (1 - p) where it agrees

    which is continuous at p = 1/2. The clip lets queries where a crop wins much and queries where it loses a little
    count alike: which arm is better is all that a decision can say. The last term is the gradient of
    log(p(REGION) + p(FULL)): it draws mass back that has leaked to openings that are neither. (docs/method.md, D26)

    Args:
        decision_BG: (B, G) from `compute_advantages`, factorised.
        decisions_BG: (B, G) codes; a MALFORMED row is returned as it is.
        p_opening_BG: (B, G) probability of the row's opening under the policy, 0 to 1.
        saturation: size of an advantage, above 0, from which on it counts in full.
        anchor: weight of the last term, 0 or more.
    """
    decisions = np.asarray(decisions_BG)
    p_BG = np.asarray(p_opening_BG, dtype=np.float64)
    disagrees_BG = decision_BG * (0.5 - p_BG) > 0.0
    weight_BG = np.where(disagrees_BG, 1.0, 4.0 * p_BG * (1.0 - p_BG))
    damped = weight_BG * np.clip(decision_BG / saturation, -1.0, 1.0)
    for arm in (REGION, FULL):
        members = decisions == arm
        num_B1 = np.maximum(members.sum(axis=1, keepdims=True), 1)
        damped = np.where(members, damped + anchor * p_BG * decisions.shape[1] / (2.0 * num_B1), damped)
    return np.where(decisions == MALFORMED, decision_BG, damped)


def count_zero_signal(advantages: Advantages) -> int:
    """Return the number of groups whose advantages are all zero (to 1e-8), which teach nothing."""
    size_BG = np.maximum(np.abs(advantages.decision_BG), np.abs(advantages.argument_BG))
    return int((size_BG <= _NO_SIGNAL).all(axis=1).sum())


def _compute_arm(
    rewards_BG: npt.NDArray[np.float64], members_BG: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Return size and mean reward of an arm, each (B, 1); the mean of an empty arm is 0 and is never used."""
    num_B1 = members_BG.sum(axis=1, keepdims=True)
    total_B1 = np.where(members_BG, rewards_BG, 0.0).sum(axis=1, keepdims=True)
    return num_B1, total_B1 / np.maximum(num_B1, 1)


def _check(
    rewards_BG: npt.ArrayLike, decisions_BG: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    rewards = np.asarray(rewards_BG, dtype=np.float64)
    decisions = np.asarray(decisions_BG, dtype=np.int64)
    if rewards.ndim != 2 or rewards.shape[1] == 0 or rewards.shape != decisions.shape:
        raise ValueError(f"rewards and decisions must share a shape (B, G), got {rewards.shape}, {decisions.shape}")
    if not np.isfinite(rewards).all():
        raise ValueError("rewards must be finite")
    if not np.isin(decisions, (REGION, FULL, MALFORMED)).all():
        raise ValueError("decision codes are 0 REGION, 1 FULL and 2 MALFORMED")
    return rewards, decisions
