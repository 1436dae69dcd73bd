"""A scorer that likes one planted box of each picture, and falls over whoever reads a human box."""

from __future__ import annotations

from typing import Any

from pipeline.config import SearchParams
from pipeline.core.boxes import compute_iou
from pipeline.core.region_search import build_grid
from pipeline.types import Box, Outcome
from tests.tiny_models import PlantedScorer, build_outcome

SEARCH = SearchParams(scales=(0.4,), stride=0.5, min_gain=0.05)
QUESTIONS = {f"train{number}": f"What is thing {number}?" for number in range(5)} | {"val0": "What is it?"}
GRID = build_grid(SEARCH.scales, SEARCH.stride)
PLANTED = {query_id: GRID[5 * number % len(GRID)] for number, query_id in enumerate(QUESTIONS)}


class _Poisoned:
    """A query whose human box must not be looked at."""

    def __init__(self, query: Any) -> None:
        self._query = query

    def __getattr__(self, name: str) -> Any:
        if name == "target_box":
            raise AssertionError("target_box was read in training")
        return getattr(self._query, name)


def build_scorer(*, top_margin: float = 1.0) -> PlantedScorer:
    def score_box(query_id: str, box: Box) -> Outcome:
        return build_outcome(3, margin=top_margin * compute_iou(box, PLANTED[query_id]))

    scorer = PlantedScorer(QUESTIONS, baseline=build_outcome(3), score_box=score_box)
    scorer.queries = {query_id: _Poisoned(query) for query_id, query in scorer.queries.items()}  # type: ignore[misc]
    return scorer
