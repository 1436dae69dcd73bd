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


def compute_search_outcome(
    scores_P: npt.ArrayLike, num_above_P: npt.ArrayLike, best_negative: float, depth: int
) -> Outcome:
    """Return how a search of the whole corpus ranks a query's relevant documents; every one of them has a score.

    A first rank of `depth + 1` stands for any beyond the depth, where nobody looks: reciprocal rank and NDCG are then
    0. Of equal scores the relevant document comes first. `margin = mean(scores_P) - best_negative`.

    Args:
        scores_P: (P,) score of each relevant document.
        num_above_P: (P,) documents that are not relevant and score higher, for each of them.
        best_negative: highest score of a document that is not relevant; -inf where there is none.
        depth: last rank that counts as found, at least 1; NDCG is at this depth.

    Raises:
        ValueError: no relevant document, shapes differ, a score is not finite, or the depth is below 1.
    """
    scores, above = np.asarray(scores_P, dtype=np.float64), np.asarray(num_above_P, dtype=np.int64)
    if scores.ndim != 1 or scores.size == 0 or scores.shape != above.shape or depth < 1:
        raise ValueError(f"got scores {scores.shape}, counts {above.shape} and depth {depth}")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite numbers")
    order = np.argsort(-scores, kind="stable")
    ranks = above[order] + np.arange(1, scores.size + 1)
    found = ranks[ranks <= depth]
    ideal = 1.0 / np.log2(np.arange(2, min(scores.size, depth) + 2))
    return Outcome(
        first_rank=int(min(ranks[0], depth + 1)),
        reciprocal_rank=compute_reciprocal_rank(int(found[0]) if found.size else None),
        ndcg=float((1.0 / np.log2(1 + found)).sum() / ideal.sum()),
        margin=float(scores.mean() - best_negative) if np.isfinite(best_negative) else None,
    )


def _compute_margin(scores_K: npt.NDArray[Any], relevance_K: npt.NDArray[np.bool_]) -> float | None:
    if not relevance_K.any() or relevance_K.all():
        return None
    return float(scores_K[relevance_K].mean() - scores_K[~relevance_K].max())
