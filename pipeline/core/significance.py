"""How sure a figure is: percentile bootstrap over queries, and over seeds too, and a paired randomisation test.

Every figure of the report is a ratio of sums over queries (a mean has 1 in the denominator, CondRecall
whether the pool holds a positive), so that one bootstrap serves all (Efron and Tibshirani, 1993; for
retrieval, Smucker, Allan and Carterette, 2007).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.core.metrics import compute_harmonic_mean

F64 = npt.NDArray[np.float64]

_CHUNK_CELLS = 2_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and its confidence interval.

    Attributes:
        mean: the figure over the queries as they are.
        low: lower bound.
        high: upper bound.
        num_ignored: resamples that were left out because a denominator was empty.
    """

    mean: float
    low: float
    high: float
    num_ignored: int = 0


def bootstrap_ratio(
    numerator_Q: npt.ArrayLike,
    denominator_Q: npt.ArrayLike,
    *,
    num_resamples: int,
    confidence: float,
    seed: int,
) -> Interval:
    """Return `sum(numerator) / sum(denominator)` with its percentile bootstrap interval over queries.

    Args:
        numerator_Q: (Q,) finite numbers.
        denominator_Q: (Q,) finite numbers, none negative.
        num_resamples: draws of Q queries with replacement, at least 1.
        confidence: share of the resamples inside the interval, in (0, 1).
        seed: fixes the draws.

    Raises:
        ValueError: an argument is out of range, the denominator sums to 0, or it does in every resample.
    """
    columns_QC = _stack(numerator_Q, denominator_Q)
    return _bootstrap(columns_QC, _take_first, num_resamples=num_resamples, confidence=confidence, seed=seed)


def bootstrap_ratio_difference(
    numerator_a_Q: npt.ArrayLike,
    denominator_a_Q: npt.ArrayLike,
    numerator_b_Q: npt.ArrayLike,
    denominator_b_Q: npt.ArrayLike,
    *,
    num_resamples: int,
    confidence: float,
    seed: int,
) -> Interval:
    """Return the ratio of a minus the ratio of b, paired: both are taken over the same resampled queries.

    Args:
        numerator_a_Q: (Q,) as in `bootstrap_ratio`.
        denominator_a_Q: (Q,).
        numerator_b_Q: (Q,) the same queries under b.
        denominator_b_Q: (Q,).
        num_resamples: draws of Q queries with replacement, at least 1.
        confidence: share of the resamples inside the interval, in (0, 1).
        seed: fixes the draws; the same as for `bootstrap_ratio` gives the same resamples.

    Raises:
        ValueError: as for `bootstrap_ratio`.
    """
    columns_QC = _stack(numerator_a_Q, denominator_a_Q, numerator_b_Q, denominator_b_Q)
    return _bootstrap(columns_QC, _subtract, num_resamples=num_resamples, confidence=confidence, seed=seed)


def bootstrap_harmonic_mean(
    rates_Q: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]],
    *,
    num_resamples: int,
    confidence: float,
    seed: int,
) -> Interval:
    """Return the harmonic mean of several rates over the same queries, such as InfoSeek's score over its two splits.

    Args:
        rates_Q: numerator and denominator of each rate, as in `bootstrap_ratio`; no rate above 1.
        num_resamples: draws of Q queries with replacement, at least 1; one that empties a denominator is left out.
        confidence: share of the resamples inside the interval, in (0, 1).
        seed: fixes the draws; the same as for `bootstrap_ratio` gives the same resamples.

    Raises:
        ValueError: as for `bootstrap_ratio`, or a rate lies outside [0, 1].
    """
    columns_QC = _stack(*(column for rate in rates_Q for column in rate))
    return _bootstrap(columns_QC, _average, num_resamples=num_resamples, confidence=confidence, seed=seed)


