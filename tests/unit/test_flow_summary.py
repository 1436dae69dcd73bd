"""The page that ends a flow run: it shows whatever the report holds, and says when there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.summary import build_summary
from pipeline.stages import evaluate
from pipeline.store import read_json, write_json
from pipeline.tracking import null_run
from tests.unit.evaluation_fakes import PARAMS, build_fake_world


def test_summary_names_every_method_and_the_best_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = build_fake_world(tmp_path, monkeypatch, num_queries=14)
    evaluate.run(PARAMS, world.workspace, null_run())
    page = build_summary(tmp_path, "run", {"evaluate": "Completed"})
    path = world.workspace.evaluation_dir / "report.json"
    report = read_json(path)
    assert all(f"| {method} |" in page for method in report["methods"])
    assert "against best rule (" in page
    write_json(path, {"methods": report["methods"]})
    assert "best rule" not in build_summary(tmp_path, "run", {})


def test_summary_without_a_report_says_so(tmp_path: Path) -> None:
    assert "No evaluation report yet." in build_summary(tmp_path, "run", {})
