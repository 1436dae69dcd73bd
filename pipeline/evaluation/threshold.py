"""A threshold on p(REGION): crop if the policy would with at least that probability, else keep the full image.

The policy is asked once about each query, REGION forced, so that every query has a box and a p(REGION). The threshold
is chosen on val alone: of those whose harm keeps the bound, the one of highest CondRecall@1. Test is only measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from pipeline.core.significance import Interval
from pipeline.evaluation.figures import F64, Bootstrap, ResultTable
from pipeline.evaluation.measures import measure_method, rank_choices
from pipeline.evaluation.methods import Answer, Choice, QuerySet, Scorer
from pipeline.types import KeepFull

_STEEPEST: Final = 8.0
_NUM_INNER: Final = 41
THRESHOLDS: Final = (
    0.0,
    *(1.0 / (1.0 + math.exp(-logit)) for logit in np.linspace(-_STEEPEST, _STEEPEST, _NUM_INNER).tolist()),
    1.01,
)
"""Always crop, even steps of 0.4 in the log odds, never crop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ThresholdPoint:
    """What a threshold does to a set of queries; rates are shares of all of them.

    Attributes:
        threshold: crop where p(REGION) is at least this.
        rc_rate: queries cropped.
        harm_rate: queries whose full image ranks a positive first and whose crop does not.
        cond_recall_at_1: first places among the queries whose pool holds a positive; None where none does.
    """

    threshold: float
    rc_rate: float
    harm_rate: float
    cond_recall_at_1: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ThresholdFigures:
    """The section `threshold` of the report.

    Attributes:
        harm_bound: highest harm rate that a threshold may have on val.
        chosen: the threshold, None where none keeps the bound or there is no val query to judge by.
        val_curve: every threshold on val.
        test_curve: every threshold on test; nothing is chosen by it.
        test: figures of the chosen threshold on test.
    """

    harm_bound: float
    chosen: float | None
    val_curve: Sequence[ThresholdPoint]
    test_curve: Sequence[ThresholdPoint]
    test: dict[str, Interval | None]


def probe_threshold(
    val: QuerySet,
    val_answers: Sequence[Answer],
    test: QuerySet,
    test_answers: Sequence[Answer],
    scorer: Scorer,
    harm_bound: float,
    sure: Bootstrap,
    *,
    carried: float | None = None,
) -> ThresholdFigures:
    """Choose a threshold on val and measure it on test.

    Args:
        val: what the choice may see.
        val_answers: the policy's forced answers, aligned.
        test: what is measured.
        test_answers: the policy's forced answers, aligned.
        scorer: ranks the pools.
        harm_bound: highest harm rate allowed on val.
        sure: of the intervals.
        carried: a threshold that another run has chosen on its val, to be measured in place of one of our own.
    """
    val_curve = trace_curve(val, val_answers, scorer)
    chosen = choose_threshold(val_curve, harm_bound) if carried is None else carried
    choices = apply_threshold(math.inf if chosen is None else chosen, test_answers)
    figures = measure_method(rank_choices({"threshold": choices}, test, scorer), "threshold", sure)
    return ThresholdFigures(
        harm_bound=harm_bound,
        chosen=chosen,
        val_curve=val_curve,
        test_curve=trace_curve(test, test_answers, scorer),
        test=figures if chosen is not None else dict.fromkeys(figures),
    )


def trace_curve(queries: QuerySet, answers: Sequence[Answer], scorer: Scorer) -> list[ThresholdPoint]:
    """Return what each of `THRESHOLDS` does; without queries there is no curve."""
    if not queries.queries:
        return []
    forced: list[Choice] = [(answer.decision, answer.completion) for answer in answers]
    table = rank_choices({"forced": forced}, queries, scorer)
    p_region_Q = np.array([answer.p_region for answer in answers])
    return [_measure(table, threshold, (p_region_Q >= threshold).astype(np.float64)) for threshold in THRESHOLDS]


def choose_threshold(curve: Sequence[ThresholdPoint], harm_bound: float) -> float | None:
    """Return the threshold of highest CondRecall@1 whose harm rate keeps the bound; of equals the largest."""
    allowed = [
        (point.cond_recall_at_1, point.threshold)
        for point in curve
        if point.harm_rate <= harm_bound and point.cond_recall_at_1 is not None
    ]
    return max(allowed)[1] if allowed else None


def apply_threshold(threshold: float, answers: Sequence[Answer]) -> list[Choice]:
    """Return the forced answer where p(REGION) reaches the threshold, else the full image."""
    return [(answer.decision if answer.p_region >= threshold else KeepFull(), answer.completion) for answer in answers]


def _measure(table: ResultTable, threshold: float, asks_Q: F64) -> ThresholdPoint:
    full_Q, forced_Q = table.hit_at("full", 1), table.hit_at("forced", 1)
    hit_Q = asks_Q * forced_Q + (1.0 - asks_Q) * full_Q
    num_with_positive = table.has_positive_Q.sum()
    return ThresholdPoint(
        threshold=threshold,
        rc_rate=float((asks_Q * table.decided("forced", "region")).mean()),
        harm_rate=float((full_Q * (1.0 - hit_Q)).mean()),
        cond_recall_at_1=float(hit_Q.sum() / num_with_positive) if num_with_positive else None,
    )
