"""A small evaluation on disk, with a scorer and policies that are formulas: no weights are needed."""

from __future__ import annotations

import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.config import Params
from pipeline.core.boxes import compute_iou
from pipeline.core.ranking import compute_outcome
from pipeline.files.store import save_documents, save_pools, save_qrels, save_queries
from pipeline.reranking import scorer as scorer_module
from pipeline.runs.tracking import null_run
from pipeline.stages import answer as answer_stage
from pipeline.stages import evaluate as evaluate_stage
from pipeline.types import (
    Box,
    Crop,
    Decision,
    Document,
    KeepFull,
    Malformed,
    Outcome,
    Pool,
    Qrel,
    Query,
    Split,
)
from pipeline.workspace import Workspace

Row = TypeVar("Row")

POOL_SIZE = 6
NUM_DOCUMENTS = 12
NUM_VAL = 10
PARAMS = Params.model_validate({"evaluate": {"num_resamples": 200}, "search": {"scales": [0.4], "stride": 0.5}})
WHOLE = Box(0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class FakeView:
    outcome: Outcome
    scores_K: Any


@dataclass(frozen=True)
class FakeAnswer:
    decision: Decision
    completion: str
    p_region: float


class FakeScorer:
    """The tighter a view frames the target, the better the positives score; `strength` says by how much."""

    def __init__(self, queries: Sequence[Query], pools: Sequence[Pool], *, strength: float = 0.5) -> None:
        self._strength = strength
        self._queries = {query.query_id: query for query in queries}
        self._pools = {pool.query_id: pool for pool in pools}

    def score_views(self, views: Sequence[tuple[str, Box | None]]) -> list[FakeView]:
        return [self._score(query_id, box) for query_id, box in views]

    def _score(self, query_id: str, box: Box | None) -> FakeView:
        pool, target = self._pools[query_id], self._queries[query_id].target_box
        gain = 0.0 if target is None or box is None else compute_iou(box, target) - 0.2
        scores = np.array(pool.scores) + self._strength * gain * np.array(pool.relevance)
        return FakeView(compute_outcome(scores, pool.relevance, pool.num_relevant), scores)


class FakePolicy:
    """Reads its answer from the question: `crop`, `keep` or anything else, which is malformed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen: list[Image.Image] = []

    def decide(
        self, images: Sequence[Image.Image], questions: Sequence[str], *, force_region: bool = False
    ) -> list[FakeAnswer]:
        if not force_region:
            self.seen += images
        return [self._answer(question, force_region=force_region) for question in questions]

    def sample_regions(
        self, images: Sequence[Image.Image], questions: Sequence[str], *, num_samples: int, seeds: Sequence[int]
    ) -> list[list[FakeAnswer]]:
        """The box in the question, moved a little further with each draw; every third draw is malformed."""
        return [[self._sample(question, number) for number in range(num_samples)] for question in questions]

    def _answer(self, question: str, *, force_region: bool) -> FakeAnswer:
        verb, *numbers = question.split()
        # It is surest where it has nothing to say: a bound on harm must cost crops.
        p_region = {"keep": 0.2, "crop": 0.9}.get(verb, 0.995)
        if not force_region and (verb == "keep" or "base" in self.name):
            return FakeAnswer(KeepFull(), "NO_CROP_NEEDED", p_region)
        if verb not in ("keep", "crop"):
            return FakeAnswer(Malformed("neither opening"), question, p_region)
        if verb == "keep":
            return FakeAnswer(Crop(Box(0.5, 0.5, 0.8, 0.8)), "forced", p_region)
        shift = 0.05 if "sft" in self.name else 0.0
        x0, y0, x1, y1 = (float(number) for number in numbers)
        return FakeAnswer(Crop(Box(x0, y0, x1 - shift, y1)), "crop", p_region)

    def _sample(self, question: str, number: int) -> FakeAnswer:
        if number % 3 == 2:
            return FakeAnswer(Malformed("box is empty"), "<tool_call>", 0.9)
        x0, y0, x1, y1 = (float(word) for word in question.split()[1:])
        shift = (number - 1) * 0.02 if x0 > 0.05 else 0.0
        return FakeAnswer(Crop(Box(x0 + shift, y0, min(1.0, x1 + shift), y1)), "sample", 0.9)


@dataclass(frozen=True)
class FakeWorld:
    """`queries` and `pools` are those of test."""

    workspace: Workspace
    queries: list[Query]
    pools: list[Pool]
    val_queries: list[Query]
    val_pools: list[Pool]
    policies: dict[str, FakePolicy]


def build_fake_world(
    folder: Path, monkeypatch: pytest.MonkeyPatch, num_queries: int = 24, num_val: int = NUM_VAL
) -> FakeWorld:
    """Write data and tables, and put formulas in the place of the scorer and the policies."""
    workspace = Workspace.at(folder)
    queries, pools = _write_world(workspace, {"test": num_queries, "val": num_val})
    for policy_dir in (workspace.sft_dir, workspace.policy_dir):
        policy_dir.mkdir(parents=True)
        (policy_dir / "config.json").write_text("{}")
    policies = _plant_formulas(monkeypatch, queries, pools)
    return FakeWorld(workspace, queries["test"], pools["test"], queries["val"], pools["val"], policies)


def ask_and_evaluate(params: Params, workspace: Workspace) -> dict[str, float]:
    """Run the stages answer and evaluate, and return the figures of the latter."""
    answer_stage.run(params, workspace, null_run())
    return evaluate_stage.run(params, workspace, null_run())


def _write_world(
    workspace: Workspace, sizes: dict[Split, int]
) -> tuple[dict[Split, list[Query]], dict[Split, list[Pool]]]:
    """Write pictures and tables of so many queries a split, and return the queries and their pools."""
    rng = np.random.default_rng(3)
    doc_ids = [f"d{i:02d}" for i in range(NUM_DOCUMENTS)]
    (workspace.data_dir / "images").mkdir(parents=True)
    for i, doc_id in enumerate(doc_ids):
        _draw(workspace.data_dir / f"images/{doc_id}.jpg", WHOLE, i)
    documents = [
        Document(
            doc_id=doc_id,
            title=f"The <b>{doc_id}</b>",
            text="An entry.",
            image_paths=() if doc_id == "d11" else (f"images/{doc_id}.jpg",),
        )
        for doc_id in doc_ids
    ]
    queries: dict[Split, list[Query]] = {split: [] for split in sizes}
    pools: dict[Split, list[Pool]] = {split: [] for split in sizes}
    qrels = []
    for split, size in sizes.items():
        for i in range(size):
            query = _invent_query(rng, split, i)
            _draw(workspace.data_dir / query.image_path, query.target_box or WHOLE, i % NUM_DOCUMENTS)
            pool, relevant = _invent_pool(rng, query, i, doc_ids)
            queries[split].append(query)
            pools[split].append(pool)
            qrels += [Qrel(query_id=query.query_id, doc_id=doc_id) for doc_id in relevant]
    save_queries(workspace.tables_dir / "queries.parquet", _join(queries))
    save_documents(workspace.tables_dir / "documents.parquet", documents)
    save_qrels(workspace.tables_dir / "qrels.parquet", qrels)
    save_pools(workspace.pools_dir / "pools.parquet", _join(pools))
    return queries, pools


def _invent_query(rng: np.random.Generator, split: Split, i: int) -> Query:
    query_id = f"{'q' if split == 'test' else 'v'}{i:02d}"
    x0, y0 = (float(value) for value in rng.uniform(0.05, 0.55, size=2))
    target = Box(x0, y0, x0 + 0.4, y0 + 0.4)
    said = Box(0.0, 0.0, 0.15, 0.15) if i % 6 == 5 else target  # at times the policy looks away
    numbers = " ".join(str(value) for value in said.as_tuple())
    return Query(
        query_id=query_id,
        split=split,
        question="nonsense" if i % 8 == 7 else "keep it" if i % 4 == 0 else f"crop {numbers}",
        image_path=f"images/{query_id}.jpg",
        width_px=96,
        height_px=64,
        target_box=target,
        tags={"scene": "clutter" if i % 2 else "close-up"},
    )


def _invent_pool(rng: np.random.Generator, query: Query, i: int, doc_ids: Sequence[str]) -> tuple[Pool, list[str]]:
    """Return a pool, and the relevant documents: those in it, or one outside where there is none."""
    candidates = tuple(str(d) for d in rng.permutation(doc_ids)[:POOL_SIZE])
    scores = np.sort(rng.uniform(0.2, 0.6, size=POOL_SIZE))[::-1]
    scores[3] = scores[2]  # a tie, as real pools have
    relevance = tuple(k == i % (POOL_SIZE + 1) for k in range(POOL_SIZE))
    positives = [doc for doc, yes in zip(candidates, relevance, strict=True) if yes]
    relevant = positives or [next(d for d in doc_ids if d not in candidates)]
    pool = Pool(
        query_id=query.query_id,
        split=query.split,
        doc_ids=candidates,
        scores=tuple(float(score) for score in scores),
        relevance=relevance,
        num_relevant=len(relevant),
    )
    return pool, relevant


def _plant_formulas(
    monkeypatch: pytest.MonkeyPatch, queries: dict[Split, list[Query]], pools: dict[Split, list[Pool]]
) -> dict[str, FakePolicy]:
    """Put formulas in the place of scorers and policies; the policies appear as they are loaded."""
    policies: dict[str, FakePolicy] = {}

    def load_policy(path: object, params: object, batch_size: int) -> FakePolicy:
        name = "base" if str(path) == PARAMS.policy.path else Path(str(path)).name
        return policies.setdefault(name, FakePolicy(name))

    # The served model opens its policy by the first, the stage answer by the second.
    for module, function in (("policy", "load_policy"), ("vllm_engine", "load_asked_policy")):
        fake_module = types.ModuleType(f"pipeline.policy.{module}")
        setattr(fake_module, function, load_policy)
        monkeypatch.setitem(sys.modules, fake_module.__name__, fake_module)
    all_queries, all_pools = _join(queries), _join(pools)
    first, second = FakeScorer(all_queries, all_pools), FakeScorer(all_queries, all_pools, strength=0.3)
    monkeypatch.setattr(scorer_module.FrozenScorer, "load", lambda *_args, **_options: first)
    monkeypatch.setattr(evaluate_stage, "load_transfer_scorer", lambda *_args: (second, "siglip"))
    return policies


def _join(rows: dict[Split, list[Row]]) -> list[Row]:
    return [row for part in rows.values() for row in part]


def _draw(path: Path, box: Box, hue: int) -> None:
    image = Image.new("RGB", (96, 64), (225, 222, 214))
    colour = tuple(int(value) for value in np.random.default_rng(hue).integers(30, 220, size=3))
    edges = (box.x0 * 96, box.y0 * 64, box.x1 * 96, box.y1 * 64)
    ImageDraw.Draw(image).ellipse(edges, fill=colour)  # type: ignore[arg-type]
    image.save(path)
