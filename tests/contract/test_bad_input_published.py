"""`python -m pipeline prepare` and `data check` on damaged published files: one line, exit 2, nothing half-written.

Only the tracking store is left out, for time. Each change is made to a small sound folder.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pipeline import __main__ as entry
from pipeline import cli
from pipeline.runs.tracking import StageRun, null_run
from pipeline.sources.formats import streams
from tests.fakes.published_files import GREY_HERON, LUJAN, find_real_rows, write_evqa, write_infoseek

Change = Callable[[bytes], bytes]

CSV, KB = "test.csv", "encyclopedic_kb_wiki.json"
QUESTIONS, ENTITIES, WIKI = "infoseek_val.jsonl", "infoseek_val_withkb.jsonl", "Wiki6M_ver_1_0.jsonl.gz"
BOM = b"\xef\xbb\xbf"


def swap(old: str, new: str | bytes) -> Change:
    """Change the first place that holds `old`, which must be there."""

    def change(content: bytes) -> bytes:
        assert old.encode() in content
        return content.replace(old.encode(), new if isinstance(new, bytes) else new.encode(), 1)

    return change


def repack(change: Change) -> Change:
    return lambda content: gzip.compress(change(gzip.decompress(content)))


REFUSED: dict[str, tuple[str, Change, str]] = {
    # wrong columns
    "column renamed": (CSV, swap("wikipedia_url,", "url,"), r"test\.csv, row 1: lacks the columns wikipedia_url;"),
    "semicolons": (CSV, lambda b: b.replace(b",", b";"), r"test\.csv, row 1: lacks the columns question, answer,"),
    "column twice": (
        CSV,
        swap("evidence_section_id", "question_type"),
        r"row 1: lacks the columns evidence_section_id",
    ),
    "blank header": (CSV, lambda b: b"\n" + b, r"test\.csv, row 1: is blank; the names of the columns"),
    "key renamed": (
        QUESTIONS,
        swap('"image_id"', '"image"'),
        r"infoseek_val\.jsonl:1 invalid_row: image_id: Field req",
    ),
    "list, not lines": (
        QUESTIONS,
        lambda b: b"[" + b",".join(b.splitlines()) + b"]",
        r"jsonl:1 invalid_row: row: .*object",
    ),
    # mixed encodings
    "latin-1 row": (
        CSV,
        swap("Who built", b"Qui a b\xe2ti"),
        r"test\.csv:2 not_utf8: question holds bytes that are not",
    ),
    "latin-1 header": (CSV, swap("question,", b"qu\xe9stion,"), r"row 1: lacks the columns question; .*qu\\udce9stion"),
    "utf-16 csv": (CSV, lambda b: b.decode().encode("utf-16"), r"test\.csv: is UTF-16; it must be UTF-8"),
    "utf-16 lines": (QUESTIONS, lambda b: b.decode().encode("utf-16"), r"infoseek_val\.jsonl: is UTF-16"),
    "latin-1 entry": (
        KB,
        swap("Lead.", b"L\xe9ad."),
        r"kb_wiki\.json: is no whole JSON object: after 1 entries: lex.*UTF8",
    ),
    "latin-1 line": (QUESTIONS, swap("Which", b"Qu\xe9l"), r"infoseek_val\.jsonl:1 not_utf8: byte \d+ of the line"),
    "NUL in question": (
        CSV,
        swap("Who built", "Who\0built"),
        r"test\.csv:2 invalid_row: question holds .*U\+0000 at place 4",
    ),
    "NUL in URL": (CSV, swap(LUJAN, LUJAN + "\0"), r"test\.csv:2 invalid_row: wikipedia_url must have"),
    "NUL only": (CSV, lambda _: bytes(1000), r"test\.csv, row 1: lacks the columns .*is: \\x00\\x00"),
    "escape in id": (QUESTIONS, swap("val_00000001", "val\\u001b[31m1"), r"infoseek_val\.jsonl:2 invalid_row: data_id"),
    # `|` and `&&`
    "two URLs": (
        CSV,
        swap(LUJAN, f"{LUJAN}|{GREY_HERON}"),
        r"test\.csv:2 invalid_row: .*one wikipedia_url, this one has 2",
    ),
    "URL ends in a bar": (CSV, swap(LUJAN, f"{LUJAN}|"), r"test\.csv:2 invalid_row: a single-hop .*has 2"),
    "URL with an empty part": (CSV, swap(LUJAN, f"{LUJAN}||x"), r"test\.csv:2 invalid_row: a single-hop .*has 3"),
    "first image id empty": (
        CSV,
        swap("abc123", "|abc123"),
        r"test\.csv:2 invalid_row: '' is no image id of landmarks",
    ),
    "image ids by ampersands": (CSV, swap("0def", "0def&&x"), r"test\.csv:2 invalid_row: 'abc.*&&x' is no image id"),
    # empty evidence: an entry without text or picture
    "entry without text": (
        KB,
        lambda b: b.replace(b'"Lead.", "More."', b'"", " "'),
        r"kb_wiki\.json:3 empty_document: has neither",
    ),
    # damaged CSV
    "empty": (CSV, lambda _: b"", r"test\.csv: holds no rows"),
    "open quote": (CSV, swap("Who built", '"Who built'), r"test\.csv, row 2: is no sound CSV from here on"),
    "huge cell": (CSV, swap("Who built", "x" * 200_000), r"test\.csv:2 question_too_long: question has 200006 char"),
    "escape in question": (
        CSV,
        swap("Who built", "Who \x1b[31m"),
        r"test\.csv:2 invalid_row: question holds .*U\+001B",
    ),
    "question of zero width": (CSV, swap("Who built this?", "\u200b\u2060\ufeff"), r"test\.csv:2 empty_question"),
    "question blank": (CSV, swap("Who built this?", "  "), r"test\.csv:2 empty_question"),
    "entry unknown": (
        CSV,
        swap(LUJAN, LUJAN + "_2"),
        r"test\.csv:2 no_relevant_document: document .*_2 does not exist",
    ),
    # damaged JSON
    "top level a list": (KB, lambda b: b"[" + b + b"]", r"kb_wiki\.json: must be one JSON object, is a list"),
    "cut": (KB, lambda b: b[:-40], r"kb_wiki\.json: is no whole JSON object: after 2 entries: parse error: premature"),
    "two objects": (
        KB,
        lambda b: b + b,
        r"kb_wiki\.json: is no whole JSON object: after 3 entries: .*trailing garbage",
    ),
    "too deep": (KB, swap("[0, 0]", "[" * 40_000 + "]" * 40_000), r"kb_wiki\.json, row 2: is nested deeper than 32"),
    "duplicate entries": (KB, lambda b: b[:-1] + b", " + b[1:], r"kb_wiki\.json:4 duplicate_id: doc_id .*json:1"),
    "key twice": (
        QUESTIONS,
        swap('"question": "Which place?"', '"question": "Who?", "question": "Which place?"'),
        r"infoseek_val\.jsonl:1 invalid_row: key question stands there twice",
    ),
    "escape in the split": (
        QUESTIONS,
        swap("val_unseen_question", "val_unseen\\u001b[31m"),
        r"infoseek_val\.jsonl:1 invalid_row: tag split: unseen\\x1b\[31m holds a line end or control",
    ),
    "lines joined behind a mark": (
        QUESTIONS,
        lambda b: b + BOM + b,
        r"jsonl:4 broken_json: .*a byte order mark stands",
    ),
    "duplicate ids": (QUESTIONS, lambda b: b + b, r"infoseek_val\.jsonl:4 duplicate_id: query_id .*jsonl:1"),
    "last line cut": (QUESTIONS, lambda b: b[:-20], r"infoseek_val\.jsonl:3 broken_json"),
    "entity twice": (
        ENTITIES,
        lambda b: b + b.splitlines()[0].replace(b"Q178185", b"Q2"),
        r"row 4: gives infoseek_val_0.*Q2",
    ),
    "entities cut": (ENTITIES, lambda b: b[:-20], r"infoseek_val_withkb\.jsonl, row 3: Invalid JSON"),
    # damaged gz
    "gz with garbage behind": (WIKI, lambda b: b + b"garbage", r"Wiki6M_ver_1_0\.jsonl\.gz: is damaged or cut short"),
    "gz is a page": (WIKI, lambda _: b"<html>404</html>", r"jsonl\.gz: is damaged or cut short: Not a gzipped file"),
    "gz is empty": (WIKI, lambda _: b"", r"Wiki6M_ver_1_0\.jsonl\.gz: holds no rows"),
    "gz of garbage": (WIKI, repack(lambda _: b"\xff\xfe\xfd"), r"jsonl\.gz: is UTF-16|jsonl\.gz:1 not_utf8"),
    **{
        f"gz cut at {share:.2f}": (
            WIKI,
            lambda b, share=share: b[: int(len(b) * share)],
            r"jsonl\.gz: is damaged or cut",
        )
        for share in (random.Random(7).uniform(0.1, 0.98) for _ in range(4))
    },
}

TAKEN: dict[str, tuple[str, Change]] = {
    "byte order mark and CRLF": (CSV, lambda b: BOM + b.replace(b"\n", b"\r\n")),
    "answers with bars and ampersands": (CSV, swap("Ramón J. Etcheverry |R. Etcheverry", "a&&b||&&| ")),
    "further image ids empty": (CSV, swap("2708246|2708247", "2708246||")),
    "mark before JSON": (KB, lambda b: BOM + b),
    "mark before lines": (QUESTIONS, lambda b: BOM + b),
    "CRLF lines": (QUESTIONS, lambda b: b.replace(b"\n", b"\r\n")),
    "picture address that is no URL": (KB, swap("https://upload.wikimedia.org/gone.jpg", "https://[gone.jpg")),
    "gz of two parts": (
        WIKI,
        lambda b: gzip.compress(gzip.decompress(b)[:60]) + gzip.compress(gzip.decompress(b)[60:]),
    ),
}


class Checkout:
    """A checkout whose data/ is a small published folder."""

    def __init__(self, root: Path, capture: pytest.CaptureFixture[str], file: str) -> None:
        self.root, self.capture = root, capture
        self.data_dir = root / "data"
        self.data_dir.mkdir()
        self.source = "evqa" if file in (CSV, KB) else "infoseek"
        (write_evqa if self.source == "evqa" else write_infoseek)(self.data_dir)
        (root / "params.yaml").write_text(yaml.safe_dump({"data": {"source": self.source}}))

    def prepare(self) -> tuple[int, list[str]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pipeline.runs.tracking.stage_run", untracked)
            patch.chdir(self.root)
            self.capture.readouterr()
            code = entry.main(["prepare"])
        return code, [line for line in self.capture.readouterr().err.splitlines() if line]

    def list_written(self) -> list[str]:
        return sorted(path.name for path in (self.root / "artifacts").rglob("*") if path.is_file())


@contextmanager
def untracked(*_: object) -> Iterator[StageRun]:
    yield null_run()


@pytest.mark.parametrize("case", REFUSED)
def test_damaged_file_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str], case: str) -> None:
    file, change, message = REFUSED[case]
    checkout = Checkout(tmp_path, capfd, file)
    path = checkout.data_dir / file
    path.write_bytes(change(path.read_bytes()))
    code, lines = checkout.prepare()
    assert (code, len(lines)) == (2, 1), lines
    assert re.search(message, lines[0]), lines[0]
    assert lines[0].isprintable()
    assert checkout.list_written() == []
    ended = CliRunner().invoke(cli.app, ["data", "check", "--source", checkout.source, str(checkout.data_dir)])
    assert ended.exit_code == 2
    assert ended.stderr.count("\n") == 1
    assert re.search(message, ended.stderr)


@pytest.mark.parametrize("case", TAKEN)
def test_harmless_oddity_is_taken(tmp_path: Path, capfd: pytest.CaptureFixture[str], case: str) -> None:
    file, change = TAKEN[case]
    checkout = Checkout(tmp_path, capfd, file)
    path = checkout.data_dir / file
    path.write_bytes(change(path.read_bytes()))
    assert checkout.prepare() == (0, [])
    assert "queries.parquet" in checkout.list_written()


@pytest.mark.parametrize(
    ("file", "picture", "message"),
    [
        (
            CSV,
            "images/landmarks/a/b/c/abc1234567890def.jpg",
            r"1 queries lack their picture .*test\.csv:2 image_missing",
        ),
        (
            QUESTIONS,
            "images/oven_images/05/oven_05023258.JPEG",
            r"infoseek_val\.jsonl:2 image_missing: .*oven_05023258",
        ),
    ],
)
def test_id_without_a_file_is_refused_above_the_set_rate(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], file: str, picture: str, message: str
) -> None:
    checkout = Checkout(tmp_path, capfd, file)
    (checkout.data_dir / picture).unlink()
    code, (line,) = checkout.prepare()
    assert code == 2
    assert re.search(message, line)
    assert checkout.list_written() == []


def test_refusal_names_the_rows_that_count_not_those_that_the_protocol_drops(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    checkout = Checkout(tmp_path, capfd, CSV)
    path = checkout.data_dir / CSV
    header, *rows = path.read_text().splitlines(keepends=True)
    two_hop = next(row for row in rows if ",2_hop," in row)
    path.write_text(header + two_hop * 20 + rows[0].replace("abc123", "../"))
    _, (line,) = checkout.prepare()
    assert "(invalid_row 1); first: test.csv:22 invalid_row" in line
    assert "two_hop" not in line


def test_file_without_line_breaks_is_not_read_whole(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MAX_LINE_BYTES", 1 << 20)
    checkout = Checkout(tmp_path, capfd, QUESTIONS)
    (checkout.data_dir / QUESTIONS).write_bytes(b"\n" + b"[" * (3 << 20))
    code, (line,) = checkout.prepare()
    assert code == 2
    assert "infoseek_val.jsonl, row 2: is longer than 1 MiB" in line


def test_real_rows_with_one_damaged_row_name_it(tmp_path: Path) -> None:
    content = find_real_rows("evqa/test_sample.csv").read_bytes()
    path = tmp_path / "test.csv"
    rows = content.splitlines(keepends=True)
    path.write_bytes(b"".join([*rows[:9], rows[9][:40] + b"\xe9" + rows[9][40:], *rows[10:]]))
    ended = CliRunner().invoke(cli.app, ["data", "check", "--source", "evqa", str(path), "--json"])
    found = json.loads(ended.stdout)
    assert (found["num_queries"], found["rejects_by_reason"]) == (299, {"not_utf8": 1})
    assert [row["source_id"] for row in found["rejects"]] == ["test.csv:10"]
