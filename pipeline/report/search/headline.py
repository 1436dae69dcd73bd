"""The first lines about searching again: what it finds beside the ways that do less, and what falls short."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pipeline.report.headline import NO_RULE, Headline, count_queries, say_interval
from pipeline.report.table import SEARCH_LABELS, format_difference, name_search_pair

_BARS: Final = {"full": "the full image", "reranked": "re-ranking alone", "best_rule": "the best rule"}
"""What the policy is compared with, in the order said."""
_CEILINGS: Final = ("perfect",)


def write_search_headline(report: Mapping[str, Any]) -> Headline | None:
    """Return the headline of report.json's sections about searching again, None where nothing searched again."""
    if "search" not in report:
        return None
    return Headline(result=_write_result(report), shortfalls=tuple(_list_shortfalls(report)))


def _write_result(report: Mapping[str, Any]) -> str:
    differences = {
        words: report["paired_search"][f"rgrpo_minus_{name}"]["recall_at_1"]
        for name, words in _BARS.items()
        if f"rgrpo_minus_{name}" in report["paired_search"]  # val may have named no rule
    }
    verdict = _say_direction(differences)
    return f"{verdict} Share of all {report['num_queries']:,} test queries with one first: {_list_figures(report)}."


def _say_direction(differences: Mapping[str, Mapping[str, Any]]) -> str:
    """Say which bars the policy's R@1 is surely above, which below, and which neither."""
    ahead = [words for words, difference in differences.items() if difference["low"] > 0]
    behind = [words for words, difference in differences.items() if difference["high"] < 0]
    level = [words for words in differences if words not in ahead + behind]
    clauses = [f"{way} answers first than {_join(bars)}" for way, bars in (("more", ahead), ("fewer", behind)) if bars]
    lines = []
    if clauses:
        lines.append(f"Searching the whole index with its view, the trained policy puts {', but '.join(clauses)}.")
    if level:
        bars = f"between the trained policy and {_join(level)}"
        lines.append(f"No clear difference {bars}: the interval of the difference holds 0.")
    return " ".join(lines)


def _join(names: Sequence[str]) -> str:
    """Return the names as a sentence lists them.

    >>> _join(["a", "b", "c"]), _join(["a"])
    ('a, b and c', 'a')
    """
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def _list_figures(report: Mapping[str, Any]) -> str:
    choices, methods = report["search_choices"], report["search"]
    named = {choices["headline"]: SEARCH_LABELS[choices["headline"]]}
    if choices["best_rule"] is not None:
        named[choices["best_rule"]] = f"the {name_search_pair('rgrpo_minus_best_rule', choices)[1]}"
    named |= {"reranked": "re-ranking alone", "full": "the full image"}
    return ", ".join(f"{name} {say_interval(methods[method]['recall_at_1'])}" for method, name in named.items())


def _list_shortfalls(report: Mapping[str, Any]) -> list[str]:
    num, methods = report["num_queries"], report["search"]
    ours = methods[report["search_choices"]["headline"]]
    found = ours["recall_at_20"]
    missing = {"mean": 1.0 - found["mean"], "low": 1.0 - found["high"], "high": 1.0 - found["low"]}
    malformed = count_queries(ours["malformed_rate"], num)
    lines = [
        _compare_with_rule(report),
        f"Harm at 1: {count_queries(ours['harm_at_1'], num)} queries lose the first place that the full image gives "
        f"an answer; at 20: {count_queries(ours['harm_at_20'], num)} lose it from the first 20 altogether.",
        f"Still not found: {count_queries(missing, num)} queries have no answer among the first 20.",
        f"Malformed: {malformed} answers are no decision; each finds nothing.",
    ]
    if "perfect" in methods:
        perfect = say_interval(methods["perfect"]["recall_at_1"])
        lines.append(f"Pointing: searching with the perfect box, {perfect} have an answer first.")
    if rivals := _list_rivals(report):
        lines.append(
            f"Not clearly better at the first place than {rivals}: that lies within r-GRPO's interval, or above it."
        )
    return lines


def _compare_with_rule(report: Mapping[str, Any]) -> str:
    choices, methods = report["search_choices"], report["search"]
    if choices["best_rule"] is None:
        return NO_RULE
    ours, bar = name_search_pair("rgrpo_minus_best_rule", choices)
    difference = report["paired_search"]["rgrpo_minus_best_rule"]["recall_at_1"]
    harms = [say_interval(methods[choices[name]]["harm_at_1"]) for name in ("headline", "best_rule")]
    beaten = "" if difference["low"] > 0 else " It is not beaten beyond doubt."
    return (
        f"Over what nobody trained: {ours} minus {bar} is {format_difference(difference, 'share')} at rank 1, with "
        f"harm {harms[0]} against {harms[1]}; val named the rule.{beaten}"
    )


def _list_rivals(report: Mapping[str, Any]) -> str:
    """Name the methods, ceilings and the policy's own apart, whose mean is not below the policy's interval."""
    methods, headline = report["search"], report["search_choices"]["headline"]
    bound = methods[headline]["recall_at_1"]["low"]
    rivals = [
        f"{label} ({say_interval(methods[name]['recall_at_1'])}, harm {say_interval(methods[name]['harm_at_1'])})"
        for name, label in SEARCH_LABELS.items()
        if name in methods and not name.startswith("rgrpo") and name not in _CEILINGS
        if methods[name]["recall_at_1"]["mean"] >= bound
    ]
    return ", ".join(rivals)
