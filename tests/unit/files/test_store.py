"""Tables keep every value, and no reader ever sees one half-written."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError, StageError
from pipeline.files import store
from pipeline.types import (
    Answer,
    Box,
    Crop,
    CurvePoint,
    Decision,
    Document,
    KeepFull,
    Malformed,
    Outcome,
    Pool,
    Qrel,
    Query,
    QueryResult,
    RegionLabel,
    Reject,
    Rollout,
)

BOX = Box(0.1, 0.2, 0.30000000000000004, 1.0)


def answer(sample: int | None, decision: Decision) -> Answer:
    return Answer(
        policy="rgrpo",
        way="free" if sample is None else "sampled",
        split="test",
        query_id="q1",
        sample=sample,
        decision=decision,
        completion="x\n",
        p_region=0.1,
    )


RECORDS = {
    "answers": [answer(None, KeepFull()), answer(0, Crop(BOX)), answer(1, Malformed("no box"))],
    "queries": [
        Query(
            query_id="q1",
            split="train",
            question="Où?\n\t",
            image_path="images/a.jpg",
            width_px=3,
            height_px=4,
            target_box=BOX,
            tags={"reference": "direct", "": ""},
        ),
        Query(query_id="q2", split="test", question="?", image_path="b", width_px=1, height_px=1),
    ],
    "documents": [
        Document(doc_id="d1", title="", text="t", image_paths=()),
        Document(doc_id="d2", title="T", text="", image_paths=("a", "b")),
    ],
    "qrels": [Qrel(query_id="q1", doc_id="d2")],
    "rejects": [Reject(source_id="queries.jsonl:1", reason="bad_box", detail="…")],
    "pools": [
        Pool(
            query_id="q1",
            split="val",
            doc_ids=("d1", "d2"),
            scores=(0.1, -0.3),
            relevance=(False, True),
            num_relevant=2,
        )
    ],
    "outcomes": {
        "q1": Outcome(first_rank=2, reciprocal_rank=0.5, ndcg=0.63, margin=-0.1),
        "q2": Outcome(first_rank=None, reciprocal_rank=0.0, ndcg=0.0, margin=None),
    },
    "labels": [
        RegionLabel(query_id="q1", box=BOX, gain=0.2),
        RegionLabel(query_id="q2", box=None, gain=-0.1),
    ],
    "rollouts": [
        Rollout(step=1, query_id="q1", arm="region", completion="x", decision="region", box=BOX, reward=-1.0),
        Rollout(step=2, query_id="q1", arm="full", completion="", decision="full", box=None, reward=1.0),
    ],
    "curves": [CurvePoint(step=1, metric="reward", value=0.5), CurvePoint(step=2, metric="kl", value=0.0)],
    "results": [
        QueryResult(
            query_id="q1",
            method="r-grpo",
            decision="malformed",
            box=None,
            doc_ids=("d2", "d1"),
            scores=(0.2, 0.1),
            first_rank=None,
            reciprocal_rank=0.0,
            ndcg=0.0,
            margin=None,
            iou=None,
            completion=None,
        )
    ],
}


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_records_survive_the_disk(name, tmp_path: Path):
    path = tmp_path / "folder" / f"{name}.parquet"
    getattr(store, f"save_{name}")(path, RECORDS[name])
    assert getattr(store, f"load_{name}")(path) == RECORDS[name]
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_empty_tables_survive_the_disk(name, tmp_path: Path):
    path = tmp_path / "table.parquet"
    empty = type(RECORDS[name])()
    getattr(store, f"save_{name}")(path, empty)
    assert getattr(store, f"load_{name}")(path) == empty


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("queries", "prepare"),
        ("documents", "prepare"),
        ("qrels", "prepare"),
        ("rejects", "prepare"),
        ("pools", "retrieve"),
        ("outcomes", "retrieve"),
        ("labels", "warmup"),
        ("rollouts", "train"),
        ("curves", "warmup and train"),
        ("answers", "answer"),
        ("results", "evaluate"),
    ],
)
def test_missing_table_names_the_stage_that_writes_it(name, stage, tmp_path: Path):
    with pytest.raises(StageError, match=f"run {stage} first"):
        getattr(store, f"load_{name}")(tmp_path / "none.parquet")


unit = st.floats(0, 1)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ids=st.lists(st.text(st.characters(exclude_categories=["Cs"])), unique=True),
    margin=st.none() | st.floats(-2, 2),
    ndcg=unit,
)
def test_any_outcome_survives_the_disk(ids, margin, ndcg, tmp_path: Path):
    outcome = Outcome(first_rank=1, reciprocal_rank=1.0, ndcg=ndcg, margin=margin)
    store.save_outcomes(tmp_path / "o.parquet", dict.fromkeys(ids, outcome))
    loaded = store.load_outcomes(tmp_path / "o.parquet")
    assert list(loaded) == ids
    assert all(value == outcome for value in loaded.values())


def test_ids_keep_their_order(tmp_path: Path):
    store.save_ids(tmp_path / "ids.parquet", ["b", "a", "c"])
    assert store.load_ids(tmp_path / "ids.parquet", stage="index") == ["b", "a", "c"]
    with pytest.raises(StageError, match="run index first"):
        store.load_ids(tmp_path / "none.parquet", stage="index")


def test_folder_named_like_a_partition_adds_no_column(tmp_path: Path):
    path = tmp_path / "seed=7" / "qrels.parquet"
    store.save_qrels(path, RECORDS["qrels"])
    assert store.load_qrels(path) == RECORDS["qrels"]


def test_table_of_another_kind_is_refused(tmp_path: Path):
    store.save_qrels(tmp_path / "t.parquet", RECORDS["qrels"])
    with pytest.raises(DataError, match="another version"):
        store.load_documents(tmp_path / "t.parquet")
    with pytest.raises(DataError, match="another version"):
        store.load_ids(tmp_path / "t.parquet", stage="index")


def test_damaged_table_is_refused(tmp_path: Path):
    path = tmp_path / "t.parquet"
    store.save_qrels(path, RECORDS["qrels"])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="run prepare again"):
        store.load_qrels(path)


def test_table_with_an_impossible_box_is_refused(tmp_path: Path):
    path = tmp_path / "labels.parquet"
    store.save_labels(path, RECORDS["labels"])
    schema = pq.read_schema(path)
    pq.write_table(pa.Table.from_pylist([{"query_id": "q", "box": [0.5, 0, 0.5, 1], "gain": 0.0}], schema=schema), path)
    with pytest.raises(DataError, match="not as specified"):
        store.load_labels(path)


@pytest.mark.parametrize("boxes", [[], [[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 1.0, 1.0]]])
def test_answer_that_names_no_region_or_several_is_refused(boxes, tmp_path: Path):
    path = tmp_path / "answers.parquet"
    store.save_answers(path, RECORDS["answers"])
    rows = pq.read_table(path).to_pylist()
    rows[1]["boxes"] = boxes
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), path)
    with pytest.raises(DataError, match="not as specified"):
        store.load_answers(path)


def test_failed_write_keeps_the_old_table(tmp_path: Path):
    path = tmp_path / "qrels.parquet"
    store.save_qrels(path, RECORDS["qrels"])
    with pytest.raises((TypeError, pa.ArrowException)):
        store.save_qrels(path, [Qrel(query_id=1, doc_id="d")])
    assert store.load_qrels(path) == RECORDS["qrels"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["qrels.parquet"]


def test_replace_dir_replaces_the_whole_folder(tmp_path: Path):
    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / "stale").touch()
    with store.replace_dir(folder) as fresh:
        (fresh / "new").write_text("x")
        assert (folder / "stale").exists()
    assert [entry.name for entry in folder.iterdir()] == ["new"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["tables"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_replace_dir_leaves_nothing_of_a_failure(error, tmp_path: Path):
    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(error), store.replace_dir(folder) as fresh:
        (fresh / "half").touch()
        raise error
    assert [entry.name for entry in folder.iterdir()] == ["old"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["tables"]


def test_json_survives_the_disk_and_has_no_nan(tmp_path: Path):
    path = tmp_path / "a" / "x.json"
    store.write_json(path, {"é": [1, None, 0.1]})
    assert store.read_json(path) == {"é": [1, None, 0.1]}
    with pytest.raises(ValueError, match="JSON"):
        store.write_json(path, {"x": float("nan")})
    assert store.read_json(path) == {"é": [1, None, 0.1]}
    assert [entry.name for entry in path.parent.iterdir()] == ["x.json"]


def test_missing_or_broken_json_is_named(tmp_path: Path):
    path = tmp_path / "x.json"
    with pytest.raises(StageError, match="run evaluate first"):
        store.read_json(path, stage="evaluate")
    with pytest.raises(DataError, match=r"x\.json"):
        store.read_json(path)
    path.write_text("{")
    with pytest.raises(DataError, match=r"x\.json"):
        store.read_json(path)


def test_a_table_longer_than_a_batch_keeps_its_rows_and_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_BATCH_ROWS", 3)
    qrels = [Qrel(query_id=f"q{number}", doc_id="d") for number in range(8)]
    store.save_qrels(tmp_path / "qrels.parquet", iter(qrels))
    assert store.load_qrels(tmp_path / "qrels.parquet") == qrels
