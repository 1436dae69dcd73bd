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
from pipeline.core.boxes import box_to_px, compute_iou
from pipeline.core.ranking import compute_outcome
from pipeline.evaluation.search.rankings import Searcher
from pipeline.files.store import (
    load_documents,
    load_qrels,
    save_documents,
    save_pools,
    save_qrels,
    save_queries,
)
from pipeline.reranking import scorer as scorer_module
from pipeline.retrieval.encoder import F32
from pipeline.retrieval.index import DocumentVectors
from pipeline.retrieval.relevance import collect_relevant
from pipeline.retrieval.views import PixelBox, ViewKey
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
PARAMS = Params.model_validate(
    {
        "evaluate": {"num_resamples": 200},
        "search": {"scales": [0.4], "stride": 0.5},
        "retrieve": {"num_candidates": POOL_SIZE},
    }
)
WHOLE = Box(0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class FakeRanking:
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

    def score_views(self, views: Sequence[tuple[str, Box | None]]) -> list[FakeRanking]:
        return [self._score(query_id, box) for query_id, box in views]

    def _score(self, query_id: str, box: Box | None) -> FakeRanking:
        pool, target = self._pools[query_id], self._queries[query_id].target_box
        gain = 0.0 if target is None or box is None else compute_iou(box, target) - 0.2
        scores = np.array(pool.scores) + self._strength * gain * np.array(pool.relevance)
        return FakeRanking(compute_outcome(scores, pool.relevance, pool.num_relevant), scores)


_OUTSIDE = 0.15
"""Score of a document that the full image did not retrieve."""


class FakeViews:
    """Names crops and gives their vectors: a document's place in it holds its score, by the formula of `FakeScorer`.

    The full images' vectors come from here too.
    """

    def __init__(
        self, queries: Sequence[Query], pools: Sequence[Pool], qrels: Sequence[Qrel], doc_ids: Sequence[str]
    ) -> None:
        self._queries = {query.query_id: query for query in queries}
        self._doc_ids = doc_ids
        relevant = collect_relevant(qrels)
        self._answers = {query.query_id: np.isin(doc_ids, list(relevant[query.query_id])) for query in queries}
        scores = {pool.query_id: dict(zip(pool.doc_ids, pool.scores, strict=True)) for pool in pools}
        self._full = {
            query_id: np.array([of_pool.get(doc_id, _OUTSIDE) for doc_id in doc_ids])
            for query_id, of_pool in scores.items()
        }

    def name_crop(self, query_id: str, box: Box | None) -> ViewKey | None:
        return None if box is None or box == WHOLE else (query_id, box_to_px(box, 96, 64))

    def encode(self, keys: Sequence[ViewKey]) -> F32:
        return np.stack([self._score(*key) for key in keys]).astype(np.float32)

    def get_vectors(self, query_ids: Sequence[str]) -> F32:
        return np.stack([self._full[query_id] for query_id in query_ids]).astype(np.float32)

    def _score(self, query_id: str, box_px: PixelBox) -> Any:
        target = self._queries[query_id].target_box
        left, top, right, bottom = box_px
        box = Box(left / 96, top / 64, right / 96, bottom / 64)
        gain = 0.0 if target is None else compute_iou(box, target) - 0.2
        return self._full[query_id] + 0.5 * gain * self._answers[query_id]


class FakeIndex(DocumentVectors):
    """Documents that lie at right angles, so that a view's vector is the list of its scores."""

    def __init__(self, doc_ids: Sequence[str]) -> None:
        super().__init__(np.eye(len(doc_ids), dtype=np.float32), doc_ids)

    def search(self, queries_QD: F32, k: int) -> tuple[F32, Any]:
        rows_QK = np.argsort(-queries_QD, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(queries_QD, rows_QK, 1), rows_QK


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
    _plant_search(monkeypatch, workspace, _join(queries), _join(pools))
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
    answered = Box(0.0, 0.0, 0.15, 0.15) if i % 6 == 5 else target  # at times the policy looks away
    numbers = " ".join(str(value) for value in answered.as_tuple())
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


def _plant_search(
    monkeypatch: pytest.MonkeyPatch, workspace: Workspace, queries: Sequence[Query], pools: Sequence[Pool]
) -> None:
    """Let the real `Searcher` search among scores by formula."""
    doc_ids = [document.doc_id for document in load_documents(workspace.tables_dir / "documents.parquet")]
    qrels = load_qrels(workspace.tables_dir / "qrels.parquet")
    views: Any = FakeViews(queries, pools, qrels, doc_ids)
    index: Any = FakeIndex(doc_ids)

    def load(params: Params, *_others: object) -> Searcher:
        return Searcher(views, index, views, collect_relevant(qrels), params.retrieve.num_candidates)

    monkeypatch.setattr(Searcher, "load", load)


def _join(rows: dict[Split, list[Row]]) -> list[Row]:
    return [row for part in rows.values() for row in part]


def _draw(path: Path, box: Box, hue: int) -> None:
    image = Image.new("RGB", (96, 64), (225, 222, 214))
    colour = tuple(int(value) for value in np.random.default_rng(hue).integers(30, 220, size=3))
    edges = (box.x0 * 96, box.y0 * 64, box.x1 * 96, box.y1 * 64)
    ImageDraw.Draw(image).ellipse(edges, fill=colour)  # type: ignore[arg-type]
    image.save(path)
