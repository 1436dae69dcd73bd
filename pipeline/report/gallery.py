"""The gallery of the report: wins, losses, abstentions and what a search won back, with their rankings."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from PIL import Image

from pipeline.files.images import PictureFolder
from pipeline.types import Box, Document, Query, QueryResult

Kind = Literal["win", "loss", "kept", "won_back"]
KINDS: Final[tuple[Kind, ...]] = ("win", "loss", "kept")
"""What re-ranking the pool comes to; `won_back` is of searching again."""
SHOWN_DEPTH: Final = 5
NUM_EACH: Final = 8
_QUERY_SIDE_PX = 400
_DOCUMENT_SIDE_PX = 72


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """One query of the gallery: its rows under the full image and under the policy, re-ranking or searching again."""

    kind: Kind
    query: Query
    before: QueryResult
    after: QueryResult


@dataclass(frozen=True, kw_only=True, slots=True)
class Tally:
    """How all test queries came out, so that the gallery's choice can be weighed.

    Attributes:
        num_by_kind: queries of each kind that the gallery shows.
        num_same_rank: cropped, and the first positive stands where it stood.
        num_without_positive: the pool holds no positive, so no view can change the rank.
    """

    num_by_kind: Mapping[Kind, int]
    num_same_rank: int
    num_without_positive: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownDocument:
    """A document in a top-5 strip; `picture` is a data URI, None for a document without pictures."""

    rank: int
    title: str
    is_relevant: bool
    picture: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """A card made ready for the template."""

    kind: Kind
    query_id: str
    question: str
    picture: str
    width_px: int
    height_px: int
    box: Box | None
    target_box: Box | None
    rank_before: int | None
    rank_after: int | None
    malformed: bool
    before: tuple[ShownDocument, ...]
    after: tuple[ShownDocument, ...]


def list_cards(
    queries: Sequence[Query], before: Sequence[QueryResult], after: Sequence[QueryResult]
) -> tuple[list[Card], Tally]:
    """Return every query that a gallery could show, in test order, and how all of them came out.

    Args:
        queries: test queries, aligned with both row lists.
        before: rows of the full image.
        after: rows of the policy.
    """
    cards: list[Card] = []
    num_same_rank = num_without_positive = 0
    for query, full, view in zip(queries, before, after, strict=True):
        if full.first_rank is None:
            num_without_positive += 1
        elif (kind := _name_kind(full, view)) is None:
            num_same_rank += 1
        else:
            cards.append(Card(kind=kind, query=query, before=full, after=view))
    counts = {kind: sum(card.kind == kind for card in cards) for kind in KINDS}
    return cards, Tally(num_by_kind=counts, num_same_rank=num_same_rank, num_without_positive=num_without_positive)


def pick_cards(cards: Sequence[Card], *, num_each: int = NUM_EACH) -> list[Card]:
    """Pick the clearest wins and losses, and abstentions spread over the table: `num_each` of each kind.

    Where a kind has fewer, the other kinds fill up to `num_each` times the number of kinds.
    """
    ordered = {kind: [card for card in cards if card.kind == kind] for kind in KINDS}
    for kind in ("win", "loss"):
        ordered[kind].sort(key=lambda card: -abs(card.after.reciprocal_rank - card.before.reciprocal_rank))
    kept = ordered["kept"]
    ordered["kept"] = [kept[i] for i in spread(len(kept))]
    num_shown = {kind: min(num_each, len(ordered[kind])) for kind in KINDS}
    for kind in KINDS:
        missing = num_each * len(KINDS) - sum(num_shown.values())
        num_shown[kind] += min(missing, len(ordered[kind]) - num_shown[kind])
    return [card for kind in KINDS for card in ordered[kind][: num_shown[kind]]]


def spread(num: int) -> list[int]:
    """Return 0 to num - 1 in an order whose every beginning is spread over the whole range.

    >>> spread(6)
    [0, 4, 2, 1, 5, 3]
    """
    width = max(1, (num - 1).bit_length())
    reversed_bits = (int(f"{i:0{width}b}"[::-1], 2) for i in range(2**width))
    return [i for i in reversed_bits if i < num]


def build_panels(
    cards: Sequence[Card],
    relevant: Set[tuple[str, str]],
    documents: Mapping[str, Document],
    data_dir: Path,
    *,
    max_pixels: int,
) -> list[Panel]:
    """Load the pictures of the cards and shrink them into data URIs.

    Args:
        cards: the queries to show.
        relevant: (query id, id of a document that answers it), in its pool or not.
        documents: document id -> document.
        data_dir: where the pictures lie.
        max_pixels: a picture above it is refused.

    Raises:
        DataError: a picture cannot be read.
    """
    pictures = PictureFolder(data_dir, max_pixels)
    thumbnails: dict[str, str | None] = {}

    def show(path: str, side_px: int) -> str:
        return _encode_jpeg(pictures.load(path), side_px)

    def show_document(document: Document) -> str | None:
        if document.doc_id not in thumbnails:
            paths = document.image_paths
            thumbnails[document.doc_id] = show(paths[0], _DOCUMENT_SIDE_PX) if paths else None
        return thumbnails[document.doc_id]

    def show_documents(row: QueryResult, ranks: Sequence[int]) -> tuple[ShownDocument, ...]:
        shown = [(rank, documents[row.doc_ids[rank - 1]]) for rank in ranks]
        return tuple(
            ShownDocument(
                rank=rank,
                title=document.title,
                is_relevant=(row.query_id, document.doc_id) in relevant,
                picture=show_document(document),
            )
            for rank, document in shown
        )

    return [
        Panel(
            kind=card.kind,
            query_id=card.query.query_id,
            question=card.query.question,
            picture=show(card.query.image_path, _QUERY_SIDE_PX),
            width_px=card.query.width_px,
            height_px=card.query.height_px,
            box=card.after.box,
            target_box=card.query.target_box,
            rank_before=card.before.first_rank,
            rank_after=card.after.first_rank,
            malformed=card.after.decision == "malformed",
            before=show_documents(card.before, _list_top(card.before)),
            after=show_documents(card.after, _list_shown(card)),
        )
        for card in cards
    ]


def _list_top(row: QueryResult) -> list[int]:
    return list(range(1, min(SHOWN_DEPTH, len(row.doc_ids)) + 1))


def _list_shown(card: Card) -> list[int]:
    """Return the ranks of the top, and what was won back where it stands below it."""
    top, found = _list_top(card.after), card.after.first_rank
    return [*top, found] if card.kind == "won_back" and found is not None and found > SHOWN_DEPTH else top


def _name_kind(before: QueryResult, after: QueryResult) -> Kind | None:
    if after.decision == "full":
        return "kept"
    if after.reciprocal_rank == before.reciprocal_rank:
        return None
    return "win" if after.reciprocal_rank > before.reciprocal_rank else "loss"


def _encode_jpeg(image: Image.Image, side_px: int) -> str:
    small = image.copy()
    small.thumbnail((side_px, side_px))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
