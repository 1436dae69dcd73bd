"""The queries of a split with their pools: what evaluate and the ablations are measured on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.errors import StageError
from pipeline.evaluation.methods import QuerySet
from pipeline.files.store import load_pools, load_queries
from pipeline.types import Pool, Query, Split
from pipeline.workspace import Workspace


def load_query_set(workspace: Workspace, split: Split) -> QuerySet:
    """Return the queries of a split and their pools.

    Raises:
        StageError: retrieve left a query without a pool, or there is no test query.
    """
    queries = [q for q in load_queries(workspace.tables_dir / "queries.parquet") if q.split == split]
    by_id = {pool.query_id: pool for pool in load_pools(workspace.pools_dir / "pools.parquet")}
    missing = [query.query_id for query in queries if query.query_id not in by_id]
    if missing:
        raise StageError(f"{len(missing)} {split} queries have no pool (first: {missing[0]}); run retrieve again")
    if split == "test" and not queries:
        raise StageError("there is no query with split `test` to evaluate on; add some to the data")
    return QuerySet(queries, [by_id[query.query_id] for query in queries])


def number_pictures(queries: Sequence[Query]) -> npt.NDArray[np.int64]:
    """Return (Q,) the picture of each query as a number: what intervals draw whole (docs/method.md, D22).

    `prepare` gives one path to pictures of the same bytes, so the path is the picture.
    """
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(query.image_path, len(numbers)) for query in queries], dtype=np.int64)


def hash_pools(pools: Sequence[Pool]) -> str:
    """Return the hash that names the pools of a split: queries, candidates and their relevance."""
    content = [[pool.query_id, pool.doc_ids, pool.relevance, pool.num_relevant] for pool in pools]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
