"""The figures for people: a table on the terminal, each goal met or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rich.console import Console
from rich.table import Table

_RATIOS: Final = (
    ("reward", "speedup", "rewards/s, ours : naive", "speedup_over_naive"),
    ("reward", "floor_ratio", "reward, ours : floor", "over_floor"),
    ("train_step", "stock_ratio", "step, ours : stock", "over_stock"),
)
_RATES: Final = (
    ("reward", "naive_per_s", "rewards/s, naive"),
    ("reward", "ours_per_s", "rewards/s, ours"),
    ("reward", "warm_per_s", "rewards/s, ours, crops seen before"),
    ("reward", "embedding_ratio", "reward, ours : encoder alone"),
    ("train_step", "ours_s", "step in s, ours"),
    ("train_step", "stock_s", "step in s, stock"),
)
_WAYS: Final = {
    "nothing": "libraries, models and tables loaded",
    "ours": "+ reward, ours",
    "naive": "+ reward, naive",
    "floor": "+ floor",
    "ours_step": "+ training steps, ours",
    "stock_step": "+ training steps, stock",
}


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """Print goals, rates and peak memory."""
    setting, machine = report["setting"], report["machine"]
    console.print(
        f"K = {setting['pool_size']}, {setting['num_queries']} queries x {setting['group_size']} completions; "
        f"{machine['device']}, {machine['cpu_count']} cores, {machine['threads']} threads",
        highlight=False,
    )
    console.print(_build_ratios(report))
    console.print(_build_rates(report))
    memory = _start_table("peak memory, one process each", "MiB")
    for way, mib in report["memory_mib"].items():
        memory.add_row(_WAYS[way], f"{mib:,.0f}")
    console.print(memory)


def is_met(goal: Mapping[str, float], median: float) -> bool:
    """Return whether the median reaches `at_least` or stays within `at_most`."""
    return median >= goal["at_least"] if "at_least" in goal else median <= goal["at_most"]


def _build_ratios(report: Mapping[str, Any]) -> Table:
    table = _start_table("side by side", "median", "range", "CPU", "goal", "")
    for part, name, label, goal_name in _RATIOS:
        _add_ratio(table, label, report[part], name, report["goals"][goal_name])
    for figures in report["search_reward"]["by_index"]:
        label = f"rewards of a step, search : pool, {figures['num_documents']:,} documents"
        _add_ratio(table, label, figures, "over_pool", report["goals"]["over_pool"])
    return table


def _add_ratio(table: Table, label: str, figures: Mapping[str, Any], name: str, goal: Mapping[str, float]) -> None:
    spread, cpu = figures[name], figures[f"{name}_cpu"]
    bound = f"≥ {goal['at_least']:g}" if "at_least" in goal else f"≤ {goal['at_most']:g}"
    verdict = "[green]met[/green]" if is_met(goal, spread["median"]) else "[red]not met[/red]"
    table.add_row(label, _format(spread["median"]), _format_range(spread), _format(cpu["median"]), bound, verdict)


def _build_rates(report: Mapping[str, Any]) -> Table:
    table = _start_table("for information", "median", "range")
    for part, name, label in _RATES:
        spread = report[part][name]
        table.add_row(label, _format(spread["median"]), _format_range(spread))
    return table


def _start_table(first: str, *others: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), title_justify="left")
    table.add_column(first, no_wrap=True, min_width=34)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _format(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _format_range(spread: Mapping[str, float]) -> str:
    return f"{_format(spread['low'])} - {_format(spread['high'])}"
