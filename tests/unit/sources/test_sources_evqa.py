"""E-VQA and EchoSight's CSV files: EchoSight's single-hop protocol, and every oddity of the published columns."""

from __future__ import annotations

import json
import zipfile
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
from pipeline.sources.formats.evqa import COLUMNS
from pipeline.sources.formats.knowledge_base import join_sections
from pipeline.sources.formats.pictures import PictureFinder
from pipeline.stages import prepare
from pipeline.types import Reject
from pipeline.workspace import Workspace
from tests.fakes.published_files import (
    GREY_HERON,
    HERON_PICTURE,
    KNOWLEDGE_BASE,
    LUJAN,
    URL,
    echosight_row,
    entry,
    evqa_row,
    evqa_train_row,
    find_real_rows,
    format_csv,
    inaturalist_row,
    paint,
    write_csv,
    write_evqa,
    write_jsonl,
)

EVQA = DataParams(source="evqa")
ECHOSIGHT = DataParams(source="echosight")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace.at(tmp_path)
    write_evqa(workspace.data_dir)
    return workspace


def read_file(path: Path, params: DataParams = EVQA) -> tuple[list[RawQuery], list[Reject]]:
    """Read an annotation file alone; pictures stay unresolved."""
    rows = list(open_source(params, path).read_queries())
    return [row for row in rows if isinstance(row, RawQuery)], [row for row in rows if isinstance(row, Reject)]


def read_rows(folder: Path, *rows: dict[str, str]) -> tuple[list[RawQuery], list[Reject]]:
    return read_file(write_csv(folder / "test.csv", rows))


def read_documents(data_dir: Path, params: DataParams = EVQA) -> list[RawDocument | Reject]:
    return list(open_source(params, data_dir).read_documents())


def test_sound_files_become_tables(workspace: Workspace):
    figures = prepare.run(Params(data=EVQA), workspace, null_run())
    queries = store.load_queries(workspace.tables_dir / "queries.parquet")
    assert [query.query_id for query in queries] == ["E-VQA_0", "E-VQA_1", "E-VQA_train_0"]
    assert [query.image_path for query in queries] == [
        "images/landmarks/a/b/c/abc1234567890def.jpg",
        "images/inaturalist/val/00012_heron/x.jpg",
        "images/landmarks/7/r/a/7ra1n.jpg",
    ]
    assert queries[1].tags == {"dataset": "inaturalist", "question_type": "automatic", "entity": "unseen"}
    documents = store.load_documents(workspace.tables_dir / "documents.parquet")
    assert [document.doc_id for document in documents] == list(KNOWLEDGE_BASE)
    assert documents[0].text == "A basilica.\nBuilt by Etcheverry."
    assert documents[1].image_paths == (
        "images/knowledge_base/upload.wikimedia.org/wikipedia/commons/a/ab/Grey_heron_(1).jpg",
    )
    qrels = store.load_qrels(workspace.tables_dir / "qrels.parquet")
    assert [(qrel.query_id, qrel.doc_id) for qrel in qrels] == [
        ("E-VQA_0", LUJAN),
        ("E-VQA_1", GREY_HERON),
        ("E-VQA_train_0", LUJAN),
    ]
    assert (figures["num_dropped"], figures["num_rejected"], figures["num_missing_images"]) == (1, 0, 0)
    (reject,) = store.load_rejects(workspace.tables_dir / "rejects.parquet")
    assert (reject.source_id, reject.reason) == ("test.csv:3", "two_hop")


def test_pictures_are_counted_and_those_of_the_queries_listed(workspace: Workspace):
    prepare.run(Params(data=EVQA), workspace, null_run())
    assert (workspace.tables_dir / "needed_images.txt").read_text().splitlines() == [
        "images/inaturalist/val/00012_heron/x.jpg",
        "images/landmarks/7/r/a/7ra1n.jpg",
        "images/landmarks/a/b/c/abc1234567890def.jpg",
    ]
    images = store.read_json(workspace.tables_dir / "validation.json")["images"]
    assert images["knowledge_base"] == {"needed": 2, "found": 1, "missing": 1, "unresolved": 0, "unusable": 0}
    assert images["landmarks"] == {"needed": 2, "found": 2, "missing": 0, "unresolved": 0, "unusable": 0}
    assert images["inaturalist"] == {"needed": 1, "found": 1, "missing": 0, "unresolved": 0, "unusable": 0}


