"""The reward of one decision against the full image on the same pool (paper, section 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.config import RewardParams
from pipeline.types import Crop, Decision, KeepFull, Malformed, Outcome


@dataclass(frozen=True, slots=True)
class Reward:
    """What a decision earns.

    Attributes:
        total: the reward.
        mrr: weighted gain in reciprocal rank; like the other parts before clip and scale, and 0 unless
            cropped.
        ndcg: weighted gain in NDCG.
        rank: weighted gain in log rank.
        margin: weighted gain in margin.
    """

    total: float
    mrr: float = 0.0
    ndcg: float = 0.0
    rank: float = 0.0
    margin: float = 0.0


def compute_reward(decision: Decision, baseline: Outcome, view: Outcome | None, params: RewardParams) -> Reward:
    """Return the reward of a decision (paper, section 3; clip and scale from its public code).

    Crop: `scale * max(floor, w_mrr dMRR + w_ndcg dNDCG + w_rank dRank + w_margin dMargin)` with
    `dRank = log(1 + rank_full) - log(1 + rank_view)` and every other d as view minus full image.
    KeepFull: `full_when_first` if the full image ranks a positive first, else `full_otherwise`.
    Malformed: `malformed`.

    Args:
        decision: what the policy's answer says.
        baseline: outcome of the full image.
        view: outcome of the crop on the same pool; needed only for Crop.
        params: weights and constants.

    Raises:
        ValueError: the pool holds no positive, a crop comes without its view, or the two outcomes cannot be
            of one pool (only one of them has a margin).
    """
    if baseline.first_rank is None:
        raise ValueError("a pool without a positive has no reward")
    match decision:
        case Malformed():
            return Reward(total=params.malformed)
        case KeepFull():
            return Reward(total=params.full_when_first if baseline.first_rank == 1 else params.full_otherwise)
        case Crop():
            if view is None:
                raise ValueError("a crop's reward needs the outcome of its view")
            return _compute_crop_reward(baseline, view, params)


def _compute_crop_reward(baseline: Outcome, view: Outcome, params: RewardParams) -> Reward:
    if baseline.first_rank is None or view.first_rank is None:
        raise ValueError("a pool without a positive has no reward")
    mrr = params.weight_mrr * (view.reciprocal_rank - baseline.reciprocal_rank)
    ndcg = params.weight_ndcg * (view.ndcg - baseline.ndcg)
    rank = params.weight_rank * (math.log1p(baseline.first_rank) - math.log1p(view.first_rank))
    margin = params.weight_margin * _compute_margin_gain(baseline.margin, view.margin)
    total = params.scale * max(params.floor, mrr + ndcg + rank + margin)
    return Reward(total=total, mrr=mrr, ndcg=ndcg, rank=rank, margin=margin)


def _compute_margin_gain(margin_full: float | None, margin_view: float | None) -> float:
    if margin_full is None and margin_view is None:  # all K candidates are positive
        return 0.0
    if margin_full is None or margin_view is None:
        raise ValueError("full image and view are not of one pool: only one of them has a margin")
    return margin_view - margin_full
