"""The report's first lines: the main result with its interval, and what falls short, in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pipeline.report.table import BEST_PAIR, METHOD_LABELS, format_difference, format_mean, format_range, name_pair

_METRIC = "cond_recall_at_1"
_CEILINGS = ("perfect", "oracle")
_OURS = {"rgrpo": "the trained policy", "rgrpo_fused": "the trained policy with a rule on top"}

NO_RULE: Final = "Best rule: none, as val could not choose one; the comparison with the full image is the weaker one."


@dataclass(frozen=True, slots=True)
class Headline:
    """What a reader who stops after ten lines should have read."""

    result: str
    shortfalls: tuple[str, ...]


def write_headline(report: Mapping[str, Any]) -> Headline:
    """Return the headline of report.json's content."""
    return Headline(result=_write_result(report), shortfalls=tuple(_list_shortfalls(report)))


def _write_result(report: Mapping[str, Any]) -> str:
    """Say how r-GRPO stands to the best method that nobody trained, or to the full image where val names none."""
    methods = report["methods"]
    named = report["best_rule"] is not None
    pair = BEST_PAIR if named else "rgrpo_minus_full"
    difference = report["paired"][pair][_METRIC]
    if difference is None:
        return "No pool of the test queries holds a positive, so no method can rank one first."
    ours, bar = (report["best_rgrpo"], report["best_rule"]) if named else ("rgrpo", "full")
    shown = dict.fromkeys((ours, "rgrpo", bar, "full"))
    figures = [f"{_name(name, report)} {say_interval(methods[name][_METRIC])}" for name in shown]
    return (
        f"{_name_direction(difference, _OURS[ours], _name(bar, report))} Share of the {report['num_with_positive']:,} "
        f"queries whose pool holds a positive that have one ranked first: {', '.join(figures)}."
    )


def _name(method: str, report: Mapping[str, Any]) -> str:
    if method == "full":
        return "the full image"
    is_bar = method == report["best_rule"]
    return f"the best rule ({METHOD_LABELS[method]})" if is_bar else METHOD_LABELS[method]


def _name_direction(difference: Mapping[str, Any], ours: str, bar: str) -> str:
    if difference["low"] > 0:
        return f"{ours.capitalize()} ranks more answers first than {bar} does."
    if difference["high"] < 0:
        return f"{ours.capitalize()} ranks fewer answers first than {bar} does."
    return f"No clear difference between {ours} and {bar}: the interval of the difference holds 0."


def _list_shortfalls(report: Mapping[str, Any]) -> list[str]:
    methods, num = report["methods"], report["num_queries"]
    policy = methods["rgrpo"]
    lines = [_compare_with_rule(report)]
    if report["best_rgrpo"] == "rgrpo_fused":
        lines.append(_say_what_is_fused(report))
    lost = (
        f"Harm: {count_queries(policy['harm_rate'], num)} queries that the full image gets right the policy gets wrong"
    )
    given = policy["harm_given_first"]
    lost += "." if given is None else f", {say_interval(given)} of those it gets right."
    malformed = (
        f"Malformed: {count_queries(policy['malformed_rate'], num)} answers are no decision; each counts as a miss."
    )
    lines += [lost, malformed]
    if policy["headroom"] is not None:
        reached = say_interval(policy["headroom"])
        lines.append(f"Headroom: {reached} of the oracle's gain is reached; 100 % is the most that a view can bring.")
    if rivals := _list_rivals(methods):
        lines.append(
            f"Not clearly better at the first place than {rivals}: that lies within r-GRPO's interval, or above it."
        )
    return lines


def _compare_with_rule(report: Mapping[str, Any]) -> str:
    if report["best_rule"] is None:
        return NO_RULE
    ours, bar = name_pair(BEST_PAIR, report)
    difference = report["paired"][BEST_PAIR][_METRIC]
    harms = [say_interval(report["methods"][report[name]]["harm_rate"]) for name in ("best_rgrpo", "best_rule")]
    return (
        f"Over what nobody trained: {ours} minus {bar} is {format_difference(difference, 'share')}, with harm "
        f"{harms[0]} against {harms[1]}. Both were named by val."
    )


def _say_what_is_fused(report: Mapping[str, Any]) -> str:
    fused, alone = (METHOD_LABELS[name] for name in ("rgrpo_fused", "rgrpo"))
    line = (
        f"{fused} is not the policy alone: a rule on top takes the mean of the scores of its region and of the full "
        "image, with weights chosen on val."
    )
    policy, bar = (report["methods"][name][_METRIC] for name in ("rgrpo", report["best_rule"]))
    if policy is None:
        return line
    return f"{line} {alone} by its own view stands {100 * (policy['mean'] - bar['mean']):+.1f} points to the best rule."


def _list_rivals(methods: Mapping[str, Any]) -> str:
    """Name the methods, ceilings and r-GRPO's own variants apart, whose mean is not below r-GRPO's interval."""
    policy = methods["rgrpo"][_METRIC]
    if policy is None:
        return ""
    rivals = [
        f"{METHOD_LABELS[name]} ({say_interval(metrics[_METRIC])}, harm {say_interval(metrics['harm_rate'])})"
        for name, metrics in methods.items()
        if name not in ("rgrpo", "rgrpo_fused", *_CEILINGS) and metrics[_METRIC]["mean"] >= policy["low"]
    ]
    return ", ".join(rivals)


def say_interval(interval: Mapping[str, Any]) -> str:
    """Return a share with its interval, which no line end parts."""
    return f"{format_mean(interval, 'share')} [{format_range(interval, 'share')}]".replace(" ", "\u00a0")


def count_queries(interval: Mapping[str, Any], num: int) -> str:
    """Return how many of `num` queries a share is of them, and the share with its interval."""
    return f"{round(interval['mean'] * num):,} of {num:,} ({say_interval(interval)})"
