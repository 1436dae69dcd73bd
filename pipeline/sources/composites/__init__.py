"""Two photos side by side and a question about one of them, made from any set of single photos.

The protocol is that of ECCV26-ARA (Ma et al., 2026, MIT): both photos at one height, aspect kept, no gap, and the
question names left or right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.types import Query

Side = Literal["left", "right"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Single:
    """A query about one photo, with the documents that answer it."""

    query: Query
    doc_ids: frozenset[str]

    def may_meet(self, other: Single) -> bool:
        """Whether both may stand in one picture: other photos, and no document answers both."""
        return self.query.image_path != other.query.image_path and self.doc_ids.isdisjoint(other.doc_ids)


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A question about one side of a picture; `pairing` says how a published list chose the other side."""

    query_id: str
    side: Side
    question: str
    pairing: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Composite:
    """One picture: who stands where, and what is asked."""

    left: Single
    right: Single
    asked: tuple[Asked, ...]

    def at(self, side: Side) -> Single:
        """Return the query whose photo stands on that side."""
        return self.left if side == "left" else self.right
