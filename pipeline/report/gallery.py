"""The gallery of the report: wins, losses and abstentions of the policy, with their rankings."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from pipeline.images import load_upright
from pipeline.types import Box, Document, Pool, Query, QueryResult

Kind = Literal["win", "loss", "kept"]
SHOWN_DEPTH = 5
_QUERY_SIDE_PX = 360
_DOCUMENT_SIDE_PX = 72


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """One query of the gallery: its rows under the full image and under the policy."""

    kind: Kind
    query: Query
    before: QueryResult
    after: QueryResult


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A document in a top-5 strip; `picture` is a data URI, None for a document without pictures."""

    doc_id: str
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
    before: tuple[Candidate, ...]
    after: tuple[Candidate, ...]


def pick_cards(
    queries: Sequence[Query],
    before: Sequence[QueryResult],
    after: Sequence[QueryResult],
    *,
    num_each: int = 8,
) -> list[Card]:
    """Pick the clearest wins and losses, and abstentions spread over the table; at most `num_each` of each.

    Args:
        queries: test queries, aligned with both row lists.
        before: rows of the full image.
        after: rows of the policy.
        num_each: cards of each kind.
    """
    triples = list(zip(queries, before, after, strict=True))
    cards = [Card(kind=_name_kind(b, a), query=q, before=b, after=a) for q, b, a in triples if _is_telling(b, a)]
    picked: list[Card] = []
    for kind in ("win", "loss"):
        moved = [card for card in cards if card.kind == kind]
        moved.sort(key=lambda card: -abs(card.after.reciprocal_rank - card.before.reciprocal_rank))
        picked += moved[:num_each]
    kept = [card for card in cards if card.kind == "kept"]
    return picked + kept[:: max(1, len(kept) // num_each)][:num_each]


def build_panels(
    cards: Sequence[Card],
    pools: Mapping[str, Pool],
    documents: Mapping[str, Document],
    data_dir: Path,
    *,
    max_pixels: int,
) -> list[Panel]:
    """Load the pictures of the cards and shrink them into data URIs."""
    thumbnails: dict[str, str | None] = {}

    def show(path: str, side_px: int) -> str:
        return _encode_jpeg(load_upright(data_dir / path, max_pixels=max_pixels, root=data_dir), side_px)

    def show_candidates(row: QueryResult) -> tuple[Candidate, ...]:
        pool = pools[row.query_id]
        relevant = {doc_id for doc_id, is_relevant in zip(pool.doc_ids, pool.relevance, strict=True) if is_relevant}
        shown = []
        for doc_id in row.doc_ids[:SHOWN_DEPTH]:
            document = documents[doc_id]
            if doc_id not in thumbnails:
                paths = document.image_paths
                thumbnails[doc_id] = show(paths[0], _DOCUMENT_SIDE_PX) if paths else None
            shown.append(
                Candidate(
                    doc_id=doc_id,
                    title=document.title,
                    is_relevant=doc_id in relevant,
                    picture=thumbnails[doc_id],
                )
            )
        return tuple(shown)

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
            before=show_candidates(card.before),
            after=show_candidates(card.after),
        )
        for card in cards
    ]


def _is_telling(before: QueryResult, after: QueryResult) -> bool:
    kept = after.decision == "full" and before.first_rank is not None
    return kept or after.reciprocal_rank != before.reciprocal_rank


def _name_kind(before: QueryResult, after: QueryResult) -> Kind:
    if after.reciprocal_rank == before.reciprocal_rank:
        return "kept"
    return "win" if after.reciprocal_rank > before.reciprocal_rank else "loss"


def _encode_jpeg(image: Image.Image, side_px: int) -> str:
    small = image.copy()
    small.thumbnail((side_px, side_px))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
