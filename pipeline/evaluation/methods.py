"""The methods compared: each turns test queries into decisions, and those into rankings of one pool each.

full         the whole image: the baseline that re-ranking starts from.
centre       the middle crop of half the width and half the height, whatever the picture shows.
random       one seeded crop a query, its side between the smallest and largest scale of region search.
base         the vision-language model before any training here.
sft, rgrpo   the policy after warm-up, and after r-GRPO.
rgrpo_blind  the same policy asked about a grey picture; what it still gains, it gains without looking.
oracle       the best view that region search finds with the relevance known: a ceiling, no competitor.

A malformed answer is a miss: no ranking, reciprocal rank 0. It is never scored as the full image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.config import Params, SearchParams
from pipeline.core.boxes import compute_iou
from pipeline.core.ranking import rank_candidates
from pipeline.core.region_search import build_grid, refine_boxes
from pipeline.core.seeds import derive_seed
from pipeline.images import load_upright
from pipeline.progress import track
from pipeline.types import Box, Crop, Decision, KeepFull, Malformed, Outcome, Pool, Query, QueryResult

METHODS = ("full", "centre", "random", "base", "sft", "rgrpo", "rgrpo_blind", "oracle")
CENTRE_BOX = Box(0.25, 0.25, 0.75, 0.75)
GREY = (128, 128, 128)
_ORACLE_CHUNK = 16
Said = TypeVar("Said")


class View(Protocol):
    """How one view ranks its pool."""

    @property
    def outcome(self) -> Outcome:
        """Ranks, NDCG and margin."""

    @property
    def scores_K(self) -> npt.NDArray[np.floating]:
        """Cosine with each candidate, in pool order."""


class Scorer(Protocol):
    """The part of the frozen scorer that evaluation needs."""

    def score_views(self, views: Sequence[tuple[str, Box | None]]) -> Sequence[View]:
        """Score each (query, box) against the query's pool; no box means the full image."""


class Answer(Protocol):
    """What a policy says about one query."""

    @property
    def decision(self) -> Decision:
        """What the completion says."""

    @property
    def completion(self) -> str:
        """The text as generated."""

    @property
    def p_region(self) -> float:
        """Probability that the policy, unforced, opens a region."""


class DecidingPolicy(Protocol):
    """The part of a policy that evaluation needs."""

    def decide(
        self, images: Sequence[Image.Image], questions: Sequence[str], *, force_region: bool = False
    ) -> Sequence[Answer]:
        """Answer each question about its image, with a region whatever it thinks where that is forced."""

    def sample_regions(
        self, images: Sequence[Image.Image], questions: Sequence[str], *, num_samples: int, seeds: Sequence[int]
    ) -> Sequence[Sequence[Answer]]:
        """Draw several answers to each question, REGION forced, at temperature 1; each question has its seed."""


Choice = tuple[Decision, str | None]


@dataclass(frozen=True, slots=True)
class QuerySet:
    """The queries of one split and their pools, aligned."""

    queries: Sequence[Query]
    pools: Sequence[Pool]


def choose_full(queries: Sequence[Query]) -> list[Choice]:
    """Keep every image."""
    return [(KeepFull(), None) for _ in queries]


def choose_centre(queries: Sequence[Query]) -> list[Choice]:
    """Crop the middle of every image."""
    return [(Crop(CENTRE_BOX), None) for _ in queries]


def choose_random(queries: Sequence[Query], search: SearchParams, seed: int) -> list[Choice]:
    """Crop a square (in fractions) of random side and place, set by seed and query id alone."""
    return [(Crop(_draw_box(query.query_id, search, seed)), None) for query in queries]


def ask_policy(
    policy: DecidingPolicy,
    queries: Sequence[Query],
    data_dir: Path,
    params: Params,
    *,
    name: str,
    blind: bool = False,
) -> list[Choice]:
    """Let a policy decide about every query, in table order and batches of `batches.policy`.

    Args:
        policy: the policy asked.
        queries: what it is asked.
        data_dir: where the images lie.
        params: batch size and the limit on image sizes.
        name: method name, for the progress lines.
        blind: show a grey picture of the image's size instead of the image.
    """
    answers = ask_in_batches(policy.decide, queries, data_dir, params, name=name, blind=blind)
    return [(answer.decision, answer.completion) for answer in answers]


def ask_in_batches(
    ask: Callable[..., Sequence[Said]],
    queries: Sequence[Query],
    data_dir: Path,
    params: Params,
    *,
    name: str,
    blind: bool = False,
    seeds: Sequence[int] | None = None,
) -> list[Said]:
    """Return what `ask` says about every query; few pictures are in memory at once. Arguments as for `ask_policy`.

    A policy that draws lots is told the seeds of its queries, one each, as `seeds`.
    """
    said: list[Said] = []
    size = params.batches.policy
    with track(f"evaluate: {name}", len(queries)) as advance:
        for start in range(0, len(queries), size):
            batch = queries[start : start + size]
            images = [_open(query, data_dir, params, blind=blind) for query in batch]
            lots = {} if seeds is None else {"seeds": seeds[start : start + size]}
            said += ask(images, [query.question for query in batch], **lots)
            advance(len(batch))
    return said


