"""What `region-r1 results` says of an evaluation: tables and lines for people, JSON for scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from pipeline.report import table as figures

# Rates that scripts read, for every method; fractions, not percentages.
JSON_METRICS: Final = (
    "mrr", "ndcg", "recall_at_1", "cond_recall_at_1", "rc_rate", "harm_rate", "malformed_rate", "headroom",
)  # fmt: skip
SEARCH_METRICS: Final = tuple(column.metric for column in figures.SEARCH_COLUMNS)
TABLE_METRICS: Final = ("cond_recall_at_1", "headroom", "rc_rate", "harm_rate", "malformed_rate")
# In two parts, as 80 columns do not hold all of it.
SEARCH_PARTS: Final = (
    ("the ranking", ("recall_at_1", "recall_at_5", "recall_at_10", "recall_at_20", "mrr", "ndcg")),
    ("the decisions", ("harm_at_1", "harm_at_20", "rc_rate", "malformed_rate")),
)
_WITH_INTERVAL: Final = frozenset({"cond_recall_at_1", "recall_at_1", "harm_at_1", "harm_at_20"})


def summarise(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of report.json that scripts read.

    Rates are fractions; an entry is null where a figure has no value. What is about searching again is empty where
    nothing searched again.
    """
    return {
        "methods": _trim_methods(report["methods"], JSON_METRICS),
        "paired": _trim_pairs(report["paired"]),
        "search": _trim_methods(report.get("search", {}), SEARCH_METRICS),
        "paired_search": _trim_pairs(report.get("paired_search", {})),
        "search_choices": report.get("search_choices", {}),
        **{name: report[name] for name in ("best_rule", "best_rgrpo", "rules", "left_out", "val")},
        **{name: report[name] for name in ("num_queries", "num_with_positive", "params_sha256", "data_md5")},
        "behaviour": report["behaviour"],
        "infoseek": report.get("infoseek", {}),
    }


def print_results(report: Mapping[str, Any], console: Console) -> None:
    """Print the tables of methods, what val chose and the paired differences."""
    console.print(_build_table(report))
    lines = [f"{figures.METHOD_LABELS[method]} is left out: {reason}" for method, reason in report["left_out"].items()]
    lines += [
        f"{figures.METHOD_LABELS[method]}, as chosen on val: {figures.describe_setting(chosen)}"
        for method, chosen in report["rules"].items()
    ]
    for pair, values in report["paired"].items():
        a, b = figures.name_pair(pair, report)
        lines.append(f"{a} against {b}, CondR@1: {figures.format_difference(values['cond_recall_at_1'], 'share')}")
    lines += [_describe_infoseek(method, scores) for method, scores in report.get("infoseek", {}).items()]
    _print_lines(lines, console)
    if "search" in report:
        _print_search(report, console)


def _print_search(report: Mapping[str, Any], console: Console) -> None:
    choices = report["search_choices"]
    for title, metrics in SEARCH_PARTS:
        console.print()
        console.print(_build_search_table(report, title, metrics))
    lines = [
        f"searching again, {figures.SEARCH_LABELS[method]}, as chosen on val: "
        f"{figures.describe_search_setting(choices['settings'][method])}"
        for method in figures.SEARCH_CHOSEN
        if method in choices["settings"]
    ]
    for pair, values in report["paired_search"].items():
        a, b = figures.name_search_pair(pair, choices)
        texts = {name: figures.format_difference(values[name], "share") for name in ("recall_at_1", "recall_at_20")}
        lines.append(f"searching again, {a} against {b}, R@1: {texts['recall_at_1']}; R@20: {texts['recall_at_20']}")
    _print_lines(lines, console)


def _print_lines(lines: Sequence[str], console: Console) -> None:
    for line in lines:
        console.print(line, highlight=False)


def _build_table(report: Mapping[str, Any]) -> Table:
    """Return what fits 80 columns; the JSON and the report hold every figure with its interval."""
    title = f"{report['num_queries']} test queries, {report['num_with_positive']} with a positive in the pool"
    table = _start_table(title, report, padding=2)
    shown = [column for column in figures.COLUMNS if column.metric in TABLE_METRICS]
    for column in shown:
        table.add_column(column.label, justify="right", no_wrap=True)
    for method, values in report["methods"].items():
        cells = _format_cells(values, shown)
        table.add_row(figures.METHOD_LABELS[method], *cells, style="bold" if method == "rgrpo" else None)
    return table


def _build_search_table(report: Mapping[str, Any], title: str, metrics: Sequence[str]) -> Table:
    headline = report["search_choices"]["headline"]
    table = _start_table(f"Searching again: {title}, all {report['num_queries']} test queries", report, padding=1)
    shown = [column for column in figures.SEARCH_COLUMNS if column.metric in metrics]
    for column in shown:
        table.add_column(column.label, justify="right", no_wrap=True)
    for method, label in figures.SEARCH_LABELS.items():
        if method in report["search"]:
            cells = _format_cells(report["search"][method], shown)
            table.add_row(label, *cells, style="bold" if method == headline else None)
    return table


def _start_table(title: str, report: Mapping[str, Any], *, padding: int) -> Table:
    confidence = f"{100 * report['confidence']:g} %"
    table = Table(
        title=title,
        caption=f"in brackets: {confidence} bootstrap interval",
        title_justify="left",
        box=None,
        padding=(0, padding, 0, 0),
    )
    table.add_column("method", no_wrap=True)
    return table


def _format_cells(values: Mapping[str, Any], columns: Sequence[figures.Column]) -> list[str]:
    return [
        figures.format_mean(values[column.metric], column.kind)
        + (f" ({figures.format_range(values[column.metric], column.kind)})" if column.metric in _WITH_INTERVAL else "")
        for column in columns
    ]


def _describe_infoseek(method: str, scores: Mapping[str, Any]) -> str:
    score = scores["cond_recall_at_1"]["harmonic_mean"]
    span = figures.format_range(score, "share")
    line = f"InfoSeek, harmonic mean of CondR@1 over both splits, {figures.METHOD_LABELS[method]}: "
    return line + figures.format_mean(score, "share") + (f" ({span})" if span else "")


def _trim_methods(methods: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, Any]:
    return {method: {name: _trim(values[name]) for name in metrics} for method, values in methods.items()}


def _trim_pairs(pairs: Mapping[str, Any]) -> dict[str, Any]:
    return {
        pair: {metric: _trim(value, "p_value") for metric, value in values.items()} for pair, values in pairs.items()
    }


def _trim(value: Mapping[str, float] | None, *more: str) -> dict[str, float] | None:
    return None if value is None else {name: value[name] for name in ("mean", "low", "high", *more)}
