"""Rows of files too large to load: JSON lines, CSV records and the entries of one JSON object, plain or packed.

Rows are numbered from 1; in a CSV file the header is row 1 and a record that spans lines is one row. A row that
is not UTF-8 is told apart from its neighbours; a file that ends early or is no such file is a DataError.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, cast

import ijson

from pipeline.errors import DataError

READ_BYTES: Final = 1 << 18
MAX_LINE_BYTES: Final = 1 << 26
"""No published line comes near; a file without line breaks must not fill the memory."""
MAX_DEPTH: Final = 32
"""Nesting of one entry; published ones have 3."""
BYTE_ORDER_MARK: Final = "\ufeff"
JOINED: Final = "a byte order mark stands in it, as where files were joined end to end"
_JSON_KINDS: Final = {"start_array": "a list", "string": "a text", "null": "null", "boolean": "a truth value"}

# What truncated or foreign gz and zip files raise while they are read.
_PACKING_ERRORS = (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, NotImplementedError)


@dataclass(frozen=True, slots=True)
class RepeatedKey:
    """Stands for a JSON value of which one object holds a key twice; parsers take the last in silence."""

    key: str


@contextmanager
def open_text(path: Path) -> Iterator[IO[bytes]]:
    """Open a UTF-8 file as `open_packed` does, after its byte order mark if it has one.

    Raises:
        DataError: it is UTF-16, or as for `open_packed`.
    """
    with open_packed(path) as file:
        # Plain, gz and zip members can all peek, though their common type does not say so.
        start: bytes = cast("Any", file).peek(len(codecs.BOM_UTF8))
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise DataError("is UTF-16; it must be UTF-8", path=path)
        if start.startswith(codecs.BOM_UTF8):
            file.read(len(codecs.BOM_UTF8))
        yield file


@contextmanager
def open_packed(path: Path, suffix: str | None = None) -> Iterator[IO[bytes]]:
    """Open a file for reading, unpacking `.gz` and a `.zip` that holds one file.

    Args:
        path: the file.
        suffix: how it is packed; the end of its name unless told.

    Raises:
        DataError: it is missing, cannot be read, is damaged or cut short.
    """
    if not path.is_file():
        raise DataError("is missing", path=path)
    packing = path.suffix if suffix is None else suffix
    try:
        if packing == ".gz":
            with gzip.open(path, "rb") as packed:
                # Its stub derives from no IO, though it is one.
                yield cast("IO[bytes]", packed)
        elif packing == ".zip":
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if not name.endswith("/")]
                if len(names) != 1:
                    raise DataError(f"must hold one file, holds {len(names)}", path=path)
                with archive.open(names[0]) as member:
                    yield member
        else:
            with path.open("rb") as plain:
                yield plain
    except _PACKING_ERRORS as error:
        raise DataError(f"is damaged or cut short: {error}", path=path) from error
    except OSError as error:
        raise DataError(f"cannot be read: {error}", path=path) from error


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield number and bytes of each line that is not blank.

    Raises:
        DataError: the file is missing, damaged, cut short or empty, or a line is longer than any published one.
    """
    num_rows = 0
    with open_text(path) as file:
        for number, line in enumerate(iter(partial(file.readline, MAX_LINE_BYTES), b""), start=1):
            if len(line) == MAX_LINE_BYTES:
                message = f"is longer than {MAX_LINE_BYTES >> 20} MiB; there must be one JSON object a line"
                raise DataError(message, path=path, row=number)
            if line.strip():
                num_rows += 1
                yield number, line
    if num_rows == 0:
        raise DataError("holds no rows", path=path)


