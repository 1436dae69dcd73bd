"""How the trained policy behaves: the part of report.json that says more than which method wins.

by_baseline_rank   how often it crops, and how often that pays, by where the full image ranks the first positive.
threshold          what a threshold on p(REGION), chosen on val, does to gain and harm.
selection          whether choosing among sampled crops beats the greedy one.
transfer           whether the same crops help another frozen scorer, with the same candidates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from pipeline.config import EvaluateParams
from pipeline.core.statistics.risk_control import RiskLimit
from pipeline.core.statistics.significance import Interval
from pipeline.evaluation.answers.reading import ProbedPolicy
from pipeline.evaluation.figures import F64, Bootstrap, Difference, ResultTable
from pipeline.evaluation.measures import compare_methods, measure_method, rank_choices
from pipeline.evaluation.methods import Choice, QuerySet, Scorer
from pipeline.evaluation.probes.selection import probe_selection
from pipeline.evaluation.probes.threshold import probe_threshold

RANK_BUCKETS: Final = (("1", 1, 1), ("2-3", 2, 3), ("4-10", 4, 10), ("11+", 11, math.inf))
NO_POSITIVE: Final = "none"
RANKED_METHODS: Final = ("base", "sft", "rgrpo")
TRANSFERRED_METHODS: Final = ("full", "base", "rgrpo")


@dataclass(frozen=True, kw_only=True, slots=True)
class RankBucket:
    """What a method does with the queries whose full image ranks the first positive in one bucket.

    Attributes:
        num_queries: in the bucket.
        num_cropped: of them, with a well-formed crop.
        rc_rate: share cropped.
        first_when_cropped: share of the cropped whose view ranks a positive first.
        improved_when_cropped: share of the cropped whose reciprocal rank rises over the full image's.
    """

    num_queries: int
    num_cropped: int
    rc_rate: Interval | None
    first_when_cropped: Interval | None
    improved_when_cropped: Interval | None


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferFigures:
    """The section `transfer` of the report; harm is measured against the second scorer's own full image.

    Attributes:
        scorer: as params.yaml names it.
        model_type: its family.
        methods: full, base, rgrpo -> metric -> interval, under the second scorer.
        rgrpo_minus_full: difference in CondRecall@1.
    """

    scorer: str
    model_type: str
    methods: dict[str, dict[str, Interval | None]]
    rgrpo_minus_full: Difference | None


@dataclass(frozen=True, slots=True)
class SecondScorer:
    """Another frozen scorer of the test pools: how params.yaml names it, its family, and itself."""

    name: str
    model_type: str
    scorer: Scorer


def describe_behaviour(
    table: ResultTable,
    choices: Mapping[str, Sequence[Choice]],
    probed: ProbedPolicy,
    val: QuerySet,
    test: QuerySet,
    scorer: Scorer,
    second: SecondScorer | None,
    params: EvaluateParams,
    *,
    seed: int,
    carried_threshold: float | None,
) -> dict[str, Any]:
    """Return the section `behaviour` of the report as plain values.

    Args:
        table: the rows of every method on test.
        choices: the decisions behind them.
        probed: the trained policy's further answers.
        val: what the threshold is chosen on.
        test: what is measured.
        scorer: ranks both.
        second: another scorer of the test pools; without one the section `transfer` is left out.
        params: bound on harm and its level, resamples, confidence.
        seed: of the bootstrap and the randomisation test.
        carried_threshold: one that another run has chosen, None where val is to choose.
    """
    bootstrap = Bootstrap(params, seed, test.queries)
    ranked = {method: split_by_rank(table, method, bootstrap) for method in RANKED_METHODS}
    limit = RiskLimit(params.harm_bound, params.harm_level)
    threshold = probe_threshold(
        val, probed.forced_val, test, probed.forced_test, scorer, limit, bootstrap, carried=carried_threshold
    )
    selection = probe_selection(test, choices["rgrpo"], probed.samples, scorer, probed.num_samples, bootstrap)
    tree: dict[str, Any] = {
        "by_baseline_rank": {
            method: {name: asdict(bucket) for name, bucket in buckets.items()} for method, buckets in ranked.items()
        },
        "threshold": asdict(threshold),
        "selection": asdict(selection),
    }
    if second is not None:
        tree["transfer"] = asdict(probe_transfer(choices, test, second, bootstrap))
    return tree


def split_by_rank(table: ResultTable, method: str, bootstrap: Bootstrap) -> dict[str, RankBucket]:
    """Return bucket of the full image's first rank -> what the method does there."""
    ranks = [row.first_rank for row in table.rows["full"]]
    members = {
        name: np.array([rank is not None and low <= rank <= high for rank in ranks], dtype=np.float64)
        for name, low, high in RANK_BUCKETS
    }
    members[NO_POSITIVE] = np.array([rank is None for rank in ranks], dtype=np.float64)
    return {name: _fill_bucket(table, method, member_Q, bootstrap) for name, member_Q in members.items()}


def probe_transfer(
    choices: Mapping[str, Sequence[Choice]], test: QuerySet, second: SecondScorer, bootstrap: Bootstrap
) -> TransferFigures:
    """Rank the same pools by the same views with another scorer; no policy is asked again."""
    table = rank_choices({name: choices[name] for name in TRANSFERRED_METHODS}, test, second.scorer)
    return TransferFigures(
        scorer=second.name,
        model_type=second.model_type,
        methods={name: measure_method(table, name, bootstrap) for name in TRANSFERRED_METHODS},
        rgrpo_minus_full=compare_methods(table, "rgrpo", "full", bootstrap),
    )


def _fill_bucket(table: ResultTable, method: str, member_Q: F64, bootstrap: Bootstrap) -> RankBucket:
    cropped_Q = table.decided(method, "region") * member_Q
    rises = [
        row.reciprocal_rank > full.reciprocal_rank
        for row, full in zip(table.rows[method], table.rows["full"], strict=True)
    ]
    return RankBucket(
        num_queries=int(member_Q.sum()),
        num_cropped=int(cropped_Q.sum()),
        rc_rate=bootstrap.interval(cropped_Q, member_Q),
        first_when_cropped=bootstrap.interval(cropped_Q * table.hit_at(method, 1), cropped_Q),
        improved_when_cropped=bootstrap.interval(cropped_Q * np.array(rises, dtype=np.float64), cropped_Q),
    )
