"""A second frozen scorer for pools that another one retrieved: does a crop help only the scorer it was learned with?

The candidates stay; the second encoder embeds the documents that occur in the pools, the full images, and whatever
crops it is asked about. Nothing is trained and nothing is kept on disk.

Shapes: N rows, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from pipeline.config import Params
from pipeline.errors import StageError
from pipeline.files.images import PictureFolder
from pipeline.files.store import load_documents
from pipeline.process.progress import track
from pipeline.reranking.scorer import FrozenScorer, ScoredView, rank_views
from pipeline.retrieval.encoder import Encoder, PictureTask, encode_in_stream, load_encoder
from pipeline.retrieval.index import DocumentVectors, embed_documents
from pipeline.retrieval.views import ViewEncoder
from pipeline.types import Pool, Query
from pipeline.workspace import Workspace


def load_transfer_scorer(
    path: str, params: Params, workspace: Workspace, queries: Sequence[Query], pools: Sequence[Pool]
) -> tuple[FrozenScorer, str]:
    """Return the scorer that `path` names, ready to score views of these queries, and its model family.

    Args:
        path: model folder.
        params: batches, device and dtype of the first scorer serve the second; leave to run code does not.
        workspace: where tables and pictures lie.
        queries: those whose views it will score.
        pools: their candidates, aligned.

    Raises:
        ModelError: the encoder cannot be loaded.
        StageError: a candidate is in no table; prepare ran after retrieve.
        DataError: a picture cannot be read.
    """
    own = params.scorer.model_copy(update={"path": path, "trust_remote_code": False, "revision": None})
    encoder = load_encoder(own, params.batches.scorer)
    pictures = PictureFolder(workspace.data_dir, params.data.max_image_pixels)
    batch_size = params.batches.scorer
    documents = _embed_candidates(encoder, workspace, pools, pictures, batch_size)
    scorer = FrozenScorer(
        ViewEncoder(encoder, {query.query_id: query for query in queries}, pictures, batch_size),
        documents,
        pools={pool.query_id: pool for pool in pools},
        baseline=_rank_full_images(encoder, documents, queries, pools, pictures, batch_size),
    )
    return scorer, encoder.model_type


def _embed_candidates(
    encoder: Encoder, workspace: Workspace, pools: Sequence[Pool], pictures: PictureFolder, batch_size: int
) -> DocumentVectors:
    wanted = {doc_id for pool in pools for doc_id in pool.doc_ids}
    path = workspace.tables_dir / "documents.parquet"
    documents = [document for document in load_documents(path) if document.doc_id in wanted]
    missing = wanted - {document.doc_id for document in documents}
    if missing:
        raise StageError(f"{path} lacks {len(missing)} candidates (first: {min(missing)}); run retrieve again")
    with track("transfer: documents", len(documents)) as advance:
        vectors_ND = embed_documents(encoder, documents, pictures, batch_size, advance)
    return DocumentVectors(vectors_ND, [document.doc_id for document in documents])


def _rank_full_images(
    encoder: Encoder,
    documents: DocumentVectors,
    queries: Sequence[Query],
    pools: Sequence[Pool],
    pictures: PictureFolder,
    batch_size: int,
) -> dict[str, ScoredView]:
    tasks = (
        PictureTask(1, partial(pictures.load_squashed, [query.image_path], encoder.input_size_px)) for query in queries
    )
    with track("transfer: full images", len(queries)) as advance:
        ranked = {}
        for pool, view_1D in zip(pools, encode_in_stream(encoder, tasks, batch_size=batch_size), strict=True):
            ranked[pool.query_id] = rank_views(view_1D, pool, documents)[0]
            advance(1)
    return ranked
