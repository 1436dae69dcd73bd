"""From views to the documents that a search of the index with them brings, alone or merged with the full image's pool.

Whatever the way, a query ends with the same number of documents, so that no method is looked at deeper than another.

Shapes: K documents of a search, C candidates of a merged pool, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from pipeline.config import Params
from pipeline.core.ranking import rank_candidates
from pipeline.core.region_search import Reshaping
from pipeline.evaluation.methods import Choice, QuerySet
from pipeline.evaluation.rows import FusedRanking, Ranked, build_rows
from pipeline.files.store import load_qrels
from pipeline.reranking.fusion import fuse_ranks, fuse_scores
from pipeline.reranking.scorer import FrozenScorer
from pipeline.retrieval.encoder import F32
from pipeline.retrieval.index import DocumentIndex, score_candidates
from pipeline.retrieval.relevance import collect_relevant
from pipeline.retrieval.retrieved import FullImages
from pipeline.retrieval.views import ViewEncoder, ViewKey
from pipeline.types import Crop, Decision, Malformed, Pool, Query, QueryResult
from pipeline.workspace import Workspace

RRF: Final = "rrf"
"""In place of a weight: Reciprocal Rank Fusion."""
Fusion = float | Literal["rrf"]
_VIEWS_AT_ONCE: Final = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSetting:
    """How a method searches again.

    Attributes:
        margin: that its box grows by on every side, in parts of its width or height.
        is_square: whether the box is made square in pixels first.
        fusion: weight of the region's scores in the merged pool, or Reciprocal Rank Fusion; None takes the region's
            own candidates in place of the full image's.
    """

    margin: float = 0.0
    is_square: bool = False
    fusion: Fusion | None = None


@dataclass(frozen=True, slots=True)
class _Searched:
    """What one crop's search brings, beside the full image's pool; nothing in it depends on how both are merged.

    Attributes:
        own: ids of the K documents that the crop finds, best first.
        doc_ids: C candidates, those of the pool first, then those that only the crop finds.
        view_C: the crop's score with each candidate.
        full_C: the full image's score with each candidate.
    """

    own: tuple[str, ...]
    doc_ids: tuple[str, ...]
    view_C: F32
    full_C: F32


class Searcher:
    """Searches the index with views of the queries' pictures.

    Args:
        views: embeds crops, each once.
        index: all documents.
        full_images: the full images' vectors.
        relevant: query id -> documents that answer it.
        num_candidates: documents that a search brings, and that a query ends with.
    """

    def __init__(
        self,
        views: ViewEncoder,
        index: DocumentIndex,
        full_images: FullImages,
        relevant: Mapping[str, frozenset[str]],
        num_candidates: int,
    ) -> None:
        self._views = views
        self._index = index
        self._full_images = full_images
        self._relevant = relevant
        self._num_candidates = min(num_candidates, len(index))
        self._searched: dict[ViewKey, _Searched] = {}
        self._full: dict[str, Pool] = {}

    @classmethod
    def load(cls, params: Params, workspace: Workspace, scorer: FrozenScorer) -> Searcher:
        """Search the index that a scorer has open; its crops need not be embedded again.

        Args:
            params: how many documents a search brings.
            workspace: where artifacts lie.
            scorer: as `FrozenScorer.load` gives it.

        Raises:
            StageError: retrieve has not run.
        """
        assert isinstance(scorer.documents, DocumentIndex)  # what FrozenScorer.load opens
        return cls(
            scorer.views,
            scorer.documents,
            FullImages.load(workspace.pools_dir),
            collect_relevant(load_qrels(workspace.tables_dir / "qrels.parquet")),
            params.retrieve.num_candidates,
        )

    def rank(
        self, method: str, choices: Sequence[Choice], queries: QuerySet, setting: SearchSetting
    ) -> list[QueryResult]:
        """Return a row for every query: what its choice finds.

        FULL costs nothing where the pool is as large as what a search brings: it is there already. A malformed answer
        finds nothing.
        """
        shape = Reshaping(setting.margin, setting.is_square)
        decisions = [
            _reshape(decision, query, shape) for query, (decision, _) in zip(queries.queries, choices, strict=True)
        ]
        keys = [
            self._views.name_crop(query.query_id, decision.box) if isinstance(decision, Crop) else None
            for query, decision in zip(queries.queries, decisions, strict=True)
        ]
        full = self._fit_pools(queries.pools)
        self._search({key: pool for key, pool in zip(keys, full, strict=True) if key is not None})
        final = [
            pool if key is None else self._cut(self._merge(self._searched[key], pool, setting.fusion))
            for key, pool in zip(keys, full, strict=True)
        ]
        ranked = [
            Ranked(decision, completion, None if isinstance(decision, Malformed) else rank_as_pooled(pool))
            for decision, (_, completion), pool in zip(decisions, choices, final, strict=True)
        ]
        return build_rows(method, ranked, queries.queries, final)

    def _fit_pools(self, pools: Sequence[Pool]) -> list[Pool]:
        """Return the full images' pools with as many documents as a view's search brings; others are searched for."""
        new = [pool for pool in pools if pool.query_id not in self._full]
        self._full |= {pool.query_id: self._cut(pool) for pool in new}
        short = [pool for pool in new if len(pool.doc_ids) < self._num_candidates]
        for start in range(0, len(short), _VIEWS_AT_ONCE):
            part = short[start : start + _VIEWS_AT_ONCE]
            vectors_ND = self._full_images.get_vectors([pool.query_id for pool in part])
            scores_NK, rows_NK = self._index.search(vectors_ND, self._num_candidates)
            for pool, scores_K, rows_K in zip(part, scores_NK, rows_NK, strict=True):
                doc_ids = [self._index.doc_ids[row] for row in rows_K]
                self._full[pool.query_id] = self._as_pool(pool, doc_ids, scores_K)
        return [self._full[pool.query_id] for pool in pools]

    def _search(self, pools: Mapping[ViewKey, Pool]) -> None:
        """Search with the crops that are new; a crop is searched with once, however often it is merged."""
        new = [key for key in pools if key not in self._searched]
        for start in range(0, len(new), _VIEWS_AT_ONCE):
            part = new[start : start + _VIEWS_AT_ONCE]
            vectors_ND = self._views.encode(part)
            _, rows_NK = self._index.search(vectors_ND, self._num_candidates)
            for key, vector_D, rows_K in zip(part, vectors_ND, rows_NK, strict=True):
                own = tuple(self._index.doc_ids[row] for row in rows_K)
                self._searched[key] = self._join(vector_D, own, pools[key])

    def _join(self, vector_D: F32, own: tuple[str, ...], pool: Pool) -> _Searched:
        doc_ids = tuple(dict.fromkeys([*pool.doc_ids, *own]))
        both_2D = np.stack([vector_D, self._full_images.get_vectors([pool.query_id])[0]])
        view_C, full_C = score_candidates(both_2D, self._index.get_vectors(doc_ids))
        return _Searched(own, doc_ids, view_C, full_C)

    def _merge(self, searched: _Searched, pool: Pool, fusion: Fusion | None) -> Pool:
        """Return the candidates in the pool's place, with the scores that order them."""
        if fusion is None:
            score_of = dict(zip(searched.doc_ids, searched.view_C, strict=True))
            return self._as_pool(pool, searched.own, np.array([score_of[doc_id] for doc_id in searched.own]))
        if fusion == RRF:
            scores_C: npt.NDArray[np.floating] = fuse_ranks(searched.doc_ids, [pool.doc_ids, searched.own])
        else:
            scores_C = fuse_scores(searched.view_C, searched.full_C, float(fusion))
        return self._as_pool(pool, searched.doc_ids, scores_C)

    def _cut(self, pool: Pool) -> Pool:
        """Return the documents that a query ends with; of equal scores those of the full image come first."""
        scores_C = np.asarray(pool.scores)
        best = rank_candidates(scores_C)[: self._num_candidates]
        return self._as_pool(pool, [pool.doc_ids[c] for c in best], scores_C[best])

    def _as_pool(self, pool: Pool, doc_ids: Sequence[str], scores_C: npt.NDArray[np.floating]) -> Pool:
        answers = self._relevant.get(pool.query_id, frozenset())
        return replace(
            pool,
            doc_ids=tuple(doc_ids),
            scores=tuple(float(score) for score in scores_C),
            relevance=tuple(doc_id in answers for doc_id in doc_ids),
        )


def rank_as_pooled(pool: Pool) -> FusedRanking:
    """Return the ranking of a pool by the scores that stand in it."""
    return FusedRanking.of(np.asarray(pool.scores), pool)


def _reshape(decision: Decision, query: Query, shape: Reshaping) -> Decision:
    if isinstance(decision, Crop):
        return Crop(shape.apply(decision.box, query.width_px, query.height_px))
    return decision
