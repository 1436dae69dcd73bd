"""The page that ends a flow run: it shows whatever the report holds, and says when there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows import summary
from flows.summary import build_summary
from pipeline.files.store import read_json, write_json
from tests.fakes import report_fakes as fakes
from tests.fakes.evaluation_fakes import ask_and_evaluate, build_fake_world


def test_summary_names_every_method_and_the_best_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = build_fake_world(tmp_path, monkeypatch, num_queries=14)
    ask_and_evaluate(fakes.NOT_SEARCHED, world.workspace)
    page = build_summary(tmp_path, "run", {"evaluate": "Completed"})
    path = world.workspace.evaluation_dir / "report.json"
    report = read_json(path)
    assert all(f"| {method} |" in page for method in report["methods"])
    assert "against best rule (" in page
    assert "Searching again" not in page
    write_json(path, report | fakes.build_search())
    assert "Searching again, r-GRPO, merged: R@1 70.0 % (60.0 to 80.0), R@20" in build_summary(tmp_path, "run", {})
    write_json(path, {"methods": report["methods"]})
    assert "best rule" not in build_summary(tmp_path, "run", {})


def test_summary_without_a_report_says_so(tmp_path: Path) -> None:
    assert "No evaluation report yet." in build_summary(tmp_path, "run", {})


@pytest.mark.parametrize("content", ["{", "[]", '{"methods": 3}', '{"methods": {"full": {"mrr": true}}}'])
def test_a_report_that_cannot_be_shown_spoils_no_summary(tmp_path: Path, content: str) -> None:
    path = tmp_path / "artifacts" / "evaluation" / "report.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert "| index | Cached |" in build_summary(tmp_path, "run", {"index": "Cached"})


def test_figures_without_an_interval_or_a_value_are_shown_as_such() -> None:
    assert summary._format_figure({"mean": 0.5, "low": 0.4, "high": 0.6}) == "0.500 (0.400 to 0.600)"
    assert summary._format_figure({"mean": 0.5}) == "0.500"
    assert summary._format_figure({"mean": None}) == summary._format_figure(None) == "-"


def test_the_summary_links_mlflow_and_the_report_and_is_stored_under_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: list[dict[str, str]] = []
    monkeypatch.setattr(summary, "create_markdown_artifact", lambda **artifact: stored.append(artifact))
    monkeypatch.setenv("REGION_R1_MLFLOW_UI", "http://mlflow.example:5000/")
    page = tmp_path / "artifacts" / "report" / "report.html"
    page.parent.mkdir(parents=True)
    page.write_text("x")
    summary.publish_summary(tmp_path, "abc", {"train": "Completed"})
    (artifact,) = stored
    assert artifact["key"] == "region-r1-result"
    assert "[run abc](http://mlflow.example:5000/#/runs/abc)" in artifact["markdown"]
    assert page.resolve().as_uri() in artifact["markdown"]
