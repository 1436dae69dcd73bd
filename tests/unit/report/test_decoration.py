"""What decorates an evaluation: pictures of any size are shown small, and no failure of it costs the results."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from PIL import Image

from pipeline.evaluation import decoration
from pipeline.files.store import load_results, read_json
from pipeline.report.gallery import _encode_jpeg
from pipeline.runs.tracking import null_run
from pipeline.stages import evaluate
from pipeline.types import Box, Query
from pipeline.workspace import Workspace
from tests.fakes.evaluation_fakes import PARAMS, build_fake_world

pytestmark = pytest.mark.slow  # draws the page


@pytest.mark.parametrize("size_px", [(70_000, 30), (30, 70_000), (70_000, 1), (2000, 1500), (60, 40)])
def test_sample_crops_are_shrunk(size_px: tuple[int, int], tmp_path: Path) -> None:
    workspace = Workspace.at(tmp_path)
    workspace.data_dir.mkdir()
    workspace.evaluation_dir.mkdir(parents=True)
    Image.new("RGB", size_px).save(workspace.data_dir / "q.png")
    query = Query(
        query_id="q", split="test", question="?", image_path="q.png", width_px=size_px[0], height_px=size_px[1]
    )
    decoration._save_crops([(query, Box(0.0, 0.0, 0.99, 0.99))], PARAMS, workspace)
    with Image.open(workspace.evaluation_dir / "crops" / "0.jpg") as shown:
        whole = max(round(0.99 * side) for side in size_px)
        assert max(shown.size) == min(1024, whole)
        assert min(shown.size) >= 1


def test_gallery_pictures_are_shrunk() -> None:
    assert _encode_jpeg(Image.new("RGB", (70_000, 1)), 400).startswith("data:image/jpeg")


def test_a_failing_page_is_one_warning_and_the_results_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = build_fake_world(tmp_path, monkeypatch, num_queries=6, with_page=True)
    whole = evaluate.run(PARAMS, world.workspace, null_run())
    folder = world.workspace.evaluation_dir
    assert (folder / "report.html").is_file()

    def fail(*_: object) -> None:
        assert read_json(folder / "report.json")["num_queries"] == 6
        assert load_results(folder / "results.parquet")
        assert (folder / "runs" / "rgrpo.trec").is_file()
        raise RuntimeError("no\nink")

    monkeypatch.setattr(decoration, "render_page", fail)
    monkeypatch.setattr(decoration, "crop_view", fail)
    with caplog.at_level(logging.WARNING):
        assert evaluate.run(PARAMS, world.workspace, null_run()) == whole
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "evaluate: the results are saved, but not sample crops: RuntimeError: no ink",
        "evaluate: the results are saved, but not report.html: RuntimeError: no ink",
    ]
    assert not (folder / "report.html").exists()
    assert not (folder / "crops").exists()


def test_a_missing_document_picture_costs_the_page_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = build_fake_world(tmp_path, monkeypatch, num_queries=6, with_page=True)
    for path in world.workspace.data_dir.glob("images/d*.jpg"):
        path.unlink()
    evaluate.run(PARAMS, world.workspace, null_run())
    folder = world.workspace.evaluation_dir
    assert (folder / "report.json").is_file()
    assert sorted((folder / "crops").iterdir())
    assert not (folder / "report.html").exists()
