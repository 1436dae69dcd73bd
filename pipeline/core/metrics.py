"""Per-query measures; the mean over queries is the report's. A query without a positive counts as 0."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def compute_reciprocal_rank(first_rank: int | None) -> float:
    """Return 1 / first_rank, 0 without a positive; its mean over queries is MRR (Voorhees, TREC-8 QA track).

    Raises:
        ValueError: `first_rank` is below 1.
    """
    _check_rank(first_rank)
    return 0.0 if first_rank is None else 1.0 / first_rank


def compute_hit_at(first_rank: int | None, k: int) -> float:
    """Return 1 if a positive stands among the first k, else 0; its mean is the paper's R@k.

    TREC calls it Success@k.

    Raises:
        ValueError: `first_rank` or `k` is below 1.
    """
    _check_rank(first_rank)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return float(first_rank is not None and first_rank <= k)


def compute_ndcg(relevance_in_order: npt.ArrayLike, num_relevant: int) -> float:
    """Return binary NDCG at the length of the list (Järvelin and Kekäläinen, 2002).

    `sum_i relevance_i / log2(1 + i)` over the same sum with `min(num_relevant, K)` positives on top.

    Args:
        relevance_in_order: (K,) booleans, best candidate first.
        num_relevant: relevant documents in the whole corpus; 0 gives 0.

    Returns:
        A value in [0, 1].

    Raises:
        ValueError: the list is empty or no vector, or holds more positives than `num_relevant`.
    """
    relevance = np.asarray(relevance_in_order, dtype=bool)
    if relevance.ndim != 1 or relevance.size == 0:
        raise ValueError("relevance must be a non-empty vector")
    if relevance.sum() > num_relevant:
        raise ValueError(f"{relevance.sum()} relevant in the list, but num_relevant is {num_relevant}")
    if not relevance.any():
        return 0.0
    discounts = 1.0 / np.log2(np.arange(2, relevance.size + 2))
    ideal = discounts[:num_relevant].sum()
    return min(1.0, float(discounts[relevance].sum() / ideal))


def compute_conditional_recall(hit_Q: npt.ArrayLike, answerable_Q: npt.ArrayLike) -> float:
    """Return the paper's CondRecall: hits over queries whose pool holds a positive, as a ratio of sums.

    Args:
        hit_Q: (Q,) 1 where a positive stands among the first k, else 0.
        answerable_Q: (Q,) 1 where the pool holds a positive, else 0.

    Raises:
        ValueError: shapes differ, a query hits without a positive in its pool, or no pool holds one.
    """
    hit, answerable = np.asarray(hit_Q, dtype=np.float64), np.asarray(answerable_Q, dtype=np.float64)
    if hit.shape != answerable.shape:
        raise ValueError(f"hits and answerable queries differ in shape: {hit.shape} and {answerable.shape}")
    if (hit > answerable).any():
        raise ValueError("a query hits although its pool holds no positive")
    if answerable.sum() == 0.0:
        raise ValueError("no query's pool holds a positive: CondRecall is undefined")
    return float(hit.sum() / answerable.sum())


def compute_harmonic_mean(rates: npt.ArrayLike) -> float:
    """Return `n / sum(1 / rate)`: InfoSeek's score over unseen_question and unseen_entity (Chen et al., 2023).

    A rate of 0 gives 0, the limit; InfoSeek's own script puts 1e-12 in its place.

    Args:
        rates: (n,) rates in [0, 1], one for each split.

    Raises:
        ValueError: there are no rates, or one lies outside [0, 1].
    """
    values = np.asarray(rates, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError("rates must be a non-empty vector")
    if not ((values >= 0.0) & (values <= 1.0)).all():
        raise ValueError(f"rates must lie in [0, 1], got {values.tolist()}")
    least = values.min()
    if least == 0.0:
        return 0.0
    # Relative to the least rate, because the reciprocal of a subnormal number overflows.
    return float(values.size * least / (least / values).sum())


def _check_rank(first_rank: int | None) -> None:
    if first_rank is not None and first_rank < 1:
        raise ValueError(f"ranks start at 1, got {first_rank}")
