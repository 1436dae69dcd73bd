"""A val split cut from train by entity: whole entities, the same ones whatever else the file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import DataParams, Params
from pipeline.files import store
from pipeline.runs.tracking import null_run
from pipeline.sources import RawQuery, open_source
from pipeline.sources.check import check_data
from pipeline.sources.formats.val_cut import ValCut
from pipeline.stages import prepare
from pipeline.types import SPLITS, Query
from pipeline.workspace import Workspace
from tests.fakes.published_files import URL, echosight_row, evqa_row, paint, write_csv, write_jsonl

ENTITIES = [f"Q{number}" for number in range(1, 61)]
HALF = {"val_share": 0.5, "max_missing_image_rate": 1.0, "max_reject_rate": 1.0}


@given(
    entities=st.lists(st.text(min_size=1, max_size=12), max_size=40),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_an_entity_lies_in_one_split_whatever_the_order_of_its_rows(
    entities: list[str], share: float, seed: int
) -> None:
    cut = ValCut(share, seed)
    placed = [(entity, cut.place("train", entity)) for entity in entities]
    assert len(dict(placed)) == len(set(placed))
    assert [(entity, cut.place("train", entity)) for entity in reversed(entities)] == placed[::-1]
    assert {split for _, split in placed} <= {"train", "val"}


@given(entity=st.text(), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_rows_of_other_files_stay_where_they_are(entity: str, share: float, seed: int) -> None:
    cut = ValCut(share, seed)
    assert cut.place("test", entity) == "test"
    assert cut.place("val", entity) == "val"
    assert ValCut(0.0, seed).place("train", entity) == "train"
    assert ValCut(1.0, seed).place("train", entity) == "val"


@given(entity=st.text(), low=st.floats(0, 1), high=st.floats(0, 1), seed=st.integers(0, 99))
def test_a_larger_share_takes_more_entities_and_never_others(entity: str, low: float, high: float, seed: int) -> None:
    low, high = sorted((low, high))
    if ValCut(low, seed).place("train", entity) == "val":
        assert ValCut(high, seed).place("train", entity) == "val"


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
def test_share_is_met_and_the_seed_draws_others(share: float) -> None:
    names = [f"Q{number}" for number in range(20_000)]
    taken = [{name for name in names if ValCut(share, seed).place("train", name) == "val"} for seed in (1, 2)]
    for found in taken:
        assert len(found) / len(names) == pytest.approx(share, abs=4 * (share * (1 - share) / len(names)) ** 0.5)
    both = len(taken[0] & taken[1]) / len(names)
    assert both == pytest.approx(share * share, abs=0.02)


def _write_infoseek(data_dir: Path, *, shared_picture: bool = False) -> Path:
    """Write two training questions about each entity, and one question of the published val, which is test."""
    data_dir.mkdir(exist_ok=True)
    files: dict[str, list[tuple[str, str, str]]] = {
        "train": [],
        "val": [("infoseek_val_00000000", "oven_00000999", "Q1")],
    }
    for number, entity in enumerate(ENTITIES):
        for turn in range(2):
            picture = "oven_00000500" if shared_picture else f"oven_{number:08d}"
            files["train"].append((f"infoseek_train_{2 * number + turn:08d}", picture, entity))
    for name, rows in files.items():
        questions = [
            {"data_id": data_id, "image_id": image_id, "question": "What?", "data_split": name}
            for data_id, image_id, _ in rows
        ]
        write_jsonl(data_dir / f"infoseek_{name}.jsonl", questions)
        entities = [{"data_id": data_id, "entity_id": entity} for data_id, _, entity in rows]
        write_jsonl(data_dir / f"infoseek_{name}_withkb.jsonl", entities)
        for _, image_id, _ in rows:
            paint(data_dir / f"images/oven_images/{image_id[5:7]}/{image_id}.png", int(image_id[5:]) % 251)
    articles = [{"wikidata_id": e, "wikipedia_title": e, "wikipedia_content": "x"} for e in ENTITIES]
    write_jsonl(data_dir / "Wiki6M_ver_1_0.jsonl", articles)
    return data_dir


def _prepare(data_dir: Path, **data: Any) -> tuple[list[Query], dict[str, str]]:
    workspace = Workspace.at(data_dir.parent)
    prepare.run(Params(data=DataParams(**{"source": "infoseek", **HALF, **data})), workspace, null_run())
    qrels = store.load_qrels(workspace.tables_dir / "qrels.parquet")
    return store.load_queries(workspace.tables_dir / "queries.parquet"), {q.query_id: q.doc_id for q in qrels}


def _entities_by_split(queries: list[Query], relevant: dict[str, str]) -> dict[str, set[str]]:
    return {split: {relevant[q.query_id] for q in queries if q.split == split} for split in SPLITS}


def test_infoseek_gets_a_val_split_that_shares_no_entity_with_train(tmp_path: Path) -> None:
    queries, relevant = _prepare(_write_infoseek(tmp_path / "data"))
    entities = _entities_by_split(queries, relevant)
    assert entities["train"]
    assert entities["val"]
    assert not entities["train"] & entities["val"]
    assert entities["train"] | entities["val"] <= set(ENTITIES)
    assert [query.query_id for query in queries if query.split == "test"] == ["infoseek_val_00000000"]


def test_share_and_seed_change_the_split(tmp_path: Path) -> None:
    data_dir = _write_infoseek(tmp_path / "data")
    half = _entities_by_split(*_prepare(data_dir))["val"]
    assert _entities_by_split(*_prepare(data_dir, val_share=0.0))["val"] == set()
    assert _entities_by_split(*_prepare(data_dir, val_share=0.1))["val"] < half
    assert _entities_by_split(*_prepare(data_dir, val_seed=8))["val"] != half


def test_a_picture_of_two_entities_stays_on_one_side_of_the_cut(tmp_path: Path) -> None:
    data_dir = _write_infoseek(tmp_path / "data", shared_picture=True)
    findings, _, _ = check_data(DataParams(source="infoseek", **HALF), data_dir)
    assert len(findings["queries_by_split"].keys() - {"test"}) == 1


def test_echosight_is_cut_by_url_and_a_published_val_file_forbids_a_cut(tmp_path: Path) -> None:
    rows = [
        echosight_row(data_id=f"infoseek_train_{number:08d}", wikipedia_url=f"{URL}{number % 30}")
        for number in range(60)
    ]
    path = write_csv(tmp_path / "train.csv", rows, [*rows[0]])
    (tmp_path / "wiki_100_dict_v4.json").write_text("{}")
    for where in (path, tmp_path):
        found = list(open_source(DataParams(source="echosight", val_share=0.5), where).read_queries())
        placed = {(row.relevant_doc_ids[0], row.split) for row in found if isinstance(row, RawQuery)}
        assert {split for _, split in placed} == {"train", "val"}
        assert len(placed) == 30
    evqa = [evqa_row(encyclopedic_vqa_split="train", wikipedia_url=f"{URL}{number}") for number in range(40)]
    write_csv(path, evqa)
    params = DataParams(source="evqa", val_share=0.5)
    without = {row.split for row in open_source(params, path).read_queries() if isinstance(row, RawQuery)}
    assert without == {"train", "val"}
    write_csv(tmp_path / "val.csv", [evqa_row(encyclopedic_vqa_split="val")])
    beside = {row.split for row in open_source(params, path).read_queries() if isinstance(row, RawQuery)}
    assert beside == {"train"}


def test_data_check_shows_the_cut(tmp_path: Path) -> None:
    findings, _, refusal = check_data(DataParams(source="infoseek", **HALF), _write_infoseek(tmp_path / "data"))
    assert refusal is None
    assert findings["queries_by_split"]["val"] > 0
    assert findings["queries_by_split"]["val"] + findings["queries_by_split"]["train"] == 2 * len(ENTITIES)
