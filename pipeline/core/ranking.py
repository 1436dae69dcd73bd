"""From scores of a pool to its order and to the `Outcome` of a view."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.metrics import compute_ndcg, compute_reciprocal_rank
from pipeline.types import Outcome


def rank_candidates(scores_K: npt.ArrayLike) -> npt.NDArray[np.intp]:
    """Return candidate positions, best score first; equal scores keep the pool's order.

    Raises:
        ValueError: the scores are not a non-empty vector of finite numbers.
    """
    scores = np.asarray(scores_K, dtype=np.float64)
    if scores.ndim != 1 or scores.size == 0 or not np.isfinite(scores).all():
        raise ValueError("scores must be a non-empty vector of finite numbers")
    return np.argsort(-scores, kind="stable")


def compute_outcome(scores_K: npt.ArrayLike, relevance_K: npt.ArrayLike, num_relevant: int) -> Outcome:
    """Return how these scores rank the pool (paper, section 3).

    `margin = mean(scores of positives) - max(scores of negatives)`; NDCG is binary, at K.

    Args:
        scores_K: (K,) score of each candidate, in the pool's order.
        relevance_K: (K,) booleans, in the same order.
        num_relevant: relevant documents in the whole corpus, at least those in the pool.

    Raises:
        ValueError: shapes differ, a score is not finite, or the pool holds more positives than
            `num_relevant`.
    """
    scores = np.asarray(scores_K, dtype=np.float64)
    relevance = np.asarray(relevance_K, dtype=bool)
    order = rank_candidates(scores)
    if relevance.shape != scores.shape:
        raise ValueError(f"scores and relevance differ in shape: {scores.shape} and {relevance.shape}")
    relevance_in_order = relevance[order]
    first_rank = int(np.argmax(relevance_in_order)) + 1 if relevance.any() else None
    return Outcome(
        first_rank=first_rank,
        reciprocal_rank=compute_reciprocal_rank(first_rank),
        ndcg=compute_ndcg(relevance_in_order, num_relevant),
        margin=_compute_margin(scores, relevance),
    )


def _compute_margin(scores_K: npt.NDArray[Any], relevance_K: npt.NDArray[np.bool_]) -> float | None:
    if not relevance_K.any() or relevance_K.all():
        return None
    return float(scores_K[relevance_K].mean() - scores_K[~relevance_K].max())
