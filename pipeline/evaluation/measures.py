"""The figures that two or more sections of the behaviour share: those of sets of choices under one scorer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pipeline.core.statistics.significance import Interval
from pipeline.evaluation.figures import METRICS, Bootstrap, Difference, ResultTable, compare, measure
from pipeline.evaluation.methods import Choice, QuerySet, Scorer, choose_full
from pipeline.evaluation.rows import score_choices

CHOICE_METRICS: Final = tuple(name for name in METRICS if name != "headroom")
"""Headroom is a share of the oracle's gain, and there is no oracle here."""


def rank_choices(choices: Mapping[str, Sequence[Choice]], queries: QuerySet, scorer: Scorer) -> ResultTable:
    """Return the rows of the full image, which harm is measured against, and of every set of choices."""
    every = {"full": choose_full(queries.queries)} | dict(choices)
    return ResultTable(
        [
            row
            for name, chosen in every.items()
            for row in score_choices(name, chosen, queries.queries, queries.pools, scorer)
        ],
        queries.pools,
    )


def measure_method(table: ResultTable, method: str, bootstrap: Bootstrap) -> dict[str, Interval | None]:
    """Return metric -> interval, None where there is no value."""
    return measure(table, method, CHOICE_METRICS, bootstrap)


def compare_methods(table: ResultTable, a: str, b: str, bootstrap: Bootstrap) -> Difference | None:
    """Return a minus b in CondRecall@1, None where no pool holds a positive."""
    return compare(table, a, b, "cond_recall_at_1", bootstrap)
