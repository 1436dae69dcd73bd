"""What prepare makes of sound data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.config import DataParams, Params
from pipeline.errors import DataError
from pipeline.files import store
from pipeline.files.images import ImageFacts
from pipeline.runs.tracking import null_run
from pipeline.sources import RawQuery
from pipeline.sources.judging import inspection
from pipeline.sources.judging.judgement import Judgement
from pipeline.sources.judging.ledger import DocumentLedger
from pipeline.sources.judging.validation import validate_tables
from pipeline.stages import prepare
from pipeline.types import Box, Document, Qrel, Query
from pipeline.workspace import Workspace

ORIENTATION_TAG = 0x112


def write_lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    images = tmp_path / "data" / "images"
    images.mkdir(parents=True)
    for number, name in enumerate(["d1.png", "q1.jpg", "q2.png", "q3.png"]):
        exif = Image.Exif()
        if name == "q1.jpg":
            exif[ORIENTATION_TAG] = 6
        Image.new("RGB", (30, 20), (number, 0, 0)).save(images / name, exif=exif)
    documents = [
        {"doc_id": "d1", "title": "One", "text": "", "images": ["images/d1.png"]},
        {"doc_id": "d2", "title": "Two", "text": "Text alone.", "images": []},
    ]
    queries = [
        {
            "query_id": "q1",
            "split": "train",
            "question": "What?",
            "image": "images/q1.jpg",
            "relevant": ["d1", "d2"],
            "target_box": [0, 0.25, 0.5, 1],
            "tags": {"reference": "direct"},
        },
        {
            "query_id": "q2",
            "split": "val",
            "question": "Who?",
            "image": "images/q2.png",
            "relevant": ["d2"],
        },
        {
            "query_id": "q3",
            "split": "test",
            "question": "Where?",
            "image": "images/q3.png",
            "relevant": ["d1"],
        },
        {
            "query_id": "q4",
            "split": "test",
            "question": "Why?",
            "image": "images/q3.png",
            "relevant": ["d1"],
        },
    ]
    write_lines(tmp_path / "data" / "documents.jsonl", documents)
    write_lines(tmp_path / "data" / "queries.jsonl", queries)
    return Workspace.at(tmp_path)


def test_sound_data_become_tables(workspace: Workspace):
    figures = prepare.run(Params(), workspace, null_run())
    tables = workspace.tables_dir
    assert figures == {
        "num_queries": 4.0,
        "num_queries_train": 1.0,
        "num_queries_val": 1.0,
        "num_queries_test": 2.0,
        "num_documents": 2.0,
        "num_qrels": 5.0,
        "num_rejected": 0.0,
        "reject_rate": 0.0,
    }
    assert store.load_documents(tables / "documents.parquet") == [
        Document(doc_id="d1", title="One", text="", image_paths=("images/d1.png",)),
        Document(doc_id="d2", title="Two", text="Text alone.", image_paths=()),
    ]
    queries = store.load_queries(tables / "queries.parquet")
    assert [query.query_id for query in queries] == ["q1", "q2", "q3", "q4"]
    assert queries[0] == Query(
        query_id="q1",
        split="train",
        question="What?",
        image_path="images/q1.jpg",
        width_px=20,  # stored as 30 x 20, turned by EXIF
        height_px=30,
        target_box=Box(0, 0.25, 0.5, 1),
        tags={"reference": "direct"},
    )
    assert (queries[1].width_px, queries[1].height_px, queries[1].target_box) == (30, 20, None)
    assert store.load_qrels(tables / "qrels.parquet")[:3] == [
        Qrel(query_id="q1", doc_id="d1"),
        Qrel(query_id="q1", doc_id="d2"),
        Qrel(query_id="q2", doc_id="d2"),
    ]
    assert store.load_rejects(tables / "rejects.parquet") == []


def test_checks_are_recorded(workspace: Workspace):
    prepare.run(Params(), workspace, null_run())
    validation = json.loads((workspace.tables_dir / "validation.json").read_text())
    assert validation["success"] is True
    assert validation["num_rows"] == 6
    assert validation["rejects"] == {}
    names = {(result["table"], result["expectation"]) for result in validation["as_kept"]}
    assert len(names) == 12
    assert ("queries", "expect_column_values_to_be_in_set(image_in_one_split)") in names
    assert all(result["success"] for result in validation["as_read"] + validation["as_kept"])


def test_two_runs_write_the_same_bytes(workspace: Workspace):
    prepare.run(Params(), workspace, null_run())
    first = {path.name: path.read_bytes() for path in workspace.tables_dir.iterdir()}
    (workspace.tables_dir / "stale").touch()
    prepare.run(Params(), workspace, null_run())
    assert {path.name: path.read_bytes() for path in workspace.tables_dir.iterdir()} == first


def test_each_picture_is_decoded_once(workspace: Workspace, monkeypatch: pytest.MonkeyPatch):
    decoded: list[str] = []
    inspect = inspection.inspect_image

    def record(path: Path, **how: Any):
        decoded.append(path.name)
        return inspect(path, **how)

    monkeypatch.setattr(inspection, "inspect_image", record)
    prepare.run(Params(), workspace, null_run())
    assert sorted(decoded) == ["d1.png", "q1.jpg", "q2.png", "q3.png"]


def test_blank_lines_are_skipped_and_still_counted_as_lines(workspace: Workspace):
    path = workspace.data_dir / "queries.jsonl"
    path.write_text("\n" + path.read_text() + "\n  \nbroken\n")
    params = Params(data=DataParams(max_reject_rate=0.5))
    figures = prepare.run(params, workspace, null_run())
    assert figures["reject_rate"] == pytest.approx(1 / 7)
    assert [r.source_id for r in store.load_rejects(workspace.tables_dir / "rejects.parquet")] == ["queries.jsonl:8"]


def test_witness_stops_tables_that_break_a_promise():
    query = RawQuery(
        source_id="b:1",
        query_id="q",
        split="val",
        question=" ",
        image_path="x",
        relevant_doc_ids=("ghost",),
        target_box=(0, 0, 2, 1),
    )
    ledger = DocumentLedger()
    for row in (1, 2):
        ledger.add(f"a:{row}", "d", images_decode=row == 1, image_or_text=True)
    ledger.kept[0] = True
    sound = Judgement(
        ledger=ledger,
        queries=[query],
        kept_queries=[],
        images={"x": ImageFacts(width_px=1, height_px=1, sha256="0")},
        lookalikes={},
        rejects=[],
        num_query_rows=1,
        num_image_queries=1,
        num_dropped=0,
        num_missing_images=0,
        counted_rejects=[],
    )
    report = validate_tables(sound)
    assert report["success"] is False
    failed = {
        (result["table"], result["expectation"].split("(")[1].rstrip(")")): result["rows"]
        for result in report["as_read"]
        if not result["success"]
    }
    assert failed == {
        ("documents", "doc_id"): ["a:1", "a:2"],
        ("documents", "images_decode"): ["a:2"],
        ("queries", "question"): ["b:1"],
        ("queries", "target_box_inside_image"): ["b:1"],
        ("qrels", "document_exists"): ["b:1"],
    }
    with pytest.raises(DataError, match="b:1"):
        validate_tables(replace(sound, kept_queries=[query]))
    ledger.kept[1] = True
    with pytest.raises(DataError, match=r"doc_id.*a:1, a:2"):
        validate_tables(sound)
