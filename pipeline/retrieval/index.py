"""The document index: every document's vector, memory-mapped, and FAISS over them.

It is built in shards that survive a kill.

Shapes: N documents, Q queries, K hits, D dimensions.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final, cast

import faiss
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, DataError, StageError
from pipeline.files.images import PictureFolder
from pipeline.files.store import (
    create_vectors,
    load_ids,
    read_json,
    replace_dir,
    replace_file,
    save_ids,
    write_json,
)
from pipeline.process.progress import Advance
from pipeline.retrieval.encoder import F32, Encoder, PictureTask, encode_in_stream, fuse, normalise
from pipeline.retrieval.imported_pictures import ImportedPictures
from pipeline.types import Document

SHARD_SIZE: Final = 512
"""Documents whose work a kill can cost."""


@dataclass(frozen=True, slots=True)
class BuildFigures:
    """What building took."""

    num_documents: int
    num_resumed: int
    num_images: int
    seconds: float


class DocumentVectors:
    """One vector per document, found by the document's id."""

    def __init__(self, vectors_ND: F32, doc_ids: Sequence[str]) -> None:
        self.vectors_ND = vectors_ND
        self.doc_ids = doc_ids
        self._row_of = {doc_id: row for row, doc_id in enumerate(doc_ids)}

    def __len__(self) -> int:
        return len(self.doc_ids)

    def get_vectors(self, doc_ids: Sequence[str]) -> F32:
        """Return (K, D) vectors of these documents.

        Raises:
            StageError: a document is not in the index.
        """
        return np.asarray(self.vectors_ND[self.find_rows(doc_ids)])

    def find_rows(self, doc_ids: Sequence[str]) -> NDArray[np.int64]:
        """Return (K,) rows of these documents.

        Raises:
            StageError: a document is not in the index.
        """
        try:
            return np.array([self._row_of[doc_id] for doc_id in doc_ids], dtype=np.int64)
        except KeyError as error:
            raise StageError(f"document {error.args[0]} is not in the index; run retrieve again") from error


class DocumentIndex(DocumentVectors):
    """A finished index: vectors stay on disk, the FAISS index is read when the first search comes."""

    def __init__(self, folder: Path, vectors_ND: F32, doc_ids: Sequence[str], meta: Mapping[str, Any]) -> None:
        super().__init__(vectors_ND, doc_ids)
        self._folder = folder
        self.documents_sha256: str = meta["documents_sha256"]
        self._table_sha256: str | None = meta.get("table_sha256")

    def check_table(self, documents_path: Path) -> None:
        """Refuse a table of documents that prepare has written since.

        Raises:
            StageError: it has, or has not run.
        """
        if not documents_path.is_file():
            raise StageError(f"{documents_path} is missing; run prepare first")
        if hash_file(documents_path) != self._table_sha256:
            raise StageError(f"{self._folder} was made of other documents than {documents_path} holds; run index again")

    def check_pool_size(self, k: int) -> None:
        """Refuse pools larger than the corpus.

        Raises:
            ConfigError: there are fewer than K documents.
        """
        if k > len(self):
            raise ConfigError(f"retrieve.pool_size is {k}, but the corpus has {len(self)} documents; lower it")

    def search(self, queries_QD: F32, k: int) -> tuple[F32, NDArray[np.int64]]:
        """Return cosines and rows, (Q, K) each, of the K nearest documents, best first; ties by row.

        Raises:
            ConfigError: there are fewer than K documents.
        """
        self.check_pool_size(k)
        _, found_QK = self._faiss.search(np.ascontiguousarray(queries_QD, dtype=np.float32), k)
        rows_QK: NDArray[np.int64] = np.sort(found_QK, axis=1)
        scores_QK = np.empty(rows_QK.shape, dtype=np.float32)
        for scores_K, query_D, rows_K in zip(scores_QK, queries_QD, rows_QK, strict=True):
            scores_K[:] = score_candidates(query_D[None], self.vectors_ND[rows_K])[0]
        order_QK = np.argsort(-scores_QK, axis=1, kind="stable")
        return np.take_along_axis(scores_QK, order_QK, 1), np.take_along_axis(rows_QK, order_QK, 1)

    @cached_property
    def _faiss(self) -> faiss.Index:
        return faiss.read_index(os.fspath(self._folder / "index.faiss"))