def test_missing_pictures_are_skipped_up_to_the_set_rate(workspace: Workspace):
    (workspace.data_dir / "images/landmarks/a/b/c/abc1234567890def.jpg").unlink()
    with pytest.raises(DataError, match=r"1 queries lack their picture \(33\.33%\).*test\.csv:2 image_missing"):
        prepare.run(Params(data=EVQA), workspace, null_run())
    tolerant = Params(data=DataParams(source="evqa", max_missing_image_rate=0.5))
    figures = prepare.run(tolerant, workspace, null_run())
    assert (figures["num_queries"], figures["num_missing_images"], figures["num_rejected"]) == (2, 1, 0)
    assert figures["missing_image_rate"] == pytest.approx(1 / 3)
    images = store.read_json(workspace.tables_dir / "validation.json")["images"]
    assert images["landmarks"]["missing"] == 1
    assert "abc1234567890def" in (workspace.tables_dir / "needed_images.txt").read_text()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (None, "val_id2name.json is missing"),
        ({"5": "val/x.jpg"}, "val_id2name.json lacks it"),
        ({"2708246": "../../x.jpg"}, "gives an unsafe path"),
        ({"2708246": "/etc/x.jpg"}, "gives an unsafe path"),
    ],
)
def test_inaturalist_id_without_a_file_name_is_unresolved(workspace: Workspace, names: object, message: str):
    path = workspace.data_dir / "images/inaturalist/val_id2name.json"
    path.unlink() if names is None else path.write_text(json.dumps(names))
    params = Params(data=DataParams(source="evqa", max_missing_image_rate=1.0))
    figures = prepare.run(params, workspace, null_run())
    assert figures["num_missing_images"] == 1
    images = store.read_json(workspace.tables_dir / "validation.json")["images"]
    assert images["inaturalist"] == {"needed": 1, "found": 0, "missing": 0, "unresolved": 1, "unusable": 0}
    rejects = store.load_rejects(workspace.tables_dir / "rejects.parquet")
    assert message in next(reject.detail for reject in rejects if reject.reason == "image_missing")


def test_train_pictures_use_the_train_map_and_ids_name_the_split(workspace: Workspace):
    folder = workspace.data_dir / "images" / "inaturalist"
    paint(folder / "train/y.jpg", 5)
    (folder / "train_id2name.json").write_text(json.dumps({"2708246": "train/y.jpg"}))
    row = inaturalist_row(encyclopedic_vqa_split="train", wikipedia_url_used_in_train="True")
    write_csv(workspace.data_dir / "train.csv", [row])
    prepare.run(Params(data=EVQA), workspace, null_run())
    queries = store.load_queries(workspace.tables_dir / "queries.parquet")
    assert [query.query_id for query in queries] == ["E-VQA_0", "E-VQA_1", "E-VQA_train_0"]
    assert queries[2].image_path == "images/inaturalist/train/y.jpg"
    assert (queries[2].split, queries[2].tags["entity"]) == ("train", "seen")


def test_a_training_query_gives_way_to_a_test_query_with_its_picture(workspace: Workspace):
    write_csv(workspace.data_dir / "train.csv", [evqa_row(encyclopedic_vqa_split="train"), evqa_train_row()])
    figures = prepare.run(Params(data=EVQA), workspace, null_run())
    assert (figures["num_queries_test"], figures["num_queries_train"]) == (2, 1)
    assert (figures["num_dropped"], figures["num_rejected"]) == (2, 0)


def test_annotation_mapping_decides_the_split(workspace: Workspace):
    (workspace.data_dir / "test.csv").rename(workspace.data_dir / "mine.csv")
    params = DataParams(source="evqa", annotations={"val": "mine.csv"})
    queries = [row for row in open_source(params, workspace.data_dir).read_queries() if isinstance(row, RawQuery)]
    assert [query.query_id for query in queries] == ["E-VQA_val_0", "E-VQA_val_1"]
    assert {query.split for query in queries} == {"val"}


