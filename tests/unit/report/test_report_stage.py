"""The stage report: the page and crops it writes, pictures of any size, and that it leaves the results alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from pipeline.errors import DataError, StageError
from pipeline.files.store import load_qrels, save_pools
from pipeline.report.gallery import _encode_jpeg
from pipeline.runs.tracking import null_run
from pipeline.stages import report
from pipeline.types import Box, Query
from pipeline.workspace import Workspace
from tests.fakes import report_fakes as fakes
from tests.fakes.evaluation_fakes import PARAMS, FakeWorld, ask_and_evaluate, build_fake_world

pytestmark = pytest.mark.slow  # draws the page


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeWorld]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        world = build_fake_world(tmp_path_factory.mktemp("report"), monkeypatch)
        ask_and_evaluate(fakes.NOT_SEARCHED, world.workspace)
        yield world


def _read_all(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("size_px", [(70_000, 30), (30, 70_000), (70_000, 1), (2000, 1500), (60, 40)])
def test_sample_crops_are_shrunk(size_px: tuple[int, int], tmp_path: Path) -> None:
    workspace = Workspace.at(tmp_path)
    workspace.data_dir.mkdir()
    Image.new("RGB", size_px).save(workspace.data_dir / "q.png")
    query = Query(
        query_id="q", split="test", question="?", image_path="q.png", width_px=size_px[0], height_px=size_px[1]
    )
    report._save_crops(tmp_path / "crops", [(query, Box(0.0, 0.0, 0.99, 0.99))], PARAMS, workspace)
    with Image.open(tmp_path / "crops" / "0.jpg") as shown:
        whole = max(round(0.99 * side) for side in size_px)
        assert max(shown.size) == min(1024, whole)
        assert min(shown.size) >= 1


def test_gallery_pictures_are_shrunk() -> None:
    assert _encode_jpeg(Image.new("RGB", (70_000, 1)), 400).startswith("data:image/jpeg")


def test_page_is_whole_escapes_what_it_shows_and_is_the_same_again(evaluated: FakeWorld) -> None:
    workspace = evaluated.workspace
    figures = report.run(PARAMS, workspace, null_run())
    before = _read_all(workspace.report_dir)
    assert set(before) == {"report.html", *(f"crops/{number}.jpg" for number in range(8))}
    assert figures["num_sample_crops"] == 8
    page = before["report.html"].decode()
    assert figures["num_shown"] == page.count("<article ")
    assert "&lt;b&gt;d0" in page
    assert "<b>d0" not in page
    assert 'src="http' not in page
    assert 'href="http' not in page
    assert report.run(PARAMS, workspace, null_run()) == figures
    assert _read_all(workspace.report_dir) == before


def test_what_a_search_won_back_joins_the_gallery(evaluated: FakeWorld) -> None:
    workspace = evaluated.workspace
    before = _read_all(workspace.evaluation_dir)
    num_shown = report.run(PARAMS, workspace, null_run())["num_shown"]
    qrels = load_qrels(workspace.tables_dir / "qrels.parquet")
    lacking = {pool.query_id for pool in evaluated.pools if not pool.has_positive}
    fakes.plant_search(workspace, {qrel.query_id: qrel.doc_id for qrel in qrels if qrel.query_id in lacking})
    assert report.run(PARAMS, workspace, null_run())["num_shown"] == num_shown + len(lacking) > num_shown
    page = (workspace.report_dir / "report.html").read_text()
    assert page.count('<article data-kind="won_back">') == len(lacking)
    assert page.count("won back: in no pool of the full image") == len(lacking)
    for path, content in before.items():
        (workspace.evaluation_dir / path).write_bytes(content)


def test_a_missing_document_picture_is_one_line_and_costs_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = build_fake_world(tmp_path, monkeypatch, num_queries=6)
    ask_and_evaluate(fakes.NOT_SEARCHED, world.workspace)
    results = _read_all(world.workspace.evaluation_dir)
    for path in world.workspace.data_dir.glob("images/d*.jpg"):
        path.unlink()
    with pytest.raises(DataError, match=r"images/d\d\d\.jpg") as caught:
        report.run(PARAMS, world.workspace, null_run())
    assert "\n" not in str(caught.value)
    assert not world.workspace.report_dir.exists()
    assert _read_all(world.workspace.evaluation_dir) == results


def test_an_evaluation_of_other_pools_is_not_shown(evaluated: FakeWorld) -> None:
    path = evaluated.workspace.pools_dir / "pools.parquet"
    kept = path.read_bytes()
    save_pools(path, [*evaluated.pools[::-1], *evaluated.val_pools])
    report.run(PARAMS, evaluated.workspace, null_run())  # the order in the table says nothing
    turned = [replace(pool, doc_ids=pool.doc_ids[::-1]) for pool in evaluated.pools]
    save_pools(path, [*turned, *evaluated.val_pools])
    with pytest.raises(StageError, match=r"of another state of .*pools; run evaluate again"):
        report.run(PARAMS, evaluated.workspace, null_run())
    path.write_bytes(kept)


def test_without_an_evaluation_there_is_nothing_to_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = build_fake_world(tmp_path, monkeypatch, num_queries=2)
    with pytest.raises(StageError, match="run evaluate first"):
        report.run(PARAMS, world.workspace, null_run())
