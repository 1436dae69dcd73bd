"""What searching again wins back: queries whose full image finds no relevant document, and whose view does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.report.gallery import NUM_EACH, Card, spread
from pipeline.types import Query, QueryResult


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchTally:
    """How the test queries came out by searching again.

    Attributes:
        depth: documents that a query ends with.
        num_without: the full image's pool holds no relevant document.
        num_first: of those, the search ranks one first.
        num_found: of those, the search finds one within the depth.
        num_lost: the pool holds one, and the search ends without.
    """

    depth: int
    num_without: int
    num_first: int
    num_found: int
    num_lost: int


def list_won_back(
    queries: Sequence[Query], before: Sequence[QueryResult], after: Sequence[QueryResult], *, depth: int
) -> tuple[list[Card], SearchTally]:
    """Return every query whose search finds what its pool lacks, in test order, and how all of them came out.

    Args:
        queries: test queries, aligned with both row lists.
        before: rows of the full image.
        after: rows of the policy searching again.
        depth: documents that a query ends with.
    """
    rows = list(zip(queries, before, after, strict=True))
    without = [row for row in rows if row[1].first_rank is None]
    cards = [
        Card(kind="won_back", query=query, before=full, after=found)
        for query, full, found in without
        if found.first_rank is not None
    ]
    return cards, SearchTally(
        depth=depth,
        num_without=len(without),
        num_first=sum(found.first_rank == 1 for _, _, found in without),
        num_found=len(cards),
        num_lost=sum(full.first_rank is not None and found.first_rank is None for _, full, found in rows),
    )


def pick_won_back(cards: Sequence[Card], *, num: int = NUM_EACH) -> list[Card]:
    """Pick `num` cards: best rank first, those of one rank spread over the table."""
    order = [cards[i] for i in spread(len(cards))]
    return sorted(order, key=lambda card: card.after.first_rank or 0)[:num]
