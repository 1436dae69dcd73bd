"""The frozen scorer: how any view of a query's image ranks the query's pool.

What the naive reward does again and again happens once here: candidates are looked up, never embedded; the
full image is the baseline that retrieve wrote; a crop is embedded once and its result kept.

Shapes: N views, K candidates, D dimensions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Final

import numpy as np
from PIL import Image

from pipeline.config import Params
from pipeline.core.boxes import box_to_px
from pipeline.core.ranking import compute_outcome
from pipeline.errors import DataError, StageError
from pipeline.files.images import crop_view
from pipeline.files.store import load_outcomes, load_pools, load_queries, read_json
from pipeline.process.progress import Advance
from pipeline.retrieval.encoder import F32, Encoder, PictureTask, encode_in_stream, load_encoder, name_encoder
from pipeline.retrieval.index import DocumentIndex, DocumentVectors, PictureFolder, load_index, score_candidates
from pipeline.types import Box, Outcome, Pool, Query
from pipeline.workspace import Workspace

View = tuple[str, Box | None]
"""A query's id and the region looked at; None is the full image."""

_PixelBox = tuple[int, int, int, int]
_Key = tuple[str, _PixelBox]

_CACHED_PIXELS: Final = 64_000_000
"""Decoded pictures that are kept, about 200 MB."""


@dataclass(frozen=True, slots=True, eq=False)
class ScoredView:
    """How one view ranks its pool.

    Attributes:
        outcome: rank, NDCG and margin.
        scores_K: cosine with each candidate, in the pool's order; read-only.
    """

    outcome: Outcome
    scores_K: F32


class FrozenScorer:
    """Scores views against the pools of their queries; not for several threads at once.

    Args:
        encoder: the frozen encoder.
        documents: the documents' vectors.
        queries: every query that has a pool, and maybe others.
        pools: the candidates of each query.
        baseline: how the full image ranks each pool, as this encoder sees it.
        pictures: where the queries' pictures lie.
        batch_size: crops that go through the encoder at once.
    """

    def __init__(
        self,
        encoder: Encoder,
        documents: DocumentVectors,
        *,
        queries: Mapping[str, Query],
        pools: Mapping[str, Pool],
        baseline: Mapping[str, ScoredView],
        pictures: PictureFolder,
        batch_size: int,
    ) -> None:
        self._encoder = encoder
        self._documents = documents
        self._queries = queries
        self._pools = pools
        self._baseline = baseline
        self._pictures = _PictureCache(pictures)
        self._batch_size = batch_size
        self._crops: dict[_Key, ScoredView] = {}
        self._num_encoded = 0

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
        index = _open_index(workspace, encoder.digest)
        pools_dir = workspace.pools_dir
        pools = {pool.query_id: pool for pool in load_pools(pools_dir / "pools.parquet")}
        queries = {query.query_id: query for query in load_queries(workspace.tables_dir / "queries.parquet")}
        outcomes = load_outcomes(pools_dir / "baseline.parquet")
        if not pools.keys() <= queries.keys() or pools.keys() != outcomes.keys():
            raise StageError(f"{pools_dir} does not fit {workspace.tables_dir}; run retrieve again")
        return cls(
            encoder,
            index,
            queries=queries,
            pools=pools,
            baseline={
                query_id: ScoredView(outcomes[query_id], _freeze(np.asarray(pool.scores, dtype=np.float32)))
                for query_id, pool in pools.items()
            },
            pictures=PictureFolder(workspace.data_dir, params.data.max_image_pixels),
            batch_size=params.batches.scorer,
        )

    @staticmethod
    def check(params: Params, workspace: Workspace) -> None:
        """Refuse what `load` would refuse of index and pools, without loading any weights.

        Raises:
            StageError: as for `load`.
            ModelError: there is no such folder.
        """
        _open_index(workspace, name_encoder(params.scorer))

    @property
    def num_encoded(self) -> int:
        """Pictures that have gone through the encoder so far."""
        return self._num_encoded

    @property
    def pools(self) -> Mapping[str, Pool]:
        """Query id -> pool."""
        return self._pools

    @property
    def queries(self) -> Mapping[str, Query]:
        """Query id -> query."""
        return self._queries

    def get_baseline(self, query_id: str) -> ScoredView:
        """Return how the full image ranks the pool; nothing is encoded.

        Raises:
            KeyError: the query has no pool.
        """
        return self._baseline[query_id]

    def load_image(self, query_id: str) -> Image.Image:
        """Return the query's picture, upright; the last few are kept decoded.

        Raises:
            DataError: it cannot be read, or has another size than prepare found.
        """
        return self._load_checked(self._queries[query_id])

    def score_views(self, views: Sequence[View], *, advance: Advance | None = None) -> list[ScoredView]:
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
        keys = [self._to_key(query_id, box) for query_id, box in views]
        missing = list(dict.fromkeys(key for key in keys if key is not None and key not in self._crops))
        if advance is not None:
            advance(len(views) - len(missing))
        self._score_crops(missing, advance)
        return [
            self.get_baseline(query_id) if key is None else self._crops[key]
            for key, (query_id, _) in zip(keys, views, strict=True)
        ]

    def _to_key(self, query_id: str, box: Box | None) -> _Key | None:
        if query_id not in self._pools:
            raise KeyError(f"query {query_id} has no pool")
        if box is None:
            return None
        query = self._queries[query_id]
        box_px = box_to_px(box, query.width_px, query.height_px)
        return None if box_px == (0, 0, query.width_px, query.height_px) else (query_id, box_px)

    def _score_crops(self, keys: Sequence[_Key], advance: Advance | None) -> None:
        groups: dict[str, list[_Key]] = {}
        for key in sorted(keys):
            groups.setdefault(self._queries[key[0]].image_path, []).append(key)
        tasks = [PictureTask(len(group), partial(self._cut, group)) for group in groups.values()]
        stream = encode_in_stream(self._encoder, tasks, batch_size=self._batch_size)
        for group, views_ND in zip(groups.values(), stream, strict=True):
            self._num_encoded += len(group)
            self._keep(group, views_ND)
            if advance is not None:
                advance(len(group))

    def _cut(self, keys: Sequence[_Key]) -> list[Image.Image]:
        side_px = self._encoder.input_size_px
        cuts = []
        for query_id, box_px in keys:
            query = self._queries[query_id]
            image = self._load_checked(query)
            cuts.append(crop_view(image, _to_box(box_px, query), (side_px, side_px)))
        return cuts

    def _load_checked(self, query: Query) -> Image.Image:
        image = self._pictures.load(query.image_path)
        if image.size != (query.width_px, query.height_px):
            found = f"{image.width} x {image.height}"
            raise DataError(
                f"is {found}, but prepare found {query.width_px} x {query.height_px}; run prepare again",
                path=query.image_path,
            )
        return image

    def _keep(self, keys: Sequence[_Key], views_ND: F32) -> None:
        for query_id in dict.fromkeys(key[0] for key in keys):
            rows = [row for row, key in enumerate(keys) if key[0] == query_id]
            views = rank_views(views_ND[rows], self._pools[query_id], self._documents)
            self._crops |= {keys[row]: view for row, view in zip(rows, views, strict=True)}