def bootstrap_seeds(
    numerator_SQ: npt.ArrayLike, denominator_Q: npt.ArrayLike, *, num_resamples: int, confidence: float, seed: int
) -> Interval:
    """Return the mean over seeds of `sum(numerator) / sum(denominator)`, its interval over seeds and queries.

    Each resample draws S seeds, then Q queries that all of them share: seeds and queries are crossed, since every
    seed answered the same queries. With few seeds the interval is somewhat too narrow: a bootstrap of S values
    underrates their variance by (S - 1) / S, and one seed says nothing of the spread between seeds.

    Args:
        numerator_SQ: (S, Q) one row for each seed.
        denominator_Q: (Q,) finite numbers, none negative.
        num_resamples: draws, at least 1.
        confidence: share of the resamples inside the interval, in (0, 1).
        seed: fixes the draws.

    Raises:
        ValueError: as for `bootstrap_ratio`.
    """
    return _bootstrap_seeds([numerator_SQ], denominator_Q, num_resamples, confidence, seed)


def bootstrap_seeds_difference(
    numerator_a_SQ: npt.ArrayLike,
    numerator_b_SQ: npt.ArrayLike,
    denominator_Q: npt.ArrayLike,
    *,
    num_resamples: int,
    confidence: float,
    seed: int,
) -> Interval:
    """Return a minus b, each as in `bootstrap_seeds`: over the same resampled queries, seeds drawn apart.

    Args:
        numerator_a_SQ: (S, Q) one row for each seed of a.
        numerator_b_SQ: (S', Q) the same queries under b.
        denominator_Q: (Q,) of both.
        num_resamples: draws, at least 1.
        confidence: share of the resamples inside the interval, in (0, 1).
        seed: fixes the draws.

    Raises:
        ValueError: as for `bootstrap_ratio`.
    """
    return _bootstrap_seeds([numerator_a_SQ, numerator_b_SQ], denominator_Q, num_resamples, confidence, seed)


def randomisation_test(a_Q: npt.ArrayLike, b_Q: npt.ArrayLike, *, num_resamples: int, seed: int) -> float:
    """Return the two-sided p value that a and b differ in mean (Fisher's test by sign flipping).

    `(hits + 1) / (num_resamples + 1)`, a hit being random signs whose |sum of differences| reaches the
    observed.

    Args:
        a_Q: (Q,) per-query values under a.
        b_Q: (Q,) the same queries under b.
        num_resamples: random sign vectors, at least 1.
        seed: fixes the signs.

    Raises:
        ValueError: shapes differ, there is no query, a value is not finite, or `num_resamples` is below 1.
    """
    columns_QC = _stack(a_Q, b_Q)
    _check_resamples(num_resamples)
    difference_Q = columns_QC[:, 0] - columns_QC[:, 1]
    threshold = abs(difference_Q.sum()) - 1e-12 * np.abs(difference_Q).sum()
    rng = np.random.default_rng(seed)
    num_hits = 0
    for num_rows in _chunk(num_resamples, difference_Q.size):
        signs_RQ = rng.integers(0, 2, size=(num_rows, difference_Q.size), dtype=np.int8) * 2.0 - 1.0
        num_hits += int((np.abs(signs_RQ @ difference_Q) >= threshold).sum())
    return (num_hits + 1) / (num_resamples + 1)


