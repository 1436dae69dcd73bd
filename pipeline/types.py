"""Records that cross stages: frozen, keyword-only, checked on creation where a wrong value could travel far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
Way = Literal["free", "blind", "forced", "sampled"]


@dataclass(frozen=True, slots=True)
class Box:
    """A region as fractions of the upright image, origin at the top left, `0 <= x0 < x1 <= 1` and likewise y.

    Raises:
        ValueError: a coordinate is not finite, lies outside [0, 1], or the box has no area.
    """

    x0: float
    y0: float
    x1: float
    y1: float

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) for value in self.as_tuple()):
            raise ValueError(f"box coordinates must be finite, got {self.as_tuple()}")
        if not (0.0 <= self.x0 < self.x1 <= 1.0 and 0.0 <= self.y0 < self.y1 <= 1.0):
            raise ValueError(f"box must satisfy 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1, got {self.as_tuple()}")

    def as_tuple(self) -> tuple[float, float, float, float]:
        """Return (x0, y0, x1, y1)."""
        return (self.x0, self.y0, self.x1, self.y1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """A question about an image.

    Attributes:
        image_path: relative to the data folder.
        width_px: width of the upright image (EXIF orientation applied).
        height_px: height of the upright image.
        target_box: where the thing asked about lies; for analysis only, never for training.
        tags: free labels for the breakdown of results, such as `reference` or `seen`.
    """

    query_id: str
    split: Split
    question: str
    image_path: str
    width_px: int
    height_px: int
    target_box: Box | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """An encyclopedia entry; `image_paths` are relative to the data folder."""

    doc_id: str
    title: str
    text: str
    image_paths: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Qrel:
    """One relevance judgement: `doc_id` answers `query_id`."""

    query_id: str
    doc_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Reject:
    """A raw row that was left out, and why. `source_id` names file and row."""

    source_id: str
    reason: str
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """The K candidates of one query, best first by the full image (paper section 3; K = 20).

    Attributes:
        scores: cosine of the full image with each candidate, falling.
        relevance: whether each candidate is relevant.
        num_relevant: relevant documents in the whole corpus (at least those in the pool).
    """

    query_id: str
    split: Split
    doc_ids: tuple[str, ...]
    scores: tuple[float, ...]
    relevance: tuple[bool, ...]
    num_relevant: int

    @property
    def has_positive(self) -> bool:
        """Whether any candidate is relevant."""
        return any(self.relevance)


@dataclass(frozen=True, slots=True)
class KeepFull:
    """The policy keeps the full image (paper: FULL)."""


@dataclass(frozen=True, slots=True)
class Crop:
    """The policy names one region (paper: REGION)."""

    box: Box


@dataclass(frozen=True, slots=True)
class Malformed:
    """The completion is no decision; the policy's fault, so it earns the configured penalty."""

    reason: str


Decision = KeepFull | Crop | Malformed


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One answer of a policy, as the stage answer asked for it.

    Attributes:
        policy: which one was asked: `base`, `sft` or `rgrpo`.
        way: how it was asked: `free`, greedily; `blind`, the same about a grey picture; `forced`, greedily with REGION
            forced; `sampled`, drawn with REGION forced.
        sample: number of the draw from 0; None where nothing was drawn.
        decision: what the completion says.
        completion: the text as generated.
        p_region: probability that the policy, unforced, opens a region.
    """

    policy: str
    way: Way
    split: Split
    query_id: str
    sample: int | None
    decision: Decision
    completion: str
    p_region: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How one view ranks a pool.

    Attributes:
        first_rank: 1-based rank of the best positive, None when the pool holds none.
        reciprocal_rank: 1 / first_rank, 0 without a positive.
        ndcg: NDCG at the pool's size.
        margin: mean score of positives minus best score of negatives; None when either side is empty.
    """

    first_rank: int | None
    reciprocal_rank: float
    ndcg: float
    margin: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class RegionLabel:
    """What the warm-up teaches about one training query: a crop, or FULL.

    Attributes:
        query_id: the query.
        box: the crop; None is FULL.
        gain: reward over that of the full image: of the label's box, or where FULL is the label of the box it won
            against; 0 where there was none.
    """

    query_id: str
    box: Box | None
    gain: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """One sampled completion of r-GRPO with what it earned.

    Attributes:
        step: the first optimiser step that learns from it, counted from 1 as in `CurvePoint`.
    """

    step: int
    query_id: str
    arm: Literal["region", "full", "free"]
    completion: str
    decision: Literal["region", "full", "malformed"]
    box: Box | None
    reward: float


@dataclass(frozen=True, kw_only=True, slots=True)
class CurvePoint:
    """One figure of a training at one optimiser step, which counts from 1."""

    step: int
    metric: str
    value: float


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryResult:
    """One query under one method: the decision taken and how its view ranks the pool."""

    query_id: str
    method: str
    decision: Literal["region", "full", "malformed"]
    box: Box | None
    doc_ids: tuple[str, ...]
    scores: tuple[float, ...]
    first_rank: int | None
    reciprocal_rank: float
    ndcg: float
    margin: float | None
    iou: float | None
    completion: str | None
