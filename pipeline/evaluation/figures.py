"""From one row per query and method to the figures of the report, each with its bootstrap interval.

Every figure is a ratio of sums over all test queries, so one bootstrap serves them all. A figure whose
denominator is empty (no crop had a target; the oracle finds nothing to gain) has no value and stays None; it
is never set to 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config import EvaluateParams
from pipeline.core.statistics.significance import (
    Interval,
    bootstrap_harmonic_mean,
    bootstrap_ratio,
    bootstrap_ratio_difference,
    randomisation_test,
)
from pipeline.evaluation.methods import METHODS
from pipeline.evaluation.query_set import number_pictures
from pipeline.types import Pool, Query, QueryResult

F64 = npt.NDArray[np.float64]
RECALL_DEPTHS = (1, 5, 10, 20)
# InfoSeek's own score is the harmonic mean over these two (Chen et al., 2023); the source tags queries so.
SPLIT_TAG = "split"
INFOSEEK_SPLITS = ("unseen_question", "unseen_entity")
INFOSEEK_METRICS = ("cond_recall_at_1", "recall_at_1")
PAIRS = (("rgrpo", "base"), ("rgrpo", "sft"), ("sft", "base"), ("rgrpo", "full"))
# Of the better r-GRPO over the best rule, as val names them.
BEST_PAIR = "rgrpo_minus_best_rule"
PAIR_METRICS = ("cond_recall_at_1", "mrr")
METRICS = (
    "mrr",
    "ndcg",
    *(f"recall_at_{depth}" for depth in RECALL_DEPTHS),
    "cond_recall_at_1",
    "rc_rate",
    "harm_rate",
    "harm_given_first",
    "malformed_rate",
    "headroom",
    "iou",
)
BREAKDOWN_METRICS = ("cond_recall_at_1", "rc_rate", "harm_rate")


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A paired difference of two methods: its interval, and p of the two-sided randomisation test."""

    mean: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """A figure of a part of the queries, with the size of that part."""

    num_queries: int
    value: Interval | None


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitScore:
    """A figure on each of InfoSeek's two splits, and InfoSeek's score: their harmonic mean.

    Attributes:
        by_split: split -> share.
        harmonic_mean: None where a split has no value.
    """

    by_split: Mapping[str, Share]
    harmonic_mean: Interval | None


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalReport:
    """All figures of one evaluation.

    Attributes:
        num_queries: all test queries; the denominator of every rate that does not say otherwise.
        num_with_positive: those whose pool holds a positive.
        provenance: hashes of parameters, data and pools, commit, seed, confidence.
        methods: method -> metric -> interval, None where there is no value.
        paired: `a_minus_b` -> metric -> difference; None where there is no value.
        choices: what val chose, as plain values; `evaluation/val_choices.py` says what lies in it.
        behaviour: how the trained policy decides; `evaluation/behaviour.py` says what lies in it.
        breakdown: tag -> value -> method -> metric -> share.
        infoseek: method -> metric -> score over InfoSeek's splits; empty unless both have test queries.
        searched: sections about searching again; `evaluation/search/figures.py` says what lies in them.
    """

    num_queries: int
    num_with_positive: int
    provenance: Mapping[str, Any]
    methods: Mapping[str, Mapping[str, Interval | None]]
    paired: Mapping[str, Mapping[str, Difference | None]]
    choices: Mapping[str, Any]
    behaviour: Mapping[str, Any]
    breakdown: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Share]]]] = field(default_factory=dict)
    infoseek: Mapping[str, Mapping[str, SplitScore]] = field(default_factory=dict)
    searched: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values; the provenance and what val chose lie at the top level."""
        tree = asdict(self)
        top_level: dict[str, Any] = tree.pop("provenance") | tree.pop("choices") | tree.pop("searched")
        return top_level | tree


class ResultTable:
    """Per-query values of every method, aligned by test query."""

    def __init__(self, results: Sequence[QueryResult], pools: Sequence[Pool]) -> None:
        self.query_ids = [pool.query_id for pool in pools]
        by_method: dict[str, dict[str, QueryResult]] = {}
        for row in results:
            by_method.setdefault(row.method, {})[row.query_id] = row
        for method, rows in by_method.items():
            if rows.keys() != set(self.query_ids):
                raise ValueError(f"method {method} must have exactly one row for each of the {len(pools)} queries")
        self.rows = {method: [rows[query_id] for query_id in self.query_ids] for method, rows in by_method.items()}
        self.has_positive_Q = np.array([pool.has_positive for pool in pools])

    def hit_at(self, method: str, depth: int) -> F64:
        """Return 1 for each query whose first positive stands within `depth`."""
        ranks = [row.first_rank for row in self.rows[method]]
        return np.array([rank is not None and rank <= depth for rank in ranks], dtype=np.float64)

    def decided(self, method: str, decision: str) -> F64:
        """Return 1 for each query with that decision."""
        return np.array([row.decision == decision for row in self.rows[method]], dtype=np.float64)

    def compute_terms(self, method: str, metric: str) -> tuple[F64, F64]:
        """Return numerator and denominator of a metric, one entry per query.

        harm_rate counts queries whose full image ranks a positive first and whose view does not, among all
        queries; harm_given_first among those the full image gets right; harm_at_K, among all queries, those whose
        full image has a positive among the first K and whose view has not. headroom is the part of the oracle's
        gain in cond_recall_at_1 that the method gets. iou averages over crops of queries with a known target.
        """
        rows = self.rows[method]
        ones = np.ones(len(rows))
        if metric == "mrr":
            return np.array([row.reciprocal_rank for row in rows]), ones
        if metric == "ndcg":
            return np.array([row.ndcg for row in rows]), ones
        if metric.startswith("recall_at_"):
            return self.hit_at(method, int(metric.removeprefix("recall_at_"))), ones
        if metric == "cond_recall_at_1":
            return self.hit_at(method, 1), self.has_positive_Q.astype(np.float64)
        if metric == "rc_rate":
            return self.decided(method, "region"), ones
        if metric == "malformed_rate":
            return self.decided(method, "malformed"), ones
        if metric == "iou":
            ious = [row.iou for row in rows]
            return np.array([iou or 0.0 for iou in ious]), np.array([float(iou is not None) for iou in ious])
        first = self.hit_at("full", 1)
        if metric == "headroom":
            return self.hit_at(method, 1) - first, self.hit_at("oracle", 1) - first
        harm = first * (1.0 - self.hit_at(method, 1))
        if metric == "harm_rate":
            return harm, ones
        if metric == "harm_given_first":
            return harm, first
        if metric.startswith("harm_at_"):
            depth = int(metric.removeprefix("harm_at_"))
            return self.hit_at("full", depth) * (1.0 - self.hit_at(method, depth)), ones
        raise ValueError(f"unknown metric {metric!r}")


def compute_report(
    table: ResultTable,
    queries: Sequence[Query],
    params: EvaluateParams,
    *,
    seed: int,
    provenance: Mapping[str, Any],
    choices: Mapping[str, Any],
    behaviour: Mapping[str, Any],
    searched: Mapping[str, Any],
) -> EvalReport:
    """Compute every figure of the report.

    Args:
        table: the rows of all methods; its pools say what counts as a query.
        queries: the test queries, in the order of the table's.
        params: number of resamples and confidence.
        seed: of the bootstrap and the randomisation test.
        provenance: hashes that name this evaluation.
        choices: plain values, from `ValChoices.as_json`.
        behaviour: plain values, from `describe_behaviour`.
        searched: plain values, from `search_again`.
    """
    bootstrap = Bootstrap(params, seed, queries)
    methods = [method for method in METHODS if method in table.rows]
    return EvalReport(
        num_queries=len(table.query_ids),
        num_with_positive=int(table.has_positive_Q.sum()),
        provenance=provenance,
        methods={m: measure(table, m, METRICS, bootstrap) for m in methods},
        paired={
            BEST_PAIR: compare_pair(table, choices["best_rgrpo"], choices["best_rule"], bootstrap),
            **{f"{a}_minus_{b}": compare_pair(table, a, b, bootstrap) for a, b in PAIRS if {a, b} <= set(methods)},
        },
        choices=choices,
        behaviour=behaviour,
        breakdown=_break_down(table, queries, methods, bootstrap),
        infoseek=_score_infoseek(table, queries, methods, bootstrap),
        searched=searched,
    )


def compute_difference(
    a_Q: F64, b_Q: F64, denominator_Q: F64, queries: Sequence[Query], params: EvaluateParams, *, seed: int
) -> Difference | None:
    """Return mean(a) - mean(b) over the queries that count, with its paired interval and p value."""
    return Bootstrap(params, seed, queries).difference(a_Q, b_Q, denominator_Q)


class Bootstrap:
    """Intervals of figures and of paired differences, from resampled pictures.

    Args:
        params: number of resamples and confidence.
        seed: fixes the draws.
        queries: those that every figure is over; queries of one picture are drawn together.
    """

    def __init__(self, params: EvaluateParams, seed: int, queries: Sequence[Query]) -> None:
        self._num_resamples = params.num_resamples
        self._confidence = params.confidence
        self._seed = seed
        self._picture_Q = number_pictures(queries)

    def interval(self, numerator_Q: F64, denominator_Q: F64) -> Interval | None:
        """Return the ratio of sums, or None where the denominator is empty."""
        if denominator_Q.sum() == 0:
            return None
        return bootstrap_ratio(
            numerator_Q,
            denominator_Q,
            num_resamples=self._num_resamples,
            confidence=self._confidence,
            seed=self._seed,
            cluster_Q=self._picture_Q,
        )

    def harmonic_mean(self, rates_Q: Sequence[tuple[F64, F64]]) -> Interval | None:
        """Return the harmonic mean of several ratios of sums, or None where a denominator is empty."""
        if any(denominator_Q.sum() == 0 for _, denominator_Q in rates_Q):
            return None
        return bootstrap_harmonic_mean(
            rates_Q,
            num_resamples=self._num_resamples,
            confidence=self._confidence,
            seed=self._seed,
            cluster_Q=self._picture_Q,
        )

    def difference(self, a_Q: F64, b_Q: F64, denominator_Q: F64) -> Difference | None:
        """Return mean(a) - mean(b) over the queries that count, or None where none does."""
        if denominator_Q.sum() == 0:
            return None
        interval = bootstrap_ratio_difference(
            a_Q,
            denominator_Q,
            b_Q,
            denominator_Q,
            num_resamples=self._num_resamples,
            confidence=self._confidence,
            seed=self._seed,
            cluster_Q=self._picture_Q,
        )
        counts = denominator_Q > 0
        p_value = randomisation_test(
            a_Q[counts],
            b_Q[counts],
            num_resamples=self._num_resamples,
            seed=self._seed,
            cluster_Q=self._picture_Q[counts],
        )
        return Difference(mean=interval.mean, low=interval.low, high=interval.high, p_value=p_value)


def measure(
    table: ResultTable, method: str, metrics: Sequence[str], bootstrap: Bootstrap
) -> dict[str, Interval | None]:
    """Return metric -> interval, None where there is no value."""
    return {metric: bootstrap.interval(*table.compute_terms(method, metric)) for metric in metrics}


def compare(table: ResultTable, a: str, b: str, metric: str, bootstrap: Bootstrap) -> Difference | None:
    """Return a minus b in a metric over the queries that count for it, None where none does."""
    a_Q, denominator_Q = table.compute_terms(a, metric)
    return bootstrap.difference(a_Q, table.compute_terms(b, metric)[0], denominator_Q)


def compare_pair(
    table: ResultTable, a: str | None, b: str | None, bootstrap: Bootstrap
) -> dict[str, Difference | None]:
    """Return metric -> a minus b, without values where val has named no such method."""
    if a is None or b is None:
        return dict.fromkeys(PAIR_METRICS)
    return {metric: compare(table, a, b, metric, bootstrap) for metric in PAIR_METRICS}


def _break_down(
    table: ResultTable, queries: Sequence[Query], methods: Sequence[str], bootstrap: Bootstrap
) -> dict[str, dict[str, dict[str, dict[str, Share]]]]:
    return {
        tag: {
            value: {m: _share_of(table, m, member_Q, bootstrap) for m in methods} for value, member_Q in values.items()
        }
        for tag, values in list_members(queries).items()
    }


def list_members(queries: Sequence[Query]) -> dict[str, dict[str, F64]]:
    """Return tag -> value -> 1 for each query that has it, 0 for the others; tags and values in order."""
    return {
        tag: {
            value: np.array([query.tags.get(tag) == value for query in queries], dtype=np.float64)
            for value in sorted({query.tags[tag] for query in queries if tag in query.tags})
        }
        for tag in sorted({tag for query in queries for tag in query.tags})
    }


def _share_of(table: ResultTable, method: str, member: F64, bootstrap: Bootstrap) -> dict[str, Share]:
    return {
        metric: _measure_share(*_terms_of(table, method, metric, member), bootstrap) for metric in BREAKDOWN_METRICS
    }


def _score_infoseek(
    table: ResultTable, queries: Sequence[Query], methods: Sequence[str], bootstrap: Bootstrap
) -> dict[str, dict[str, SplitScore]]:
    members = {
        split: np.array([query.tags.get(SPLIT_TAG) == split for query in queries], dtype=np.float64)
        for split in INFOSEEK_SPLITS
    }
    if not all(member.any() for member in members.values()):
        return {}
    tree: dict[str, dict[str, SplitScore]] = {}
    for method in methods:
        for metric in INFOSEEK_METRICS:
            terms = {split: _terms_of(table, method, metric, member) for split, member in members.items()}
            tree.setdefault(method, {})[metric] = SplitScore(
                by_split={split: _measure_share(*term, bootstrap) for split, term in terms.items()},
                harmonic_mean=bootstrap.harmonic_mean(list(terms.values())),
            )
    return tree


def _terms_of(table: ResultTable, method: str, metric: str, member: F64) -> tuple[F64, F64]:
    numerator_Q, denominator_Q = table.compute_terms(method, metric)
    return numerator_Q * member, denominator_Q * member


def _measure_share(numerator_Q: F64, denominator_Q: F64, bootstrap: Bootstrap) -> Share:
    return Share(num_queries=int(denominator_Q.sum()), value=bootstrap.interval(numerator_Q, denominator_Q))
