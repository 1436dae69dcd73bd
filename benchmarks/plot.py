"""bench.json's growth as one picture: rewards per second along three axes, seconds of a step along one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    rows = [{**point, **point["figure"]} for point in report["growth"]]
    panels = [
        _draw_panel([row for row in rows if (row["axis"], row["unit"]) == (axis, unit)], label, title)
        for axis, unit, label, title in _PANELS
    ]
    setting = report["setting"]
    chart = (
        alt.vconcat(alt.hconcat(*panels[:2], spacing=48), alt.hconcat(*panels[2:], spacing=48), spacing=34)
        .properties(
            title=alt.TitleParams(
                "What a reward and a training step cost",
                subtitle=[
                    f"Where not varied: K = {setting['pool_size']}, {setting['group_size']} completions of each of "
                    f"{setting['num_queries']} queries, pictures of 224 to 256 px.",
                    "Dots are medians, bars the range. Rewards per second: logarithmic, more is better.",
                ],
                anchor="start",
                fontSize=17,
                color=_INK,
                subtitleColor="#6b7280",
                subtitleFontSize=12,
                subtitlePadding=6,
                offset=22,
            ),
            background="white",
            padding=20,
        )
        .configure(font="DejaVu Sans, Helvetica, Arial, sans-serif")
        .configure_view(stroke=None)
        .configure_axis(labelColor="#4b5563", titleColor=_INK, titleFontWeight="normal", labelFontSize=11)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.save(str(path), format="svg")


def _draw_panel(rows: Sequence[Mapping[str, Any]], label: str, title: str) -> alt.LayerChart:
    table = pd.DataFrame(rows)
    values = sorted(table["value"].unique().tolist())
    is_rate = title.startswith("Rewards")
    scale = alt.Scale(type="log") if is_rate else alt.Scale(zero=True)
    # Steps are even on a logarithm: every axis doubles.
    x = alt.X("value:Q", title=label, scale=alt.Scale(type="log", base=2, padding=14), axis=_axis(values=values))
    y_axis = alt.Axis(
        grid=True,
        gridColor=_FAINT,
        domain=False,
        ticks=False,
        tickCount=4,
        format="~s" if is_rate else "~g",
        title=None,
    )
    colour = alt.Color("way:N", scale=alt.Scale(domain=list(_COLOURS), range=list(_COLOURS.values())), legend=None)
    base = alt.Chart(table).encode(x=x, color=colour)
    ranges = base.mark_rule(strokeWidth=2, opacity=0.45).encode(y=alt.Y("low:Q", scale=scale, axis=y_axis), y2="high:Q")
    lines = base.mark_line(strokeWidth=2).encode(y=alt.Y("median:Q", scale=scale, axis=y_axis))
    dots = base.mark_point(filled=True, size=60, opacity=1).encode(y=alt.Y("median:Q", scale=scale, axis=y_axis))
    ends = (
        alt.Chart(table[table["value"] == values[-1]])
        .mark_text(align="left", dx=10, fontSize=12, fontWeight="bold")
        .encode(x=x, y=alt.Y("median:Q", scale=scale, axis=y_axis), text="way:N", color=colour)
    )
    return alt.layer(ranges, lines, dots, ends).properties(
        width=_WIDTH_PX,
        height=_HEIGHT_PX,
        title=alt.TitleParams(title, anchor="start", fontSize=13, color=_INK, offset=8),
    )


def _axis(values: Sequence[int]) -> alt.Axis:
    return alt.Axis(values=list(values), format="d", grid=False, domainColor=_FAINT, tickColor=_FAINT, titlePadding=8)