def read_csv_records(path: Path, required: Sequence[str]) -> Iterator[tuple[int, dict[str, str] | str]]:
    """Yield row number and cells by column, or row number and what is wrong with the row.

    Args:
        path: a UTF-8 CSV file with a header, with or without a byte order mark.
        required: columns that must be there; others are read too.

    Raises:
        DataError: the file is missing, has no header or other columns, or its quoting is broken.
    """
    row = 1
    with open_text(path) as file:
        # Bytes that are not UTF-8 stay recognisable, so that they cost one row and not the file.
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
        # Python's own limit of 131,072 characters is below published cells: evidence is a whole article.
        csv.field_size_limit(MAX_LINE_BYTES)
        records = csv.reader(text, strict=True)
        try:
            header = next(records, None)
            if header is None:
                raise DataError("holds no rows", path=path)
            _check_header(path, header, required)
            for cells in records:
                row += 1
                if cells:
                    yield row, _name_cells(header, cells)
        except csv.Error as error:
            raise DataError(f"is no sound CSV from here on: {error}", path=path, row=row + 1) from error
    if row == 1:
        raise DataError("holds a header and no rows", path=path)


def read_json_entries(path: Path) -> Iterator[tuple[int, str, Any]]:
    """Yield number, key and value of each entry of one JSON object, without ever holding the object.

    A value in which a key stands twice comes as a RepeatedKey.

    Raises:
        DataError: the file is missing, cut short, not UTF-8 or no JSON object.
    """
    number = 0
    with open_text(path) as file:
        try:
            events = ijson.basic_parse(file, use_float=True, buf_size=READ_BYTES)
            kind, _ = next(events)
            if kind != "start_map":
                raise DataError(f"must be one JSON object, is {_JSON_KINDS.get(kind, 'a number')}", path=path)
            for _, key in itertools.takewhile(lambda event: event[0] != "end_map", events):
                value = _build_value(events, path, number + 1)
                number += 1
                yield number, key, value
            # Read on to the end of the file: nothing may follow the object.
            deque(events, maxlen=0)
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise DataError(
                f"is no whole JSON object: after {number} entries: {_describe(error)}", path=path
            ) from error
    if number == 0:
        raise DataError("holds no entries", path=path)


def _build_value(events: Iterator[tuple[str, Any]], path: Path, number: int) -> Any:  # noqa: ANN401 - JSON
    """Return the value that begins with the next event; nesting is bounded, as ijson's own builder is not."""
    containers: list[Any] = []
    keys: list[str] = []
    twice: RepeatedKey | None = None
    for kind, value in events:
        if kind == "map_key":
            if value in containers[-1] and twice is None:
                twice = RepeatedKey(value)
            keys[-1] = value
            continue
        if kind in ("start_map", "start_array"):
            if len(containers) == MAX_DEPTH:
                raise DataError(f"is nested deeper than {MAX_DEPTH} levels", path=path, row=number)
            containers.append({} if kind == "start_map" else [])
            keys.append("")
            continue
        done = value
        if kind in ("end_map", "end_array"):
            done = containers.pop()
            keys.pop()
        if not containers:
            return done if twice is None else twice
        if isinstance(containers[-1], list):
            containers[-1].append(done)
        else:
            containers[-1][keys[-1]] = done
    raise AssertionError("the parser stops only after a whole value")


def _describe(error: ValueError) -> str:
    """Return what the parser said; it gives bytes where the text is not UTF-8."""
    message = error.args[0] if error.args else error
    text = message.decode("utf-8", "backslashreplace") if isinstance(message, bytes) else str(message)
    line = " ".join(text.partition("(right here)")[0].split())[:160]
    return f"{line}; {JOINED}" if BYTE_ORDER_MARK in text else line


def _check_header(path: Path, header: Sequence[str], required: Sequence[str]) -> None:
    if not any(cell.strip() for cell in header):
        raise DataError("is blank; the names of the columns must stand there", path=path, row=1)
    missing = [name for name in required if name not in header]
    if missing:
        has = ", ".join(header)[:200]
        raise DataError(f"lacks the columns {', '.join(missing)}; its first row is: {has}", path=path, row=1)
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"names a column twice: {', '.join(twice)}", path=path, row=1)


def _name_cells(header: list[str], cells: list[str]) -> dict[str, str] | str:
    if cells[0].startswith(BYTE_ORDER_MARK):
        return JOINED
    if cells == header:
        return "repeats the header, as where files were joined end to end"
    if len(cells) != len(header):
        return f"has {len(cells)} cells, the header {len(header)}"
    return dict(zip(header, cells, strict=True))
