"""TREC run files and qrels: what any other evaluation tool can recompute the figures from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.types import Qrel, QueryResult


def save_run(path: Path, results: Sequence[QueryResult], tag: str) -> None:
    """Write `qid Q0 docid rank score tag` lines; a malformed answer has none and so counts 0.

    Tools order a run by score and break ties by document id. Ties here keep pool order, so the second of two
    equal scores is written one float32 step lower.
    """
    lines = []
    for row in results:
        above = np.float32(np.inf)
        for rank, (doc_id, score) in enumerate(zip(row.doc_ids, row.scores, strict=True), start=1):
            above = min(np.float32(score), np.nextafter(above, np.float32(-np.inf)))
            lines.append(f"{row.query_id} Q0 {doc_id} {rank} {float(above)!r} {tag}\n")
    path.write_text("".join(lines), encoding="utf-8")


def save_trec_qrels(path: Path, qrels: Sequence[Qrel]) -> None:
    """Write `qid 0 docid 1`, one line per relevant document."""
    path.write_text("".join(f"{qrel.query_id} 0 {qrel.doc_id} 1\n" for qrel in qrels), encoding="utf-8")
