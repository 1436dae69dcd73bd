"""report.html: one page with its pictures, charts and style inside; it asks the network for nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.report import table
from pipeline.report.gallery import Panel

_KINDS = (
    ("win", "Wins", "the policy's view ranks the answer higher than the full image does"),
    ("loss", "Losses", "its view ranks the answer lower"),
    ("kept", "Abstentions", "it kept the full image"),
)


def render_page(report: Mapping[str, Any], panels: Sequence[Panel]) -> str:
    """Return the page.

    Args:
        report: content of report.json.
        panels: the gallery.
    """
    environment = Environment(
        loader=PackageLoader("pipeline.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    groups = [(kind, title, note, [p for p in panels if p.kind == kind]) for kind, title, note in _KINDS]
    return environment.get_template("report.html.j2").render(
        report=report,
        groups=groups,
        columns=table.COLUMNS,
        labels=table.METHOD_LABELS,
        notes=table.METHOD_NOTES,
        mean=table.format_mean,
        span=table.format_range,
        difference=table.format_difference,
    )
