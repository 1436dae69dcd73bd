"""From views to the documents that a search of the index with them brings, alone or merged with the full image's pool.

Whatever the way, a query ends with the same number of documents, so that no method is looked at deeper than another.

Shapes: K documents of a search, C candidates of a merged pool, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from pipeline.config import Params
from pipeline.core.ranking import rank_candidates
from pipeline.core.region_search import Reshaping
from pipeline.evaluation.methods import Choice, QuerySet
from pipeline.evaluation.rows import FusedView, Ranked, build_rows
from pipeline.files.store import load_qrels
from pipeline.reranking.fusion import fuse_ranks, fuse_scores
from pipeline.reranking.scorer import FrozenScorer
from pipeline.retrieval.encoder import F32, name_encoder
from pipeline.retrieval.index import DocumentIndex, load_index, score_candidates
from pipeline.retrieval.search import FullImages, collect_relevant
from pipeline.retrieval.views import ViewEncoder
from pipeline.types import Box, Crop, Decision, Malformed, Pool, Query, QueryResult
from pipeline.workspace import Workspace

RRF: Final = "rrf"
"""In place of a weight: Reciprocal Rank Fusion."""
Fusion = float | Literal["rrf"]


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
class Found:
    """Documents with their scores, best first."""

    doc_ids: Sequence[str]
    scores_K: F32


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

    @classmethod
    def load(cls, params: Params, workspace: Workspace, scorer: FrozenScorer) -> Searcher:
        """Open the index beside a scorer, whose crops need not be embedded again.

        Raises:
            StageError: retrieve has not run.
        """
        return cls(
            scorer.views,
            load_index(workspace.index_dir, name_encoder(params.scorer)),
            FullImages.load(workspace.pools_dir),
            collect_relevant(load_qrels(workspace.tables_dir / "qrels.parquet")),
            params.retrieve.num_candidates,
        )

    def rank(
        self, method: str, choices: Sequence[Choice], queries: QuerySet, setting: SearchSetting
    ) -> list[QueryResult]:
        """Return a row for every query: what its choice finds. FULL costs nothing, its pool is there already.

        A malformed answer finds nothing.
        """
        shape = Reshaping(setting.margin, setting.is_square)
        decisions = [
            _reshape(decision, query, shape) for query, (decision, _) in zip(queries.queries, choices, strict=True)
        ]
        crops = [(q.query_id, d.box) for q, d in zip(queries.queries, decisions, strict=True) if isinstance(d, Crop)]
        vectors = iter(self._embed(crops))
        ranked, pools = [], []
        for decision, (_, completion), pool in zip(decisions, choices, queries.pools, strict=True):
            found = Found(pool.doc_ids, np.asarray(pool.scores, dtype=np.float32))
            if isinstance(decision, Crop):
                found = self._search(next(vectors), pool, setting.fusion)
            final = self._cut(pool, found)
            view = None if isinstance(decision, Malformed) else FusedView.of(np.asarray(final.scores), final)
            ranked.append(Ranked(decision, completion, view))
            pools.append(final)
        return build_rows(method, ranked, queries.queries, pools)

    def _embed(self, crops: Sequence[tuple[str, Box]]) -> list[F32]:
        keys = [self._views.name_crop(query_id, box) for query_id, box in crops]
        cut = iter(self._views.encode([key for key in keys if key is not None]))
        return [
            self._full_images.get_vectors([query_id])[0] if key is None else next(cut)
            for key, (query_id, _) in zip(keys, crops, strict=True)
        ]

    def _search(self, vector_D: F32, pool: Pool, fusion: Fusion | None) -> Found:
        scores_1K, rows_1K = self._index.search(vector_D[None], self._num_candidates)
        own = Found([self._index.doc_ids[row] for row in rows_1K[0]], scores_1K[0])
        return own if fusion is None else self._merge(vector_D, own, pool, fusion)

    def _merge(self, vector_D: F32, own: Found, pool: Pool, fusion: Fusion) -> Found:
        """Merge both searches' documents; of equal scores those of the full image come first."""
        doc_ids = list(dict.fromkeys([*pool.doc_ids, *own.doc_ids]))
        if fusion == RRF:
            return Found(doc_ids, fuse_ranks(doc_ids, [pool.doc_ids, own.doc_ids]).astype(np.float32))
        both_2D = np.stack([vector_D, self._full_images.get_vectors([pool.query_id])[0]])
        view_C, full_C = score_candidates(both_2D, self._index.get_vectors(doc_ids))
        return Found(doc_ids, fuse_scores(view_C, full_C, float(fusion)).astype(np.float32))

    def _cut(self, pool: Pool, found: Found) -> Pool:
        """Return the documents that a query ends with, as a pool."""
        best = rank_candidates(found.scores_K)[: self._num_candidates]
        doc_ids = tuple(found.doc_ids[k] for k in best)
        answers = self._relevant.get(pool.query_id, frozenset())
        return Pool(
            query_id=pool.query_id,
            split=pool.split,
            doc_ids=doc_ids,
            scores=tuple(float(found.scores_K[k]) for k in best),
            relevance=tuple(doc_id in answers for doc_id in doc_ids),
            num_relevant=pool.num_relevant,
        )


def _reshape(decision: Decision, query: Query, shape: Reshaping) -> Decision:
    if isinstance(decision, Crop):
        return Crop(shape.apply(decision.box, query.width_px, query.height_px))
    return decision