def _bootstrap_seeds(
    sides_SQ: Sequence[npt.ArrayLike],
    denominator_Q: npt.ArrayLike,
    num_resamples: int,
    confidence: float,
    seed: int,
) -> Interval:
    sides = [np.atleast_2d(np.asarray(side, dtype=np.float64)) for side in sides_SQ]
    columns_QC = _stack(denominator_Q, *(row_Q for side in sides for row_Q in side))
    _check_draws(num_resamples, confidence)
    if (columns_QC[:, 0] < 0.0).any():
        raise ValueError("a denominator is negative")
    if columns_QC[:, 0].sum() == 0.0:
        raise ValueError("the denominator sums to 0: the figure is undefined")
    sums_RC = np.concatenate(list(_resample_sums(columns_QC, num_resamples, seed)))
    usable_RC = sums_RC[sums_RC[:, 0] > 0.0]
    if not len(usable_RC):
        raise ValueError("the denominator sums to 0 in every resample")
    rng = np.random.default_rng([seed, 1])  # apart from the draws of queries
    figure_R = np.zeros(len(usable_RC))
    first, mean = 1, 0.0
    for side, sign in zip(sides, (1.0, -1.0), strict=False):
        num_seeds = len(side)
        drawn_RS = first + rng.integers(0, num_seeds, size=(len(usable_RC), num_seeds))
        figure_R += sign * np.take_along_axis(usable_RC, drawn_RS, axis=1).mean(axis=1) / usable_RC[:, 0]
        mean += sign * float(side.sum() / num_seeds / columns_QC[:, 0].sum())
        first += num_seeds
    low, high = np.quantile(figure_R, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return Interval(mean=mean, low=float(low), high=float(high), num_ignored=int(num_resamples - len(usable_RC)))


def _bootstrap(
    columns_QC: F64, combine: Callable[[F64], F64], *, num_resamples: int, confidence: float, seed: int
) -> Interval:
    """Return a figure and its interval; `combine` makes it of the ratios of each resample, (R, ratios) -> (R,)."""
    _check_draws(num_resamples, confidence)
    if (columns_QC[:, 1::2] < 0.0).any():
        raise ValueError("a denominator is negative")
    sums_1C = columns_QC.sum(axis=0, keepdims=True)
    if (sums_1C[:, 1::2] == 0.0).any():
        raise ValueError("the denominator sums to 0: the figure is undefined")
    sums_RC = np.concatenate(list(_resample_sums(columns_QC, num_resamples, seed)))
    usable_R = (sums_RC[:, 1::2] > 0.0).all(axis=1)
    if not usable_R.any():
        raise ValueError("the denominator sums to 0 in every resample")
    figure_R = combine(_divide(sums_RC[usable_R]))
    low, high = np.quantile(figure_R, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return Interval(
        mean=float(combine(_divide(sums_1C))[0]),
        low=float(low),
        high=float(high),
        num_ignored=int(num_resamples - usable_R.sum()),
    )


def _resample_sums(
    columns_QC: npt.NDArray[np.float64], num_resamples: int, seed: int
) -> Iterator[npt.NDArray[np.float64]]:
    """Yield column sums of resamples: how often each query is drawn is multinomial with equal chances."""
    num_queries = columns_QC.shape[0]
    rng = np.random.default_rng(seed)
    for num_rows in _chunk(num_resamples, num_queries):
        drawn_RQ = rng.integers(0, num_queries, size=(num_rows, num_queries))
        drawn_RQ += num_queries * np.arange(num_rows)[:, None]
        counts_RQ = np.bincount(drawn_RQ.ravel(), minlength=drawn_RQ.size).reshape(drawn_RQ.shape)
        yield counts_RQ.astype(np.float64) @ columns_QC


def _divide(sums_RC: F64) -> F64:
    ratios: F64 = sums_RC[:, 0::2] / sums_RC[:, 1::2]
    return ratios


def _take_first(ratios_R1: F64) -> F64:
    return ratios_R1[:, 0]


def _subtract(ratios_R2: F64) -> F64:
    difference_R: F64 = ratios_R2[:, 0] - ratios_R2[:, 1]
    return difference_R


def _average(ratios_RS: F64) -> F64:
    return np.array([compute_harmonic_mean(ratios_S) for ratios_S in ratios_RS])


def _chunk(num_resamples: int, num_queries: int) -> Iterator[int]:
    rows = max(1, _CHUNK_CELLS // num_queries)
    for done in range(0, num_resamples, rows):
        yield min(rows, num_resamples - done)


def _stack(*columns: npt.ArrayLike) -> npt.NDArray[np.float64]:
    arrays = [np.asarray(column, dtype=np.float64) for column in columns]
    if arrays[0].ndim != 1 or arrays[0].size == 0 or any(array.shape != arrays[0].shape for array in arrays):
        raise ValueError(f"need non-empty vectors over the same queries, got {[array.shape for array in arrays]}")
    stacked = np.stack(arrays, axis=1)
    if not np.isfinite(stacked).all():
        raise ValueError("values must be finite")
    return stacked


def _check_resamples(num_resamples: int) -> None:
    if num_resamples < 1:
        raise ValueError(f"num_resamples must be at least 1, got {num_resamples}")


def _check_draws(num_resamples: int, confidence: float) -> None:
    _check_resamples(num_resamples)
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
