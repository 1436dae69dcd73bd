"""docs/data-format.md, Data on another disk: DVC's cache lies elsewhere and data/ holds links into it; real DVC."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from dvc.repo import Repo

from flows.execution.data import UNCHANGED, DataStepError, materialise_data
from pipeline.config import Params
from pipeline.files import store
from pipeline.files.images import ImageError, load_upright
from pipeline.runs.tracking import null_run
from pipeline.stages import prepare
from pipeline.stages.register import _follow_links
from pipeline.workspace import Workspace
from tests.fakes.published_files import paint, write_jsonl

# DVC's own.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")


def write_own(folder: Path) -> None:
    rows = []
    for number, split in enumerate(("train", "test")):
        paint(folder / f"images/{split}.png", number)
        row = {"query_id": split, "split": split, "question": "What?", "image": f"images/{split}.png"}
        rows.append({**row, "relevant": ["d"]})
    write_jsonl(folder / "queries.jsonl", rows)
    write_jsonl(folder / "documents.jsonl", [{"doc_id": "d", "title": "D", "text": "Text.", "images": []}])


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with DVC whose data were handed over as documented; their first place is gone."""
    root, disk = tmp_path / "checkout", tmp_path / "disk"
    root.mkdir()
    monkeypatch.chdir(root)
    write_own(disk / "my-data")
    with Repo.init(str(root), no_scm=True) as repo, repo.config.edit("local") as config:
        config["cache"] = {"dir": str(disk / "dvc-cache"), "type": "symlink"}
    with Repo(str(root)) as repo:
        repo.add([str(disk / "my-data")], out="data")
    shutil.rmtree(disk / "my-data")
    return root


def refuse_to_draw(_: Path) -> None:
    raise AssertionError("data of one's own are never drawn")


def test_linked_data_are_prepared_and_versioned(checkout: Path) -> None:
    workspace = Workspace.at(checkout)
    picture = workspace.data_dir / "images/train.png"
    assert picture.is_symlink()
    assert materialise_data(checkout, refuse_to_draw).startswith(UNCHANGED)
    figures = prepare.run(Params(), workspace, null_run())
    assert (figures["num_queries"], figures["num_rejected"]) == (2, 0)


def test_missing_links_are_made_again(checkout: Path) -> None:
    shutil.rmtree(checkout / "data")
    assert "checked out of the cache" in materialise_data(checkout, refuse_to_draw)
    assert (checkout / "data/images/test.png").is_symlink()


def test_a_changed_file_is_a_decision_and_dvc_add_takes_it(checkout: Path) -> None:
    path = checkout / "data/documents.jsonl"
    path.unlink()
    write_jsonl(path, [{"doc_id": "d", "title": "D", "text": "Other.", "images": []}])
    with pytest.raises(DataStepError, match="run `dvc add data` to accept it"):
        materialise_data(checkout, refuse_to_draw)
    with Repo(str(checkout)) as repo:
        repo.add(["data"])
    assert path.is_symlink()
    prepare.run(Params(), Workspace.at(checkout), null_run())
    (document,) = store.load_documents(Workspace.at(checkout).tables_dir / "documents.parquet")
    assert document.text == "Other."


def test_links_elsewhere_are_still_refused(checkout: Path, tmp_path: Path) -> None:
    data_dir = checkout / "data"
    paint(tmp_path / "disk/secret.png", 9)
    (data_dir / "images/link.png").symlink_to(tmp_path / "disk/secret.png")
    with pytest.raises(ImageError, match="lies outside") as caught:
        load_upright(data_dir / "images/link.png", max_pixels=1000, root=data_dir)
    assert caught.value.fault == "unsafe_path"
    # Another folder of the checkout has no such leave.
    with pytest.raises(ImageError, match="lies outside"):
        load_upright(data_dir / "images/train.png", max_pixels=1000, root=data_dir / "images")


def test_linked_outputs_are_registered_as_files(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("content")
    linked, plain = tmp_path / "linked", tmp_path / "plain"
    for folder in (linked, plain):
        (folder / "inner").mkdir(parents=True)
    (linked / "inner/weights").symlink_to(tmp_path / "cache")
    (plain / "inner/weights").write_text("content")
    assert _follow_links(plain, tmp_path / "unused") == plain
    whole = _follow_links(linked, tmp_path / "whole" / "policy")
    assert whole == tmp_path / "whole/policy"
    assert not (whole / "inner/weights").is_symlink()
    assert (whole / "inner/weights").read_text() == "content"


def test_what_is_advised_against_does_not_work(tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    root.mkdir()
    write_own(tmp_path / "disk")
    (root / "data").symlink_to(tmp_path / "disk")
    with Repo.init(str(root), no_scm=True) as repo, pytest.raises(Exception, match="symlinked director"):
        repo.add([str(root / "data")])
