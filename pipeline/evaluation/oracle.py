"""The oracle: a view that ranks a positive first if region search finds one, with the relevance known.

It serves as a ceiling, so what it must find is the highest place of a positive, not the most convincing box. That
allows it to stop: no view beats a first place. Asking in rounds, it spares most of the crops that an exhaustive
search pays for, over all queries and without a sample (docs/method.md, D45).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.config import SearchParams
from pipeline.core.region_search import build_grid, refine_boxes
from pipeline.evaluation.methods import Choice, PoolRanking, Scorer
from pipeline.process.progress import track
from pipeline.types import Box, Crop, KeepFull, Pool

# Many queries and few boxes a round: full batches for the encoder, and few crops asked beyond the first place.
_QUERIES_A_CHUNK: Final = 128
_BOXES_A_ROUND: Final = 4


@dataclass(frozen=True, slots=True)
class _Found:
    """The best view so far of one query: its reciprocal rank, its margin and its box, None for the full image."""

    reciprocal_rank: float
    margin: float
    box: Box | None

    def is_beaten_by(self, other: _Found) -> bool:
        return (other.reciprocal_rank, other.margin) > (self.reciprocal_rank, self.margin)


def search_oracle(scorer: Scorer, pools: Sequence[Pool], search: SearchParams) -> list[Choice]:
    """Find each pool a view that ranks a positive as high as region search can.

    The grid is asked first, then neighbours of the best crop, `search.num_refinements` times. Views are compared by
    reciprocal rank, then by margin; the full image takes part and wins ties. A query leaves the search once a positive
    is first. A pool whose first candidate is relevant keeps the full image, since no view ranks it better; so does a
    pool without a positive, since no view can help it.

    Args:
        scorer: ranks the views.
        pools: of the queries; their relevance is read.
        search: the grid and the number of refinements.

    Returns:
        One choice a pool, in their order.
    """
    rounds = _deal_rounds(build_grid(search.scales, search.stride))
    chosen: dict[str, Box | None] = {}
    ids = [pool.query_id for pool in pools if pool.has_positive and not pool.relevance[0]]
    with track("evaluate: oracle", len(ids)) as advance:
        for chunk in (ids[start : start + _QUERIES_A_CHUNK] for start in range(0, len(ids), _QUERIES_A_CHUNK)):
            chosen |= _search(scorer, chunk, rounds, search.num_refinements)
            advance(len(chunk))
    return [(KeepFull() if (box := chosen.get(pool.query_id)) is None else Crop(box), None) for pool in pools]


def _deal_rounds(grid: Sequence[Box]) -> list[tuple[Box, ...]]:
    """Deal the grid out in rounds; each spreads over the whole picture, so that few rounds miss what is in it."""
    num_rounds = math.ceil(len(grid) / _BOXES_A_ROUND)
    return [tuple(grid[start::num_rounds]) for start in range(num_rounds)]


def _search(
    scorer: Scorer, query_ids: Sequence[str], rounds: Sequence[Sequence[Box]], num_refinements: int
) -> dict[str, Box | None]:
    full = scorer.score_views([(query_id, None) for query_id in query_ids])
    best = {query_id: _note(ranking, None) for query_id, ranking in zip(query_ids, full, strict=True)}
    for boxes in rounds:
        best |= _ask(scorer, dict.fromkeys(_list_open(best), boxes), best)
    for _ in range(num_refinements):
        near = {query_id: refine_boxes(box) for query_id in _list_open(best) if (box := best[query_id].box) is not None}
        best |= _ask(scorer, near, best)
    return {query_id: found.box for query_id, found in best.items()}


def _list_open(best: Mapping[str, _Found]) -> list[str]:
    return [query_id for query_id, found in best.items() if found.reciprocal_rank < 1.0]


def _ask(scorer: Scorer, boxes: Mapping[str, Sequence[Box]], before: Mapping[str, _Found]) -> dict[str, _Found]:
    views = [(query_id, box) for query_id, row in boxes.items() for box in row]
    best = {query_id: before[query_id] for query_id in boxes}
    for (query_id, box), ranking in zip(views, scorer.score_views(views), strict=True):
        found = _note(ranking, box)
        if best[query_id].is_beaten_by(found):
            best[query_id] = found
    return best


def _note(ranking: PoolRanking, box: Box | None) -> _Found:
    margin = ranking.outcome.margin
    return _Found(ranking.outcome.reciprocal_rank, 0.0 if margin is None else margin, box)
