"""What index and retrieve have written, opened and held against one another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.errors import StageError
from pipeline.files.store import load_ids, read_json
from pipeline.retrieval.encoder import F32
from pipeline.retrieval.index import DocumentIndex, load_index, load_vectors
from pipeline.workspace import Workspace


def open_index(workspace: Workspace, encoder_digest: str) -> DocumentIndex:
    """Return the index, if tables, index and pools are of one encoder and of the same documents.

    Raises:
        StageError: they are not, or a stage has not run.
    """
    index = load_index(workspace.index_dir, encoder_digest)
    index.check_table(workspace.tables_dir / "documents.parquet")
    meta = read_json(workspace.pools_dir / "meta.json", stage="retrieve")
    if (meta.get("encoder_digest"), meta.get("documents_sha256")) != (encoder_digest, index.documents_sha256):
        raise StageError(f"{workspace.pools_dir} was made with another encoder or other documents; run retrieve again")
    return index


class FullImages:
    """The full images' vectors, as retrieve has written them: none is embedded again.

    Args:
        vectors_QD: one row a query.
        query_ids: whose they are.
    """

    def __init__(self, vectors_QD: F32, query_ids: Sequence[str]) -> None:
        self._vectors_QD = vectors_QD
        self._row_of = {query_id: row for row, query_id in enumerate(query_ids)}

    @classmethod
    def load(cls, pools_dir: Path) -> FullImages:
        """Open what retrieve wrote; the vectors stay on disk.

        Raises:
            StageError: it has not run, or its files disagree.
        """
        query_ids = load_ids(pools_dir / "query_ids.parquet", stage="retrieve")
        vectors_QD = load_vectors(pools_dir / "query_vectors.npy", stage="retrieve")
        if len(vectors_QD) != len(query_ids):
            raise StageError(
                f"{pools_dir} has {len(vectors_QD)} vectors of {len(query_ids)} queries; run retrieve again"
            )
        return cls(vectors_QD, query_ids)

    def __contains__(self, query_id: str) -> bool:
        return query_id in self._row_of

    def get_vectors(self, query_ids: Sequence[str]) -> F32:
        """Return (N, D) vectors of the full images of these queries."""
        rows_N = np.array([self._row_of[query_id] for query_id in query_ids], dtype=np.int64)
        return np.asarray(self._vectors_QD[rows_N])