def score_candidates(views_ND: F32, candidates_KD: F32) -> F32:
    """Return the cosine of each view with each candidate, (N, K).

    Sums run in float64, so that a score does not depend on what else was scored with it.
    """
    scores_NK = views_ND.astype(np.float64) @ candidates_KD.astype(np.float64).T
    return scores_NK.astype(np.float32)


def build_index(
    encoder: Encoder,
    documents: Sequence[Document],
    pictures: PictureFolder,
    index_dir: Path,
    shards_dir: Path,
    *,
    table_sha256: str,
    batch_size: int,
    advance: Advance,
    imported: ImportedPictures | None = None,
    shard_size: int = SHARD_SIZE,
) -> BuildFigures:
    """Embed every document once and write `index_dir` in one step.

    Finished shards lie under `shards_dir`, named by encoder and content of their documents; a second call
    after a kill takes them and goes on. They are removed once the index stands.

    Args:
        encoder: the frozen encoder.
        documents: in the order that rows shall have.
        pictures: where the documents' pictures lie.
        index_dir: where the index goes.
        shards_dir: scratch folder that survives a kill; nothing else may lie in it.
        table_sha256: hash of the table that the documents come from, so that a newer table is noticed.
        batch_size: pictures that go through the encoder at once.
        advance: told how many documents are done.
        imported: picture vectors to take instead of embedding pictures.
        shard_size: documents to a shard.

    Raises:
        StageError: there are no documents.
        DataError: a picture cannot be read.
    """
    if not documents:
        raise StageError("there are no documents to index; run prepare on data that has some")
    started = time.monotonic()
    digests = _compute_digests(documents, pictures if imported is None else imported)
    shards: list[Path] = []
    num_resumed = num_images = 0
    for start in range(0, len(documents), shard_size):
        part = documents[start : start + shard_size]
        shard = shards_dir / f"{_compute_key(encoder.digest, *digests[start : start + shard_size])}.npy"
        if _is_whole(shard, (len(part), encoder.dim)):
            num_resumed += len(part)
            advance(len(part))
        else:
            if imported is None:
                _save_array(shard, embed_documents(encoder, part, pictures, batch_size, advance))
                num_images += sum(len(document.image_paths) for document in part)
            else:
                _save_array(shard, _fuse_imported(encoder, part, imported))
                advance(len(part))
        shards.append(shard)
    meta = {
        "encoder_digest": encoder.digest,
        "dim": encoder.dim,
        "count": len(documents),
        "documents_sha256": _compute_key(*digests),
        "table_sha256": table_sha256,
    }
    _write_index(index_dir, shards, [document.doc_id for document in documents], meta)
    shutil.rmtree(shards_dir)
    return BuildFigures(len(documents), num_resumed, num_images, time.monotonic() - started)


def load_index(index_dir: Path, encoder_digest: str) -> DocumentIndex:
    """Open an index and check that it is whole and was made by this encoder.

    Raises:
        StageError: the index stage has not run, or ran with another encoder, or its files disagree.
    """
    meta = read_json(index_dir / "meta.json", stage="index")
    if meta.get("encoder_digest") != encoder_digest:
        raise StageError(f"{index_dir} was made by another encoder than scorer.path names; run index again")
    doc_ids = load_ids(index_dir / "doc_ids.parquet", stage="index")
    vectors_ND = load_vectors(index_dir / "vectors.npy", stage="index")
    if vectors_ND.shape != (meta["count"], meta["dim"]) or len(doc_ids) != meta["count"]:
        raise StageError(f"{index_dir} is stale: its vectors and ids disagree with meta.json; run index again")
    return DocumentIndex(index_dir, vectors_ND, doc_ids, meta)


def load_vectors(path: Path, *, stage: str) -> F32:
    """Memory-map a (N, D) float32 array.

    Raises:
        StageError: it is missing or no such array; `stage` writes it.
    """
    try:
        vectors_ND = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise StageError(f"{path} is missing; run {stage} first") from error
    except (OSError, ValueError) as error:
        raise StageError(f"{path} is no whole array; run {stage} again") from error
    if vectors_ND.ndim != 2 or vectors_ND.dtype != np.float32:
        raise StageError(f"{path} is no table of float32 vectors; run {stage} again")
    return cast("F32", vectors_ND)


