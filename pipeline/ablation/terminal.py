"""The summary of the ablations on a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.ablation.page import (
    COLUMNS,
    count_comparisons,
    describe_collapsed,
    describe_scope,
    format_paper,
    list_gaps,
    list_verdicts,
)


def print_summary(summary: Mapping[str, Any], console: Console) -> None:
    """Print every table, what its claims came to, and what is left out."""
    console.print(describe_scope(summary), highlight=False)
    console.print(count_comparisons(summary), highlight=False)
    for table in summary["tables"]:
        console.print()
        console.print(_build_table(table))
        for verdict in list_verdicts(table):
            console.print(verdict, highlight=False, style="bold" if "disagrees" in verdict else None)
        if not any(row["claim"] for row in table["rows"]):
            console.print(f"paper: {table['paper']}", highlight=False)
    if summary["collapsed"]:
        for sentence in describe_collapsed(summary["collapsed"]):
            console.print(sentence, highlight=False)
    for gap in list_gaps(summary):
        console.print(f"\n{gap}", highlight=False)


def _build_table(table: Mapping[str, Any]) -> Table:
    """Return the table with the interval of its own metric; the files hold all of them."""
    has_paper = any(row["paper_mrr"] for row in table["rows"])
    shown = Table(title=table["title"], title_justify="left", box=None, padding=(0, 2, 0, 0))
    shown.add_column("arm", no_wrap=True)
    for metric, label in COLUMNS:
        shown.add_column(f"{label} [interval]" if metric == table["metric"] else label, justify="right", no_wrap=True)
    if has_paper:
        shown.add_column("paper's MRR", justify="right", no_wrap=True)
    for row in table["rows"]:
        cells = [_format_cell(row["figures"][metric], metric == table["metric"]) for metric, _ in COLUMNS]
        shown.add_row(row["title"], *cells, *([format_paper(row)] if has_paper else []))
    return shown


def _format_cell(figure: Mapping[str, float], with_interval: bool) -> str:
    mean = f"{figure['mean']:.3f}"
    return f"{mean} ({figure['low']:.3f} to {figure['high']:.3f})" if with_interval else mean
