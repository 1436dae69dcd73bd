"""docs/data-format.md is kept: every reject reason with file and row; failure writes nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.config import DataParams, Params
from pipeline.errors import DataError
from pipeline.files import store
from pipeline.runs.tracking import null_run
from pipeline.stages import prepare
from pipeline.types import Reject
from pipeline.workspace import Workspace

DOC_PATH = Path(__file__).parents[2] / "docs" / "data-format.md"
NUM_SOUND = 3
TOLERANT = Params(data=DataParams(max_reject_rate=1.0, max_image_pixels=10_000))
STRICT = Params(data=DataParams(max_reject_rate=0.0, max_image_pixels=10_000))


@dataclass
class World:
    """Three sound documents and queries, to which a test adds what is wrong."""

    root: Path
    documents: list[bytes] = field(default_factory=list)
    queries: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.data_dir / "images").mkdir(parents=True)
        for number in range(NUM_SOUND):
            self.paint(f"d{number}.png", (number, 1, 0))
            self.paint(f"q{number}.png", (number, 2, 0))
            self.add_document(doc_id=f"d{number}", images=[f"images/d{number}.png"])
            split = "test" if number == NUM_SOUND - 1 else "train"
            self.add_query(query_id=f"q{number}", split=split, image=f"images/q{number}.png", relevant=[f"d{number}"])

    @property
    def data_dir(self) -> Path:
        return self.root / "data"

    @property
    def workspace(self) -> Workspace:
        return Workspace.at(self.root)

    def paint(self, name: str, colour: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> str:
        Image.new("RGB", size, colour).save(self.data_dir / "images" / name)
        return f"images/{name}"

    def add_document(self, **changes: Any) -> None:
        row = {"doc_id": "new", "title": "Title", "text": "Text.", "images": []}
        self.documents.append(json.dumps({**row, **changes}).encode())

    def add_query(self, **changes: Any) -> None:
        row = {
            "query_id": "new",
            "split": "train",
            "question": "What?",
            "image": "images/q0.png",
            "relevant": ["d0"],
        }
        self.queries.append(json.dumps({**row, **changes}).encode())

    def prepare(self, params: Params = TOLERANT) -> dict[str, float]:
        for name, rows in (("documents", self.documents), ("queries", self.queries)):
            (self.data_dir / f"{name}.jsonl").write_bytes(b"".join(row + b"\n" for row in rows))
        return prepare.run(params, self.workspace, null_run())

    def list_written(self) -> list[Path]:
        return [path for path in self.workspace.artifacts_dir.rglob("*") if path != self.workspace.artifacts_dir]

    def rejects(self) -> list[Reject]:
        return store.load_rejects(self.workspace.tables_dir / "rejects.parquet")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def truncate(world: World) -> str:
    path = world.data_dir / world.paint("bad.jpg", (9, 9, 9), (64, 64))
    path.write_bytes(path.read_bytes()[:300])
    return "images/bad.jpg"


def write_file(world: World, name: str, content: bytes) -> str:
    (world.data_dir / "images" / name).write_bytes(content)
    return f"images/{name}"


def link_outside(world: World) -> str:
    Image.new("RGB", (8, 8)).save(world.root / "secret.png")
    (world.data_dir / "images" / "link.png").symlink_to(world.root / "secret.png")
    return "images/link.png"


BAD_IMAGES: dict[str, tuple[str, Callable[[World], str]]] = {
    "truncated": ("image_unreadable", truncate),
    "text named jpg": ("image_unreadable", lambda world: write_file(world, "text.jpg", b"no picture")),
    "empty file": ("image_unreadable", lambda world: write_file(world, "empty.jpg", b"")),
    "missing": ("image_missing", lambda world: "images/none.jpg"),
    "folder": ("image_missing", lambda world: "images"),
    "too large": ("image_too_large", lambda world: world.paint("big.png", (0, 0, 0), (101, 100))),
    "absolute": ("unsafe_path", lambda world: str((world.data_dir / "images" / "q0.png").absolute())),
    "dots": ("unsafe_path", lambda world: "images/../images/q0.png"),
    "backslash": ("unsafe_path", lambda world: "images\\q0.png"),
    "link outside": ("unsafe_path", link_outside),
    "null byte": ("unsafe_path", lambda world: "images/a\0.png"),
    "line end in name": ("unsafe_path", lambda world: write_file(world, "a\n.png", b"")),
    "escape in name": ("unsafe_path", lambda world: write_file(world, "\x1b[31m.png", b"")),
    "name too long": ("unsafe_path", lambda world: "x" * 400),
}

BAD_QUERIES: dict[str, tuple[str, dict[str, Any]]] = {
    "unknown key": ("invalid_row", {"anwser": "x"}),
    "wrong type": ("invalid_row", {"question": 3}),
    "unknown split": ("invalid_row", {"split": "dev"}),
    "space in id": ("invalid_row", {"query_id": "a b"}),
    "empty id": ("invalid_row", {"query_id": ""}),
    "lone surrogate": ("broken_json", {"question": "\ud800"}),
    "no relevant": ("invalid_row", {"relevant": []}),
    "relevant twice": ("invalid_row", {"relevant": ["d1", "d1"]}),
    "three coordinates": ("invalid_row", {"target_box": [0, 0, 1]}),
    "tag no string": ("invalid_row", {"tags": {"a": 1}}),
    "duplicate": ("duplicate_id", {"query_id": "q1"}),
    "question too long": ("question_too_long", {"question": "x" * 1001}),
    "question of zero width": ("empty_question", {"question": "\u200b \ufeff\u00ad"}),
    "question of controls": ("empty_question", {"question": "\0\x1b"}),
    "control in question": ("invalid_row", {"question": "What\x9f?"}),
    "control in tag name": ("invalid_row", {"tags": {"a\0": "b"}}),
    "control in tag": ("invalid_row", {"tags": {"a": "\x1b]0;x\x07"}}),
    "line end in tag": ("invalid_row", {"tags": {"a": "b\nc"}}),
    "control in id": ("invalid_row", {"query_id": "a\x85"}),
    "id of zero width": ("invalid_row", {"query_id": "\u200b"}),
    "relevant of zero width": ("invalid_row", {"relevant": ["d1", "\ufeff"]}),
    "blank question": ("empty_question", {"question": " \n"}),
    "box outside": ("bad_box", {"target_box": [0, 0, 1.2, 1]}),
    "box without area": ("bad_box", {"target_box": [0.5, 0, 0.5, 1]}),
    "box not finite": ("bad_box", {"target_box": [0, 0, float("nan"), 1]}),
    "document unknown": ("no_relevant_document", {"relevant": ["ghost"]}),
    "image in another split": ("split_leak", {"split": "test"}),
}

BAD_LINES: dict[str, tuple[str, bytes]] = {
    "broken": ("broken_json", b'{"query_id": '),
    "two objects": ("broken_json", b"{} {}"),
    "deep": ("broken_json", b"[" * 100_000),
    "latin-1": ("not_utf8", '{"question": "é"}'.encode("latin-1")),
    "list": ("invalid_row", b"[]"),
    "empty object": ("invalid_row", b"{}"),
}

DOCUMENT_REASONS = {"duplicate_id", "empty_document"}
# tests/unit/test_sources_*.py have these.
PUBLISHED_REASONS = {"two_hop", "repeated_entity"}
# tests/unit/sources/test_lookalikes.py has these: the pictures here are plain.
LOOKED_AT_REASONS = {"split_lookalike"}


def name_reasons(rejects: list[Reject], file: str, names: Iterable[str]) -> dict[str, str]:
    """Return what became of the rows that follow the sound ones, by the names of their faults."""
    reasons = {reject.source_id: reject.reason for reject in rejects}
    rows = {name: f"{file}.jsonl:{row}" for row, name in enumerate(names, start=NUM_SOUND + 1)}
    return {name: reasons.get(row, "kept") for name, row in rows.items()}


def test_bad_queries_are_rejected_with_their_reasons(world: World):
    for number, (_, changes) in enumerate(BAD_QUERIES.values()):
        world.add_query(**{"query_id": f"x{number}", **changes})
    figures = world.prepare()
    expected = {name: reason for name, (reason, _) in BAD_QUERIES.items()}
    assert name_reasons(world.rejects(), "queries", BAD_QUERIES) == expected
    assert figures["num_rejected"] == len(world.rejects()) == len(BAD_QUERIES)
    assert all(reject.detail for reject in world.rejects())


def test_bad_pictures_are_rejected_with_their_reasons(world: World):
    for number, (_, make) in enumerate(BAD_IMAGES.values()):
        image = make(world)
        world.add_query(query_id=f"x{number}", image=image)
        world.add_document(doc_id=f"x{number}", images=["images/d0.png", image])
    figures = world.prepare()
    expected = {name: reason for name, (reason, _) in BAD_IMAGES.items()}
    assert name_reasons(world.rejects(), "queries", BAD_IMAGES) == expected
    assert name_reasons(world.rejects(), "documents", BAD_IMAGES) == expected
    assert (figures["num_queries"], figures["num_documents"]) == (NUM_SOUND, NUM_SOUND)


def test_bad_lines_are_rejected_with_their_reasons(world: World):
    lines = [line for _, line in BAD_LINES.values()]
    world.documents += lines
    world.queries += lines
    world.prepare()
    expected = {name: reason for name, (reason, _) in BAD_LINES.items()}
    assert name_reasons(world.rejects(), "queries", BAD_LINES) == expected
    assert name_reasons(world.rejects(), "documents", BAD_LINES) == expected


def test_controls_in_documents_become_spaces(world: World):
    world.add_document(title="t\0t\x1b[31m", text="one\r\ntwo\rthree\tfour\x00five\x7f\x9f")
    world.prepare(STRICT)
    document = store.load_documents(world.workspace.tables_dir / "documents.parquet")[-1]
    assert (document.title, document.text) == ("t t [31m", "one\ntwo\nthree\tfour five  ")


def test_question_of_the_longest_length_stays_with_its_line_ends_unified(world: World):
    world.add_query(question="x" * 996 + "\r\na\tb", query_id="longest")
    world.prepare(STRICT)
    (question,) = {
        query.question
        for query in store.load_queries(world.workspace.tables_dir / "queries.parquet")
        if query.query_id == "longest"
    }
    assert question == "x" * 996 + "\na\tb"


@pytest.mark.parametrize(
    ("line", "key"),
    [
        (b'{"doc_id": "a", "title": "t", "text": "x", "images": [], "doc_id": "b"}', "doc_id"),
        (b'{"doc_id": "a", "title": "t", "text": "x", "images": [], "te\\u0078t": "y"}', "text"),
    ],
)
def test_a_key_that_stands_twice_is_named(world: World, line: bytes, key: str):
    world.documents.append(line)
    tags = world.queries[0].replace(b'"q0"', b'"other"').replace(b"}", b', "tags": {"a": "1", "a": "2"}}')
    world.queries.append(tags)
    world.prepare()
    assert [(reject.source_id, reject.reason, reject.detail) for reject in world.rejects()] == [
        ("documents.jsonl:4", "invalid_row", f"key {key} stands there twice"),
        ("queries.jsonl:4", "invalid_row", "key a stands there twice"),
    ]


def test_files_joined_behind_a_byte_order_mark_are_called_so(world: World):
    world.documents = [b"\xef\xbb\xbf" + world.documents[0], b"\xef\xbb\xbf" + world.documents[1], *world.documents[2:]]
    world.queries[1:2] = [world.queries[1] + b"\xef\xbb\xbf" + world.queries[1]]
    world.prepare()
    details = {reject.source_id: reject.detail for reject in world.rejects() if reject.reason == "broken_json"}
    assert details.keys() == {"documents.jsonl:2", "queries.jsonl:2"}
    assert all("a byte order mark stands in it, as where files were joined" in detail for detail in details.values())


@pytest.mark.parametrize("split", ["train", "test"])
def test_data_without_a_split_that_later_stages_need_are_refused_at_once(world: World, split: str):
    rows = [row for row in world.queries if f'"split": "{split}"'.encode() not in row]
    kept, world.queries = world.queries, rows
    with pytest.raises(DataError, match=rf"data: holds no {split} queries, and without them nothing can be"):
        world.prepare()
    world.queries = [row.replace(b'"What?"', b'""') if row not in rows else row for row in kept]
    with pytest.raises(
        DataError, match=rf"none of its \d {split} queries is left, .*\(empty_question \d\); first: quer"
    ):
        world.prepare()
    assert world.list_written() == []


def test_duplicate_names_both_rows_and_the_first_stays(world: World):
    world.add_document(doc_id="d1", title="Second")
    world.add_query(query_id="q2", question="Second?")
    world.prepare()
    tables = world.workspace.tables_dir
    assert "Second" not in {row.title for row in store.load_documents(tables / "documents.parquet")}
    assert "Second?" not in {row.question for row in store.load_queries(tables / "queries.parquet")}
    assert [(reject.source_id, reject.reason, reject.detail) for reject in world.rejects()] == [
        ("documents.jsonl:4", "duplicate_id", "doc_id d1 is already taken by documents.jsonl:2"),
        ("queries.jsonl:4", "duplicate_id", "query_id q2 is already taken by queries.jsonl:3"),
    ]


def test_empty_document_is_rejected(world: World):
    world.add_document(text=" ")
    world.prepare()
    assert [reject.reason for reject in world.rejects()] == ["empty_document"]


def test_query_falls_with_its_last_document(world: World):
    world.add_document(doc_id="broken", images=["images/none.png"])
    world.add_query(relevant=["broken"])
    world.prepare()
    assert [(reject.source_id, reject.reason, reject.detail) for reject in world.rejects()][1] == (
        "queries.jsonl:4",
        "no_relevant_document",
        "document broken was rejected (documents.jsonl:4)",
    )


def test_query_stays_with_the_documents_that_resolve(world: World):
    world.add_query(relevant=["ghost", "d2", "phantom"])
    figures = world.prepare()
    assert figures["num_queries"] == NUM_SOUND + 1
    assert figures["num_rejected"] == 1
    assert [(reject.reason, reject.detail) for reject in world.rejects()] == [
        ("unresolved_qrel", "document ghost does not exist"),
        ("unresolved_qrel", "document phantom does not exist"),
    ]
    qrels = store.load_qrels(world.workspace.tables_dir / "qrels.parquet")
    assert [qrel.doc_id for qrel in qrels if qrel.query_id == "new"] == ["d2"]


def test_split_leak_is_found_by_content_not_by_name(world: World):
    (world.data_dir / "images" / "copy.png").write_bytes((world.data_dir / "images" / "q1.png").read_bytes())
    world.add_query(split="val", image="images/copy.png")
    world.add_query(query_id="same", split="train", image="images/copy.png")
    world.prepare()
    (reject,) = world.rejects()
    assert (reject.reason, reject.detail) == (
        "split_leak",
        "val image is the same as that of queries.jsonl:2 in train",
    )
    validation = store.read_json(world.workspace.tables_dir / "validation.json")
    assert validation["success"] is False
    assert validation["rejects"] == {"split_leak": 1}


def test_rejected_query_claims_no_image(world: World):
    world.add_query(image=world.paint("x.png", (7, 7, 7)), relevant=["ghost"], split="train")
    world.add_query(query_id="second", image="images/x.png", split="test")
    figures = world.prepare()
    assert figures["num_queries_test"] == 2
    assert [reject.reason for reject in world.rejects()] == ["no_relevant_document"]


def test_too_many_rejects_fail_in_one_line_and_write_nothing(world: World):
    for number in range(12):
        world.add_query(query_id=f"x{number}", question="")
    world.add_query(query_id="y", image="images/none.png")
    with pytest.raises(DataError) as caught:
        world.prepare(STRICT)
    message = str(caught.value)
    assert "\n" not in message
    assert "13 of 19 rows are rejected (68.42%)" in message
    assert "empty_question 12, image_missing 1" in message
    assert re.findall(r"queries\.jsonl:\d+", message) == [f"queries.jsonl:{row}" for row in range(4, 14)]
    assert world.list_written() == []


def test_failure_leaves_the_earlier_tables_alone(world: World):
    world.prepare()
    before = {path.name: path.read_bytes() for path in world.workspace.tables_dir.iterdir()}
    world.queries.append(b"{")
    with pytest.raises(DataError):
        world.prepare(STRICT)
    assert {path.name: path.read_bytes() for path in world.workspace.tables_dir.iterdir()} == before
    assert [path.name for path in world.workspace.artifacts_dir.iterdir()] == ["tables"]


def test_reject_rate_is_a_limit_that_may_be_reached(world: World):
    world.queries.append(b"{")
    limit = DataParams(max_reject_rate=1 / 7)
    assert world.prepare(Params(data=limit))["reject_rate"] == pytest.approx(1 / 7)
    with pytest.raises(DataError):
        world.prepare(Params(data=DataParams(max_reject_rate=0.14)))


@pytest.mark.parametrize("file", ["documents", "queries"])
def test_empty_or_missing_file_is_named(file, world: World):
    getattr(world, file).clear()
    with pytest.raises(DataError, match=rf"{file}\.jsonl: holds no rows"):
        world.prepare()
    (world.data_dir / f"{file}.jsonl").unlink()
    with pytest.raises(DataError, match=rf"{file}\.jsonl: is missing"):
        prepare.run(TOLERANT, world.workspace, null_run())
    assert world.list_written() == []


def test_nothing_left_is_an_error_even_if_all_may_be_rejected(world: World):
    world.queries = [b"{"]
    with pytest.raises(DataError, match="no query is left"):
        world.prepare()
    assert world.list_written() == []


def test_documented_reasons_are_the_tested_ones():
    section = DOC_PATH.read_text(encoding="utf-8").split("| reason |")[1].split("\n\n")[0]
    documented = set(re.findall(r"^\| `(\w+)`", section, flags=re.MULTILINE))
    tested = {reason for reason, _ in [*BAD_QUERIES.values(), *BAD_IMAGES.values(), *BAD_LINES.values()]}
    assert documented == tested | DOCUMENT_REASONS | PUBLISHED_REASONS | LOOKED_AT_REASONS | {"unresolved_qrel"}


def test_documented_examples_are_sound(world: World):
    examples = re.findall(r"```json\n(.*?)\n```", DOC_PATH.read_text(encoding="utf-8"))
    world.paint("finch-1.jpg", (1, 2, 3))
    world.paint("q1.jpg", (3, 2, 1))
    world.documents.append(examples[0].encode())
    world.queries.append(examples[1].encode().replace(b'"q1"', b'"documented"'))
    assert world.prepare(STRICT)["num_qrels"] == NUM_SOUND + 1
