"""The decision's loss: how likely a policy should open a region, given what both arms earn.

Every balanced group plays both arms, and the policy's probability of each opening is known. So nothing about the
decision has to be estimated from which arm was drawn: loss and KL are exact. (Ours; the paper trains the decision by
the group's advantages. docs/method.md, D26)

    target   pi = sigmoid((V_REGION - V_FULL) / temperature)
    loss     - pi log p_R - (1 - pi) log p_F + beta KL(p || q)

with p and q the probabilities of REGION, FULL and neither under the policy and under its reference.

Why a soft target: its gradient in the logit of an opening is `p_a - pi_a` (at beta = 0). It does not vanish in a
collapsed policy, as the p (1 - p) of an expected reward does; it is 0 at p = pi and nowhere else, so a policy that is
right stands still however often both arms are played; and every opening that is neither arm is pushed down by its own
probability, so no mass leaks. The policy of the highest expected reward less `temperature` times its KL to even odds is
this same pi.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

_TINY = 1e-12
"""Probabilities below this count as this: the logarithm of what is left over after rounding means nothing."""


@dataclass(frozen=True, slots=True)
class DecisionLoss:
    """What the decisions of B groups are pulled by, and what is worth watching.

    Attributes:
        loss_B: (B,) the loss.
        weight_BA: (B, 2) minus the loss's derivative by log p_REGION and log p_FULL, the mass of neither being what
            they leave: the advantages that make a policy gradient step on the openings a step on this loss.
        target_B: (B,) pi, the p_REGION wanted.
        kl_B: (B,) KL(p || q) over REGION, FULL and neither, in nats, 0 or more.
    """

    loss_B: F64
    weight_BA: F64
    target_B: F64
    kl_B: F64


def compute_decision_loss(
    values_BA: npt.ArrayLike, p_BA: npt.ArrayLike, reference_BA: npt.ArrayLike, *, temperature: float, beta: float
) -> DecisionLoss:
    """Return the loss of B decisions and its exact gradient.

    Args:
        values_BA: (B, 2) what a crop and the full image earn.
        p_BA: (B, 2) probability of either opening under the policy, together at most 1; below 1e-12 each counts so.
        reference_BA: (B, 2) the same under the reference.
        temperature: difference in value, above 0, at which the better arm is wanted with odds of e to 1.
        beta: weight of the KL, 0 or more.

    Raises:
        ValueError: shapes differ or are not (B, 2), a value is not finite, or a probability is out of range.
    """
    values = _check_pairs("values", values_BA)
    p, q = _complete(p_BA), _complete(reference_BA)
    if not len(values) == len(p) == len(q):
        raise ValueError(f"values and probabilities must share a shape (B, 2), got {len(values)}, {len(p)}, {len(q)}")
    target_B = 1.0 / (1.0 + np.exp(-np.clip((values[:, 0] - values[:, 1]) / temperature, -60.0, 60.0)))
    target_BA = np.stack([target_B, 1.0 - target_B], axis=1)
    log_ratio_B3 = np.log(p) - np.log(q)
    kl_B = (p * log_ratio_B3).sum(axis=1)
    # dKL/dp_a = log(p_a / q_a) - log(p_0 / q_0): what an arm gains, neither loses.
    kl_slope_BA = p[:, :2] * (log_ratio_B3[:, :2] - log_ratio_B3[:, 2:])
    return DecisionLoss(
        loss_B=-(target_BA * np.log(p[:, :2])).sum(axis=1) + beta * kl_B,
        weight_BA=target_BA - beta * kl_slope_BA,
        target_B=target_B,
        kl_B=kl_B,
    )


def _complete(p_BA: npt.ArrayLike) -> F64:
    """Return the probabilities of REGION, FULL and neither, (B, 3)."""
    p = _check_pairs("probabilities", p_BA)
    neither_B1 = 1.0 - p.sum(axis=1, keepdims=True)
    if (p < 0.0).any() or (neither_B1 < -1e-5).any():  # sums of float32 exceed 1 by a few units of rounding
        raise ValueError("probabilities must be 0 or more and sum to at most 1")
    completed: F64 = np.maximum(np.concatenate([p, neither_B1], axis=1), _TINY)
    return completed


def _check_pairs(what: str, pairs_BA: npt.ArrayLike) -> F64:
    pairs = np.asarray(pairs_BA, dtype=np.float64)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not np.isfinite(pairs).all():
        raise ValueError(f"{what} must be finite and have a shape (B, 2), got {pairs.shape}")
    return pairs
