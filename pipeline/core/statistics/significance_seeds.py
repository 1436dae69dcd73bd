"""How sure a figure of several seeds is: bootstrap over seeds and clusters of queries; Holm's correction.

Seeds and queries are crossed, since every seed answered the same queries; `significance` says what a cluster is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pipeline.core.statistics.significance import (
    F64,
    Interval,
    check_draws,
    resample_sums,
    stack_columns,
    take_percentiles,
)


@dataclass(frozen=True, slots=True)
class Contrast(Interval):
    """A difference, its confidence interval, and how surely it is none.

    Attributes:
        p_value: two-sided; the smallest level at which the bootstrap interval leaves 0 out.
    """

    p_value: float = field(kw_only=True)


def bootstrap_seeds(
    numerator_SQ: npt.ArrayLike,
    denominator_Q: npt.ArrayLike,
    *,
    num_resamples: int,
    confidence: float,
    seed: int,
    cluster_Q: npt.ArrayLike | None = None,
) -> Interval:
    """Return the mean over seeds of `sum(numerator) / sum(denominator)`, its interval over seeds and clusters.

    Each resample draws S seeds, then clusters of queries that all of them share. With few seeds the interval is
    somewhat too narrow: a bootstrap of S values underrates their variance by (S - 1) / S, and one seed says nothing of
    the spread between seeds.

    Args:
        numerator_SQ: (S, Q) one row for each seed.
        denominator_Q: (Q,) finite numbers, none negative.
        num_resamples: draws, at least 1.
        confidence: share of the resamples inside the interval, in (0, 1).
        seed: fixes the draws.
        cluster_Q: (Q,) label of each query's cluster, such as its picture; clusters are drawn whole.

    Raises:
        ValueError: as for `significance.bootstrap_ratio`.
    """
    check_draws(num_resamples, confidence)
    mean, figure_R = _draw([numerator_SQ], denominator_Q, cluster_Q, num_resamples, seed)
    low, high = take_percentiles(figure_R, confidence)
    return Interval(mean=mean, low=low, high=high, num_ignored=num_resamples - len(figure_R))


def bootstrap_seeds_difference(
    numerator_a_SQ: npt.ArrayLike,
    numerator_b_SQ: npt.ArrayLike,
    denominator_Q: npt.ArrayLike,
    *,
    num_resamples: int,
    confidence: float,
    seed: int,
    cluster_Q: npt.ArrayLike | None = None,
) -> Contrast:
    """Return a minus b, each as in `bootstrap_seeds`: over the same resampled clusters, seeds drawn apart.

    Args:
        numerator_a_SQ: (S, Q) one row for each seed of a.
        numerator_b_SQ: (S', Q) the same queries under b.
        denominator_Q: (Q,) of both.
        num_resamples: draws, at least 1.
        confidence: share of the resamples inside the interval, in (0, 1).
        seed: fixes the draws.
        cluster_Q: (Q,) label of each query's cluster, such as its picture; clusters are drawn whole.

    Raises:
        ValueError: as for `significance.bootstrap_ratio`.
    """
    check_draws(num_resamples, confidence)
    mean, figure_R = _draw([numerator_a_SQ, numerator_b_SQ], denominator_Q, cluster_Q, num_resamples, seed)
    low, high = take_percentiles(figure_R, confidence)
    ignored = num_resamples - len(figure_R)
    return Contrast(mean=mean, low=low, high=high, num_ignored=ignored, p_value=_invert_interval(figure_R))


def adjust_holm(p_values: Sequence[float]) -> list[float]:
    """Return p values that may be read together: each at most a level keeps the family's error at that level.

    Holm (1979): the i-th smallest of m, counted from 0, is multiplied by m - i, and none falls below a smaller one's.

    Args:
        p_values: of all comparisons that were made, in [0, 1].

    Raises:
        ValueError: a p value lies outside [0, 1].
    """
    p_M = np.asarray(p_values, dtype=np.float64)
    if not ((p_M >= 0.0) & (p_M <= 1.0)).all():
        raise ValueError(f"p values must lie in [0, 1], got {list(p_values)}")
    order_M = np.argsort(p_M, kind="stable")
    steps_M = p_M[order_M] * np.arange(len(p_M), 0, -1)
    adjusted_M = np.empty_like(p_M)
    adjusted_M[order_M] = np.minimum(np.maximum.accumulate(steps_M), 1.0)
    return [float(p) for p in adjusted_M]


def _draw(
    sides_SQ: Sequence[npt.ArrayLike],
    denominator_Q: npt.ArrayLike,
    cluster_Q: npt.ArrayLike | None,
    num_resamples: int,
    seed: int,
) -> tuple[float, F64]:
    """Return first side minus the second, if there is one: as it is, and in each resample with a denominator."""
    sides = [np.atleast_2d(np.asarray(side, dtype=np.float64)) for side in sides_SQ]
    columns_QC = stack_columns(denominator_Q, *(row_Q for side in sides for row_Q in side))
    if (columns_QC[:, 0] < 0.0).any():
        raise ValueError("a denominator is negative")
    if columns_QC[:, 0].sum() == 0.0:
        raise ValueError("the denominator sums to 0: the figure is undefined")
    sums_RC = np.concatenate(list(resample_sums(columns_QC, cluster_Q, num_resamples, seed)))
    usable_RC = sums_RC[sums_RC[:, 0] > 0.0]
    if not len(usable_RC):
        raise ValueError("the denominator sums to 0 in every resample")
    rng = np.random.default_rng([seed, 1])  # apart from the draws of clusters
    figure_R = np.zeros(len(usable_RC))
    first, mean = 1, 0.0
    for side, sign in zip(sides, (1.0, -1.0), strict=False):
        num_seeds = len(side)
        drawn_RS = first + rng.integers(0, num_seeds, size=(len(usable_RC), num_seeds))
        figure_R += sign * np.take_along_axis(usable_RC, drawn_RS, axis=1).mean(axis=1) / usable_RC[:, 0]
        mean += sign * float(side.sum() / num_seeds / columns_QC[:, 0].sum())
        first += num_seeds
    return mean, figure_R


def _invert_interval(figure_R: F64) -> float:
    """Return twice the share of resamples on the far side of 0, counting one more so that no p value is 0."""
    rounding = 1e-12 * np.abs(figure_R).max()
    num_far = min((figure_R <= rounding).sum(), (figure_R >= -rounding).sum())
    return min(1.0, 2.0 * float(num_far + 1) / (len(figure_R) + 1))
