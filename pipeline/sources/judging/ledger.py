"""What is remembered of the document rows, whose texts are too many to hold: ids, row numbers and verdicts."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from itertools import repeat

from pipeline.sources.judging.ids import IdList


class DocumentLedger:
    """One line per document row of the right shape, in file order.

    Attributes:
        num_rows: raw rows, misshapen ones included.
        doc_ids: id of each line; ids can repeat.
        rows: row number of each line in the file.
        images_decode: 1 where every picture of the row decodes.
        image_or_text: 1 where the row has a picture or text.
        kept: 1 where the document was kept.
    """

    def __init__(self) -> None:
        self.num_rows = 0
        self.doc_ids = IdList()
        self.rows = array("q")
        self.images_decode = bytearray()
        self.image_or_text = bytearray()
        self.kept = bytearray()
        self.file = ""

    def __len__(self) -> int:
        return len(self.doc_ids)

    def add(self, source_id: str, doc_id: str, *, images_decode: bool, image_or_text: bool) -> None:
        """Add a row, not kept yet; `source_id` is FILE:ROW, with the same file for all rows."""
        self.file, _, row = source_id.rpartition(":")
        self.doc_ids.append(doc_id)
        self.rows.append(int(row))
        self.images_decode.append(images_decode)
        self.image_or_text.append(image_or_text)
        self.kept.append(False)

    def find_earlier_row(self, doc_id: str) -> str | None:
        """Return FILE:ROW of the first row with this id, None if there is none."""
        line = self.doc_ids.find_first(doc_id)
        return None if line is None else f"{self.file}:{self.rows[line]}"

    def is_known(self, doc_id: str) -> bool:
        """Whether any row has this id."""
        return self.doc_ids.find_first(doc_id) is not None

    def is_kept(self, doc_id: str) -> bool:
        """Whether the document with this id was kept; of equal ids only the first can be."""
        line = self.doc_ids.find_first(doc_id)
        return line is not None and bool(self.kept[line])

    def list_by_row(self) -> Iterator[str]:
        """Yield the kept document's id for each raw row from 1 on; empty where the row was not kept."""
        num_listed = 0
        for line, row in enumerate(self.rows):
            yield from repeat("", row - 1 - num_listed)
            yield self.doc_ids[line] if self.kept[line] else ""
            num_listed = row
        yield from repeat("", self.num_rows - num_listed)