def search_oracle(scorer: Scorer, pools: Sequence[Pool], search: SearchParams) -> list[Choice]:
    """Find each pool's best view with its relevance known: the grid, then neighbours of the best crop so far.

    Views are compared by reciprocal rank, then by margin; the full image takes part and wins ties. A pool
    whose first candidate is relevant keeps the full image, since no view ranks it better; so does a pool
    without a positive, since no view can help it.
    """
    grid = build_grid(search.scales, search.stride)
    chosen: dict[str, Box | None] = {pool.query_id: None for pool in pools}
    ids = [pool.query_id for pool in pools if pool.has_positive and not pool.relevance[0]]
    with track("evaluate: oracle", len(ids)) as advance:
        for chunk in (ids[start : start + _ORACLE_CHUNK] for start in range(0, len(ids), _ORACLE_CHUNK)):
            chosen |= _pick_best(scorer, dict.fromkeys(chunk, (None, *grid)))
            for _ in range(search.num_refinements):
                best = {query_id: box for query_id in chunk if (box := chosen[query_id]) is not None}
                chosen |= _pick_best(scorer, {query_id: (box, *refine_boxes(box)) for query_id, box in best.items()})
            advance(len(chunk))
    return [(KeepFull() if (box := chosen[pool.query_id]) is None else Crop(box), None) for pool in pools]


def score_choices(
    method: str, choices: Sequence[Choice], queries: Sequence[Query], pools: Sequence[Pool], scorer: Scorer
) -> list[QueryResult]:
    """Rank every pool by the view its choice names; one row per query, none left out."""
    rows: dict[int, QueryResult] = {}
    readable = [i for i, (decision, _) in enumerate(choices) if not isinstance(decision, Malformed)]
    views = [(queries[i].query_id, _box_of(choices[i][0])) for i in readable]
    for i, (_, box), view in zip(readable, views, scorer.score_views(views), strict=True):
        order_K = rank_candidates(view.scores_K)
        target = queries[i].target_box
        rows[i] = QueryResult(
            query_id=queries[i].query_id,
            method=method,
            decision="full" if box is None else "region",
            box=box,
            doc_ids=tuple(pools[i].doc_ids[k] for k in order_K),
            scores=tuple(float(view.scores_K[k]) for k in order_K),
            first_rank=view.outcome.first_rank,
            reciprocal_rank=view.outcome.reciprocal_rank,
            ndcg=view.outcome.ndcg,
            margin=view.outcome.margin,
            iou=None if box is None or target is None else compute_iou(box, target),
            completion=choices[i][1],
        )
    return [rows[i] if i in rows else _miss(method, queries[i], choices[i][1]) for i in range(len(queries))]


def _miss(method: str, query: Query, completion: str | None) -> QueryResult:
    return QueryResult(
        query_id=query.query_id,
        method=method,
        decision="malformed",
        box=None,
        doc_ids=(),
        scores=(),
        first_rank=None,
        reciprocal_rank=0.0,
        ndcg=0.0,
        margin=None,
        iou=None,
        completion=completion,
    )


def _pick_best(scorer: Scorer, boxes: Mapping[str, tuple[Box | None, ...]]) -> dict[str, Box | None]:
    views = [(query_id, box) for query_id, choices in boxes.items() for box in choices]
    best: dict[str, tuple[tuple[float, float], Box | None]] = {}
    for (query_id, box), view in zip(views, scorer.score_views(views), strict=True):
        margin = view.outcome.margin
        value = (view.outcome.reciprocal_rank, 0.0 if margin is None else margin)
        if query_id not in best or value > best[query_id][0]:
            best[query_id] = (value, box)
    return {query_id: box for query_id, (_, box) in best.items()}


def _box_of(decision: Decision) -> Box | None:
    return decision.box if isinstance(decision, Crop) else None


def _draw_box(query_id: str, search: SearchParams, seed: int) -> Box:
    rng = np.random.default_rng(derive_seed(seed, query_id))
    side = rng.uniform(min(search.scales), max(search.scales))
    x0, y0 = rng.uniform(0.0, 1.0 - side, size=2)
    return Box(float(x0), float(y0), float(min(x0 + side, 1.0)), float(min(y0 + side, 1.0)))


def _open(query: Query, data_dir: Path, params: Params, *, blind: bool) -> Image.Image:
    if blind:
        return Image.new("RGB", (query.width_px, query.height_px), GREY)
    return load_upright(data_dir / query.image_path, max_pixels=params.data.max_image_pixels, root=data_dir)
