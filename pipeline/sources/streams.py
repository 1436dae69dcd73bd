"""Rows of files too large to load: JSON lines, CSV records and the entries of one JSON object, plain or packed.

Rows are numbered from 1; in a CSV file the header is row 1 and a record that spans lines is one row. A row that
is not UTF-8 is told apart from its neighbours; a file that ends early or is no such file is a DataError.
"""

from __future__ import annotations

import csv
import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, cast

import ijson

from pipeline.errors import DataError

READ_BYTES: Final = 1 << 18

# What truncated or foreign gz and zip files raise while they are read.
_PACKING_ERRORS = (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, NotImplementedError)


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
        DataError: the file is missing, damaged, cut short or empty.
    """
    num_rows = 0
    with open_packed(path) as file:
        for number, line in enumerate(file, start=1):
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
    with open_packed(path) as file:
        # Bytes that are not UTF-8 stay recognisable, so that they cost one row and not the file.
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
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

    Raises:
        DataError: the file is missing, cut short, not UTF-8 or no JSON object; the row is the last sound one.
    """
    number = 0
    with open_packed(path) as file:
        try:
            for key, value in ijson.kvitems(file, "", use_float=True, buf_size=READ_BYTES):
                number += 1
                yield number, key, value
        except (ijson.JSONError, UnicodeDecodeError) as error:
            said = " ".join(str(error).split())[:160]
            raise DataError(f"is no whole JSON object: after {number} entries: {said}", path=path) from error
    if number == 0:
        raise DataError("holds no entries", path=path)


def _check_header(path: Path, header: Sequence[str], required: Sequence[str]) -> None:
    missing = [name for name in required if name not in header]
    if missing:
        has = ", ".join(header)[:200]
        raise DataError(f"lacks the columns {', '.join(missing)}; its first row is: {has}", path=path, row=1)
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"names a column twice: {', '.join(twice)}", path=path, row=1)


def _name_cells(header: Sequence[str], cells: Sequence[str]) -> dict[str, str] | str:
    if len(cells) != len(header):
        return f"has {len(cells)} cells, the header {len(header)}"
    return dict(zip(header, cells, strict=True))
