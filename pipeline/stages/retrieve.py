"""Stage retrieve: the K best candidates of every query by its full image, and how the full image ranks them.

Shapes: Q queries, K candidates, D dimensions.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from pipeline.config import Params
from pipeline.core.metrics import compute_hit_at
from pipeline.core.ranking import compute_outcome
from pipeline.errors import StageError
from pipeline.files.images import PictureFolder
from pipeline.files.store import (
    create_vectors,
    load_qrels,
    load_queries,
    replace_dir,
    save_ids,
    save_outcomes,
    save_pools,
    write_json,
)
from pipeline.process.progress import track
from pipeline.retrieval.encoder import F32, Encoder, PictureTask, encode_in_stream, load_encoder
from pipeline.retrieval.index import DocumentIndex, load_index, score_candidates
from pipeline.retrieval.relevance import collect_relevant
from pipeline.runs.tracking import StageRun
from pipeline.types import Outcome, Pool, Query, Split
from pipeline.workspace import Workspace

logger = logging.getLogger(__name__)

_CUTOFFS: Final = (1, 5, 10, 20)
_REPORTED_SPLITS: Final[tuple[Split, ...]] = ("val", "test")
_SEARCH_BATCH: Final = 512


def run(params: Params, workspace: Workspace, run: StageRun) -> dict[str, float]:
    """Write `pools_dir`: pools of all splits, baseline outcomes, query vectors and what they were made with.

    A training pool without a positive teaches nothing. It is dropped (paper section 3), or with `retrieve.train_pools:
    inject` its last candidate gives way to the positive that the full image likes best. Val and test pools stay as they
    were found.

    Raises:
        StageError: prepare or index has not run, the index is stale, or no training pool holds a positive.
        ConfigError: `retrieve.pool_size` exceeds the corpus.
        DataError: a picture cannot be read.
    """
    queries = load_queries(workspace.tables_dir / "queries.parquet")
    qrels = load_qrels(workspace.tables_dir / "qrels.parquet")
    encoder = load_encoder(params.scorer, params.batches.scorer)
    index = load_index(workspace.index_dir, encoder.digest)
    index.check_table(workspace.tables_dir / "documents.parquet")
    index.check_pool_size(params.retrieve.pool_size)
    pictures = PictureFolder(workspace.data_dir, params.data.max_image_pixels)
    with replace_dir(workspace.pools_dir) as folder:
        vectors_QD = _embed_queries(encoder, queries, pictures, folder, params.batches.scorer)
        relevant = collect_relevant(qrels)
        found = list(_retrieve(index, queries, vectors_QD, relevant, params.retrieve.pool_size))
        num_without = sum(_teaches_nothing(pool) for pool in found)
        if params.retrieve.train_pools == "inject":
            found = list(_inject(found, index, vectors_QD, relevant))
        pools = [pool for pool in found if not _teaches_nothing(pool)]
        num_dropped = len(found) - len(pools)
        num_injected = num_without - num_dropped
        logger.info(
            "retrieve: %d training queries had no positive in their pool: %d were given one, %d dropped",
            num_without,
            num_injected,
            num_dropped,
        )
        if not any(pool.split == "train" for pool in pools):
            raise StageError(_explain_no_training(num_dropped, params.retrieve.pool_size))
        baseline = {pool.query_id: compute_outcome(pool.scores, pool.relevance, pool.num_relevant) for pool in pools}
        save_pools(folder / "pools.parquet", pools)
        save_outcomes(folder / "baseline.parquet", baseline)
        meta = {
            "encoder_digest": encoder.digest,
            "documents_sha256": index.documents_sha256,
            "pool_size": params.retrieve.pool_size,
        }
        write_json(folder / "meta.json", meta)
    return {
        "num_pools": float(len(pools)),
        "num_train_pools": float(sum(pool.split == "train" for pool in pools)),
        "num_train_dropped": float(num_dropped),
        "num_train_injected": float(num_injected),
        **_summarise(pools, baseline, params.retrieve.pool_size),
    }


def _embed_queries(
    encoder: Encoder, queries: Sequence[Query], pictures: PictureFolder, folder: Path, batch_size: int
) -> F32:
    vectors_QD = create_vectors(folder / "query_vectors.npy", (len(queries), encoder.dim))
    tasks = (
        PictureTask(1, partial(pictures.load_squashed, [query.image_path], encoder.input_size_px)) for query in queries
    )
    with track("retrieve: queries", len(queries)) as advance:
        for row, vector_1D in enumerate(encode_in_stream(encoder, tasks, batch_size=batch_size)):
            vectors_QD[row] = vector_1D[0]
            advance(1)
    save_ids(folder / "query_ids.parquet", [query.query_id for query in queries])
    return vectors_QD


def _retrieve(
    index: DocumentIndex,
    queries: Sequence[Query],
    vectors_QD: F32,
    relevant: Mapping[str, frozenset[str]],
    pool_size: int,
) -> Iterator[Pool]:
    for start in range(0, len(queries), _SEARCH_BATCH):
        part = queries[start : start + _SEARCH_BATCH]
        scores_QK, rows_QK = index.search(vectors_QD[start : start + _SEARCH_BATCH], pool_size)
        for query, scores_K, rows_K in zip(part, scores_QK, rows_QK, strict=True):
            doc_ids = tuple(index.doc_ids[row] for row in rows_K)
            answers = relevant.get(query.query_id, frozenset())
            yield Pool(
                query_id=query.query_id,
                split=query.split,
                doc_ids=doc_ids,
                scores=tuple(float(score) for score in scores_K),
                relevance=tuple(doc_id in answers for doc_id in doc_ids),
                num_relevant=len(answers),
            )


def _teaches_nothing(pool: Pool) -> bool:
    """Return whether a pool is for training and no view could rank a positive in it."""
    return pool.split == "train" and not pool.has_positive


def _explain_no_training(num_dropped: int, pool_size: int) -> str:
    """Return why no training pool is left; advice on pools is for those who have some."""
    if num_dropped == 0:
        return "the tables hold no training queries; put some into the data and run prepare again"
    return (
        f"none of the {num_dropped} training queries has a positive among its {pool_size} candidates; raise "
        "retrieve.pool_size, set retrieve.train_pools to inject, or take a stronger scorer"
    )


def _inject(
    pools: Sequence[Pool], index: DocumentIndex, vectors_QD: F32, relevant: Mapping[str, frozenset[str]]
) -> Iterator[Pool]:
    """Put a positive in the last place of every training pool that lacks one; the rest, and its order, stay.

    Of several positives it is the one that the full image scores highest, of equals the first by id. The search did not
    find it, so it scores no higher than those it found: the full image ranks it last, which is kinder than the truth.
    A query to which no document is relevant stays as it was.

    Args:
        pools: one per query, as found.
        index: holds the documents' vectors.
        vectors_QD: the full images' vectors, aligned with `pools`.
        relevant: query id -> relevant document ids.
    """
    for pool, vector_D in zip(pools, vectors_QD, strict=True):
        answers = sorted(relevant.get(pool.query_id, ()))
        if not answers or not _teaches_nothing(pool):
            yield pool
            continue
        (scores_A,) = score_candidates(vector_D[None], index.get_vectors(answers))
        best = int(scores_A.argmax())
        # FAISS sums in float32, so among near equals it may leave out the higher one by our float64.
        score = min(float(scores_A[best]), pool.scores[-2])
        yield replace(
            pool,
            doc_ids=(*pool.doc_ids[:-1], answers[best]),
            scores=(*pool.scores[:-1], score),
            relevance=(*pool.relevance[:-1], True),
        )


def _summarise(pools: Sequence[Pool], baseline: Mapping[str, Outcome], pool_size: int) -> dict[str, float]:
    """Return recall and MRR of the full image; a split without queries has none."""
    figures: dict[str, float] = {}
    for split in _REPORTED_SPLITS:
        outcomes = [baseline[pool.query_id] for pool in pools if pool.split == split]
        if not outcomes:
            continue
        figures[f"{split}_mrr"] = sum(outcome.reciprocal_rank for outcome in outcomes) / len(outcomes)
        for cutoff in _CUTOFFS:
            if cutoff <= pool_size:
                hits = sum(compute_hit_at(outcome.first_rank, cutoff) for outcome in outcomes)
                figures[f"{split}_recall_at_{cutoff}"] = hits / len(outcomes)
    return figures
