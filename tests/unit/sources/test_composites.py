"""Two photos side by side: who meets whom, where each lies, and a folder that prepare takes as own data."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.config import DataParams, Params
from pipeline.errors import ConfigError, DataError
from pipeline.files.images import crop_view
from pipeline.files.store import load_queries, save_documents, save_qrels, save_queries
from pipeline.runs.tracking import null_run
from pipeline.sources.check import check_data
from pipeline.sources.composites import Single
from pipeline.sources.composites.composition import ComposeSettings, Composition, compose
from pipeline.sources.composites.dataset import compose_dataset
from pipeline.sources.composites.pairs import draw_composites
from pipeline.sources.composites.pictures import join_photos
from pipeline.sources.composites.published import COLUMNS
from pipeline.stages import prepare
from pipeline.types import Document, Qrel, Query, Split
from pipeline.workspace import Workspace
from tests.fakes.published_files import write_csv, write_jsonl

_HEIGHT = 64
_SETTINGS = ComposeSettings(seed=3, height_px=_HEIGHT, keep_singles=True)
_ORIENTATION = 0x112
# Upright width and height, and the EXIF orientation that it is stored by.
_SHAPES = ((40, 20, 1), (20, 40, 6), (30, 30, 3), (10, 75, 1), (64, 64, 1), (75, 10, 8))


def _single(number: int, doc_ids: Sequence[str], picture: int | None = None, split: Split = "test") -> Single:
    query = Query(
        query_id=f"q{number}",
        split=split,
        question=f"What is thing {number}?",
        image_path=f"{number if picture is None else picture}.png",
        width_px=10,
        height_px=10,
    )
    return Single(query=query, doc_ids=frozenset(doc_ids))


_doc_sets = st.lists(st.frozensets(st.sampled_from("abcdef"), min_size=1, max_size=3), max_size=25)


@given(_doc_sets, st.lists(st.integers(0, 9), min_size=25, max_size=25), st.integers(0, 99), st.randoms())
def test_every_query_is_asked_once_and_never_beside_its_own_document(doc_sets, pictures, seed, random):
    singles = [_single(number, sorted(docs), pictures[number]) for number, docs in enumerate(doc_sets)]
    composites, odd = draw_composites(singles, seed)
    asked = [one.at(asked.side).query.query_id for one in composites for asked in one.asked]
    assert sorted(asked + [single.query.query_id for single in odd]) == sorted(s.query.query_id for s in singles)
    for one in composites:
        assert one.left.doc_ids.isdisjoint(one.right.doc_ids)
        assert one.left.query.image_path != one.right.query.image_path
        assert [asked.side for asked in one.asked] == ["left", "right"]
    assert not any(one.may_meet(other) for one in odd for other in odd)
    random.shuffle(singles)
    assert draw_composites(singles, seed)[0] == composites


@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(0, 99))
def test_no_more_are_left_over_than_must_be(docs, seed):
    composites, odd = draw_composites([_single(number, doc) for number, doc in enumerate(docs)], seed)
    commonest = max(Counter(docs).values(), default=0)
    assert len(composites) == min(len(docs) // 2, len(docs) - commonest)
    assert len(odd) == len(docs) - 2 * len(composites)


def test_the_seed_draws_partners_and_sides():
    singles = [_single(number, [str(number)]) for number in range(200)]
    composites = [draw_composites(singles, seed)[0] for seed in (1, 2)]
    drawn, others = ([(one.left.query.query_id, one.right.query.query_id) for one in found] for found in composites)
    assert len({frozenset(pair) for pair in drawn} & {frozenset(pair) for pair in others}) < 10
    assert 30 < sum(left < right for left, right in drawn) < 70


def test_a_document_that_answers_everything_is_found_at_once():
    # 20,000 sets of documents that all meet: compared with one another they would take minutes.
    singles = [_single(number, ["all", f"own{number}"]) for number in range(20_000)]
    composites, odd = draw_composites(singles, 0)
    assert (composites, len(odd)) == ([], 20_000)


_sides = st.integers(1, 300)


@given(st.tuples(_sides, _sides), st.tuples(_sides, _sides), st.integers(1, 90))
def test_boxes_tile_the_picture_on_whole_pixels(left_size, right_size, height):
    left, right = Image.new("RGB", left_size, "red"), Image.new("RGB", right_size, "blue")
    picture, boxes = join_photos(left, right, height)
    views = [crop_view(picture, box) for box in boxes]
    assert [view.getcolors() for view in views] == [
        [(views[0].width * height, (255, 0, 0))],
        [(views[1].width * height, (0, 0, 255))],
    ]
    assert views[0].width + views[1].width == picture.width
    assert boxes[0].x1 == boxes[1].x0
    for view, (width, stored_height) in zip(views, (left_size, right_size), strict=True):
        assert view.height == height
        assert abs(view.width - max(1.0, width * height / stored_height)) <= 0.5


def _colour(number: int) -> tuple[int, int, int]:
    return (20 + 37 * number % 200, 230 - 29 * number % 200, 90 * (number % 3))


def _paint(path: Path, number: int, shape: tuple[int, int, int]) -> None:
    """Draw a plain photo with a white bar along the edge that is its top once it stands upright."""
    width, height, orientation = shape
    photo = Image.new("RGB", (width, height), _colour(number))
    photo.paste("white", (0, 0, photo.width, max(1, photo.height // 5)))
    back = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    turn = back[orientation]
    stored = photo if turn is None else photo.transpose(turn)
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    stored.save(path, exif=exif)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Own data, prepared: six documents, eighteen single photos in all shapes, a mosaic and a strip."""
    workspace = Workspace.at(tmp_path_factory.mktemp("checkout"))
    queries: list[dict[str, Any]] = []
    documents = [
        {"doc_id": f"d{n}", "title": f"D{n}", "text": "Ä text.", "images": [f"photos/d{n}.png"]} for n in range(6)
    ]
    for number in range(6):
        _paint(workspace.data_dir / f"photos/d{number}.png", number, (20, 20, 1))
    for number in range(20):
        shape = (400, 20, 1) if number == 19 else _SHAPES[number % len(_SHAPES)]
        _paint(workspace.data_dir / f"images/q{number}.png", number, shape)
        row = {
            "query_id": f"q{number}",
            "split": ("train", "val", "test")[number % 3],
            "question": f"What is thing {number}?",
            "image": f"images/q{number}.png",
            "relevant": [f"d{number % 5}", "d5"] if number == 0 else [f"d{number % 5}"],
            "tags": {"reference": "direct", "scene": "mosaic"} if number == 18 else {"reference": "direct"},
        }
        queries.append(row | ({"target_box": [0, 0, 0.5, 0.5]} if number == 1 else {}))
    write_jsonl(workspace.data_dir / "documents.jsonl", documents)
    write_jsonl(workspace.data_dir / "queries.jsonl", queries)
    prepare.run(Params(data=DataParams(max_reject_rate=0.2)), workspace, null_run())
    return workspace


