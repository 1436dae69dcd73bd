"""Charts of the results as Vega-Lite: what was measured on the test queries; training_charts.py draws the trainings.

Pure functions from records to altair charts; nothing is read or written. Every chart takes its container's width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import altair as alt
import numpy as np
import numpy.typing as npt

from pipeline.report.table import METHOD_GROUPS, METHOD_LABELS
from pipeline.report.theme import INK, METHOD_COLOURS, OTHER, PERCENT, POLICY, AnyChart, Row, scale_of
from pipeline.types import Box

F64 = npt.NDArray[np.float64]
GRID_SIDE: Final = 28
# Thresholds of 0 and above 1 have no finite log odds: they stand at the edges, by the name of what they do.
_EDGE: Final = 9
_NAME_ODDS: Final = (
    f"datum.value <= -{_EDGE} ? 'always' : datum.value >= {_EDGE} ? 'never' : "
    "format(1 / (1 + exp(-datum.value)), '.4~p')"
)


def draw_methods(report: Mapping[str, Any], metric: str, title: str) -> AnyChart:
    """Return one dot with its interval a method, a line between groups; a method without value has no row."""
    shown = [method for method, metrics in report["methods"].items() if metrics[metric] is not None]
    rows = [
        {
            "method": METHOD_LABELS[method],
            "colour": _colour_of(method),
            "opens_group": method in (_find_first(group, shown) for group in METHOD_GROUPS[1:]),
            **take_interval(report["methods"][method][metric]),
        }
        for method in shown
    ]
    order = [row["method"] for row in rows]
    base = alt.Chart(alt.Data(values=rows)).encode(
        y=alt.Y("method:N", sort=order, title=None, axis=alt.Axis(ticks=False, domain=False, labelColor=INK)),
        color=alt.Color("colour:N", scale=None),
        tooltip=["method:N", *tell_interval(title)],
    )
    share = alt.Scale(domain=[0, 1])
    axis = alt.Axis(format=PERCENT, tickCount=5, title=f"{title}, share of queries")
    # The edge above a group's first row; on the band's edge, so that it lies between two methods.
    edge = (
        base.transform_filter("datum.opens_group")
        .mark_rule(strokeDash=[2, 3])
        .encode(
            y=alt.Y("method:N", sort=order, bandPosition=0),
            color=alt.value("var(--line)"),
            tooltip=alt.TooltipValue(None),
        )
    )
    whisker = base.mark_rule(strokeWidth=3, strokeCap="round", opacity=0.55).encode(
        x=alt.X("low:Q", scale=share, axis=axis), x2="high:Q"
    )
    dot = base.mark_point(filled=True, size=90, opacity=1).encode(x="mean:Q")
    text = base.encode(text=alt.Text("mean:Q", format=".1%"), color=alt.value(INK))
    # A label near the right edge would be cut, so it stands on the other side there.
    right = text.transform_filter("datum.high <= 0.75").mark_text(align="left", dx=8).encode(x="high:Q")
    left = text.transform_filter("datum.high > 0.75").mark_text(align="right", dx=-8).encode(x="low:Q")
    return alt.layer(edge, whisker, dot, right, left).properties(height=42 * len(rows))


def draw_rates_by_rank(
    by_rank: Mapping[str, Mapping[str, Mapping[str, Any]]], methods: Sequence[str], metric: str, title: str
) -> AnyChart:
    """Return one bar with its interval per bucket of the full image's rank and method.

    Args:
        by_rank: method -> bucket -> figures of the queries in it.
        methods: shown side by side.
        metric: the figure; a bucket without value has no bar.
        title: of the axis.
    """
    rows = [
        {
            "bucket": _name_bucket(bucket, figures["num_queries"]),
            "series": METHOD_LABELS[method],
            "num": figures["num_queries"],
            **take_interval(figures[metric]),
        }
        for method in methods
        for bucket, figures in by_rank[method].items()
        if figures[metric] is not None
    ]
    colours = {METHOD_LABELS[method]: _colour_of(method) for method in methods}
    return _draw_grouped_bars(rows, colours, title)


def draw_success_by_rank(by_rank: Mapping[str, Mapping[str, Any]]) -> AnyChart:
    """Return, per bucket, how often a crop ranks a positive first and how often it raises the reciprocal rank."""
    series = {"first_when_cropped": "positive first", "improved_when_cropped": "moved up"}
    rows = [
        {
            "bucket": _name_bucket(bucket, figures["num_cropped"]),
            "series": name,
            "num": figures["num_cropped"],
            **take_interval(figures[metric]),
        }
        for metric, name in series.items()
        for bucket, figures in by_rank.items()
        if figures[metric] is not None
    ]
    return _draw_grouped_bars(
        rows, dict(zip(series.values(), (POLICY, "var(--policy-soft)"), strict=True)), "share of crops"
    )


def _draw_grouped_bars(rows: Sequence[Row], colours: Mapping[str, str], title: str) -> AnyChart:
    base = alt.Chart(alt.Data(values=list(rows))).encode(
        x=alt.X(
            "bucket:N",
            sort=None,
            title="full image's rank of the first positive",
            axis=alt.Axis(labelExpr="split(datum.label, '|')", labelOverlap=False, ticks=False),
            scale=alt.Scale(paddingInner=0.25),
        ),
        xOffset=alt.XOffset("series:N", sort=list(colours)),
        tooltip=["series:N", alt.Tooltip("num:Q", title="queries"), *tell_interval(title)],
    )
    bars = base.mark_bar(cornerRadiusEnd=2).encode(
        y=alt.Y("mean:Q", title=title, scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format=PERCENT, tickCount=5)),
        color=scale_of("series", colours),
    )
    whiskers = base.mark_rule(strokeWidth=1.5).encode(y="low:Q", y2="high:Q")
    return alt.layer(bars, whiskers).properties(height=240)


def compute_coverage(boxes: Sequence[Box]) -> F64:
    """Return the share of boxes that cover each cell of the picture, (GRID_SIDE, GRID_SIDE), rows from the top.

    A cell is covered when its centre lies in the box.

    Raises:
        ValueError: there is no box, so no share.
    """
    if not boxes:
        raise ValueError("no box, so no share of boxes")
    centres_C = (np.arange(GRID_SIDE) + 0.5) / GRID_SIDE
    edges_N4 = np.array([box.as_tuple() for box in boxes])
    across_NC = (edges_N4[:, :1] <= centres_C) & (centres_C < edges_N4[:, 2:3])
    down_NC = (edges_N4[:, 1:2] <= centres_C) & (centres_C < edges_N4[:, 3:])
    covered: F64 = (down_NC[:, :, None] & across_NC[:, None, :]).mean(axis=0)
    return covered


def draw_coverage(coverage: F64, colour: str, ceiling: float) -> AnyChart:
    """Return the heat map of one coverage; maps that are compared share the `ceiling` of the scale."""
    rows = [
        {"x": column, "y": row, "s": round(float(coverage[row, column]), 4)}
        for row in range(GRID_SIDE)
        for column in range(GRID_SIDE)
    ]
    axis = alt.Axis(format=PERCENT, values=[0, 0.5, 1], grid=False, ticks=False, domain=False)
    edge = alt.Scale(domain=[0, 1], nice=False)
    down = alt.Scale(domain=[0, 1], nice=False, reverse=True)
    chart: alt.Chart = (
        alt.Chart(alt.Data(values=rows))
        .transform_calculate(
            left=f"datum.x / {GRID_SIDE}",
            right=f"(datum.x + 1) / {GRID_SIDE}",
            top=f"datum.y / {GRID_SIDE}",
            bottom=f"(datum.y + 1) / {GRID_SIDE}",
        )
        .mark_rect(color=colour)
        .encode(
            x=alt.X("left:Q", title="from the left, of the width", scale=edge, axis=axis),
            x2="right:Q",
            y=alt.Y("top:Q", title="from the top, of the height", scale=down, axis=axis),
            y2="bottom:Q",
            opacity=alt.Opacity(
                "s:Q",
                title="share of boxes",
                scale=alt.Scale(domain=[0, ceiling], range=[0.03, 1], nice=False),
                legend=alt.Legend(format=PERCENT, symbolFillColor=colour, tickCount=4, columns=6, symbolSize=160),
            ),
            tooltip=[alt.Tooltip("s:Q", title="share of boxes", format=".1%")],
        )
        .properties(height=320)
    )
    return chart


def draw_threshold(threshold: Mapping[str, Any], metric: str, title: str, *, bound: float | None) -> AnyChart:
    """Return a figure against the threshold on both splits, the chosen threshold and, for harm, its bound."""
    rows = [
        {"at": _place(point["threshold"]), "threshold": point["threshold"], "value": point[metric], "split": split}
        for split in ("val", "test")
        for point in threshold[f"{split}_curve"]
        if point[metric] is not None
    ]
    lines = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(point=alt.OverlayMarkDef(size=18), strokeWidth=2)
        .encode(
            x=alt.X(
                "at:Q",
                title="crop where p(REGION) is at least, in steps of log odds",
                scale=alt.Scale(domain=[-_EDGE, _EDGE], nice=False),
                axis=alt.Axis(values=[-_EDGE, -6, -3, 0, 3, 6, _EDGE], labelExpr=_NAME_ODDS, grid=False),
            ),
            y=alt.Y("value:Q", title=title, axis=alt.Axis(format=".1%", tickCount=5), scale=alt.Scale(zero=False)),
            color=scale_of("split", {"val": OTHER, "test": POLICY}, lines=True),
            tooltip=[alt.Tooltip("split:N"), "threshold:Q", alt.Tooltip("value:Q", title=title, format=".1%")],
        )
    )
    marks = []
    if threshold["chosen"] is not None:
        at = alt.Data(values=[{"at": _place(threshold["chosen"]), "threshold": threshold["chosen"]}])
        marks.append(alt.Chart(at).mark_rule(strokeDash=[4, 3]).encode(x="at:Q", tooltip="threshold:Q"))
    if bound is not None:
        at = alt.Data(values=[{"at": bound}])
        marks.append(
            alt.Chart(at)
            .mark_rule(color="var(--bad)", strokeWidth=1.5)
            .encode(y="at:Q", tooltip=alt.Tooltip("at:Q", title="bound", format=".1%"))
        )
    return alt.layer(lines, *marks).properties(height=220)


def _find_first(group: Sequence[str], shown: Sequence[str]) -> str | None:
    return next((method for method in shown if method in group), None)


def _colour_of(method: str) -> str:
    return METHOD_COLOURS.get(method, OTHER)


def _place(threshold: float) -> float:
    """Return the log odds of a threshold, at most `_EDGE` either way."""
    if not 0.0 < threshold < 1.0:
        return -_EDGE if threshold <= 0.0 else _EDGE
    return min(_EDGE, max(-_EDGE, math.log(threshold / (1.0 - threshold))))


def _name_bucket(bucket: str, num: int) -> str:
    return f"{bucket}|n = {num}"


def take_interval(interval: Mapping[str, float]) -> Row:
    """Return what a chart needs of an interval."""
    return {name: interval[name] for name in ("mean", "low", "high")}


def tell_interval(title: str) -> list[alt.Tooltip]:
    """Return the tooltip of a share with its interval."""
    names = {"mean": title, "low": "from", "high": "to"}
    return [alt.Tooltip(f"{name}:Q", title=title, format=".1%") for name, title in names.items()]
