"""What all charts of the page share: colours, Vega-Lite's config, and how a chart becomes JSON.

Colours are names of the page's style (`var(--region)`), so one chart serves light and dark.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import altair as alt

Row = dict[str, Any]
AnyChart = alt.Chart | alt.LayerChart | alt.FacetChart

REGION: Final = "var(--region)"
FULL: Final = "var(--full)"
MALFORMED: Final = "var(--malformed)"
POLICY: Final = "var(--policy)"
INK: Final = "var(--ink)"
SOFT: Final = "var(--soft)"
OTHER: Final = "var(--other)"
RULE: Final = "var(--rule)"
CEILING: Final = "var(--ceiling)"
METHOD_COLOURS: Final[Mapping[str, str]] = {
    "full": FULL,
    "base": OTHER,
    "base_grown": RULE,
    "base_squared": RULE,
    "base_grown_or_full": RULE,
    "base_grown_fused": RULE,
    "base_union": RULE,
    "sft": "var(--sft)",
    "rgrpo": POLICY,
    "rgrpo_fused": POLICY,
    "rgrpo_union": POLICY,
    "reranked": "var(--policy-soft)",
    "perfect": CEILING,
    "oracle": CEILING,
}
PERCENT: Final = ".0%"

CONFIG: Final[Mapping[str, Any]] = {
    "background": "transparent",
    "font": 'system-ui, -apple-system, "Segoe UI", sans-serif',
    "view": {"stroke": None},
    "axis": {
        "labelColor": SOFT,
        "titleColor": SOFT,
        "gridColor": "var(--line)",
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 8,
        "labelLimit": 140,
        "labelSeparation": 6,
    },
    "axisBand": {"grid": False, "labelAngle": 0},
    "legend": {
        "orient": "top",
        "direction": "horizontal",
        "columns": 4,
        "labelColor": INK,
        "titleColor": SOFT,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "symbolType": "square",
        "symbolStrokeWidth": 0,
        "labelLimit": 220,
        "offset": 6,
    },
    "text": {"color": INK, "fontSize": 12},
    "rule": {"color": INK},
}
"""Vega-Lite's config for every chart of the page."""


def build_spec(chart: AnyChart, description: str) -> Row:
    """Return a chart as JSON values; the page's CONFIG takes the place of altair's own.

    Args:
        chart: a single or layered view, as only those can take their container's width.
        description: what a screen reader says.
    """
    spec: Row = chart.properties(width="container", description=description).to_dict()
    spec.pop("config", None)
    return spec


def scale_of(field: str, colours: Mapping[str, str], *, lines: bool = False) -> alt.Color:
    """Return the colour channel of a field, its legend in the order given; `lines` have strokes for symbols."""
    scale = alt.Scale(domain=list(colours), range=list(colours.values()))
    if lines:
        legend = alt.Legend(title=None, symbolType="stroke", symbolStrokeWidth=3, symbolOpacity=1)
    else:
        legend = alt.Legend(title=None)
    return alt.Color(f"{field}:N", scale=scale, legend=legend)
