"""bench.json's growth as one picture: rewards per second along three axes, seconds of a step along one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import altair as alt
import pandas as pd

_COLOURS: Final = {"ours": "#0f766e", "naive": "#c2410c", "stock": "#64748b"}
_INK: Final = "#1f2937"
_FAINT: Final = "#e5e7eb"
_PANELS: Final = (
    ("pool_size", "rewards_per_s", "Candidates in a pool (K)", "Rewards per second"),
    ("group_size", "rewards_per_s", "Completions of a query", "Rewards per second"),
    ("image_side_px", "rewards_per_s", "Side of the pictures in pixels", "Rewards per second"),
    ("group_size", "seconds_per_step", "Completions of a query", "Seconds of a training step"),
)
_WIDTH_PX: Final = 300
_HEIGHT_PX: Final = 190


def save_plot(report: Mapping[str, Any], path: Path) -> None:
    """Write the picture as SVG."""
    # CPU time compares sizes even on a busy machine; a GPU's work is not in it.
    on_cpu = report["machine"]["device"] == "cpu"
    rows = pd.DataFrame([{**point, **point["figure_cpu" if on_cpu else "figure"]} for point in report["growth"]])
    panels = [_draw_panel(rows, axis, unit, label, title) for axis, unit, label, title in _PANELS]
    setting = report["setting"]
    chart = (
        alt.concat(*panels, columns=2, spacing={"row": 36, "column": 44})
        .resolve_scale(x="independent", y="independent")
        .properties(
            title=alt.TitleParams(
                "What a reward and a training step cost",
                subtitle=[
                    f"Where not varied: K = {setting['pool_size']}, {setting['group_size']} completions of each of "
                    f"{setting['num_queries']} queries ({setting['queries_per_step']} queries a training step).",
                    f"Seconds of {'CPU time' if on_cpu else 'the clock'}; dots are medians, bars the range. "
                    "Rates are on a logarithmic scale.",
                ],
                anchor="start",
                fontSize=18,
                color=_INK,
                subtitleColor="#6b7280",
                subtitleFontSize=12,
                subtitlePadding=8,
                subtitleLineHeight=17,
                offset=24,
            ),
            background="white",
            padding=24,
        )
        .configure(font="DejaVu Sans, Helvetica, Arial, sans-serif")
        .configure_view(stroke=None)
        .configure_axis(labelColor="#4b5563", titleColor=_INK, titleFontWeight="normal", labelFontSize=11)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.save(str(path), format="svg")


def _draw_panel(rows: pd.DataFrame, axis: str, unit: str, label: str, title: str) -> alt.LayerChart | alt.FacetChart:
    table = rows[(rows["axis"] == axis) & (rows["unit"] == unit)]
    values = sorted(int(value) for value in table["value"].unique())
    x_axis = alt.Axis(values=values, format="d", grid=False, domainColor=_FAINT, tickColor=_FAINT, titlePadding=8)
    # Every axis doubles, so steps are even on a logarithm; the right edge leaves room for the names.
    x_scale = alt.Scale(type="log", base=2, domain=[values[0] / 1.2, values[-1] * 1.6], nice=False)
    x = alt.X("value:Q", title=label, scale=x_scale, axis=x_axis)
    scale, y_axis = _scale_y(rows[rows["unit"] == unit])
    colour = alt.Color("way:N", scale=alt.Scale(domain=list(_COLOURS), range=list(_COLOURS.values())), legend=None)
    base = alt.Chart(table).encode(x=x, color=colour)
    middle = alt.Y("median:Q", scale=scale, axis=y_axis)
    ranges = base.mark_rule(strokeWidth=5, opacity=0.3).encode(y=alt.Y("low:Q", scale=scale, axis=y_axis), y2="high:Q")
    lines = base.mark_line(strokeWidth=2).encode(y=middle)
    dots = base.mark_point(filled=True, size=55, opacity=1).encode(y=middle)
    names = (
        alt.Chart(table[table["value"] == values[-1]])
        .mark_text(align="left", dx=10, fontSize=12, fontWeight="bold")
        .encode(x=x, y=middle, text="way:N", color=colour)
    )
    return alt.layer(ranges, lines, dots, names).properties(
        width=_WIDTH_PX,
        height=_HEIGHT_PX,
        title=alt.TitleParams(title, anchor="start", frame="group", fontSize=13, color=_INK, offset=8),
    )


def _scale_y(rows: pd.DataFrame) -> tuple[alt.Scale, alt.Axis]:
    """Return one scale for all panels of a unit: decades for rates, from 0 for seconds."""
    plain: dict[str, Any] = {"gridColor": _FAINT, "domain": False, "ticks": False, "title": None}
    if rows["unit"].iloc[0] == "seconds_per_step":
        return alt.Scale(domainMin=0, nice=True), alt.Axis(format="~g", tickCount=5, **plain)
    low, high = math.floor(math.log10(rows["low"].min())), math.ceil(math.log10(rows["high"].max()))
    decades = [10.0**power for power in range(low, high + 1)]
    return alt.Scale(type="log", domain=[decades[0], decades[-1]]), alt.Axis(format=",~g", values=decades, **plain)
