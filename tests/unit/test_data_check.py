"""`region-r1 data check`: what prepare would do, said beforehand, with row numbers and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline import cli
from pipeline.config import DataParams, Params
from pipeline.sources.check import check_data
from pipeline.stages import prepare
from pipeline.tracking import null_run
from pipeline.workspace import Workspace
from tests.unit.published_files import (
    evqa_row,
    find_real_rows,
    paint,
    write_csv,
    write_evqa,
    write_infoseek,
    write_jsonl,
)

runner = CliRunner()


def write_own(data_dir: Path) -> Path:
    paint(data_dir / "images/q.png", 1)
    write_jsonl(data_dir / "documents.jsonl", [{"doc_id": "d", "title": "D", "text": "Text.", "images": []}])
    row = {"split": "test", "question": "What?", "image": "images/q.png", "relevant": ["d"]}
    write_jsonl(data_dir / "queries.jsonl", [{"query_id": "q1", **row}, {"query_id": "q2", **row}])
    return data_dir


@pytest.mark.parametrize(
    ("source", "write", "num_queries", "num_documents", "num_dropped"),
    [("jsonl", write_own, 2, 1, 0), ("evqa", write_evqa, 2, 3, 1), ("infoseek", write_infoseek, 3, 2, 1)],
)
def test_folder_is_counted_as_prepare_counts_it(tmp_path: Path, source, write, num_queries, num_documents, num_dropped):
    workspace = Workspace.at(tmp_path)
    workspace.data_dir.mkdir()
    write(workspace.data_dir)
    ended = runner.invoke(cli.app, ["data", "check", "--source", source, str(workspace.data_dir), "--json"])
    assert ended.exit_code == 0
    found = json.loads(ended.stdout)
    assert (found["num_queries"], found["num_documents"], found["num_dropped"]) == (
        num_queries,
        num_documents,
        num_dropped,
    )
    figures = prepare.run(Params(data=DataParams(source=source)), workspace, null_run())
    assert {name: found[name] for name in ("num_queries", "num_documents", "num_rejected")} == {
        name: figures[name] for name in ("num_queries", "num_documents", "num_rejected")
    }
    assert found["num_rows"] == num_queries + num_documents + num_dropped


def test_refusal_prints_the_findings_and_one_line(tmp_path: Path):
    data_dir = tmp_path / "data"
    write_evqa(data_dir)
    write_csv(data_dir / "test.csv", [evqa_row(), evqa_row(wikipedia_url="")])
    ended = runner.invoke(cli.app, ["data", "check", "--source", "evqa", str(data_dir)])
    assert ended.exit_code == 2
    assert "test.csv:3  invalid_row: wikipedia_url must have" in ended.stdout
    assert ended.stderr.count("\n") == 1
    assert "1 of 5 rows are rejected" in ended.stderr


def test_annotation_file_alone_leaves_pictures_unresolved(tmp_path: Path):
    path = write_csv(tmp_path / "test.csv", [evqa_row(), evqa_row(dataset_image_ids="f00ba4")])
    needed = tmp_path / "needed_images.txt"
    ended = runner.invoke(
        cli.app, ["data", "check", "--source", "evqa", str(path), "--json", "--needed-images", str(needed)]
    )
    assert ended.exit_code == 0
    found = json.loads(ended.stdout)
    assert (found["num_queries"], found["num_documents"], found["num_rejected"]) == (2, 0, 0)
    assert found["images"] == {"landmarks": {"needed": 2, "found": 0, "missing": 0, "unresolved": 2}}
    assert needed.read_text().splitlines() == [
        "images/landmarks/a/b/c/abc1234567890def.jpg",
        "images/landmarks/f/0/0/f00ba4.jpg",
    ]


def test_own_queries_alone_are_judged_by_themselves(tmp_path: Path):
    path = write_own(tmp_path / "data") / "queries.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[0] + "\n{\n")
    findings, _, refusal = check_data(DataParams(max_reject_rate=0.5), path)
    assert findings["rejects_by_reason"] == {"broken_json": 1, "duplicate_id": 1}
    assert [row["source_id"] for row in findings["rejects"]] == ["queries.jsonl:3", "queries.jsonl:4"]
    assert refusal is None
    assert check_data(DataParams(max_reject_rate=0.4), path)[2] is not None


@pytest.mark.parametrize(
    ("source", "name", "content", "said"),
    [
        ("evqa", "test.csv", b"question,answer\n", "lacks the columns"),
        ("evqa", "test.csv", b"\xff\xfe\x00", "is UTF-16"),
        ("infoseek", "infoseek_val.jsonl", b"", "holds no rows"),
        ("infoseek", "infoseek_val.jsonl", b"question,answer\n", "1 of 1 rows are rejected"),
        ("infoseek", "infoseek_val.jsonl.gz", b"\x1f\x8b\x08", "damaged or cut short"),
    ],
)
def test_foreign_file_is_one_line_and_exit_2(tmp_path: Path, source: str, name: str, content: bytes, said: str):
    path = tmp_path / name
    path.write_bytes(content)
    ended = runner.invoke(cli.app, ["data", "check", "--source", source, str(path)])
    assert ended.exit_code == 2
    assert ended.stderr.count("\n") == 1
    assert said in ended.stderr


def test_missing_path_and_unknown_source_exit_2(tmp_path: Path):
    ended = runner.invoke(cli.app, ["data", "check", "--source", "evqa", str(tmp_path / "none")])
    assert (ended.exit_code, "is missing" in ended.stderr) == (2, True)
    assert runner.invoke(cli.app, ["data", "check", "--source", "okvqa", str(tmp_path)]).exit_code == 2


@pytest.mark.parametrize(
    ("source", "name", "kinds"),
    [
        ("evqa", "evqa/test_sample.csv", {"automatic": 171, "multi_answer": 64, "templated": 65}),
        ("echosight", "infoseek/echosight_sample.csv", {"Numerical": 28, "String": 246, "Time": 26}),
    ],
)
def test_real_rows_pass(source: str, name: str, kinds: dict[str, int]):
    ended = runner.invoke(cli.app, ["data", "check", "--source", source, str(find_real_rows(name)), "--json"])
    assert ended.exit_code == 0
    found = json.loads(ended.stdout)
    assert (found["num_queries"], found["num_rejected"]) == (300, 0)
    assert found["queries_by_tag"]["question_type"] == kinds
