"""What is chosen on val and only measured on test: the numbers of the rules, the best rule, the better r-GRPO.

Another world chooses nothing of its own: it takes over what the run chose whose policies it borrows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from pipeline.core.statistics.significance import Interval
from pipeline.errors import StageError
from pipeline.evaluation.figures import PAIRS, Bootstrap, ResultTable, compare_pair
from pipeline.evaluation.measures import measure_method
from pipeline.evaluation.methods import METHODS, Choice, QuerySet, Scorer, choose_full
from pipeline.evaluation.rows import build_rows, score_choices
from pipeline.evaluation.rules import RULES, ChosenSetting, Rule, Setting, Source, choose_setting, rank_by_rule
from pipeline.files.store import read_json
from pipeline.types import QueryResult

# Untrained methods, any of which the trained policy must beat. Of equals the least harmful is named, then the first: a
# rule before what it stands on.
UNTRAINED: Final = ("base_grown", "base_squared", "base_grown_or_full", "base_grown_fused", "base", "full")
# What is deployed needs no second pass over the scores unless that pays, so of equals it is the plain policy.
TRAINED: Final = ("rgrpo", "rgrpo_fused")
NO_VAL: Final = "no val query has a positive in its pool, and nothing is chosen on test"
NO_TARGET: Final = "no test query has a target box"


@dataclass(frozen=True, kw_only=True, slots=True)
class ValChoices:
    """What was chosen on val.

    Attributes:
        settings: rule -> its numbers; empty where there was nothing to choose by.
        best_rule: of `UNTRAINED`, highest CondRecall@1 on val; None without one.
        best_rgrpo: of `TRAINED`, likewise.
        threshold: on p(REGION), taken over from another run; None where this run chooses its own.
        val: how every method does on val, as plain values, and whether that was taken over.
        rows: one per val query and method.
    """

    settings: Mapping[str, ChosenSetting]
    best_rule: str | None
    best_rgrpo: str | None
    threshold: float | None = None
    val: Mapping[str, Any]
    rows: Sequence[QueryResult] = field(default=())

    def as_json(self, methods: Sequence[str]) -> dict[str, Any]:
        """Return the report's plain values; methods that are not among those measured are named with the reason."""
        reasons = dict.fromkeys(RULES, NO_VAL) | {"perfect": NO_TARGET}
        return {
            "best_rule": self.best_rule,
            "best_rgrpo": self.best_rgrpo,
            "rules": {
                name: asdict(chosen.setting)
                | {"val_cond_recall_at_1": chosen.cond_recall_at_1, "val_harm_rate": chosen.harm_rate}
                for name, chosen in self.settings.items()
            },
            "left_out": {name: reasons[name] for name in METHODS if name not in methods},
            "val": dict(self.val),
        }


def choose_on_val(
    choices: Mapping[str, Sequence[Choice]],
    forced: Mapping[str, Sequence[Choice]],
    val: QuerySet,
    scorer: Scorer,
    bootstrap: Bootstrap,
) -> ValChoices:
    """Choose the rules' numbers, the best rule and the better r-GRPO.

    Args:
        choices: base, sft, rgrpo -> greedy answers on val.
        forced: policy -> answers on val where it must name a region; one that was not asked so is left out.
        val: what the choices may see.
        scorer: ranks its pools.
        bootstrap: of the intervals.
    """
    can_choose = any(pool.has_positive for pool in val.pools)
    settings = (
        {name: choose_setting(rule, _find_source(rule, choices, forced), val, scorer) for name, rule in RULES.items()}
        if can_choose
        else {}
    )
    by_method = rank_methods({"full": choose_full(val.queries)} | dict(choices), forced, settings, val, scorer)
    rows = [row for method_rows in by_method.values() for row in method_rows]
    table = ResultTable(rows, val.pools)
    figures = {method: measure_method(table, method, bootstrap) for method in by_method} if val.queries else {}
    return ValChoices(
        settings=settings,
        best_rule=pick_best(UNTRAINED, figures, least="harm_rate"),
        best_rgrpo=pick_best(TRAINED, figures),
        val=_describe_val(table, figures, bootstrap),
        rows=rows,
    )


def carry_choices(report_path: Path, policy_digest: str) -> ValChoices:
    """Return what another run has chosen on its val.

    Args:
        report_path: its report.json.
        policy_digest: of the policy that is evaluated.

    Raises:
        StageError: that run was not evaluated, or with another policy.
    """
    report = read_json(report_path, stage="evaluate")
    if report.get("policy_digest") != policy_digest:
        raise StageError(f"{report_path} is of another policy than the one asked; run answer and evaluate again")
    names = Setting.__dataclass_fields__
    return ValChoices(
        settings={
            name: ChosenSetting(
                setting=Setting(**{number: chosen[number] for number in names}),
                cond_recall_at_1=chosen["val_cond_recall_at_1"],
                harm_rate=chosen["val_harm_rate"],
            )
            for name, chosen in report["rules"].items()
        },
        best_rule=report["best_rule"],
        best_rgrpo=report["best_rgrpo"],
        threshold=report["behaviour"]["threshold"]["chosen"],
        val=report["val"] | {"carried_over": True},
    )


def rank_methods(
    choices: Mapping[str, Sequence[Choice]],
    forced: Mapping[str, Sequence[Choice]],
    settings: Mapping[str, ChosenSetting],
    queries: QuerySet,
    scorer: Scorer,
) -> dict[str, list[QueryResult]]:
    """Return the rows of every method that has choices, and of every rule that has its numbers, in table order."""
    rows: dict[str, list[QueryResult]] = {}
    for method in METHODS:
        if method in choices:
            rows[method] = score_choices(method, choices[method], queries.queries, queries.pools, scorer)
        elif method in settings:
            source = _find_source(RULES[method], choices, forced)
            ranked = rank_by_rule(settings[method].setting, source, queries, scorer)
            rows[method] = build_rows(method, ranked, queries.queries, queries.pools)
    return rows


def _find_source(rule: Rule, choices: Mapping[str, Sequence[Choice]], forced: Mapping[str, Sequence[Choice]]) -> Source:
    greedy = choices[rule.source]
    return Source(greedy, forced.get(rule.source, greedy))


def pick_best(
    names: Sequence[str], figures: Mapping[str, Mapping[str, Interval | None]], *, least: str | None = None
) -> str | None:
    """Return the method of highest CondRecall@1; None where none has a value.

    Args:
        names: methods in order of preference, for the case that they are equal in everything asked here.
        figures: method -> metric -> interval, on val.
        least: a metric by which equals are told apart first, the less the better.
    """

    def rank(name: str) -> tuple[float, float]:
        recall, spared = figures[name]["cond_recall_at_1"], figures[name][least] if least else None
        return (-1.0 if recall is None else recall.mean, 0.0 if spared is None else -spared.mean)

    valued = [name for name in names if name in figures and figures[name]["cond_recall_at_1"] is not None]
    return max(valued, key=rank, default=None)


def _describe_val(
    table: ResultTable, figures: Mapping[str, Mapping[str, Interval | None]], bootstrap: Bootstrap
) -> dict[str, Any]:
    return {
        "carried_over": False,
        "num_queries": len(table.query_ids),
        "num_with_positive": int(table.has_positive_Q.sum()),
        "methods": {
            method: {name: None if value is None else asdict(value) for name, value in values.items()}
            for method, values in figures.items()
        },
        "paired": {
            f"{a}_minus_{b}": {
                name: None if value is None else asdict(value)
                for name, value in compare_pair(table, a, b, bootstrap).items()
            }
            for a, b in PAIRS
            if {a, b} <= set(figures)
        },
    }