def _compose(workspace: Workspace, out: Path, **changes: Any) -> Composition:
    return compose_dataset(DataParams(), workspace, out, replace(_SETTINGS, **changes))


def _read(folder: Path, name: str = "queries.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def composed(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Composition]:
    out = tmp_path_factory.mktemp("out") / "composed"
    return out, _compose(workspace, out)


def test_both_questions_of_a_picture_name_their_side(workspace: Workspace, composed: tuple[Path, Composition]):
    source = {query.query_id: query for query in load_queries(workspace.tables_dir / "queries.parquet")}
    rows = [row for row in _read(composed[0]) if row["tags"]["scene"] == "composite"]
    assert rows
    assert set(Counter(row["image"] for row in rows).values()) == {2}
    for row in rows:
        query_id, side = row["query_id"].split("@")
        assert row["question"] == f"About the photo on the {side}: {source[query_id].question}"
        assert row["tags"] == {"reference": "direct", "scene": "composite", "side": side}
        assert row["split"] == source[query_id].split
    assert len({row["query_id"] for row in rows}) == len(rows)


def test_only_the_documents_of_the_asked_photo_are_relevant(composed: tuple[Path, Composition]):
    relevant = {row["query_id"]: set(row["relevant"]) for row in _read(composed[0])}
    for pair in _read(composed[0], "composites.jsonl"):
        left, right = (relevant[query_id] for query_id in pair["asked"])
        assert (left, right) == (relevant[pair["left"]], relevant[pair["right"]])
        assert not left & right


def test_the_box_holds_the_upright_photo_and_nothing_else(composed: tuple[Path, Composition]):
    for row in _read(composed[0]):
        if row["tags"]["scene"] != "composite":
            continue
        number = int(row["query_id"].split("@")[0][1:])
        with Image.open(composed[0] / row["image"]) as picture:
            picture.load()
        assert picture.height == _HEIGHT
        x0, y0, x1, y1 = row["target_box"]
        assert (y0, y1) == (0.0, 1.0)
        left, right = x0 * picture.width, x1 * picture.width
        assert (left, right) == pytest.approx((round(left), round(right)), abs=1e-9)
        width, height, _ = _SHAPES[number % len(_SHAPES)]
        assert right - left == pytest.approx(width * _HEIGHT / height, abs=0.51)
        half = np.asarray(picture.crop((round(left), 0, round(right), _HEIGHT))).astype(int)
        middle = half.shape[1] // 2
        assert np.abs(half[-4, middle] - _colour(number)).max() < 30  # JPEG, and the seam's blocks
        assert half[2, middle].min() > 225


def test_strips_and_mosaics_are_left_out_and_said(composed: tuple[Path, Composition]):
    composition = composed[1]
    assert composition.left_out == {"of tag scene: mosaic": 1, "with one side more than 8 times the other": 1}
    assert "left out: 1 of tag scene: mosaic" in composition.describe()
    assert not {"q18", "q19"} & {row["query_id"] for row in _read(composed[0])}


def test_single_photos_stay_as_they_are(workspace: Workspace, composed: tuple[Path, Composition], tmp_path: Path):
    singles = {row["query_id"]: row for row in _read(composed[0]) if row["tags"]["scene"] == "single"}
    assert len(singles) == 18
    assert singles["q1"]["target_box"] == [0, 0, 0.5, 0.5]
    assert singles["q2"]["question"] == "What is thing 2?"
    source = workspace.data_dir / "images/q2.png"
    assert (composed[0] / singles["q2"]["image"]).read_bytes() == source.read_bytes()
    _compose(workspace, tmp_path / "alone", keep_singles=False)
    assert {row["tags"]["scene"] for row in _read(tmp_path / "alone")} == {"composite"}
    assert not (tmp_path / "alone/images/source/images").exists()


def test_no_picture_or_photo_is_in_two_splits(composed: tuple[Path, Composition]):
    split_of: dict[str, set[str]] = {}
    for pair in _read(composed[0], "composites.jsonl"):
        for name in (pair["image"], pair["left"], pair["right"]):
            split_of.setdefault(name, set()).add(pair["split"])
    for row in _read(composed[0]):
        split_of.setdefault(row["image"], set()).add(row["split"])
        split_of.setdefault(row["query_id"].split("@")[0], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in split_of.values())


def test_same_seed_same_bytes(workspace: Workspace, composed: tuple[Path, Composition], tmp_path: Path):
    _compose(workspace, tmp_path / "again")
    _compose(workspace, tmp_path / "other", seed=4)
    files = sorted(path.relative_to(composed[0]) for path in composed[0].rglob("*") if path.is_file())
    assert files == sorted(p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*") if p.is_file())
    assert all((composed[0] / file).read_bytes() == (tmp_path / "again" / file).read_bytes() for file in files)
    assert _read(tmp_path / "other", "composites.jsonl") != _read(composed[0], "composites.jsonl")


def test_prepare_takes_the_folder_as_own_data(composed: tuple[Path, Composition], tmp_path: Path):
    findings, _, refusal = check_data(DataParams(), composed[0])
    assert refusal is None
    rows = _read(composed[0])
    assert (findings["num_queries"], findings["num_rejected"], findings["num_documents"]) == (len(rows), 0, 6)
    workspace = Workspace(data_dir=composed[0], artifacts_dir=tmp_path / "artifacts", policies_dir=tmp_path)
    figures = prepare.run(Params(), workspace, null_run())
    assert figures["num_queries"] == len(rows)
    assert figures["num_rejected"] == 0
    # And a composed set is a source again: its single photos alone.
    again = compose(DataParams(), workspace.tables_dir, _SETTINGS)
    assert len(again.singles) == 18
    assert again.left_out == {"of tag scene: composite": len(rows) - 18}


def test_pictures_of_the_source_are_linked_not_copied_twice(workspace: Workspace, composed: tuple[Path, Composition]):
    link = composed[0] / "images/source/photos/d0.png"
    assert link.samefile(workspace.data_dir / "photos/d0.png")


def test_links_that_are_refused_become_copies(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("pipeline.sources.composites.dataset.os.link", refuse)
    _compose(workspace, tmp_path / "out")
    copy = tmp_path / "out/images/source/photos/d0.png"
    assert not copy.samefile(workspace.data_dir / "photos/d0.png")
    assert copy.read_bytes() == (workspace.data_dir / "photos/d0.png").read_bytes()


def test_an_earlier_composed_set_is_replaced_and_nothing_else(workspace: Workspace, tmp_path: Path):
    _compose(workspace, tmp_path / "out")
    _compose(workspace, tmp_path / "out", keep_singles=False)
    assert {row["tags"]["scene"] for row in _read(tmp_path / "out")} == {"composite"}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/composites.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match="exists already and is no composed set"):
        _compose(workspace, tmp_path / "mine")
    assert (tmp_path / "mine/composites.jsonl").read_text() == "{}\n"
    for inside in (workspace.data_dir, workspace.data_dir / "composed", workspace.data_dir.parent):
        with pytest.raises(ConfigError, match="lies in the data"):
            _compose(workspace, inside)


def test_a_picture_that_is_gone_leaves_nothing_half_done(workspace: Workspace, tmp_path: Path):
    queries = load_queries(workspace.tables_dir / "queries.parquet")
    elsewhere = Workspace.at(tmp_path)
    elsewhere.data_dir.mkdir()
    _save_tables(elsewhere, queries, {query.query_id: [query.query_id] for query in queries})
    with pytest.raises(DataError, match=r"q\d+\.png: is no file"):
        _compose(elsewhere, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _save_tables(workspace: Workspace, queries: Sequence[Query], relevant: dict[str, list[str]]) -> None:
    doc_ids = sorted({doc_id for found in relevant.values() for doc_id in found})
    save_queries(workspace.tables_dir / "queries.parquet", queries)
    save_documents(
        workspace.tables_dir / "documents.parquet",
        [Document(doc_id=doc_id, title="", text="Text.", image_paths=()) for doc_id in doc_ids],
    )
    save_qrels(
        workspace.tables_dir / "qrels.parquet",
        [Qrel(query_id=query_id, doc_id=doc_id) for query_id, found in relevant.items() for doc_id in found],
    )


def test_no_partner_anywhere_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    queries = [_single(number, ["d"], split=split).query for number, split in enumerate(("train", "train", "test"))]
    _save_tables(Workspace.at(tmp_path), queries, {query.query_id: ["d"] for query in queries})
    (tmp_path / "params.yaml").write_text("seed: 7\n")
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(app, ["data", "compose", "out"])
    assert ended.exit_code == 2
    assert ended.stderr.count("\n") == 1
    assert "no two of 3 single photos may stand side by side" in ended.stderr
    assert not Path("out").exists()


def test_without_prepare_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "params.yaml").write_text("seed: 7\n")
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(app, ["data", "compose", "out"])
    assert (ended.exit_code, ended.stderr.count("\n")) == (2, 1)
    assert "run prepare first" in ended.stderr


def test_a_question_too_long_with_its_side_is_left_out(workspace: Workspace):
    composition = compose(DataParams(max_question_chars=30 + 16), workspace.tables_dir, _SETTINGS)
    long = "with a question that is too long once it names the side"
    assert composition.left_out[long] == sum(len(f"What is thing {n}?") > 16 for n in range(20) if n != 18)


def _listed(**changes: str) -> dict[str, str]:
    return {
        "anchor_data_id": "q2",
        "anchor_wikipedia_url": "https://en.wikipedia.org/wiki/Two",
        "target_side": "right",
        "method1_pair_data_id": "q5",
        "method1_query": "What is the bird on the right?",
        "method2_pair_data_id": "q8",
        "method2_query": "What is the bird on the right?",
        **changes,
    }


def _plan_listed(workspace: Workspace, path: Path, rows: Sequence[dict[str, str]]) -> Composition:
    settings = replace(_SETTINGS, published=write_csv(path / "list.csv", rows, COLUMNS))
    return compose(DataParams(), workspace.tables_dir, settings)


def test_a_published_list_takes_the_place_of_the_draw(workspace: Workspace, tmp_path: Path):
    published = write_csv(tmp_path / "list.csv", [_listed(method2_pair_data_id="q11")], COLUMNS)
    composition = _compose(workspace, tmp_path / "out", published=published)
    of_test = composition.composites["test"]
    assert [(one.left.query.query_id, one.right.query.query_id) for one in of_test] == [("q5", "q2"), ("q11", "q2")]
    rows = {row["query_id"]: row for row in _read(tmp_path / "out") if row["split"] == "test"}
    first, second = rows["q2@method1"], rows["q2@method2"]
    assert first["question"] == second["question"] == "What is the bird on the right?"
    assert (first["tags"]["pairing"], second["tags"]["pairing"]) == ("same category", "other category")
    assert first["tags"]["side"] == "right"
    assert first["target_box"][2] == 1.0
    assert first["relevant"] == ["d2"]
    assert composition.composites["train"]  # the list names no queries of train: these are drawn
    assert not any("@left" in query_id for query_id in rows)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"method2_pair_data_id": ""}, "not among the single photos here"),
        ({"method2_pair_data_id": "q18"}, "not among the single photos here"),
        ({"method2_pair_data_id": "q3"}, "two photos of different splits, or with a relevant document in common"),
        ({"method2_pair_data_id": "q17"}, "two photos of different splits, or with a relevant document in common"),
        ({"method2_query": " "}, "with a question that prepare would reject"),
    ],
)
def test_listed_pictures_that_cannot_be_made_are_counted(workspace: Workspace, tmp_path: Path, changes, reason):
    composition = _plan_listed(workspace, tmp_path, [_listed(**changes)])
    assert len(composition.composites["test"]) == 1
    assert composition.left_out[f"listed, {reason}"] == 1


