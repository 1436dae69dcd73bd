"""What an id may be, and millions of them in little memory."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from typing import Final

from pipeline.core.inputs.texts import is_blank

MAX_ID_CHARS: Final = 512
# No white space and no control character: ids are columns of TREC run files.
ID_PATTERN: Final = r"^[^\s\x00-\x1f\x7f-\x9f]+$"
_FEWEST_SLOTS: Final = 1 << 10
_EMPTY: Final = -1


def check_id(what: str, value: str) -> None:
    """Refuse an id that a TREC run file cannot hold.

    Raises:
        ValueError: it is empty, too long or nothing to see, or has white space or control characters.
    """
    if is_blank(value) or len(value) > MAX_ID_CHARS or not re.fullmatch(ID_PATTERN, value):
        raise ValueError(
            f"{what} must have 1 to {MAX_ID_CHARS} printable characters and no white space: {value[:80]!r}"
        )


def check_visible(value: str) -> str:
    """Return an id of which something can be seen.

    Raises:
        ValueError: it consists of zero-width characters alone.
    """
    if is_blank(value):
        raise ValueError("holds nothing that can be seen")
    return value


class IdList:
    """Ids in the order in which they came; ids can repeat.

    Exact, not by hash alone: the table (open addressing, at most half full) only says where to look. An id takes its
    bytes and some 16 more, where a list and a dict of str take over 200.
    """

    def __init__(self) -> None:
        self._text = bytearray()
        self._ends = array("q", [0])
        self._slots = array("i", [_EMPTY]) * _FEWEST_SLOTS
        self._num_different = 0

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, place: int) -> str:
        return self._read(place).decode("utf-8")

    def __iter__(self) -> Iterator[str]:
        return (self[place] for place in range(len(self)))

    def append(self, value: str) -> None:
        """Add an id behind the last one."""
        raw = value.encode("utf-8")
        slot = self._find_slot(raw)
        if self._slots[slot] == _EMPTY:
            self._slots[slot] = len(self)
            self._num_different += 1
        self._text += raw
        self._ends.append(len(self._text))
        if 2 * self._num_different > len(self._slots):
            self._grow()

    def find_first(self, value: str) -> int | None:
        """Return the place of the first equal id, None if there is none."""
        place = self._slots[self._find_slot(value.encode("utf-8"))]
        return None if place == _EMPTY else place

    def _read(self, place: int) -> bytes:
        return bytes(self._text[self._ends[place] : self._ends[place + 1]])

    def _find_slot(self, raw: bytes) -> int:
        """Return the slot that holds this id's first place, or the empty one that is to hold it."""
        mask = len(self._slots) - 1
        slot = hash(raw) & mask
        while (place := self._slots[slot]) != _EMPTY and self._read(place) != raw:
            slot = (slot + 1) & mask
        return slot

    def _grow(self) -> None:
        earlier = self._slots
        self._slots = array("i", [_EMPTY]) * (2 * len(earlier))
        for place in earlier:
            if place != _EMPTY:
                self._slots[self._find_slot(self._read(place))] = place