# Oddities of the columns


def test_answers_with_bars_ampersands_and_spaces_change_nothing(tmp_path: Path):
    answers = ["a&&b|b&&c ", "|", "&&", " trailing ", "", 'quoted "inside", with comma\nand line']
    queries, rejects = read_rows(tmp_path, *(evqa_row(answer=answer, evidence="") for answer in answers))
    assert rejects == []
    assert [query.query_id for query in queries] == [f"E-VQA_{number}" for number in range(len(answers))]
    assert len({query.relevant_doc_ids for query in queries}) == 1


def test_row_numbers_count_records_not_lines(tmp_path: Path):
    _, rejects = read_rows(tmp_path, evqa_row(answer="two\nlines"), evqa_row(wikipedia_url=""))
    assert [reject.source_id for reject in rejects] == ["test.csv:3"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wikipedia_url": f"{LUJAN}|{GREY_HERON}"}, "this one has 2"),
        ({"wikipedia_url": ""}, "wikipedia_url must have"),
        ({"wikipedia_url": URL + "Two words"}, "no white space"),
        ({"dataset_image_ids": ""}, "no image id of landmarks"),
        ({"dataset_image_ids": "|abc1234567890def"}, "no image id of landmarks"),
        ({"dataset_image_ids": "../../etc/passwd"}, "no image id of landmarks"),
        ({"dataset_name": "flickr"}, "dataset_name 'flickr'"),
        ({"dataset_name": "infoseek"}, "none of inaturalist, landmarks"),
        ({"question_type": "3_hop"}, "question_type '3_hop'"),
        ({"encyclopedic_vqa_split": "dev"}, "encyclopedic_vqa_split 'dev'"),
        ({"wikipedia_url_used_in_train": "yes"}, "wikipedia_url_used_in_train 'yes'"),
    ],
)
def test_misshapen_row_is_rejected_and_keeps_its_number(tmp_path: Path, changes: dict[str, str], message: str):
    queries, rejects = read_rows(tmp_path, evqa_row(), evqa_row(**changes), evqa_row())
    assert [(reject.source_id, reject.reason) for reject in rejects] == [("test.csv:3", "invalid_row")]
    assert message in rejects[0].detail
    assert [query.query_id for query in queries] == ["E-VQA_0", "E-VQA_2"]


def test_first_of_several_images_counts(tmp_path: Path):
    (query,), _ = read_rows(tmp_path, evqa_row(dataset_image_ids="def1|abc2|abc3|abc4|abc5"))
    assert query.image_path == "images/landmarks/d/e/f/def1.jpg"


def test_byte_order_mark_and_mixed_encodings_cost_only_their_rows(tmp_path: Path):
    text = format_csv([evqa_row(), evqa_row(question="Qu'est-ce que ça?"), evqa_row()])
    lines = text.encode("utf-8").splitlines(keepends=True)
    lines[2] = lines[2].decode().encode("latin-1")
    path = tmp_path / "test.csv"
    path.write_bytes(b"\xef\xbb\xbf" + b"".join(lines))
    queries, rejects = read_file(path)
    assert [(reject.source_id, reject.reason) for reject in rejects] == [("test.csv:3", "not_utf8")]
    assert [query.query_id for query in queries] == ["E-VQA_0", "E-VQA_2"]


