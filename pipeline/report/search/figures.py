"""The chart of searching again: recall by depth and method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import altair as alt

from pipeline.report.charts import take_interval, tell_interval
from pipeline.report.result_figures import Figure, make_figure
from pipeline.report.table import SEARCH_GROUPS, SEARCH_LABELS, format_number
from pipeline.report.theme import INK, METHOD_COLOURS, OTHER, PERCENT, AnyChart, Row

DEPTHS: Final = (1, 5, 10, 20)
_FADING: Final = (1.0, 0.8, 0.65, 0.5)
_ROW_PX: Final = 17


def draw_search_figures(report: Mapping[str, Any]) -> list[Figure]:
    """Return the chart of report.json's section `search`; none where nothing searched again."""
    if "search" not in report:
        return []
    note = (
        f"R@k: share of all {report['num_queries']:,} test queries with a relevant document among the first k. Dot: "
        f"mean; line: {100 * report['confidence']:g} % bootstrap interval over pictures. From the top: what searches "
        "once; the base policy and rules on it, which nobody trained; what was trained here; a ceiling."
    )
    return [make_figure("search", "Relevant document found, by method and depth", note, draw_recalls(report["search"]))]


def draw_recalls(methods: Mapping[str, Mapping[str, Any]]) -> AnyChart:
    """Return one dot with its interval a method and depth, a line between groups."""
    shown = [name for name in SEARCH_LABELS if name in methods]
    rows = [row for name in shown for row in _list_rows(name, methods[name], opens_group=_opens_group(name, shown))]
    order = [SEARCH_LABELS[name] for name in shown]
    every = alt.Chart(alt.Data(values=rows))
    # On the band's edge, so that it lies between two methods.
    edge = (
        every.transform_filter("datum.opens_group")
        .mark_rule(strokeDash=[2, 3], color="var(--line)")
        .encode(y=alt.Y("method:N", sort=order, bandPosition=0))
    )
    base = every.encode(
        y=alt.Y(
            "method:N",
            sort=order,
            title=None,
            axis=alt.Axis(ticks=False, domain=False, labelColor=INK),
            scale=alt.Scale(paddingInner=0.12, paddingOuter=0.06),
        ),
        yOffset=alt.YOffset("depth:O", scale=alt.Scale(paddingOuter=0.3)),
        color=alt.Color("colour:N", scale=None),
        opacity=alt.Opacity("fading:Q", scale=None),
        tooltip=["method:N", alt.Tooltip("label:N", title="depth"), *tell_interval("recall")],
    )
    share = alt.Scale(domain=[0, 1])
    axis = alt.Axis(format=PERCENT, tickCount=5, title="R@k, share of queries")
    whisker = base.mark_rule(strokeWidth=3, strokeCap="round").encode(
        x=alt.X("low:Q", scale=share, axis=axis), x2="high:Q"
    )
    dot = base.mark_point(filled=True, size=60).encode(x="mean:Q")
    text = base.encode(text="label:N", color=alt.value(INK), opacity=alt.value(1))
    # Labels stand where there is room: right of what lies in the left half.
    right = text.transform_filter("datum.mean <= 0.5").mark_text(align="left", dx=8, fontSize=11).encode(x="high:Q")
    left = text.transform_filter("datum.mean > 0.5").mark_text(align="right", dx=-8, fontSize=11).encode(x="low:Q")
    return alt.layer(edge, whisker, dot, right, left).properties(height=_ROW_PX * len(DEPTHS) * len(shown))


def _list_rows(name: str, metrics: Mapping[str, Any], *, opens_group: bool) -> list[Row]:
    intervals = [take_interval(metrics[f"recall_at_{depth}"]) for depth in DEPTHS]
    return [
        {
            "method": SEARCH_LABELS[name],
            "colour": METHOD_COLOURS.get(name, OTHER),
            "depth": depth,
            "fading": fading,
            "label": f"R@{depth} {format_number(interval['mean'], 'share')}",
            "opens_group": opens_group and depth == DEPTHS[0],
            **interval,
        }
        for depth, fading, interval in zip(DEPTHS, _FADING, intervals, strict=True)
    ]


def _opens_group(name: str, shown: Sequence[str]) -> bool:
    """Return whether a method is the first that is shown of its group, and not of the first group."""
    return any(name == next((shown_ for shown_ in shown if shown_ in group), None) for group in SEARCH_GROUPS[1:])
