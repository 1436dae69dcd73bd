"""The figures of `python -m benchmarks.gpu` for people: tables of at most 80 columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rich.console import Console
from rich.table import Table

PAPER_BATCH: Final = 8
PAPER_S_PER_SAMPLE: Final = 1.55
PAPER_PEAK_GB: Final = 8.4

_ENDINGS: Final = {"action": "action's end", "longest": "last token"}


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """Print what was measured on, then answers, steps and embedding."""
    setting, machine = report["setting"], report["machine"]
    console.print(
        f"Random weights of shape {setting['shape']}: policy {setting['policy_parameters']:,}, "
        f"scorer {setting['scorer_parameters']:,} parameters\n"
        f"{machine['device']}, {machine['dtype']}, torch {machine['torch']}; pictures of {setting['side_px']} px, "
        f"prompts of {setting['prompt_tokens']} tokens\n"
        f"action's end: a scripted action ends each answer; last token: all take {setting['max_new_tokens']} tokens",
        highlight=False,
    )
    console.print(_build_answers(report))
    console.print(_build_steps(report))
    console.print(_build_embedding(report))


def _build_answers(report: Mapping[str, Any]) -> Table:
    table = _start_table("answers", "batch", "tokens", "samples/s", "s/sample", "peak GB")
    for row in report["answers"]:
        table.add_row(
            f"{row['engine']}, {_ENDINGS[row['ending']]}",
            str(row["batch_size"]),
            "-" if row["num_tokens"] is None else _format(row["num_tokens"]),
            *_format_costs(row, "samples_per_s", "s_per_sample"),
        )
    speed = _format(1 / PAPER_S_PER_SAMPLE)
    table.add_row(
        "paper, on an A6000", str(PAPER_BATCH), "-", speed, _format(PAPER_S_PER_SAMPLE), _format(PAPER_PEAK_GB)
    )
    return table


def _build_steps(report: Mapping[str, Any]) -> Table:
    table = _start_table(f"r-GRPO step, N = {report['setting']['group_size']}", "rows", "tokens",
                         "generation s", "reward s", "update s", "peak GB")  # fmt: skip
    for row in report["steps"]:
        table.add_row(
            _ENDINGS[row["ending"]],
            str(row["num_rows"]),
            "-" if row["num_tokens"] is None else _format(row["num_tokens"]),
            *_format_costs(row, "generation_s", "reward_s", "update_s"),
        )
    return table


def _build_embedding(report: Mapping[str, Any]) -> Table:
    table = _start_table("embedding", "batch", "images/s", "peak GB")
    row = report["embedding"]
    for label, name in (("ours, from disk", "ours_per_s"), ("bare forward", "bare_per_s")):
        table.add_row(label, str(row["batch_size"]), *_format_costs(row, name))
    return table


def _start_table(first: str, *others: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), title_justify="left")
    table.add_column(first, no_wrap=True, min_width=18)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _format_costs(row: Mapping[str, Any], *names: str) -> list[str]:
    """Return the named figures and the peak, or that memory ran out."""
    if row[names[0]] is None:
        return [*("-" for _ in names), "out of memory"]
    return [*(_format(row[name]) for name in names), _format(row["peak_gb"])]


def _format(value: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
