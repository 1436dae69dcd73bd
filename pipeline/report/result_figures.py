"""Which charts of the results the page shows, each with the words that say what to see in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report import charts
from pipeline.report.table import format_mean
from pipeline.report.theme import INK, REGION, AnyChart, Row, build_spec
from pipeline.types import Box

_SHOWN_BY_RANK = ("base", "sft", "rgrpo")


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart with title and note, ready for the page; `key` is its name there."""

    key: str
    title: str
    note: str
    spec: Row


def make_figure(key: str, title: str, note: str, chart: AnyChart) -> Figure:
    """Return the figure of a chart; title and note are also what a screen reader says of it."""
    return Figure(key, title, note, build_spec(chart, f"{title}. {note}"))


def draw_result_figures(
    report: Mapping[str, Any], crops: Sequence[Box], targets: Sequence[Box]
) -> dict[str, list[Figure]]:
    """Return section -> figures; a section without values is empty.

    Args:
        report: content of report.json.
        crops: the policy's boxes.
        targets: boxes of the things asked about in the same queries, where known.
    """
    behaviour = report.get("behaviour", {})
    return {
        "methods": [_draw_methods(report)],
        "by_rank": _draw_by_rank(behaviour["by_baseline_rank"]) if "by_baseline_rank" in behaviour else [],
        "coverage": _draw_coverage(crops, targets),
        "threshold": _draw_threshold(behaviour["threshold"]) if "threshold" in behaviour else [],
    }


def _draw_methods(report: Mapping[str, Any]) -> Figure:
    return make_figure(
        "methods",
        "Positive ranked first, by method",
        f"CondR@1: share of the {report['num_with_positive']:,} queries whose pool holds a positive. Dot: mean; line: "
        f"{100 * report['confidence']:g} % bootstrap interval over pictures. From the top: fixed views; the "
        "base policy and rules on it, which nobody trained; what was trained here; ceilings, which know the answer.",
        charts.draw_methods(report, "cond_recall_at_1", "CondR@1"),
    )


def _draw_by_rank(by_rank: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[Figure]:
    num_queries = sum(figures["num_queries"] for figures in by_rank["rgrpo"].values())
    with_positive = {bucket: figures for bucket, figures in by_rank["rgrpo"].items() if bucket != "none"}
    num_cropped = sum(figures["num_cropped"] for figures in with_positive.values())
    methods = [method for method in _SHOWN_BY_RANK if method in by_rank]
    return [
        make_figure(
            "rc_by_rank",
            "How often it crops",
            f"Share of queries cropped, by where the full image puts the first positive; {num_queries:,} queries. A "
            "policy that knows when the full image is enough has a low bar at rank 1. None: no positive in the pool. "
            "Lines: intervals.",
            charts.draw_rates_by_rank(by_rank, methods, "rc_rate", "share cropped"),
        ),
        make_figure(
            "success_by_rank",
            "What r-GRPO's crops bring",
            f"Among the {num_cropped:,} cropped queries with a positive in the pool: share whose view ranks one first, "
            "and share whose first positive moved up (from rank 1 it cannot). Lines: intervals.",
            charts.draw_success_by_rank(with_positive),
        ),
    ]


def _draw_coverage(crops: Sequence[Box], targets: Sequence[Box]) -> list[Figure]:
    if not crops:
        return []
    shown = [("crops", "r-GRPO's crops", "The policy's boxes", crops, REGION)]
    if targets:
        shown.append(("targets", "The things asked about", "Known target boxes of the same queries", targets, INK))
    coverages = [charts.compute_coverage(boxes) for _, _, _, boxes, _ in shown]
    ceiling = max(float(coverage.max()) for coverage in coverages)
    return [
        make_figure(
            f"coverage_{key}",
            title,
            f"{words}: share of n = {len(boxes):,} boxes that cover each spot of the picture; {charts.GRID_SIDE} x "
            f"{charts.GRID_SIDE} cells, all pictures stretched to one shape.",
            charts.draw_coverage(coverage, colour, ceiling),
        )
        for (key, title, words, boxes, colour), coverage in zip(shown, coverages, strict=True)
    ]


def _describe_choice(threshold: Mapping[str, Any]) -> str:
    """Return what was chosen, on what evidence, and how it did on test."""
    chosen, evidence = threshold["chosen"], threshold["val"]
    if chosen is None:
        return "no val query has a positive in its pool, so no threshold is chosen"
    harm = threshold["test"]["harm_rate"]
    on_test = f"on test it harms {format_mean(harm, 'share')} of the queries"
    if evidence is None:  # another world has no val of its own
        return f"taken over from the run whose policies these are: {chosen:.4g} (dashed); {on_test}"
    confidence = f"{100 * (1.0 - threshold['harm_level']):g} %"
    if chosen > 1.0:
        return (
            f"no threshold that crops is shown by {evidence['num_pictures']:,} val pictures, at {confidence} "
            "confidence, to keep it and to rank more answers first: never crop"
        )
    return (
        f"chosen on val: {chosen:.4g} (dashed), which harms {evidence['num_harmed']:,} of {evidence['num_pictures']:,} "
        f"val pictures, so at most {100 * evidence['upper_limit']:.2g} % of all at {confidence} confidence; {on_test}"
    )


def _draw_threshold(threshold: Mapping[str, Any]) -> list[Figure]:
    bound = f"{100 * threshold['harm_bound']:g} %"
    return [
        make_figure(
            "threshold_harm",
            "Harm against the threshold",
            f"Share of all queries that lose their first place. Line: bound of {bound}; {_describe_choice(threshold)}.",
            charts.draw_threshold(threshold, "harm_rate", "harm", bound=threshold["harm_bound"]),
        ),
        make_figure(
            "threshold_recall",
            "CondR@1 against the threshold",
            "What the bound on harm costs in answers ranked first.",
            charts.draw_threshold(threshold, "cond_recall_at_1", "CondR@1", bound=None),
        ),
    ]
