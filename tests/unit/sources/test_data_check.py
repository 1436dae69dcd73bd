"""`region-r1 data check`: what prepare would do, said beforehand, with row numbers and exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from pipeline import cli
from pipeline.config import DataParams, Params, load_params
from pipeline.errors import DataError
from pipeline.runs.tracking import null_run
from pipeline.sources.check import check_data
from pipeline.stages import prepare
from pipeline.workspace import Workspace
from tests.fakes.published_files import (
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
    paint(data_dir / "images/t.png", 2)
    write_jsonl(data_dir / "documents.jsonl", [{"doc_id": "d", "title": "D", "text": "Text.", "images": []}])
    row = {"split": "test", "question": "What?", "image": "images/q.png", "relevant": ["d"]}
    train = {**row, "query_id": "t1", "split": "train", "image": "images/t.png"}
    write_jsonl(data_dir / "queries.jsonl", [{"query_id": "q1", **row}, {"query_id": "q2", **row}, train])
    return data_dir


@pytest.mark.parametrize(
    ("source", "write", "num_queries", "num_documents", "num_dropped"),
    [("jsonl", write_own, 3, 1, 0), ("evqa", write_evqa, 3, 3, 1), ("infoseek", write_infoseek, 4, 2, 1)],
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
    assert "1 of 6 rows are rejected" in ended.stderr


def test_annotation_file_alone_leaves_pictures_unresolved(tmp_path: Path):
    path = write_csv(tmp_path / "test.csv", [evqa_row(), evqa_row(dataset_image_ids="f00ba4")])
    needed = tmp_path / "needed_images.txt"
    ended = runner.invoke(
        cli.app, ["data", "check", "--source", "evqa", str(path), "--json", "--needed-images", str(needed)]
    )
    assert ended.exit_code == 0
    found = json.loads(ended.stdout)
    assert (found["num_queries"], found["num_documents"], found["num_rejected"]) == (2, 0, 0)
    assert found["images"] == {"landmarks": {"needed": 2, "found": 0, "missing": 0, "unresolved": 2, "unusable": 0}}
    assert needed.read_text().splitlines() == [
        "images/landmarks/a/b/c/abc1234567890def.jpg",
        "images/landmarks/f/0/0/f00ba4.jpg",
    ]


def test_own_queries_alone_are_judged_by_themselves(tmp_path: Path):
    path = write_own(tmp_path / "data") / "queries.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[0] + "\n{\n")
    findings, _, refusal = check_data(DataParams(max_reject_rate=0.4), path)
    assert findings["rejects_by_reason"] == {"broken_json": 1, "duplicate_id": 1}
    assert [row["source_id"] for row in findings["rejects"]] == ["queries.jsonl:4", "queries.jsonl:5"]
    assert refusal is None
    assert check_data(DataParams(max_reject_rate=0.39), path)[2] is not None


def drop_split(split: str) -> Callable[[Path], None]:
    def drop(data_dir: Path) -> None:
        path = data_dir / "queries.jsonl"
        rows = path.read_text().splitlines(keepends=True)
        path.write_text("".join(row for row in rows if f'"split": "{split}"' not in row))

    return drop


def add_bad_row(data_dir: Path) -> None:
    with (data_dir / "queries.jsonl").open("a") as file:
        file.write("{\n")


def move_pictures(data_dir: Path) -> None:
    (data_dir / "images").rename(data_dir / "photos")


def remove_picture(data_dir: Path) -> None:
    (data_dir / "images/landmarks/a/b/c/abc1234567890def.jpg").unlink()


def rename_annotations(data_dir: Path) -> None:
    (data_dir / "test.csv").rename(data_dir / "mine.csv")


CASES: dict[str, tuple[dict[str, Any], Callable[[Path], object], bool]] = {
    "sound": ({}, lambda _: None, True),
    "rejects above the rate": ({}, add_bad_row, False),
    "rejects below the rate": ({"max_reject_rate": 0.2}, add_bad_row, True),
    "question too long": ({"max_question_chars": 4}, lambda _: None, False),
    "question just short enough": ({"max_question_chars": 5}, lambda _: None, True),
    "picture too large": ({"max_image_pixels": 10}, lambda _: None, False),
    "no train": ({}, drop_split("train"), False),
    "no test": ({}, drop_split("test"), False),
    "published": ({"source": "evqa"}, lambda _: None, True),
    "pictures elsewhere": ({"source": "evqa", "images_dir": "photos"}, move_pictures, True),
    "pictures not where they should be": ({"source": "evqa"}, move_pictures, False),
    "picture missing": ({"source": "evqa"}, remove_picture, False),
    "picture may be missing": ({"source": "evqa", "max_missing_image_rate": 0.5}, remove_picture, True),
    "files of other names": (
        {"source": "evqa", "annotations": {"train": "train.csv", "test": "mine.csv"}},
        rename_annotations,
        True,
    ),
    "published names are gone": ({"source": "evqa"}, rename_annotations, False),
}


@pytest.mark.parametrize("case", CASES)
def test_verdict_is_that_of_prepare_with_the_same_parameters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
):
    data, change, passes = CASES[case]
    workspace = Workspace.at(tmp_path)
    workspace.data_dir.mkdir()
    (write_evqa if data.get("source") == "evqa" else write_own)(workspace.data_dir)
    change(workspace.data_dir)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"data": data}))
    monkeypatch.chdir(tmp_path)
    ended = runner.invoke(cli.app, ["data", "check"])
    assert ended.exit_code == (0 if passes else 2)
    if passes:
        prepare.run(load_params(tmp_path / "params.yaml"), workspace, null_run())
        return
    with pytest.raises(DataError) as refused:
        prepare.run(load_params(tmp_path / "params.yaml"), workspace, null_run())
    assert ended.stderr == f"error: {refused.value}\n".replace(f"{tmp_path}/", "")
    assert not workspace.tables_dir.exists()


def test_parameters_of_another_source_are_one_line(tmp_path: Path):
    params = tmp_path / "params.yaml"
    params.write_text(yaml.safe_dump({"data": {"source": "evqa", "annotations": {"test": "mine.csv"}}}))
    arguments = ["data", "check", "--source", "jsonl", "--params", str(params), str(tmp_path)]
    ended = runner.invoke(cli.app, arguments)
    assert ended.exit_code == 2
    assert ended.stderr.count("\n") == 1
    assert "data.annotations is for published sources" in ended.stderr
    ended = runner.invoke(cli.app, ["data", "check", "--params", str(tmp_path / "none.yaml"), str(tmp_path)])
    assert (ended.exit_code, "none.yaml: cannot be read" in ended.stderr) == (2, True)


def test_unusable_pictures_are_named(tmp_path: Path):
    write_evqa(tmp_path / "data")
    gone = tmp_path / "data/images/knowledge_base/upload.wikimedia.org/gone.jpg"
    gone.write_bytes(b"<html>")
    ended = runner.invoke(cli.app, ["data", "check", "--source", "evqa", str(tmp_path / "data")])
    assert ended.exit_code == 0
    assert "knowledge_base: needed 2, found 1, missing 0, unresolved 0, unusable 1" in ended.stdout
    assert "unusable: images/knowledge_base/upload.wikimedia.org/gone.jpg: image_unreadable: is no pict" in ended.stdout


@pytest.mark.parametrize(
    ("source", "name", "content", "message"),
    [
        ("evqa", "test.csv", b"question,answer\n", "lacks the columns"),
        ("evqa", "test.csv", b"\xff\xfe\x00", "is UTF-16"),
        ("infoseek", "infoseek_val.jsonl", b"", "holds no rows"),
        ("infoseek", "infoseek_val.jsonl", b"question,answer\n", "1 of 1 rows are rejected"),
        ("infoseek", "infoseek_val.jsonl.gz", b"\x1f\x8b\x08", "damaged or cut short"),
    ],
)
def test_foreign_file_is_one_line_and_exit_2(tmp_path: Path, source: str, name: str, content: bytes, message: str):
    path = tmp_path / name
    path.write_bytes(content)
    ended = runner.invoke(cli.app, ["data", "check", "--source", source, str(path)])
    assert ended.exit_code == 2
    assert ended.stderr.count("\n") == 1
    assert message in ended.stderr


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
