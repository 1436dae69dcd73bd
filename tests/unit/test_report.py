"""The result table's number formats, and which queries the gallery shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.evaluation.figures import METRICS
from pipeline.evaluation.methods import METHODS
from pipeline.report import table
from pipeline.report.gallery import build_panels, pick_cards
from pipeline.report.page import render_page
from pipeline.stages import evaluate
from pipeline.store import load_documents, load_results, read_json
from pipeline.tracking import null_run
from tests.unit.evaluation_fakes import PARAMS, build_fake_world


def test_every_method_and_metric_has_a_name() -> None:
    assert tuple(table.METHOD_LABELS) == tuple(table.METHOD_NOTES) == METHODS
    assert {column.metric for column in table.COLUMNS} == set(METRICS)


def test_numbers_read_as_people_expect() -> None:
    interval = {"mean": 0.4475, "low": 0.4, "high": 0.5}
    assert table.format_mean(interval, "share") == "44.8 %"
    assert table.format_range(interval, "share") == "40.0 to 50.0"
    assert table.format_mean(interval, "score") == "0.448"
    assert table.format_mean(None, "share") == table.NO_VALUE
    assert table.format_range(None, "share") == ""


def test_difference_tells_sign_interval_and_p() -> None:
    difference = {"mean": 0.031, "low": -0.012, "high": 0.05, "p_value": 0.0021}
    assert table.format_difference(difference, "share") == "+3.1 points (-1.2 to +5.0, p = 0.0021)"
    assert table.format_difference(None, "share") == table.NO_VALUE


def test_gallery_shows_wins_losses_and_abstentions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = build_fake_world(tmp_path, monkeypatch)
    evaluate.run(PARAMS, world.workspace, null_run())
    rows = load_results(world.workspace.evaluation_dir / "results.parquet")
    before, after = ([row for row in rows if row.method == method] for method in ("full", "rgrpo"))
    cards = pick_cards(world.queries, before, after, num_each=2)
    kinds = [card.kind for card in cards]
    assert kinds == sorted(kinds, key=("win", "loss", "kept").index)
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"win": 2, "loss": 2, "kept": 2}
    documents = {d.doc_id: d for d in load_documents(world.workspace.tables_dir / "documents.parquet")}
    pools = {pool.query_id: pool for pool in world.pools}
    panels = build_panels(cards, pools, documents, world.workspace.data_dir, max_pixels=10_000)
    assert all(panel.picture.startswith("data:image/jpeg;base64,") for panel in panels)
    page = render_page(read_json(world.workspace.evaluation_dir / "report.json"), panels)
    assert page.count("<article>") == len(cards)
    assert "http" not in page.replace("http-equiv", "")
