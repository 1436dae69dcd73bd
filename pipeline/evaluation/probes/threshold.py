"""A threshold on p(REGION): crop if the policy would with at least that probability, else keep the full image.

The policy is asked once about each query, REGION forced, so that every query has a box and a p(REGION). The threshold
is chosen on val alone: of those that are shown to keep the bound on harm (`core/risk_control.py`), the one of highest
CondRecall@1. Test is only measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from pipeline.core.statistics.risk_control import RiskLimit, compute_upper_limit, count_controlled
from pipeline.core.statistics.significance import Interval
from pipeline.evaluation.figures import Bootstrap, ResultTable
from pipeline.evaluation.measures import measure_method, rank_choices
from pipeline.evaluation.methods import Choice, QuerySet, Scorer
from pipeline.evaluation.query_set import number_pictures
from pipeline.types import Answer, KeepFull

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
        num_harmed: pictures of which at least one query is harmed so.
        cond_recall_at_1: first places among the queries whose pool holds a positive; None where none does.
    """

    threshold: float
    rc_rate: float
    harm_rate: float
    num_harmed: int
    cond_recall_at_1: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class HarmEvidence:
    """What val says of the chosen threshold's harm.

    Attributes:
        num_pictures: of val; independent draws, which queries that share a picture are not.
        num_harmed: of them, those of which at least one query is harmed.
        upper_limit: what the true share of harmed pictures stays below, at confidence 1 - `harm_level`; 0 for the
            threshold that never crops, since the full image cannot lose to itself.
    """

    num_pictures: int
    num_harmed: int
    upper_limit: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ThresholdFigures:
    """The section `threshold` of the report.

    Attributes:
        harm_bound: highest share of pictures, seen or not, that the threshold may harm.
        harm_level: chance, over the draw of val, that the chosen threshold breaks that bound.
        chosen: the threshold, above 1 where only never cropping keeps the bound; None where no val query has a
            positive in its pool, so that there is nothing to choose by.
        val: evidence that the bound is kept; None where nothing is chosen here.
        val_curve: every threshold on val.
        test_curve: every threshold on test; nothing is chosen by it.
        test: figures of the chosen threshold on test.
    """

    harm_bound: float
    harm_level: float
    chosen: float | None
    val: HarmEvidence | None
    val_curve: Sequence[ThresholdPoint]
    test_curve: Sequence[ThresholdPoint]
    test: dict[str, Interval | None]


def probe_threshold(
    val: QuerySet,
    val_answers: Sequence[Answer],
    test: QuerySet,
    test_answers: Sequence[Answer],
    scorer: Scorer,
    limit: RiskLimit,
    bootstrap: Bootstrap,
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
        limit: bound on harm and its level.
        bootstrap: of the intervals.
        carried: a threshold that another run has chosen on its val, to be measured in place of one of our own.
    """
    val_curve = trace_curve(val, val_answers, scorer)
    num_pictures = len(set(number_pictures(val.queries).tolist()))
    point = None if carried is not None else choose_threshold(val_curve, num_pictures, limit)
    chosen = carried if point is None else point.threshold
    choices = apply_threshold(math.inf if chosen is None else chosen, test_answers)
    figures = measure_method(rank_choices({"threshold": choices}, test, scorer), "threshold", bootstrap)
    return ThresholdFigures(
        harm_bound=limit.bound,
        harm_level=limit.level,
        chosen=chosen,
        val=None if point is None else _weigh_evidence(point, num_pictures, limit),
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
    picture_Q = number_pictures(queries.queries)
    return [_measure(table, threshold, p_region_Q >= threshold, picture_Q) for threshold in THRESHOLDS]


def choose_threshold(curve: Sequence[ThresholdPoint], num_pictures: int, limit: RiskLimit) -> ThresholdPoint | None:
    """Return the point of highest CondRecall@1 among those shown to keep the limit; of equals the largest threshold.

    Never cropping harms nothing whatever the data, so it needs no test and is always allowed. The others are tested
    from the largest threshold down: harm can only rise on the way, so that the first failure ends it.

    Args:
        curve: of val.
        num_pictures: of val.
        limit: bound on harm and its level.
    """
    if not curve:
        return None
    never, *tested = sorted(curve, key=lambda point: point.threshold, reverse=True)
    num_allowed = count_controlled([point.num_harmed for point in tested], num_pictures, limit)
    allowed = [
        (point.cond_recall_at_1, point.threshold, point)
        for point in (never, *tested[:num_allowed])
        if point.cond_recall_at_1 is not None
    ]
    return max(allowed, key=lambda entry: entry[:2])[2] if allowed else None


def apply_threshold(threshold: float, answers: Sequence[Answer]) -> list[Choice]:
    """Return the forced answer where p(REGION) reaches the threshold, else the full image."""
    return [(answer.decision if answer.p_region >= threshold else KeepFull(), answer.completion) for answer in answers]


def _weigh_evidence(chosen: ThresholdPoint, num_pictures: int, limit: RiskLimit) -> HarmEvidence:
    never_crops = chosen.threshold >= THRESHOLDS[-1]
    upper_limit = 0.0 if never_crops else compute_upper_limit(chosen.num_harmed, num_pictures, limit.level)
    return HarmEvidence(num_pictures=num_pictures, num_harmed=chosen.num_harmed, upper_limit=upper_limit)


def _measure(
    table: ResultTable, threshold: float, asks_Q: npt.NDArray[np.bool_], picture_Q: npt.NDArray[np.int64]
) -> ThresholdPoint:
    full_Q, forced_Q = table.hit_at("full", 1), table.hit_at("forced", 1)
    hit_Q = np.where(asks_Q, forced_Q, full_Q)
    harm_Q = full_Q * (1.0 - hit_Q)
    num_with_positive = table.has_positive_Q.sum()
    return ThresholdPoint(
        threshold=threshold,
        rc_rate=float((asks_Q * table.decided("forced", "region")).mean()),
        harm_rate=float(harm_Q.mean()),
        num_harmed=len(np.unique(picture_Q[harm_Q > 0.0])),
        cond_recall_at_1=float(hit_Q.sum() / num_with_positive) if num_with_positive else None,
    )
