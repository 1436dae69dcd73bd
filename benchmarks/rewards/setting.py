"""What is measured on: a small demo world, indexed and retrieved from by the pipeline's own stages.

Every document keeps one picture, so that a pool of K costs the naive reward K pictures and K texts and no more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from demo.drawing.materialise import materialise
from demo.drawing.world import build_world
from pipeline.config import Params
from pipeline.core.ranking import compute_outcome
from pipeline.errors import StageError
from pipeline.files.images import PictureFolder
from pipeline.files.store import load_documents, load_pools, load_qrels, load_queries
from pipeline.reranking.scorer import FrozenScorer, ScoredView
from pipeline.retrieval.encoder import Encoder, load_encoder, normalise
from pipeline.retrieval.index import DocumentVectors, load_index
from pipeline.retrieval.relevance import collect_relevant
from pipeline.retrieval.retrieved import FullImages
from pipeline.retrieval.search import SearchScorer
from pipeline.retrieval.views import ViewEncoder
from pipeline.runs.tracking import null_run
from pipeline.stages import index as index_stage
from pipeline.stages import prepare as prepare_stage
from pipeline.stages import retrieve as retrieve_stage
from pipeline.types import Decision, Document, Pool, Query
from pipeline.workspace import Workspace

_JPEG_QUALITY: Final = 92


@dataclass(frozen=True, kw_only=True, slots=True)
class Completions:
    """What is scored: one decision per completion, whole groups one after another."""

    query_ids: tuple[str, ...]
    decisions: tuple[Decision, ...]

    def __len__(self) -> int:
        return len(self.query_ids)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A world ready for scoring; scorers that it opens share weights and vectors, but no cache.

    Attributes:
        params: of the whole benchmark.
        encoder: the frozen encoder, loaded once.
        index: the documents' vectors.
        pools: query id -> K candidates, at least one of them relevant.
        full_images: the full images' vectors.
        relevant: query id -> documents that answer it.
    """

    params: Params
    encoder: Encoder
    index: DocumentVectors
    queries: Mapping[str, Query]
    documents: Mapping[str, Document]
    pools: Mapping[str, Pool]
    pictures: PictureFolder
    full_images: FullImages
    relevant: Mapping[str, frozenset[str]]

    @cached_property
    def questions(self) -> dict[str, str]:
        """Query id -> question of every query that has a pool."""
        return {query_id: self.queries[query_id].question for query_id in self.pools}

    def open_scorer(self) -> FrozenScorer:
        """Return a scorer that has seen nothing yet."""
        return FrozenScorer(
            ViewEncoder(self.encoder, self.queries, self.pictures, self.params.batches.scorer),
            self.index,
            pools=self.pools,
            baseline={
                query_id: ScoredView(
                    compute_outcome(pool.scores, pool.relevance, pool.num_relevant),
                    np.asarray(pool.scores, dtype=np.float32),
                )
                for query_id, pool in self.pools.items()
            },
        )

    def open_search_scorer(self) -> SearchScorer:
        """Return one that ranks the whole index, and has seen nothing yet."""
        views = ViewEncoder(self.encoder, self.queries, self.pictures, self.params.batches.scorer)
        return SearchScorer(views, self.index, self.full_images, self.relevant, self.params.reward.depth)

    def pad_index(self, num_documents: int) -> Setting:
        """Return the same setting with so many documents in the index: behind those drawn lie random directions."""
        num_more = num_documents - len(self.index)
        noise_ND = np.random.default_rng(self.params.seed).normal(size=(num_more, self.encoder.dim))
        vectors_ND = np.concatenate([self.index.vectors_ND, normalise(noise_ND.astype(np.float32))])
        doc_ids = [*self.index.doc_ids, *(f"noise-{number}" for number in range(num_more))]
        return replace(self, index=DocumentVectors(vectors_ND, doc_ids))

    def cut_pools(self, k: int) -> Setting:
        """Return the same setting with pools of the best K; queries whose positive is not among them drop out."""
        pools = {query_id: _cut_pool(pool, k) for query_id, pool in self.pools.items()}
        return replace(self, pools={query_id: pool for query_id, pool in pools.items() if pool.has_positive})

    def keep_queries(self, query_ids: Sequence[str]) -> Setting:
        """Return the same setting with the pools of these queries only."""
        return replace(self, pools={query_id: self.pools[query_id] for query_id in query_ids})

    def choose_queries(self, num_queries: int) -> list[str]:
        """Return the first queries by id.

        Raises:
            StageError: fewer have a positive in their pool.
        """
        found = list(islice(sorted(self.pools), num_queries))
        if len(found) < num_queries:
            raise StageError(f"the benchmark needs {num_queries} queries, {len(found)} have a positive in their pool")
        return found


def draw_world(workspace: Workspace, params: Params) -> None:
    """Draw the world that `params.demo` names, one picture a document; all is measured on training queries.

    One test query goes with them, since prepare takes no data without.
    """
    demo = params.demo
    world = build_world(demo.seed, demo.num_entities, demo.num_train, 0, 1, demo.close_up_share)
    documents = tuple(replace(spec, gallery=spec.gallery[:1]) for spec in world.documents)
    workspace.data_dir.parent.mkdir(parents=True, exist_ok=True)
    materialise(replace(world, documents=documents), workspace.data_dir)


def resize_world(source: Workspace, target: Workspace, side_px: int, query_ids: Sequence[str]) -> None:
    """Copy a world with every picture squashed to a square; of the training queries only those named."""
    for name in ("documents", "queries"):
        lines = (source.data_dir / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        kept = [row for row in rows if row.get("split") != "train" or row["query_id"] in query_ids]
        target.data_dir.mkdir(parents=True, exist_ok=True)
        text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in kept)
        (target.data_dir / f"{name}.jsonl").write_text(text, encoding="utf-8")
        for row in kept:
            for path in row["images"] if name == "documents" else [row["image"]]:
                _resize(source.data_dir / path, target.data_dir / path, side_px)


def run_stages(workspace: Workspace, params: Params) -> None:
    """Prepare, index and retrieve, as a run of the pipeline does."""
    for stage in (prepare_stage, index_stage, retrieve_stage):
        stage.run(params, workspace, null_run())


def load_setting(workspace: Workspace, params: Params) -> Setting:
    """Open what the stages wrote."""
    encoder = load_encoder(params.scorer, params.batches.scorer)
    tables_dir = workspace.tables_dir
    pools = load_pools(workspace.pools_dir / "pools.parquet")
    return Setting(
        params=params,
        encoder=encoder,
        index=load_index(workspace.index_dir, encoder.digest),
        queries={query.query_id: query for query in load_queries(tables_dir / "queries.parquet")},
        documents={document.doc_id: document for document in load_documents(tables_dir / "documents.parquet")},
        pools={pool.query_id: pool for pool in pools if pool.split == "train" and pool.has_positive},
        pictures=PictureFolder(workspace.data_dir, params.data.max_image_pixels),
        full_images=FullImages.load(workspace.pools_dir),
        relevant=collect_relevant(load_qrels(tables_dir / "qrels.parquet")),
    )


def _cut_pool(pool: Pool, k: int) -> Pool:
    return replace(pool, doc_ids=pool.doc_ids[:k], scores=pool.scores[:k], relevance=pool.relevance[:k])


def _resize(source: Path, target: Path, side_px: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(source) as image:
        resized = image.resize((side_px, side_px), Image.Resampling.BICUBIC)
    resized.save(target, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
