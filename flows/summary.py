"""The page that ends a flow run: the result table, what was unchanged, and where to read on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact

from flows.environment import MLFLOW_UI_VARIABLE
from pipeline.report.table import (
    BEST_PAIR,
    format_difference,
    format_mean,
    format_range,
    name_pair,
    name_search_pair,
)
from pipeline.workspace import Workspace

ARTIFACT_KEY = "region-r1-result"
_DEFAULT_MLFLOW_UI = "http://127.0.0.1:5000"


def publish_summary(root: Path, run_id: str, stage_states: Mapping[str, str]) -> None:
    """Store the summary of this flow run as a Prefect markdown artifact."""
    create_markdown_artifact(
        key=ARTIFACT_KEY,
        markdown=build_summary(root, run_id, stage_states),
        description="Region-R1: result of a run",
    )


def build_summary(root: Path, run_id: str, stage_states: Mapping[str, str]) -> str:
    """Return the summary as markdown."""
    workspace = Workspace.at(root)
    report_path = workspace.report_dir / "report.html"
    ui = os.environ.get(MLFLOW_UI_VARIABLE, _DEFAULT_MLFLOW_UI).rstrip("/")
    links = [f"- MLflow: [run {run_id}]({ui}/#/runs/{run_id}) (`region-r1 ui` serves it)"]
    if report_path.is_file():
        links.insert(0, f"- Report: [{report_path.relative_to(root)}]({report_path.resolve().as_uri()})")
    stages = "\n".join(f"| {stage} | {state} |" for stage, state in stage_states.items())
    table = _build_table(workspace.evaluation_dir / "report.json")
    return "\n".join(["# Region-R1", "", table, "", *links, "", "| stage | state |", "|---|---|", stages, ""])


def _build_table(path: Path) -> str:
    try:
        report: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "No evaluation report yet."
    methods = _find_methods(report)
    if not methods:
        return "The evaluation report holds no table of methods."
    metrics = list(dict.fromkeys(metric for figures in methods.values() for metric in figures))
    head = ["| method | " + " | ".join(metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
    rows = [
        f"| {method} | " + " | ".join(_format_figure(figures.get(metric)) for metric in metrics) + " |"
        for method, figures in methods.items()
    ]
    return "\n".join([*head, *rows, "", *_describe_best(report), *_describe_search(report)])


def _describe_best(report: Any) -> list[str]:  # noqa: ANN401 - any JSON
    """Say how r-GRPO stands to the best rule that nobody trained; nothing where the report does not tell."""
    try:
        ours, bar = name_pair(BEST_PAIR, report)
        difference = format_difference(report["paired"][BEST_PAIR]["cond_recall_at_1"], "share")
    except (KeyError, TypeError):
        return []
    return [f"{ours} against {bar}, CondR@1: {difference}", ""]


def _describe_search(report: Any) -> list[str]:  # noqa: ANN401 - any JSON
    """Say what searching again finds, and how that stands to the best rule; nothing where the report does not tell."""
    try:
        ours, bar = name_search_pair(BEST_PAIR, report["search_choices"])
        found = report["search"][report["search_choices"]["headline"]]
        figures = [
            f"{label} {format_mean(found[metric], 'share')} ({format_range(found[metric], 'share')})"
            for label, metric in (("R@1", "recall_at_1"), ("R@20", "recall_at_20"))
        ]
        difference = format_difference(report["paired_search"][BEST_PAIR]["recall_at_1"], "share")
    except (KeyError, TypeError):
        return []
    return [f"Searching again, {ours}: {', '.join(figures)}; against {bar}, R@1: {difference}", ""]


def _find_methods(report: Any) -> dict[str, dict[str, Any]]:  # noqa: ANN401 - any JSON
    methods = report.get("methods", {}) if isinstance(report, dict) else {}
    if not isinstance(methods, dict):
        return {}
    tables = {name: entry.get("metrics", entry) for name, entry in methods.items() if isinstance(entry, dict)}
    return {
        name: {metric: figure for metric, figure in table.items() if _mean_of(figure) is not None}
        for name, table in tables.items()
        if isinstance(table, dict)
    }


def _mean_of(figure: Any) -> float | None:  # noqa: ANN401 - any JSON
    mean = figure.get("mean") if isinstance(figure, dict) else None
    return mean if isinstance(mean, int | float) and not isinstance(mean, bool) else None


def _format_figure(figure: Any) -> str:  # noqa: ANN401 - any JSON
    mean = _mean_of(figure)
    if mean is None:
        return "-"
    low, high = figure.get("low"), figure.get("high")
    return f"{mean:.3f}" if low is None or high is None else f"{mean:.3f} ({low:.3f} to {high:.3f})"
