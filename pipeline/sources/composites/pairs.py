"""Who stands beside whom, drawn by a seed: every query once, and as few as can be are left over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from pipeline.core.seeds import derive_seed
from pipeline.sources.composites import Asked, Composite, Side, Single

Pair = tuple[Single, Single]

_SIDES: Final[tuple[Side, Side]] = ("left", "right")


def draw_composites(singles: Sequence[Single], seed: int) -> tuple[list[Composite], list[Single]]:
    """Pair up the queries of one split; both are asked about their picture.

    Args:
        singles: in any order, which makes no difference.
        seed: who stands beside whom, and on which side.

    Returns:
        the pictures, and the queries for whom nobody is left that they may stand beside. Where each query has one
        relevant document and a photo of its own, no other pairing leaves fewer.
    """
    pairs, odd = _pair_up(_shuffle(singles, seed))
    return [_ask_both(*_turn(pair, seed)) for pair in pairs], odd


def place_question(question: str, side: Side) -> str:
    """Return the question with the side that it is about before it, so that its own words stay as they are.

    >>> place_question("What does this bird eat?", "left")
    'About the photo on the left: What does this bird eat?'
    """
    return f"About the photo on the {side}: {question}"


def _shuffle(singles: Iterable[Single], seed: int) -> list[Single]:
    # By a hash of each id, so that the rows' order does not count.
    return sorted(singles, key=lambda one: (derive_seed(seed, one.query.query_id), one.query.query_id))


def _pair_up(singles: Iterable[Single]) -> tuple[list[Pair], list[Single]]:
    waiting = _Waiting()
    pairs: list[Pair] = []
    for single in singles:
        partner = waiting.take_partner(single)
        if partner is None:
            waiting.add(single)
        else:
            pairs.append((partner, single))
    alone = waiting.list_all()
    return [new for pair in pairs for new in _open_up(pair, alone)], alone


def _open_up(pair: Pair, alone: list[Single]) -> list[Pair]:
    """Return two pairs in place of one where its members can take in two who are alone, else the pair itself.

    One pass over all pairs is enough where all who are alone share a document: a pair that cannot take in two of them
    cannot take in two others.
    """
    if len(alone) >= 2:
        first, second = alone[-2:]
        for one, other in (pair, pair[::-1]):
            if first.may_meet(one) and second.may_meet(other):
                del alone[-2:]
                return [(first, one), (second, other)]
    return [pair]


class _Waiting:
    """Queries of whom no two may meet; found by their documents, so that 100,000 of them are no square of that."""

    def __init__(self) -> None:
        self._by_doc_ids: dict[frozenset[str], list[Single]] = {}
        self._num_by_doc: Counter[str] = Counter()
        self._num = 0

    def add(self, single: Single) -> None:
        self._by_doc_ids.setdefault(single.doc_ids, []).append(single)
        self._num_by_doc.update(single.doc_ids)
        self._num += 1

    def take_partner(self, single: Single) -> Single | None:
        if any(self._num_by_doc[doc_id] == self._num for doc_id in single.doc_ids):
            return None  # a document that answers all who wait
        for doc_ids, waiting in self._by_doc_ids.items():
            if doc_ids.isdisjoint(single.doc_ids):
                place = next((place for place, other in enumerate(waiting) if single.may_meet(other)), None)
                if place is not None:
                    return self._remove(doc_ids, place)
        return None

    def list_all(self) -> list[Single]:
        return [single for waiting in self._by_doc_ids.values() for single in waiting]

    def _remove(self, doc_ids: frozenset[str], place: int) -> Single:
        waiting = self._by_doc_ids[doc_ids]
        taken = waiting.pop(place)
        if not waiting:
            del self._by_doc_ids[doc_ids]
        self._num_by_doc.subtract(doc_ids)
        self._num -= 1
        return taken


def _turn(pair: Pair, seed: int) -> Pair:
    """Return who stands left and who right: a coin of its own, since those who waited often share a document."""
    first, second = sorted(pair, key=lambda one: one.query.query_id)
    heads = derive_seed(seed, f"{first.query.query_id} left of {second.query.query_id}") % 2
    return (first, second) if heads else (second, first)


def _ask_both(left: Single, right: Single) -> Composite:
    asked = tuple(
        Asked(
            query_id=f"{single.query.query_id}@{side}",
            side=side,
            question=place_question(single.query.question, side),
        )
        for side, single in zip(_SIDES, (left, right), strict=True)
    )
    return Composite(left=left, right=right, asked=asked)