def embed_documents(
    encoder: Encoder,
    documents: Sequence[Document],
    pictures: PictureFolder,
    batch_size: int,
    advance: Advance,
) -> F32:
    """Return (N, D) vectors: a document's text and the mean of its pictures, fused; without pictures its text alone.

    An encoder without text ranks by the mean of the pictures; a document without any is a zero vector and scores 0.

    Raises:
        DataError: a picture cannot be read.
    """
    vectors_ND = _embed_texts(encoder, documents)
    illustrated = [row for row, document in enumerate(documents) if document.image_paths]
    advance(len(documents) - len(illustrated))
    tasks = [
        PictureTask(
            len(documents[row].image_paths),
            partial(pictures.load_squashed, documents[row].image_paths, encoder.input_size_px),
        )
        for row in illustrated
    ]
    for row, image_PD in zip(illustrated, encode_in_stream(encoder, tasks, batch_size=batch_size), strict=True):
        image_1D = normalise(image_PD.mean(axis=0, keepdims=True))
        vectors_ND[row] = fuse(image_1D, vectors_ND[row : row + 1])[0]
        advance(1)
    return vectors_ND


def _fuse_imported(encoder: Encoder, documents: Sequence[Document], imported: ImportedPictures) -> F32:
    vectors_ND = _embed_texts(encoder, documents)
    for row, document in enumerate(documents):
        image_PD = imported.get_vectors(document.doc_id)
        if len(image_PD):
            image_1D = normalise(image_PD.mean(axis=0, keepdims=True))
            vectors_ND[row] = fuse(image_1D, vectors_ND[row : row + 1])[0]
    return vectors_ND


def count_without_picture(documents: Sequence[Document], imported: ImportedPictures | None) -> int:
    """Return how many documents have neither a picture nor an imported vector of one."""
    if imported is None:
        return sum(not document.image_paths for document in documents)
    return sum(not len(imported.get_vectors(document.doc_id)) for document in documents)


def _embed_texts(encoder: Encoder, documents: Sequence[Document]) -> F32:
    return encoder.encode_texts([f"{document.title}. {document.text}" for document in documents])


def _write_index(index_dir: Path, shards: Sequence[Path], doc_ids: Sequence[str], meta: Mapping[str, Any]) -> None:
    with replace_dir(index_dir) as folder:
        shape = (meta["count"], meta["dim"])
        vectors_ND = create_vectors(folder / "vectors.npy", shape)
        flat = faiss.IndexFlatIP(meta["dim"])
        start = 0
        for shard in shards:
            part_ND = np.load(shard, allow_pickle=False)
            vectors_ND[start : start + len(part_ND)] = part_ND
            flat.add(part_ND)
            start += len(part_ND)
        faiss.write_index(flat, os.fspath(folder / "index.faiss"))
        save_ids(folder / "doc_ids.parquet", doc_ids)
        write_json(folder / "meta.json", meta)


def _compute_digests(documents: Sequence[Document], pictures: PictureFolder | ImportedPictures) -> list[str]:
    """Name each document by all that its vector depends on, the bytes of its pictures or their vectors included."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        return list(pool.map(partial(_compute_digest, pictures), documents))


def _compute_digest(pictures: PictureFolder | ImportedPictures, document: Document) -> str:
    if isinstance(pictures, ImportedPictures):
        contents = [hashlib.sha256(pictures.get_vectors(document.doc_id).tobytes()).hexdigest()]
    else:
        contents = [hash_file(pictures.root / image_path) for image_path in document.image_paths]
    return _compute_key(document.doc_id, document.title, document.text, *contents)


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=path) from error


def _compute_key(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _is_whole(shard: Path, shape: tuple[int, int]) -> bool:
    try:
        return cast("bool", np.load(shard, mmap_mode="r", allow_pickle=False).shape == shape)
    except (OSError, ValueError):
        return False


def _save_array(path: Path, array: F32) -> None:
    with replace_file(path) as partial_path:
        np.save(partial_path, array)
