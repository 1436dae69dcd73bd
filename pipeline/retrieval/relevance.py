"""Which documents answer which query."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.types import Qrel


def collect_relevant(qrels: Sequence[Qrel]) -> dict[str, frozenset[str]]:
    """Return query id -> relevant document ids."""
    relevant: dict[str, set[str]] = {}
    for qrel in qrels:
        relevant.setdefault(qrel.query_id, set()).add(qrel.doc_id)
    return {query_id: frozenset(doc_ids) for query_id, doc_ids in relevant.items()}
