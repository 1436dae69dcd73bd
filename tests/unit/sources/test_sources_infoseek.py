"""InfoSeek's published files: entities as relevance, seen and unseen, OVEN pictures, Wiki6M as a stream."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import DataParams, Params
from pipeline.errors import DataError
from pipeline.files import store
from pipeline.runs.tracking import null_run
from pipeline.sources import RawDocument, RawQuery, open_source
from pipeline.sources.formats.infoseek import _EntitySet
from pipeline.stages import prepare
from pipeline.types import Reject
from pipeline.workspace import Workspace
from tests.fakes.published_files import write_infoseek, write_infoseek_train, write_jsonl

PARAMS = Params(data=DataParams(source="infoseek"))
QUESTION = {
    "data_id": "infoseek_val_00000000",
    "image_id": "oven_04963180",
    "question": "Which place is this animal endemic to?",
    "answer": ["People's Republic of China"],
    "answer_eval": ["cn", "China"],
    "data_split": "val_unseen_question",
}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace.at(tmp_path)
    workspace.data_dir.mkdir()
    write_infoseek(workspace.data_dir)
    return workspace


def read_questions(path: Path) -> list[RawQuery | Reject]:
    return list(open_source(PARAMS.data, path).read_queries())


def read_articles(workspace: Workspace, rows: list[dict[str, Any]]) -> list[RawDocument | Reject]:
    write_jsonl(workspace.data_dir / "Wiki6M_ver_1_0.jsonl.gz", rows)
    return list(open_source(PARAMS.data, workspace.data_dir).read_documents())


def test_sound_files_become_tables(workspace: Workspace):
    figures = prepare.run(PARAMS, workspace, null_run())
    queries = store.load_queries(workspace.tables_dir / "queries.parquet")
    assert [query.tags for query in queries] == [
        {"split": "unseen_question"},
        {"split": "unseen_entity"},
        {"split": "unseen_entity"},
        {"split": "train"},
    ]
    assert [query.split for query in queries] == ["test", "test", "test", "train"]
    assert [query.image_path for query in queries] == [
        "images/oven_images/04/oven_04963180.jpg",
        "images/oven_images/05/oven_05023258.JPEG",
        "images/oven_images/05/oven_05023259.png",
        "images/oven_images/00/oven_00000007.png",
    ]
    documents = store.load_documents(workspace.tables_dir / "documents.parquet")
    assert [(document.doc_id, document.text) for document in documents] == [
        ("Q178185", "Short."),
        ("Q2", "Third planet."),
    ]
    assert documents[0].image_paths == ("images/wikipedia_images_full/Q178/Q178185.jpg",)
    qrels = store.load_qrels(workspace.tables_dir / "qrels.parquet")
    assert [qrel.doc_id for qrel in qrels] == ["Q178185", "Q2", "Q2", "Q2"]
    (repeated,) = store.load_rejects(workspace.tables_dir / "rejects.parquet")
    assert (repeated.source_id, repeated.reason) == ("Wiki6M_ver_1_0.jsonl.gz:3", "repeated_entity")
    assert (figures["num_dropped"], figures["num_rejected"]) == (1, 0)


def test_a_training_question_gives_way_to_a_val_question_with_its_picture(workspace: Workspace):
    write_infoseek_train(workspace.data_dir, QUESTION["image_id"], "oven_00000007")
    prepare.run(PARAMS, workspace, null_run())
    reasons = {row.source_id: row.reason for row in store.load_rejects(workspace.tables_dir / "rejects.parquet")}
    assert reasons["infoseek_train.jsonl:1"] == "split_leak"


def test_question_without_entity_is_rejected_and_a_missing_file_of_entities_is_one_line(workspace: Workspace):
    path = workspace.data_dir / "infoseek_val_withkb.jsonl"
    rows = path.read_text().splitlines(keepends=True)
    path.write_text("".join(rows[1:]))
    tolerant = Params(data=DataParams(source="infoseek", max_reject_rate=0.5))
    prepare.run(tolerant, workspace, null_run())
    rejects = store.load_rejects(workspace.tables_dir / "rejects.parquet")
    assert ("infoseek_val.jsonl:1", "no_relevant_document") in {(row.source_id, row.reason) for row in rejects}
    path.write_text('{"data_id": "infoseek_val_00000000", "entity_id": "Heat engine"}\n')
    with pytest.raises(DataError, match=r"infoseek_val_withkb\.jsonl, row 1: entity_id"):
        prepare.run(tolerant, workspace, null_run())
    path.unlink()
    with pytest.raises(DataError, match=r"infoseek_val_withkb\.jsonl: is missing"):
        prepare.run(tolerant, workspace, null_run())


@pytest.mark.parametrize(
    "answer_eval",
    [["cn", "China"], [{"wikidata": 1.0, "range": [0.9, 1.1]}], {"wikidata": 1.0, "range": [0.9, 1.1]}, []],
)
def test_any_form_of_answer_is_taken(tmp_path: Path, answer_eval: object):
    path = write_jsonl(tmp_path / "infoseek_val.jsonl", [{**QUESTION, "answer_eval": answer_eval}])
    (query,) = read_questions(path)
    assert isinstance(query, RawQuery)
    assert query.relevant_doc_ids == ()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "broken_json"),
        (b"[]", "invalid_row"),
        (json.dumps({**QUESTION, "question": None}).encode(), "invalid_row"),
        (json.dumps({**QUESTION, "image_id": "inat_1"}).encode(), "invalid_row"),
        (json.dumps({**QUESTION, "image_id": "oven_../../x"}).encode(), "invalid_row"),
        (json.dumps({**QUESTION, "data_id": "two words"}).encode(), "invalid_row"),
        (json.dumps({**QUESTION, "question": "Où?"}, ensure_ascii=False).encode("latin-1"), "not_utf8"),
    ],
)
def test_misshapen_line_is_rejected_with_its_number(tmp_path: Path, line: bytes, reason: str):
    path = tmp_path / "infoseek_val.jsonl"
    path.write_bytes(json.dumps(QUESTION).encode() + b"\n\n" + line + b"\n")
    good, bad = read_questions(path)
    assert isinstance(good, RawQuery)
    assert isinstance(bad, Reject)
    assert (bad.source_id, bad.reason) == ("infoseek_val.jsonl:3", reason)


def test_missing_picture_is_counted_by_data_set(workspace: Workspace):
    (workspace.data_dir / "images/oven_images/04/oven_04963180.jpg").unlink()
    params = Params(data=DataParams(source="infoseek", max_missing_image_rate=0.4))
    figures = prepare.run(params, workspace, null_run())
    assert figures["num_missing_images"] == 1
    images = store.read_json(workspace.tables_dir / "validation.json")["images"]
    assert images == {
        "infobox": {"needed": 1, "found": 1, "missing": 0, "unresolved": 0, "unusable": 0},
        "infoseek": {"needed": 4, "found": 3, "missing": 1, "unresolved": 0, "unusable": 0},
    }


def test_articles_without_text_or_with_wrong_ids_are_rejected(workspace: Workspace):
    rows = read_articles(
        workspace,
        [
            {"wikidata_id": "Q5", "wikipedia_title": "Empty", "wikipedia_content": None, "wikipedia_image_url": None},
            {"wikidata_id": "5", "wikipedia_title": "No Q", "wikipedia_content": "x"},
            {"wikidata_id": "Q7"},
            {"wikidata_id": "Q8", "wikipedia_title": "Gone", "wikipedia_content": "x", "wikipedia_image_url": "u"},
        ],
    )
    assert [type(row) for row in rows] == [RawDocument, Reject, Reject, RawDocument]
    assert isinstance(rows[0], RawDocument)
    assert (rows[0].text, rows[0].image_paths) == ("", ())


@pytest.mark.parametrize("cut", [1, 8, 20, 60])
def test_truncated_gz_is_one_line(workspace: Workspace, cut: int):
    path = workspace.data_dir / "Wiki6M_ver_1_0.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(DataError, match=r"Wiki6M_ver_1_0\.jsonl\.gz: is damaged or cut short") as caught:
        prepare.run(PARAMS, workspace, null_run())
    assert "\n" not in str(caught.value)
    assert not workspace.tables_dir.exists()


def test_file_that_is_no_gz_is_one_line(workspace: Workspace):
    (workspace.data_dir / "Wiki6M_ver_1_0.jsonl.gz").write_text("{}")
    with pytest.raises(DataError, match="damaged or cut short: Not a gzipped file"):
        prepare.run(PARAMS, workspace, null_run())


@given(st.lists(st.integers(1, 3000)))
def test_entity_set_knows_what_it_has_seen(numbers: list[int]):
    entities, seen = _EntitySet(), set()
    for number in numbers:
        assert entities.add(f"Q{number}") is (number not in seen)
        seen.add(number)
