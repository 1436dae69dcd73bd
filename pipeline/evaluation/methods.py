"""The methods compared: each turns queries into decisions; rows.py turns those into rankings of one pool each.

full                the whole image: the baseline that re-ranking starts from.
centre              the middle crop of half the width and half the height, whatever the picture shows.
random              one seeded crop a query, its side between the smallest and largest scale of region search.
base                the vision-language model before any training here.
base_grown, base_grown_or_full, base_grown_fused
                    rules that nobody trained on top of it, in rules.py: what a training must beat.
sft, rgrpo          the policy after warm-up, and after r-GRPO.
rgrpo_fused         r-GRPO and a rule on top of it, in rules.py: the weighted mean of the scores of its region and of
                    the full image.
rgrpo_blind         the same policy asked about a grey picture; what it still gains, it gains without looking.
perfect             the box around the thing asked about, where the data have one: a ceiling of pointing.
oracle              the best view that region search finds with the relevance known: a ceiling of the search, whose
                    boxes partly fit the scorer's noise.

A malformed answer is a miss: no ranking, reciprocal rank 0. It is never scored as the full image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.config import Params, SearchParams
from pipeline.core.seeds import derive_seed
from pipeline.files.images import load_upright
from pipeline.process.progress import track
from pipeline.types import Box, Crop, Decision, KeepFull, Outcome, Pool, Query

METHODS = (
    "full", "centre", "random", "base", "base_grown", "base_squared", "base_grown_or_full", "base_grown_fused",
    "sft", "rgrpo", "rgrpo_fused", "rgrpo_blind", "perfect", "oracle",
)  # fmt: skip
CENTRE_BOX = Box(0.25, 0.25, 0.75, 0.75)
GREY = (128, 128, 128)
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


def choose_perfect(queries: Sequence[Query]) -> list[Choice]:
    """Crop what the question asks about; keep the full image where the data do not say where that is."""
    return [(KeepFull() if query.target_box is None else Crop(query.target_box), None) for query in queries]


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


def _draw_box(query_id: str, search: SearchParams, seed: int) -> Box:
    rng = np.random.default_rng(derive_seed(seed, query_id))
    side = rng.uniform(min(search.scales), max(search.scales))
    x0, y0 = rng.uniform(0.0, 1.0 - side, size=2)
    return Box(float(x0), float(y0), float(min(x0 + side, 1.0)), float(min(y0 + side, 1.0)))


def _open(query: Query, data_dir: Path, params: Params, *, blind: bool) -> Image.Image:
    if blind:
        return Image.new("RGB", (query.width_px, query.height_px), GREY)
    return load_upright(data_dir / query.image_path, max_pixels=params.data.max_image_pixels, root=data_dir)
