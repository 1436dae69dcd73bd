"""The own-data format: documents.jsonl and queries.jsonl, as docs/data-format.md specifies them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from pipeline.sources import RawDocument, RawQuery
from pipeline.sources.formats.pictures import ImageCensus
from pipeline.sources.formats.streams import BYTE_ORDER_MARK, JOINED, read_lines
from pipeline.sources.judging.ids import ID_PATTERN, MAX_ID_CHARS, check_visible
from pipeline.types import Reject, Split

DOCUMENTS_FILE = "documents.jsonl"
QUERIES_FILE = "queries.jsonl"

Identifier = Annotated[
    str, Field(min_length=1, max_length=MAX_ID_CHARS, pattern=ID_PATTERN), AfterValidator(check_visible)
]
RelativePath = Annotated[str, Field(min_length=1, max_length=1024)]


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class DocumentRow(_Row):
    """One line of documents.jsonl."""

    doc_id: Identifier
    title: str
    text: str
    images: tuple[RelativePath, ...]


class QueryRow(_Row):
    """One line of queries.jsonl."""

    query_id: Identifier
    split: Split
    question: str
    image: RelativePath
    relevant: Annotated[tuple[Identifier, ...], Field(min_length=1)]
    target_box: tuple[float, float, float, float] | None = None
    tags: dict[str, str] = Field(default_factory=dict)

    @field_validator("relevant")
    @classmethod
    def _no_document_twice(cls, relevant: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(relevant)) < len(relevant):
            raise ValueError("names a document twice")
        return relevant


RowModel = TypeVar("RowModel", bound=BaseModel)
RawRow = TypeVar("RawRow")


class JsonlSource:
    """Reads the two JSON-lines files of a data folder; a line that is not as specified becomes a Reject."""

    census: ImageCensus | None = None
    protocol_reasons: frozenset[str] = frozenset()

    def __init__(self, data_dir: Path, *, queries_file: str = QUERIES_FILE) -> None:
        self._data_dir = data_dir
        self._queries_file = queries_file

    def read_documents(self) -> Iterator[RawDocument | Reject]:
        """Yield the rows of documents.jsonl."""
        return _read_rows(self._data_dir / DOCUMENTS_FILE, DocumentRow, _to_document)

    def read_queries(self) -> Iterator[RawQuery | Reject]:
        """Yield the rows of queries.jsonl, or of the file that stands for it."""
        return _read_rows(self._data_dir / self._queries_file, QueryRow, _to_query)


def _to_document(source_id: str, row: DocumentRow) -> RawDocument:
    return RawDocument(source_id=source_id, doc_id=row.doc_id, title=row.title, text=row.text, image_paths=row.images)


def _to_query(source_id: str, row: QueryRow) -> RawQuery:
    return RawQuery(
        source_id=source_id,
        query_id=row.query_id,
        split=row.split,
        question=row.question,
        image_path=row.image,
        relevant_doc_ids=row.relevant,
        target_box=row.target_box,
        tags=row.tags,
    )


def _read_rows(
    path: Path, model: type[RowModel], to_raw: Callable[[str, RowModel], RawRow]
) -> Iterator[RawRow | Reject]:
    for number, line in read_lines(path):
        source_id = f"{path.name}:{number}"
        row = parse_row(source_id, line, model)
        yield row if isinstance(row, Reject) else to_raw(source_id, row)


def parse_row(source_id: str, line: bytes, model: type[RowModel]) -> RowModel | Reject:
    """Parse one JSON line as a row; what is wrong with it becomes a Reject."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        detail = f"byte {error.start + 1} of the line is not UTF-8"
        return Reject(source_id=source_id, reason="not_utf8", detail=detail)
    try:
        row = model.model_validate_json(text)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        if problems[0]["type"] == "json_invalid":
            mark = f"; {JOINED}" if BYTE_ORDER_MARK in text else ""
            return Reject(source_id=source_id, reason="broken_json", detail=problems[0]["msg"] + mark)
        detail = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc']) or 'row'}: "
            + ("unknown key" if problem["type"] == "extra_forbidden" else problem["msg"])
            for problem in problems
        )
        return Reject(source_id=source_id, reason="invalid_row", detail=detail)
    twice = _find_repeated_key(text)
    if twice is not None:
        return Reject(source_id=source_id, reason="invalid_row", detail=f"key {twice} stands there twice")
    return row


def _find_repeated_key(text: str) -> str | None:
    """Return the first key that one object of a JSON text holds twice; parsers take the last in silence."""
    repeated: list[str] = []

    def note(pairs: list[tuple[str, object]]) -> None:
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            repeated.extend(key for key in keys if keys.count(key) > 1)

    json.loads(text, object_pairs_hook=note)
    return repeated[0] if repeated else None
