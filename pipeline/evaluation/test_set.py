"""The test queries with their pools: what evaluate and the ablations are measured on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from pipeline.errors import StageError
from pipeline.store import load_pools, load_queries
from pipeline.types import Pool, Query
from pipeline.workspace import Workspace


def load_test_set(workspace: Workspace) -> tuple[list[Query], list[Pool]]:
    """Return the test queries and their pools, aligned.

    Raises:
        StageError: there is none, or retrieve left a query without a pool.
    """
    queries = [q for q in load_queries(workspace.tables_dir / "queries.parquet") if q.split == "test"]
    by_id = {pool.query_id: pool for pool in load_pools(workspace.pools_dir / "pools.parquet")}
    missing = [query.query_id for query in queries if query.query_id not in by_id]
    if missing:
        raise StageError(f"{len(missing)} test queries have no pool (first: {missing[0]}); run retrieve again")
    if not queries:
        raise StageError("there is no query with split `test` to evaluate on; add some to the data")
    return queries, [by_id[query.query_id] for query in queries]


def hash_pools(pools: Sequence[Pool]) -> str:
    """Return the hash that names the test pools: queries, candidates and their relevance."""
    content = [[pool.query_id, pool.doc_ids, pool.relevance, pool.num_relevant] for pool in pools]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
