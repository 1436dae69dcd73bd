"""Searching again: a view of a query's picture, or the full image, against the whole index.

Here every query that has a relevant document counts, also where the full image's pool holds none of them.

Shapes: N views, M documents, P relevant documents of a query, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from pipeline.config import Params
from pipeline.core.ranking import compute_search_outcome
from pipeline.errors import StageError
from pipeline.files.images import PictureFolder
from pipeline.files.store import load_qrels, load_queries
from pipeline.retrieval.encoder import F32, Encoder, load_encoder
from pipeline.retrieval.index import DocumentVectors, score_candidates
from pipeline.retrieval.relevance import collect_relevant
from pipeline.retrieval.retrieved import FullImages, open_index
from pipeline.retrieval.views import NamedView, ViewEncoder, ViewKey, ViewScorer
from pipeline.types import Outcome
from pipeline.workspace import Workspace

_SCORES_AT_ONCE: Final = 2**24
"""Bounds the matrix of scores, however many views or documents there are: 64 MiB."""
_CLOSE: Final = np.float32(1e-5)
"""Well above what a product of unit vectors in float32 can be wrong by."""


@dataclass(frozen=True, slots=True)
class SearchedView:
    """How one view ranks the whole index."""

    outcome: Outcome


class SearchScorer(ViewScorer):
    """Scores views by their own search of the index; stands where a `FrozenScorer` does in training.

    One call costs one product of its new views with all documents' vectors, N x M x D multiplications.

    Args:
        views: embeds the crops.
        documents: the whole index.
        full_images: the full images' vectors.
        relevant: query id -> documents that answer it; queries without one teach nothing.
        depth: last rank that counts as found.
    """

    def __init__(
        self,
        views: ViewEncoder,
        documents: DocumentVectors,
        full_images: FullImages,
        relevant: Mapping[str, frozenset[str]],
        depth: int,
    ) -> None:
        super().__init__(views)
        self._documents = documents
        self._full_images = full_images
        self._relevant = relevant
        self._depth = depth
        self._full: dict[str, SearchedView] = {}
        self._crops: dict[ViewKey, SearchedView] = {}

    @classmethod
    def load(cls, params: Params, workspace: Workspace, *, encoder: Encoder | None = None) -> SearchScorer:
        """Open what index and retrieve wrote.

        Raises:
            StageError: a stage has not run, or ran with another encoder or other documents.
            ModelError: the encoder cannot be loaded.
        """
        encoder = encoder or load_encoder(params.scorer, params.batches.scorer)
        index = open_index(workspace, encoder.digest)
        queries = {query.query_id: query for query in load_queries(workspace.tables_dir / "queries.parquet")}
        full_images = FullImages.load(workspace.pools_dir)
        if not all(query_id in full_images for query_id in queries):
            raise StageError(f"{workspace.pools_dir} does not fit {workspace.tables_dir}; run retrieve again")
        pictures = PictureFolder(workspace.data_dir, params.data.max_image_pixels)
        return cls(
            ViewEncoder(encoder, queries, pictures, params.batches.scorer),
            index,
            full_images,
            collect_relevant(load_qrels(workspace.tables_dir / "qrels.parquet")),
            params.reward.depth,
        )

    @property
    def teaching_ids(self) -> list[str]:
        """Training queries to which some document is relevant, in order of their ids."""
        return sorted(
            q.query_id for q in self.queries.values() if q.split == "train" and self._relevant.get(q.query_id)
        )

    def get_baseline(self, query_id: str) -> SearchedView:
        """Return how the full image ranks the index."""
        return self.score_views([(query_id, None)])[0]

    def score_views(self, views: Sequence[NamedView]) -> list[SearchedView]:
        """Return how each view ranks the index, in the order of the views.

        Raises:
            StageError: no document is relevant to a query.
            DataError: a picture cannot be read.
        """
        keys = [self.views.name_crop(query_id, box) for query_id, box in views]
        crops = sorted({key for key in keys if key is not None and key not in self._crops})
        full = list(dict.fromkeys(query_id for query_id, _ in views if query_id not in self._full))
        vectors_ND = np.concatenate([self._full_images.get_vectors(full), self.views.encode(crops)])
        searched = self._search([*full, *(query_id for query_id, _ in crops)], vectors_ND)
        self._full |= zip(full, searched, strict=False)
        self._crops |= zip(crops, searched[len(full) :], strict=True)
        return [
            self._full[query_id] if key is None else self._crops[key]
            for key, (query_id, _) in zip(keys, views, strict=True)
        ]

    def _search(self, query_ids: Sequence[str], vectors_ND: F32) -> list[SearchedView]:
        positives = [self._find_positives(query_id) for query_id in query_ids]
        scores = [
            score_candidates(vector_D[None], self._documents.vectors_ND[rows_P])[0]
            for vector_D, rows_P in zip(vectors_ND, positives, strict=True)
        ]
        above, best_N = count_negatives_above(vectors_ND, self._documents.vectors_ND, positives, scores)
        return [
            SearchedView(compute_search_outcome(scores_P, above_P, float(best), self._depth))
            for scores_P, above_P, best in zip(scores, above, best_N, strict=True)
        ]

    def _find_positives(self, query_id: str) -> npt.NDArray[np.int64]:
        doc_ids = self._relevant.get(query_id)
        if not doc_ids:
            raise StageError(f"no document is relevant to query {query_id}: its search has no reward")
        return self._documents.find_rows(sorted(doc_ids))


def count_negatives_above(
    vectors_ND: F32,
    documents_MD: F32,
    positives: Sequence[npt.NDArray[np.int64]],
    scores: Sequence[F32],
) -> tuple[list[npt.NDArray[np.int64]], F32]:
    """Return for each view how many negatives outscore each positive, (P,) each, and its best negative's score, (N,).

    The product runs in float32, and its last digits depend on what is multiplied together. So whatever lies so close to
    a positive, or to the best, that they could decide is scored again as `score_candidates` does.

    Args:
        vectors_ND: the views.
        documents_MD: the whole index.
        positives: rows of the relevant documents, (P,) for each view.
        scores: their scores, aligned, as `score_candidates` gives them.
    """
    above = [np.zeros(len(rows_P), dtype=np.int64) for rows_P in positives]
    best_N = np.full(len(vectors_ND), -np.inf, dtype=np.float32)
    num_at_once = max(1, _SCORES_AT_ONCE // max(1, len(vectors_ND)))
    for start in range(0, len(documents_MD), num_at_once):
        part_MD = np.asarray(documents_MD[start : start + num_at_once])
        part_NM = vectors_ND @ part_MD.T
        for row, (rows_P, scores_P) in enumerate(zip(positives, scores, strict=True)):
            scores_M = part_NM[row]
            scores_M[rows_P[(rows_P >= start) & (rows_P < start + len(part_MD))] - start] = -np.inf
            close = _find_close(scores_M, scores_P, best_N[row])
            scores_M[close] = score_candidates(vectors_ND[row : row + 1], part_MD[close])[0]
            above[row] += [np.count_nonzero(scores_M > score) for score in scores_P]
            best_N[row] = max(best_N[row], scores_M.max())
    return above, best_N


def _find_close(scores_M: F32, scores_P: F32, best: np.float32) -> npt.NDArray[np.intp]:
    """Return where scores are too close to a positive's, or to the best of all, to be told apart in float32."""
    close_M = scores_M >= max(best, scores_M.max()) - _CLOSE
    for score in scores_P:
        close_M |= (scores_M >= score - _CLOSE) & (scores_M <= score + _CLOSE)
    close = np.flatnonzero(close_M)
    return close[scores_M[close] > -np.inf]  # never a positive