def test_row_with_too_few_cells_is_rejected(tmp_path: Path):
    path = tmp_path / "test.csv"
    path.write_text(format_csv([evqa_row()]) + "only,three,cells\n" + "\n")
    _, rejects = read_file(path)
    assert [(reject.source_id, reject.detail) for reject in rejects] == [("test.csv:3", "has 3 cells, the header 14")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no rows"),
        (",".join(COLUMNS).encode() + b"\n", "a header and no rows"),
        (b"question,answer\na,b\n", r"row 1: lacks the columns dataset_image_ids, .*first row is: question, answer"),
        ((",".join(COLUMNS) + ",answer\n").encode(), "names a column twice: answer"),
        (format_csv([evqa_row()]).encode() + b'"never closed\n,', r"row 3: is no sound CSV"),
    ],
)
def test_file_that_is_no_such_csv_is_one_line(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "test.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_file(path)
    assert "\n" not in str(caught.value)


# The knowledge base


def test_entries_that_are_not_as_published_are_rejected_by_number(workspace: Workspace):
    bad = {
        URL + "No_title": {**entry("x"), "title": None},
        URL + "Uneven": {**entry("x"), "section_texts": ["one"]},
        URL + "White space": entry("x"),
        URL + "List": [],
        URL + "Fine": entry("x"),
    }
    (workspace.data_dir / "encyclopedic_kb_wiki.json").write_text(json.dumps(bad))
    rows = read_documents(workspace.data_dir)
    assert [row.source_id.rpartition(":")[2] for row in rows if isinstance(row, Reject)] == ["1", "2", "3", "4"]
    assert [row.doc_id for row in rows if isinstance(row, RawDocument)] == [URL + "Fine"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "after 0 entries"),
        (b"[]", "must be one JSON object, is a list"),
        (b"7", "must be one JSON object, is a number"),
        (b"{}", "holds no entries"),
        (json.dumps(KNOWLEDGE_BASE).encode()[:-40], "after 2 entries"),
        (b'{"a": "\xff"}', "invalid bytes in UTF8"),
        (b"no json", "no whole JSON object"),
    ],
)
def test_damaged_knowledge_base_is_one_line(workspace: Workspace, content: bytes, message: str):
    (workspace.data_dir / "encyclopedic_kb_wiki.json").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        prepare.run(Params(data=EVQA), workspace, null_run())
    assert "\n" not in str(caught.value)
    assert not workspace.tables_dir.exists()


def test_knowledge_base_is_read_out_of_its_zip(workspace: Workspace):
    plain = workspace.data_dir / "encyclopedic_kb_wiki.json"
    packed = plain.with_suffix(".zip")
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(plain, plain.name)
    expected = [row.doc_id for row in read_documents(workspace.data_dir) if isinstance(row, RawDocument)]
    plain.unlink()
    rows = read_documents(workspace.data_dir)
    assert [row.doc_id for row in rows if isinstance(row, RawDocument)] == expected
    packed.write_bytes(packed.read_bytes()[:-30])
    with pytest.raises(DataError, match="damaged or cut short"):
        read_documents(workspace.data_dir)


def test_text_is_cut_at_the_set_length(workspace: Workspace):
    params = DataParams(source="evqa", max_text_chars=13)
    (first, *_) = read_documents(workspace.data_dir, params)
    assert isinstance(first, RawDocument)
    assert first.text == "A basilica.\nB"


@given(st.lists(st.text()), st.integers(1, 50))
def test_sections_joined_are_a_prefix_of_all_sections(texts: list[str], max_chars: int):
    whole = "\n".join(text.strip() for text in texts if text.strip())
    assert join_sections(texts, max_chars) == whole[:max_chars].rstrip()


def test_missing_knowledge_base_and_annotations_are_named(workspace: Workspace):
    (workspace.data_dir / "encyclopedic_kb_wiki.json").unlink()
    with pytest.raises(DataError, match=r"no knowledge base of evqa: encyclopedic_kb_wiki\.json or"):
        prepare.run(Params(data=EVQA), workspace, null_run())
    for name in ("test.csv", "train.csv"):
        (workspace.data_dir / name).unlink()
    with pytest.raises(DataError, match=r"none of the annotation files of evqa: train\.csv, val\.csv, test\.csv"):
        prepare.run(Params(data=EVQA), workspace, null_run())
    with pytest.raises(DataError, match=r"mine\.csv: is missing"):
        open_source(DataParams(source="evqa", annotations={"test": "mine.csv"}), workspace.data_dir)


# Pictures and cells that cannot be used


def read_validation(workspace: Workspace) -> dict[str, Any]:
    return store.read_json(workspace.tables_dir / "validation.json")


