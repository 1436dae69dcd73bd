"""The methods compared: each turns queries into decisions; rows.py turns those into rankings of one pool each.

full                the whole image: the baseline that re-ranking starts from.
centre              the middle crop of half the width and half the height, whatever the picture shows.
random              one seeded crop a query, its side between the smallest and largest scale of region search.
base                the vision-language model before any training here.
base_grown, base_grown_or_full, base_grown_fused
                    rules that nobody trained on top of it, in rules.py: what a training must beat.
sft, rgrpo          the policy after warm-up, and after r-GRPO.
rgrpo_fused         r-GRPO and a rule on top of it, in rules.py: the weighted mean of the scores of its region and of
                    the full image.
rgrpo_blind         the same policy asked about a grey picture; what it still gains, it gains without looking.
perfect             the box around the thing asked about, where the data have one: a ceiling of pointing.
oracle              the best view that region search finds with the relevance known: a ceiling of the search, whose
                    boxes partly fit the scorer's noise.

A malformed answer is a miss: no ranking, reciprocal rank 0. It is never scored as the full image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pipeline.config import SearchParams
from pipeline.core.seeds import derive_seed
from pipeline.types import Box, Crop, Decision, KeepFull, Outcome, Pool, Query

METHODS = (
    "full", "centre", "random", "base", "base_grown", "base_squared", "base_grown_or_full", "base_grown_fused",
    "sft", "rgrpo", "rgrpo_fused", "rgrpo_blind", "perfect", "oracle",
)  # fmt: skip
CENTRE_BOX = Box(0.25, 0.25, 0.75, 0.75)


class PoolRanking(Protocol):
    """How one view ranks its pool."""

    @property
    def outcome(self) -> Outcome:
        """Ranks, NDCG and margin."""

    @property
    def scores_K(self) -> npt.NDArray[np.floating]:
        """Cosine with each candidate, in pool order."""


class Scorer(Protocol):
    """The part of the frozen scorer that evaluation needs."""

    def score_views(self, views: Sequence[tuple[str, Box | None]]) -> Sequence[PoolRanking]:
        """Score each (query, box) against the query's pool; no box means the full image."""


Choice = tuple[Decision, str | None]


@dataclass(frozen=True, slots=True)
class QuerySet:
    """The queries of one split and their pools, aligned."""

    queries: Sequence[Query]
    pools: Sequence[Pool]


def choose_full(queries: Sequence[Query]) -> list[Choice]:
    """Keep every image."""
    return [(KeepFull(), None) for _ in queries]


def choose_centre(queries: Sequence[Query]) -> list[Choice]:
    """Crop the middle of every image."""
    return [(Crop(CENTRE_BOX), None) for _ in queries]


def choose_random(queries: Sequence[Query], search: SearchParams, seed: int) -> list[Choice]:
    """Crop a square (in fractions) of random side and place, set by seed and query id alone."""
    return [(Crop(_draw_box(query.query_id, search, seed)), None) for query in queries]


def choose_perfect(queries: Sequence[Query]) -> list[Choice]:
    """Crop what the question asks about; keep the full image where the data do not say where that is."""
    return [(KeepFull() if query.target_box is None else Crop(query.target_box), None) for query in queries]


def _draw_box(query_id: str, search: SearchParams, seed: int) -> Box:
    rng = np.random.default_rng(derive_seed(seed, query_id))
    side = rng.uniform(min(search.scales), max(search.scales))
    x0, y0 = rng.uniform(0.0, 1.0 - side, size=2)
    return Box(float(x0), float(y0), float(min(x0 + side, 1.0)), float(min(y0 + side, 1.0)))
