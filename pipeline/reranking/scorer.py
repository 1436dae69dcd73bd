"""The frozen scorer: how any view of a query's image ranks the query's pool.

What the naive reward does again and again happens once here: candidates are looked up, never embedded; the
full image is the baseline that retrieve wrote; a crop is embedded once and its result kept.

Shapes: N views, K candidates, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.config import Params
from pipeline.core.ranking import compute_outcome
from pipeline.errors import StageError
from pipeline.files.images import PictureFolder
from pipeline.files.store import load_outcomes, load_pools, load_queries
from pipeline.process.progress import Advance
from pipeline.retrieval.encoder import F32, Encoder, load_encoder
from pipeline.retrieval.index import DocumentVectors, score_candidates
from pipeline.retrieval.retrieved import open_index
from pipeline.retrieval.views import NamedView, ViewEncoder, ViewKey, ViewScorer
from pipeline.types import Outcome, Pool
from pipeline.workspace import Workspace


@dataclass(frozen=True, slots=True, eq=False)
class ScoredView:
    """How one view ranks its pool.

    Attributes:
        outcome: rank, NDCG and margin.
        scores_K: cosine with each candidate, in the pool's order; read-only.
    """

    outcome: Outcome
    scores_K: F32


class FrozenScorer(ViewScorer):
    """Scores views against the pools of their queries; not for several threads at once.

    Args:
        views: embeds the crops.
        documents: the documents' vectors.
        pools: the candidates of each query.
        baseline: how the full image ranks each pool, as this encoder sees it.
    """

    def __init__(
        self,
        views: ViewEncoder,
        documents: DocumentVectors,
        *,
        pools: Mapping[str, Pool],
        baseline: Mapping[str, ScoredView],
    ) -> None:
        super().__init__(views)
        self.documents = documents
        self._pools = pools
        self._baseline = baseline
        self._crops: dict[ViewKey, ScoredView] = {}

    @classmethod
    def load(cls, params: Params, workspace: Workspace, *, encoder: Encoder | None = None) -> FrozenScorer:
        """Open what index and retrieve wrote.

        Args:
            params: of this run.
            workspace: where artifacts lie.
            encoder: one that is loaded already; else `params.scorer` is loaded.

        Raises:
            StageError: a stage has not run, or ran with another encoder or other documents.
            ModelError: the encoder cannot be loaded.
        """
        encoder = encoder or load_encoder(params.scorer, params.batches.scorer)
        index = open_index(workspace, encoder.digest)
        pools_dir = workspace.pools_dir
        pools = {pool.query_id: pool for pool in load_pools(pools_dir / "pools.parquet")}
        queries = {query.query_id: query for query in load_queries(workspace.tables_dir / "queries.parquet")}
        outcomes = load_outcomes(pools_dir / "baseline.parquet")
        if not pools.keys() <= queries.keys() or pools.keys() != outcomes.keys():
            raise StageError(f"{pools_dir} does not fit {workspace.tables_dir}; run retrieve again")
        pictures = PictureFolder(workspace.data_dir, params.data.max_image_pixels)
        return cls(
            ViewEncoder(encoder, queries, pictures, params.batches.scorer),
            index,
            pools=pools,
            baseline={
                query_id: ScoredView(outcomes[query_id], _freeze(np.asarray(pool.scores, dtype=np.float32)))
                for query_id, pool in pools.items()
            },
        )

    @property
    def pools(self) -> Mapping[str, Pool]:
        """Query id -> pool."""
        return self._pools

    @property
    def teaching_ids(self) -> list[str]:
        """Training queries in whose pool some view can rank a positive, in order of their ids."""
        return sorted(query_id for query_id, pool in self._pools.items() if pool.split == "train")

    def get_baseline(self, query_id: str) -> ScoredView:
        """Return how the full image ranks the pool; nothing is encoded.

        Raises:
            KeyError: the query has no pool.
        """
        return self._baseline[query_id]

    def score_views(self, views: Sequence[NamedView], *, advance: Advance | None = None) -> list[ScoredView]:
        """Return how each view ranks its query's pool, in the order of the views.

        Each picture is decoded once per call; each distinct crop, by its whole pixels, is encoded once in the
        scorer's life. A box that covers every pixel is the full image.

        Args:
            views: any number, of any queries, in any order.
            advance: told how many views are done.

        Raises:
            KeyError: a query has no pool.
            DataError: a picture cannot be read.
        """
        for query_id, _ in views:
            if query_id not in self._pools:
                raise KeyError(f"query {query_id} has no pool")
        keys = [self.views.name_crop(query_id, box) for query_id, box in views]
        missing = sorted({key for key in keys if key is not None and key not in self._crops})
        if advance is not None:
            advance(len(views) - len(missing))
        self._score_crops(missing, advance)
        return [
            self.get_baseline(query_id) if key is None else self._crops[key]
            for key, (query_id, _) in zip(keys, views, strict=True)
        ]

    def _score_crops(self, keys: Sequence[ViewKey], advance: Advance | None) -> None:
        vectors_ND = self.views.encode(keys, advance=advance)
        rows_of: dict[str, list[int]] = {}
        for row, (query_id, _) in enumerate(keys):
            rows_of.setdefault(query_id, []).append(row)
        for query_id, rows in rows_of.items():
            scored = rank_views(vectors_ND[rows], self._pools[query_id], self.documents)
            self._crops |= {keys[row]: view for row, view in zip(rows, scored, strict=True)}


def rank_views(views_ND: F32, pool: Pool, documents: DocumentVectors) -> list[ScoredView]:
    """Return how each of N encoded views of one query ranks its pool."""
    scores_NK = score_candidates(views_ND, documents.get_vectors(pool.doc_ids))
    return [
        ScoredView(compute_outcome(scores_K, pool.relevance, pool.num_relevant), _freeze(scores_K.copy()))
        for scores_K in scores_NK
    ]


def _freeze(scores_K: F32) -> F32:
    scores_K.setflags(write=False)
    return scores_K
