"""The report's first lines: the main result with its interval, and what falls short, in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.report.table import METHOD_LABELS, format_mean, format_range

_METRIC = "cond_recall_at_1"


@dataclass(frozen=True, slots=True)
class Headline:
    """What a reader who stops after ten lines should have read."""

    result: str
    shortfalls: tuple[str, ...]


def write_headline(report: Mapping[str, Any]) -> Headline:
    """Return the headline of report.json's content."""
    return Headline(result=_write_result(report), shortfalls=tuple(_list_shortfalls(report)))


def _write_result(report: Mapping[str, Any]) -> str:
    methods = report["methods"]
    difference = report["paired"]["rgrpo_minus_full"][_METRIC]
    if difference is None:
        return "No pool of the test queries holds a positive, so no method can rank one first."
    gain = _name_direction(difference["low"], difference["high"])
    return (
        f"{gain} With r-GRPO's view {_say(methods['rgrpo'][_METRIC])} of the {report['num_with_positive']:,} queries "
        f"whose pool holds a positive have one ranked first, with the full image {_say(methods['full'][_METRIC])}."
    )


def _name_direction(low: float, high: float) -> str:
    if low > 0:
        return "Cropping by the policy ranks more answers first than the full image does."
    if high < 0:
        return "Cropping by the policy ranks fewer answers first than the full image does."
    return "No clear difference between the policy and the full image: the interval of the difference holds 0."


def _list_shortfalls(report: Mapping[str, Any]) -> list[str]:
    methods, num = report["methods"], report["num_queries"]
    policy = methods["rgrpo"]
    lost = f"Harm: {_count(policy['harm_rate'], num)} queries that the full image gets right the policy gets wrong"
    given = policy["harm_given_first"]
    lost += "." if given is None else f", {_say(given)} of those it gets right."
    malformed = f"Malformed: {_count(policy['malformed_rate'], num)} answers are no decision; each counts as a miss."
    lines = [lost, malformed]
    if policy["headroom"] is not None:
        reached = _say(policy["headroom"])
        lines.append(f"Headroom: {reached} of the oracle's gain is reached; 100 % is the most that a view can bring.")
    if rivals := _list_rivals(methods):
        lines.append(
            f"Not clearly better at the first place than {rivals}: that lies within r-GRPO's interval, or above it."
        )
    return lines


def _list_rivals(methods: Mapping[str, Any]) -> str:
    """Name the methods, oracle apart, whose mean is not below r-GRPO's interval."""
    policy = methods["rgrpo"][_METRIC]
    if policy is None:
        return ""
    rivals = [
        f"{METHOD_LABELS[name]} ({_say(metrics[_METRIC])}, harm {_say(metrics['harm_rate'])})"
        for name, metrics in methods.items()
        if name not in ("rgrpo", "oracle") and metrics[_METRIC]["mean"] >= policy["low"]
    ]
    return ", ".join(rivals)


def _say(interval: Mapping[str, Any]) -> str:
    return f"{format_mean(interval, 'share')} [{format_range(interval, 'share')}]".replace(" ", "\u00a0")


def _count(interval: Mapping[str, Any], num: int) -> str:
    return f"{round(interval['mean'] * num):,} of {num:,} ({_say(interval)})"