@pytest.mark.parametrize(
    "content", [b"<html>404</html>", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"", b"\xff\xd8cut"]
)
def test_an_unreadable_picture_of_an_entry_costs_no_more_than_a_missing_one(workspace: Workspace, content: bytes):
    folder = workspace.data_dir / "images/knowledge_base/upload.wikimedia.org"
    (folder / "gone.jpg").write_bytes(content)
    figures = prepare.run(Params(data=EVQA), workspace, null_run())
    assert (figures["num_documents"], figures["num_queries"], figures["num_rejected"]) == (3, 3, 0)
    documents = store.load_documents(workspace.tables_dir / "documents.parquet")
    good = "images/knowledge_base/upload.wikimedia.org/wikipedia/commons/a/ab/Grey_heron_(1).jpg"
    assert documents[1].image_paths == (good,)
    found = read_validation(workspace)
    assert found["images"]["knowledge_base"] == {
        "needed": 2, "found": 1, "missing": 0, "unresolved": 0, "unusable": 1,
    }  # fmt: skip
    (why,) = found["unusable_images"].values()
    assert why.startswith("image_unreadable")


def test_an_entry_left_without_text_and_usable_picture_is_empty(workspace: Workspace):
    bare = {**KNOWLEDGE_BASE, GREY_HERON: entry("Grey heron", texts=("",), images=(HERON_PICTURE,))}
    (workspace.data_dir / "encyclopedic_kb_wiki.json").write_text(json.dumps(bare))
    heron = workspace.data_dir / "images/knowledge_base/upload.wikimedia.org/wikipedia/commons/a/ab/Grey_heron_(1).jpg"
    heron.write_bytes(b"<html>")
    tolerant = Params(data=DataParams(source="evqa", max_reject_rate=1.0))
    prepare.run(tolerant, workspace, null_run())
    reasons = [row.reason for row in store.load_rejects(workspace.tables_dir / "rejects.parquet")]
    assert reasons == ["empty_document", "two_hop", "no_relevant_document"]


def test_an_unreadable_picture_of_a_query_is_rejected_and_counted_as_unusable(workspace: Workspace):
    (workspace.data_dir / "images/landmarks/a/b/c/abc1234567890def.jpg").write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"1 of 7 rows are rejected .*test\.csv:2 image_unreadable"):
        prepare.run(Params(data=EVQA), workspace, null_run())
    prepare.run(Params(data=DataParams(source="evqa", max_reject_rate=0.2)), workspace, null_run())
    landmarks = read_validation(workspace)["images"]["landmarks"]
    assert landmarks == {"needed": 2, "found": 1, "missing": 0, "unresolved": 0, "unusable": 1}


def test_a_cell_of_an_unused_column_may_be_long(tmp_path: Path):
    queries, rejects = read_rows(tmp_path, inaturalist_row(evidence="e" * 300_000, dataset_image_ids="1"), evqa_row())
    assert (len(queries), rejects) == (2, [])


def test_joined_csv_files_are_called_so(tmp_path: Path):
    content = format_csv([evqa_row()]).encode()
    path = tmp_path / "test.csv"
    path.write_bytes(b"\xef\xbb\xbf" + content + b"\xef\xbb\xbf" + content + content)
    queries, rejects = read_file(path)
    assert len(queries) == 3
    assert [(reject.source_id, "joined end to end" in reject.detail) for reject in rejects] == [
        ("test.csv:3", True),
        ("test.csv:5", True),
    ]
    assert "byte order mark" in rejects[0].detail


def test_joined_knowledge_bases_are_called_so(workspace: Workspace):
    path = workspace.data_dir / "encyclopedic_kb_wiki.json"
    path.write_bytes(path.read_bytes() + b"\xef\xbb\xbf" + path.read_bytes())
    with pytest.raises(DataError, match=r"after 3 entries: .*a byte order mark stands in it"):
        read_documents(workspace.data_dir)


def test_an_entry_with_a_key_twice_is_rejected(workspace: Workspace):
    path = workspace.data_dir / "encyclopedic_kb_wiki.json"
    path.write_text(path.read_text().replace('"title": "Grey heron"', '"title": "Heron", "title": "Grey heron"'))
    rows = read_documents(workspace.data_dir)
    assert [(row.source_id, row.detail) for row in rows if isinstance(row, Reject)] == [
        ("encyclopedic_kb_wiki.json:2", "key title stands there twice")
    ]


