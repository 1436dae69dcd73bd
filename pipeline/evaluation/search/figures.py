"""The figures of searching again, on all queries: none is dropped because its full image's pool holds no positive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from pipeline.config import EvaluateParams
from pipeline.core.statistics.significance import Interval
from pipeline.evaluation.figures import F64, Bootstrap, Difference, ResultTable, compare, list_members, measure
from pipeline.evaluation.methods import QuerySet
from pipeline.types import QueryResult

SEARCH_METRICS: Final = (
    "recall_at_1", "recall_at_5", "recall_at_10", "recall_at_20", "mrr", "ndcg",
    "rc_rate", "harm_at_1", "harm_at_20", "malformed_rate",
)  # fmt: skip
PAIR_METRICS: Final = ("recall_at_1", "recall_at_20", "mrr")
BREAKDOWN_METRICS: Final = ("recall_at_1", "recall_at_20", "harm_at_1")
RERANKED: Final = "reranked"
"""The better r-GRPO re-ranking the full image's pool, as val names it."""


def describe_search(
    rows: Mapping[str, Sequence[QueryResult]],
    headline: str,
    best_rule: str | None,
    test: QuerySet,
    params: EvaluateParams,
    *,
    seed: int,
) -> dict[str, Any]:
    """Return the sections `search`, `paired_search` and `search_breakdown` of the report, as plain values.

    Args:
        rows: method -> what it found, one row a query; `reranked` among them.
        headline: the method that `retrieve.search_again` makes the product's own: `rgrpo` in the names of differences.
        best_rule: as val chose it; None where it could not.
        test: the queries.
        params: number of resamples and confidence.
        seed: of the bootstrap and the randomisation test.
    """
    table = ResultTable([row for method_rows in rows.values() for row in method_rows], test.pools)
    bootstrap = Bootstrap(params, seed, test.queries)
    measured = {method: measure(table, method, SEARCH_METRICS, bootstrap) for method in rows}
    others = {"full": "full", "base": "base", "best_rule": best_rule, RERANKED: RERANKED}
    shown = [method for method in dict.fromkeys(["full", best_rule, RERANKED, headline]) if method is not None]
    return {
        "search": {
            method: {metric: _plain(value) for metric, value in values.items()} for method, values in measured.items()
        },
        "paired_search": {
            f"rgrpo_minus_{name}": {
                metric: _plain(compare(table, headline, other, metric, bootstrap)) for metric in PAIR_METRICS
            }
            for name, other in others.items()
            if other is not None
        },
        "search_breakdown": {
            tag: {value: _describe_part(table, member_Q, shown, bootstrap) for value, member_Q in values.items()}
            for tag, values in list_members(test.queries).items()
        },
    }


def _describe_part(table: ResultTable, member_Q: F64, methods: Sequence[str], bootstrap: Bootstrap) -> dict[str, Any]:
    return {
        "num_queries": int(member_Q.sum()),
        "methods": {
            method: {
                metric: _plain(bootstrap.interval(table.compute_terms(method, metric)[0] * member_Q, member_Q))
                for metric in BREAKDOWN_METRICS
            }
            for method in methods
        },
    }


def _plain(value: Interval | Difference | None) -> dict[str, float] | None:
    return None if value is None else asdict(value)
