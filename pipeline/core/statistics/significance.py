"""How sure a figure is: percentile bootstrap over pictures, and a paired randomisation test.

Every figure of the report is a ratio of sums over queries (a mean has 1 in the denominator, CondRecall
whether the pool holds a positive), so that one bootstrap serves all (Efron and Tibshirani, 1993; for
retrieval, Smucker, Allan and Carterette, 2007).

Questions about one picture fail and succeed together, so queries are no independent draws where they share one. What
is drawn is therefore the cluster, whole: `cluster_Q` says which queries belong together (the cluster bootstrap; Field
and Welsh, 2007). Without it each query is a cluster of its own, and so it is where all clusters differ: the draws are
the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from pipeline.core.metrics import compute_harmonic_mean

F64 = npt.NDArray[np.float64]

_CHUNK_CELLS = 2_000_000
# An evaluation asks for hundreds of intervals over the same queries, all from the same draws: 2,000 resamples of 1,000
# queries are 4 MB. Above 128 MB they are drawn anew each time.
_KEPT_CELLS = 64_000_000


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
    cluster_Q: npt.ArrayLike | None = None,
) -> Interval:
    """Return `sum(numerator) / sum(denominator)` with its percentile bootstrap interval over clusters of queries.

    Args:
        numerator_Q: (Q,) finite numbers.
        denominator_Q: (Q,) finite numbers, none negative.
        num_resamples: draws, each of as many clusters as there are, with replacement; at least 1.
        confidence: share of the resamples inside the interval, in (0, 1).
        seed: fixes the draws.
        cluster_Q: (Q,) label of each query's cluster, such as its picture; clusters are drawn whole.

    Raises:
        ValueError: an argument is out of range, the denominator sums to 0, or it does in every resample.
    """
    columns_QC = stack_columns(numerator_Q, denominator_Q)
    return _bootstrap(columns_QC, _take_first, cluster_Q, num_resamples, confidence, seed)


def bootstrap_ratio_difference(
    numerator_a_Q: npt.ArrayLike,
    denominator_a_Q: npt.ArrayLike,
    numerator_b_Q: npt.ArrayLike,
    denominator_b_Q: npt.ArrayLike,
    *,
    num_resamples: int,
    confidence: float,
    seed: int,
    cluster_Q: npt.ArrayLike | None = None,
) -> Interval:
    """Return the ratio of a minus the ratio of b, paired: both are taken over the same resampled clusters.

    Args:
        numerator_a_Q: (Q,) as in `bootstrap_ratio`.
        denominator_a_Q: (Q,).
        numerator_b_Q: (Q,) the same queries under b.
        denominator_b_Q: (Q,).
        num_resamples: draws, each of as many clusters as there are, with replacement; at least 1.
        confidence: share of the resamples inside the interval, in (0, 1).
        seed: fixes the draws; the same as for `bootstrap_ratio` gives the same resamples.
        cluster_Q: (Q,) label of each query's cluster, such as its picture; clusters are drawn whole.

    Raises:
        ValueError: as for `bootstrap_ratio`.
    """
    columns_QC = stack_columns(numerator_a_Q, denominator_a_Q, numerator_b_Q, denominator_b_Q)
    return _bootstrap(columns_QC, _subtract, cluster_Q, num_resamples, confidence, seed)


def bootstrap_harmonic_mean(
    rates_Q: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]],
    *,
    num_resamples: int,
    confidence: float,
    seed: int,
    cluster_Q: npt.ArrayLike | None = None,
) -> Interval:
    """Return the harmonic mean of several rates over the same queries, such as InfoSeek's score over its two splits.

    Args:
        rates_Q: numerator and denominator of each rate, as in `bootstrap_ratio`; no rate above 1.
        num_resamples: as in `bootstrap_ratio`; a draw that empties a denominator is left out.
        confidence: share of the resamples inside the interval, in (0, 1).
        seed: fixes the draws; the same as for `bootstrap_ratio` gives the same resamples.
        cluster_Q: (Q,) label of each query's cluster, such as its picture; clusters are drawn whole.

    Raises:
        ValueError: as for `bootstrap_ratio`, or a rate lies outside [0, 1].
    """
    columns_QC = stack_columns(*(column for rate in rates_Q for column in rate))
    return _bootstrap(columns_QC, _average, cluster_Q, num_resamples, confidence, seed)


def randomisation_test(
    a_Q: npt.ArrayLike, b_Q: npt.ArrayLike, *, num_resamples: int, seed: int, cluster_Q: npt.ArrayLike | None = None
) -> float:
    """Return the two-sided p value that a and b differ in mean (Fisher's test by sign flipping).

    `(hits + 1) / (num_resamples + 1)`, a hit being random signs whose |sum of differences| reaches the
    observed. If a and b are alike, they may be swapped for a whole cluster, not for one query of it, so that a cluster
    has one sign.

    Args:
        a_Q: (Q,) per-query values under a.
        b_Q: (Q,) the same queries under b.
        num_resamples: random sign vectors, at least 1.
        seed: fixes the signs.
        cluster_Q: (Q,) label of each query's cluster; its queries get one sign.

    Raises:
        ValueError: shapes differ, there is no query, a value is not finite, or `num_resamples` is below 1.
    """
    columns_QC = stack_columns(a_Q, b_Q)
    _check_resamples(num_resamples)
    difference_G = _sum_clusters(columns_QC[:, :1] - columns_QC[:, 1:], cluster_Q)[:, 0]
    # Rounding must not turn a tie into a miss.
    threshold = abs(difference_G.sum()) - 1e-12 * np.abs(difference_G).sum()
    rng = np.random.default_rng(seed)
    num_hits = 0
    for num_rows in _chunk(num_resamples, difference_G.size):
        signs_RG = rng.integers(0, 2, size=(num_rows, difference_G.size), dtype=np.int8) * 2.0 - 1.0
        num_hits += int((np.abs(signs_RG @ difference_G) >= threshold).sum())
    return (num_hits + 1) / (num_resamples + 1)


def _bootstrap(
    columns_QC: F64,
    combine: Callable[[F64], F64],
    cluster_Q: npt.ArrayLike | None,
    num_resamples: int,
    confidence: float,
    seed: int,
) -> Interval:
    """Return a figure and its interval; `combine` makes it of the ratios of each resample, (R, ratios) -> (R,)."""
    check_draws(num_resamples, confidence)
    if (columns_QC[:, 1::2] < 0.0).any():
        raise ValueError("a denominator is negative")
    sums_1C = columns_QC.sum(axis=0, keepdims=True)
    if (sums_1C[:, 1::2] == 0.0).any():
        raise ValueError("the denominator sums to 0: the figure is undefined")
    sums_RC = np.concatenate(list(resample_sums(columns_QC, cluster_Q, num_resamples, seed)))
    usable_R = (sums_RC[:, 1::2] > 0.0).all(axis=1)
    if not usable_R.any():
        raise ValueError("the denominator sums to 0 in every resample")
    figure_R = combine(_divide(sums_RC[usable_R]))
    low, high = take_percentiles(figure_R, confidence)
    return Interval(
        mean=float(combine(_divide(sums_1C))[0]),
        low=low,
        high=high,
        num_ignored=int(num_resamples - usable_R.sum()),
    )


def resample_sums(
    columns_QC: F64, cluster_Q: npt.ArrayLike | None, num_resamples: int, seed: int
) -> Iterator[npt.NDArray[np.float64]]:
    """Yield column sums of resamples, (R, C) a chunk: how often each cluster is drawn is multinomial, chances equal."""
    # A figure needs sums only, so a cluster that is drawn whole is one row: the sum of its queries.
    columns_GC = _sum_clusters(columns_QC, cluster_Q)
    num_clusters = columns_GC.shape[0]
    keep = num_resamples * num_clusters <= _KEPT_CELLS
    for counts_RG in (_keep_draws if keep else _draw)(num_clusters, num_resamples, seed):
        yield counts_RG.astype(np.float64) @ columns_GC


@lru_cache(maxsize=2)
def _keep_draws(num_clusters: int, num_resamples: int, seed: int) -> tuple[npt.NDArray[np.uint16], ...]:
    return tuple(_draw(num_clusters, num_resamples, seed))


def _draw(num_clusters: int, num_resamples: int, seed: int) -> Iterator[npt.NDArray[np.uint16]]:
    """Yield how often each resample holds each cluster, (R, G) a chunk."""
    rng = np.random.default_rng(seed)
    for num_rows in _chunk(num_resamples, num_clusters):
        drawn_RG = rng.integers(0, num_clusters, size=(num_rows, num_clusters))
        drawn_RG += num_clusters * np.arange(num_rows)[:, None]
        counts_RG = np.bincount(drawn_RG.ravel(), minlength=drawn_RG.size).reshape(drawn_RG.shape)
        yield counts_RG.astype(np.uint16)


def _sum_clusters(columns_QC: F64, cluster_Q: npt.ArrayLike | None) -> F64:
    """Return one row for each cluster, in the order of their first queries; without clusters the rows as they are."""
    if cluster_Q is None:
        return columns_QC
    labels_Q = np.asarray(cluster_Q)
    if labels_Q.shape != columns_QC.shape[:1]:
        raise ValueError(f"need one cluster for each of {len(columns_QC)} queries, got shape {labels_Q.shape}")
    _, first_G, sorted_Q = np.unique(labels_Q, return_index=True, return_inverse=True)
    # np.unique sorts by label. The draws must not depend on labels, and clusters of one query must change nothing.
    place_G = np.argsort(np.argsort(first_G))
    columns_GC = np.zeros((len(first_G), columns_QC.shape[1]))
    np.add.at(columns_GC, place_G[sorted_Q], columns_QC)
    return columns_GC


def take_percentiles(figure_R: F64, confidence: float) -> tuple[float, float]:
    """Return the bounds that leave equal shares of the resamples on both sides, (1 - confidence) / 2 each."""
    low, high = np.quantile(figure_R, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return float(low), float(high)


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


def _chunk(num_resamples: int, num_clusters: int) -> Iterator[int]:
    rows = max(1, _CHUNK_CELLS // num_clusters)
    for done in range(0, num_resamples, rows):
        yield min(rows, num_resamples - done)


def stack_columns(*columns: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return vectors over the same queries as the columns of one array, (Q, C).

    Raises:
        ValueError: there is no query, lengths differ, or a value is not finite.
    """
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


def check_draws(num_resamples: int, confidence: float) -> None:
    """Refuse numbers that no bootstrap can be drawn with.

    Raises:
        ValueError: fewer than one resample, or a confidence outside (0, 1).
    """
    _check_resamples(num_resamples)
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
