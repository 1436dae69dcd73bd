"""Whose answers to what lie in `answers/`: what the stage answer notes, and evaluate holds against the present."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.files.store import read_json, write_json
from pipeline.types import Query


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswersMeta:
    """What answers/meta.json holds.

    Attributes:
        base_digest: of the base policy's folder.
        sft_digest: of the policy's after SFT.
        policy_digest: of the policy's after r-GRPO.
        queries_sha256: hash of the queries asked, see `hash_queries`.
        num_samples: regions drawn for each query that the greedy answer crops.
    """

    base_digest: str
    sft_digest: str
    policy_digest: str
    queries_sha256: str
    num_samples: int


def save_meta(folder: Path, meta: AnswersMeta) -> None:
    """Write meta.json into an answers folder."""
    write_json(folder / "meta.json", asdict(meta))


def load_meta(folder: Path) -> AnswersMeta:
    """Read meta.json of an answers folder.

    Raises:
        StageError: answer has not run.
    """
    return AnswersMeta(**read_json(folder / "meta.json", stage="answer"))


def hash_queries(queries: Sequence[Query]) -> str:
    """Return the hash that names what is asked: ids, splits, questions, pictures' places and sizes, in order."""
    content = [[q.query_id, q.split, q.question, q.image_path, q.width_px, q.height_px] for q in queries]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