def test_a_row_twice_counts_once(workspace: Workspace, tmp_path: Path):
    composition = _plan_listed(workspace, tmp_path, [_listed(), _listed()])
    assert len(composition.composites["test"]) == 2
    assert composition.left_out["listed, a second time"] == 2


def test_a_list_about_other_rows_is_refused(workspace: Workspace, tmp_path: Path):
    with pytest.raises(DataError, match=r"names no pair of photos that is here: 2 listed, with a target_side"):
        _plan_listed(workspace, tmp_path, [_listed(target_side="middle")])
    with pytest.raises(DataError, match="lacks the columns method2_pair_data_id"):
        write_csv(tmp_path / "short.csv", [{"anchor_data_id": "q2"}], ["anchor_data_id", *COLUMNS[1:5]])
        compose(DataParams(), workspace.tables_dir, replace(_SETTINGS, published=tmp_path / "short.csv"))


def test_a_list_for_another_order_of_rows_is_noticed(tmp_path: Path):
    workspace = Workspace.at(tmp_path)
    url = "https://en.wikipedia.org/wiki/"
    queries = [_single(number, []).query for number in (2, 5, 8)]
    _save_tables(workspace, queries, {"q2": [url + "Two"], "q5": [url + "Five"], "q8": [url + "Eight"]})
    assert len(_plan_listed(workspace, tmp_path, [_listed()]).composites["test"]) == 2
    with pytest.raises(DataError, match="about another document than the query of that id here"):
        _plan_listed(workspace, tmp_path, [_listed(anchor_wikipedia_url=url + "Five")])