def test_a_map_that_names_two_files_for_one_picture_is_refused(workspace: Workspace):
    path = workspace.data_dir / "images/inaturalist/val_id2name.json"
    path.write_text('{"2708246": "val/00012_heron/x.jpg", "1": "y", "2708246": "val/z.jpg"}')
    with pytest.raises(DataError, match=r"val_id2name\.json, row 3: names two files for 2708246"):
        prepare.run(Params(data=EVQA), workspace, null_run())


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".JPG", ".JPEG", ".png", ".PNG", ".webp", ".WEBP"])
def test_an_oven_picture_is_found_whatever_its_ending(tmp_path: Path, suffix: str):
    folder = tmp_path / "images/oven_images/05"
    folder.mkdir(parents=True)
    (folder / f"oven_05023258{suffix}").touch()
    finder = PictureFinder(tmp_path, "images")
    found = finder.find_query_picture("infoseek", "oven_05023258", inaturalist_split="")
    assert found == f"images/oven_images/05/oven_05023258{suffix}"
    assert finder.census.summarise()["infoseek"]["found"] == 1


# EchoSight's CSV


def write_echosight(data_dir: Path) -> None:
    data_dir.mkdir()
    columns = [*COLUMNS, "data_id"]
    rows = [echosight_row(), echosight_row(data_id="infoseek_val_00000002", question_type="Time")]
    write_csv(data_dir / "test.csv", rows, columns)
    train = echosight_row(data_id="infoseek_train_00000003", dataset_image_ids="oven_00000007")
    write_csv(data_dir / "train.csv", [train], columns)
    paint(data_dir / "images/oven_images/00/oven_00000007.JPG.png", 8).rename(
        data_dir / "images/oven_images/00/oven_00000007.JPG"
    )
    paint(data_dir / "images/oven_images/oven_05023258.png", 7)
    (data_dir / "wiki_100_dict_v4.json").write_text(json.dumps(KNOWLEDGE_BASE))


def test_echosight_rows_keep_their_data_id_and_flat_pictures(tmp_path: Path):
    workspace = Workspace.at(tmp_path)
    write_echosight(workspace.data_dir)
    prepare.run(Params(data=ECHOSIGHT), workspace, null_run())
    queries = store.load_queries(workspace.tables_dir / "queries.parquet")
    assert [query.query_id for query in queries] == [
        "infoseek_val_00000001",
        "infoseek_val_00000002",
        "infoseek_train_00000003",
    ]
    assert [query.image_path for query in queries] == [
        "images/oven_images/oven_05023258.png",
        "images/oven_images/oven_05023258.png",
        "images/oven_images/00/oven_00000007.JPG",
    ]
    assert queries[1].tags == {"dataset": "infoseek", "question_type": "Time"}


def test_echosight_row_without_data_id_is_rejected(tmp_path: Path):
    path = write_csv(tmp_path / "test.csv", [evqa_row(dataset_name="infoseek")])
    _, (reject,) = read_file(path, ECHOSIGHT)
    assert "data_id must have" in reject.detail


def test_echosight_rows_learn_their_split_from_infoseek_beside_them(tmp_path: Path):
    workspace = Workspace.at(tmp_path)
    write_echosight(workspace.data_dir)
    row = {"data_id": "infoseek_val_00000002", "image_id": "oven_05023258", "question": "?"}
    write_jsonl(workspace.data_dir / "infoseek_val.jsonl", [{**row, "data_split": "val_unseen_entity"}])
    prepare.run(Params(data=ECHOSIGHT), workspace, null_run())
    queries = store.load_queries(workspace.tables_dir / "queries.parquet")
    assert [query.tags.get("split") for query in queries] == [None, "unseen_entity", None]


# Real rows


def test_real_evqa_rows_are_all_taken():
    queries, rejects = read_file(find_real_rows("evqa/test_sample.csv"))
    assert (len(queries), rejects) == (300, [])
    assert queries[0].image_path.startswith(("images/inaturalist/", "images/landmarks/"))


def test_real_echosight_rows_are_all_taken():
    queries, rejects = read_file(find_real_rows("infoseek/echosight_sample.csv"), ECHOSIGHT)
    assert (len(queries), rejects) == (300, [])
    assert queries[0].query_id == "infoseek_val_00045710"
    assert queries[0].image_path == "images/oven_images/05/oven_05023258.jpg"