def load_asked(workspace: Workspace) -> list[Query]:
    """Return the queries that have a pool, of all splits: those whose pictures policies will be shown.

    Raises:
        StageError: prepare or retrieve has not run.
    """
    ids = {pool.query_id for pool in load_pools(workspace.pools_dir / "pools.parquet")}
    return [query for query in load_queries(workspace.tables_dir / "queries.parquet") if query.query_id in ids]


def rank_views(views_ND: F32, pool: Pool, documents: DocumentVectors) -> list[ScoredView]:
    """Return how each of N encoded views of one query ranks its pool."""
    scores_NK = score_candidates(views_ND, documents.get_vectors(pool.doc_ids))
    return [
        ScoredView(compute_outcome(scores_K, pool.relevance, pool.num_relevant), _freeze(scores_K.copy()))
        for scores_K in scores_NK
    ]


def _open_index(workspace: Workspace, encoder_digest: str) -> DocumentIndex:
    index = load_index(workspace.index_dir, encoder_digest)
    index.check_table(workspace.tables_dir / "documents.parquet")
    check_pools_meta(workspace.pools_dir, encoder_digest, index)
    return index


def check_pools_meta(pools_dir: Path, encoder_digest: str, index: DocumentIndex) -> None:
    """Refuse pools that were made with another encoder or other documents than these.

    Raises:
        StageError: they were, or retrieve has not run.
    """
    meta = read_json(pools_dir / "meta.json", stage="retrieve")
    found = (meta.get("encoder_digest"), meta.get("documents_sha256"))
    if found != (encoder_digest, index.documents_sha256):
        raise StageError(f"{pools_dir} was made with another encoder or other documents; run retrieve again")


class _PictureCache:
    """Keeps the pictures used last, up to a number of pixels; safe to ask from several threads."""

    def __init__(self, pictures: PictureFolder, max_pixels: int = _CACHED_PIXELS) -> None:
        self._folder = pictures
        self._max_pixels = max_pixels
        self._pictures: OrderedDict[str, Image.Image] = OrderedDict()
        self._num_pixels = 0
        self._lock = Lock()

    def load(self, image_path: str) -> Image.Image:
        with self._lock:
            if image_path in self._pictures:
                self._pictures.move_to_end(image_path)
                return self._pictures[image_path]
        image = self._folder.load(image_path)
        with self._lock:
            if image_path not in self._pictures:
                self._pictures[image_path] = image
                self._num_pixels += image.width * image.height
            while self._num_pixels > self._max_pixels and len(self._pictures) > 1:
                _, dropped = self._pictures.popitem(last=False)
                self._num_pixels -= dropped.width * dropped.height
        return image


def _to_box(box_px: _PixelBox, query: Query) -> Box:
    left, top, right, bottom = box_px
    return Box(left / query.width_px, top / query.height_px, right / query.width_px, bottom / query.height_px)


def _freeze(scores_K: F32) -> F32:
    scores_K.setflags(write=False)
    return scores_K
