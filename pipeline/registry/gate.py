"""The gate of the registry: what a new version must beat on val to become champion, and how it stands to that.

The lower end of the paired bootstrap interval of the difference in cond_recall_at_1 must lie above 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from pipeline.config import Params
from pipeline.evaluation.figures import Difference, ResultTable, compute_difference
from pipeline.evaluation.methods import QuerySet
from pipeline.types import QueryResult

GATE_METRIC: Final = "cond_recall_at_1"
METHOD: Final = "rgrpo"


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """What the new version was measured against on val, and what came of it.

    Attributes:
        promoted: whether it becomes champion.
        bar: what it had to beat.
        reason: the outcome in words.
        difference: to the bar; None where they could not be compared.
        best_rule: the best method that nobody trained; None where val could name none.
        minus_best_rule: difference to it, which decides nothing.
    """

    promoted: bool
    bar: str
    reason: str
    difference: Difference | None
    best_rule: str | None
    minus_best_rule: Difference | None


@dataclass(frozen=True, slots=True)
class Challenger:
    """What the gate looks at: the new policy on val, beside the methods that were evaluated with it.

    Attributes:
        results: rows of all methods on val.
        val: its queries and pools.
        best_rule: the best method that nobody trained; None where val could name none.
    """

    results: Sequence[QueryResult]
    val: QuerySet
    best_rule: str | None

    @property
    def is_comparable(self) -> bool:
        """Whether the metric has a value on val."""
        return any(pool.has_positive for pool in self.val.pools)

    def compare(self, bar_rows: Sequence[QueryResult], params: Params) -> Difference | None:
        """Return the new policy minus other rows of the same queries; None without a positive on val."""
        if not self.is_comparable:
            return None
        table = ResultTable(self.list_rows(METHOD) + [replace(row, method="bar") for row in bar_rows], self.val.pools)
        new_Q, denominator_Q = table.compute_terms(METHOD, GATE_METRIC)
        bar_Q = table.compute_terms("bar", GATE_METRIC)[0]
        return compute_difference(new_Q, bar_Q, denominator_Q, self.val.queries, params.evaluate, seed=params.seed)

    def list_rows(self, method: str) -> list[QueryResult]:
        """Return one method's rows."""
        return [row for row in self.results if row.method == method]


def compare_on_val(challenger: Challenger, bar: str, bar_rows: Sequence[QueryResult] | None, params: Params) -> Gate:
    """Compare a new policy on val with what it must beat.

    Args:
        challenger: the new policy.
        bar: what it must beat, in words.
        bar_rows: that one's rows; None if they are of other val pools.
        params: how sure the interval is to be.
    """
    rule = challenger.best_rule
    to_rule = challenger.compare(challenger.list_rows(rule), params) if rule else None
    difference = None if bar_rows is None else challenger.compare(bar_rows, params)
    if difference is not None:
        reason = f"on val it {_say_against(bar, difference)}"
        if to_rule is not None:
            reason += f"; it {_say_against(f'the best rule, {rule}', to_rule)}"
    elif challenger.is_comparable:
        reason = f"{bar} was evaluated on other val pools; to replace it, move the alias by hand"
    else:
        reason = "no val pool holds a positive to compare by; move the alias by hand"
    return Gate(
        promoted=difference is not None and difference.low > 0.0,
        bar=bar,
        reason=reason,
        difference=difference,
        best_rule=rule,
        minus_best_rule=to_rule,
    )


def confirm(challenger: Challenger, bar: str, params: Params) -> Gate:
    """Return the gate of a policy that is the champion already: there is nothing to beat."""
    rule = challenger.best_rule
    return Gate(
        promoted=False,
        bar=bar,
        reason="it is the champion already",
        difference=None,
        best_rule=rule,
        minus_best_rule=challenger.compare(challenger.list_rows(rule), params) if rule else None,
    )


def _say_against(bar: str, difference: Difference) -> str:
    verdict = "beats" if difference.low > 0.0 else "does not beat"
    return f"{verdict} {bar}: {difference.mean:+.4f} ({difference.low:+.4f} to {difference.high:+.4f}) {GATE_METRIC}"
