"""From decisions and the views that they name to one row per query: its ranking, or a miss where it is malformed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.core.boxes import compute_iou
from pipeline.core.ranking import compute_outcome, rank_candidates
from pipeline.evaluation.methods import Choice, PoolRanking, Scorer
from pipeline.types import Box, Crop, Decision, Malformed, Outcome, Pool, Query, QueryResult


@dataclass(frozen=True, slots=True)
class FusedRanking:
    """A ranking by scores of our own making, such as a mean of two views' scores; a `PoolRanking` like the scorer's."""

    outcome: Outcome
    scores_K: npt.NDArray[np.floating]

    @classmethod
    def of(cls, scores_K: npt.NDArray[np.floating], pool: Pool) -> FusedRanking:
        """Rank the pool by these scores, in the pool's order."""
        return cls(compute_outcome(scores_K, pool.relevance, pool.num_relevant), scores_K)


@dataclass(frozen=True, slots=True)
class Ranked:
    """What was decided about a query, and how its view ranks the pool; None for a malformed answer."""

    decision: Decision
    completion: str | None
    ranking: PoolRanking | None


def score_choices(
    method: str, choices: Sequence[Choice], queries: Sequence[Query], pools: Sequence[Pool], scorer: Scorer
) -> list[QueryResult]:
    """Rank every pool by the view its choice names; one row per query, none left out."""
    named = [
        (query.query_id, box_of(decision))
        for query, (decision, _) in zip(queries, choices, strict=True)
        if not isinstance(decision, Malformed)
    ]
    views = iter(scorer.score_views(named))
    ranked = [
        Ranked(decision, completion, None if isinstance(decision, Malformed) else next(views))
        for decision, completion in choices
    ]
    return build_rows(method, ranked, queries, pools)


def build_rows(
    method: str, ranked: Sequence[Ranked], queries: Sequence[Query], pools: Sequence[Pool]
) -> list[QueryResult]:
    """Return one row per query; all arguments are aligned."""
    return [
        _miss(method, query, row.completion) if row.ranking is None else _rank(method, query, pool, row, row.ranking)
        for row, query, pool in zip(ranked, queries, pools, strict=True)
    ]


def box_of(decision: Decision) -> Box | None:
    """Return the box of a crop; None is the full image, or no decision at all."""
    return decision.box if isinstance(decision, Crop) else None


def _rank(method: str, query: Query, pool: Pool, row: Ranked, ranking: PoolRanking) -> QueryResult:
    order_K = rank_candidates(ranking.scores_K)
    box, target = box_of(row.decision), query.target_box
    return QueryResult(
        query_id=query.query_id,
        method=method,
        decision="full" if box is None else "region",
        box=box,
        doc_ids=tuple(pool.doc_ids[k] for k in order_K),
        scores=tuple(float(ranking.scores_K[k]) for k in order_K),
        first_rank=ranking.outcome.first_rank,
        reciprocal_rank=ranking.outcome.reciprocal_rank,
        ndcg=ranking.outcome.ndcg,
        margin=ranking.outcome.margin,
        iou=None if box is None or target is None else compute_iou(box, target),
        completion=row.completion,
    )


def _miss(method: str, query: Query, completion: str | None) -> QueryResult:
    return QueryResult(
        query_id=query.query_id,
        method=method,
        decision="malformed",
        box=None,
        doc_ids=(),
        scores=(),
        first_rank=None,
        reciprocal_rank=0.0,
        ndcg=0.0,
        margin=None,
        iou=None,
        completion=completion,
    )
