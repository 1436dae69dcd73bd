"""Which boxes the frozen scorer is asked about, all over a picture or near some, and how labels follow from rewards.

Ours, not the paper's: the labels warm the policy up before r-GRPO.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.core.boxes import grow_box
from pipeline.types import Box, RegionLabel

_STEPS = (1 / 4, 1 / 8)


@dataclass(frozen=True, slots=True)
class Reshaping:
    """How a crop lies around a box that points at something.

    Attributes:
        margin: that each side moves outwards, in parts of the box's width or height.
        is_square: whether the shorter side, in pixels, is first grown to the longer one. An encoder squashes its input
            to a square; what is square already keeps its shape.
    """

    margin: float = 0.0
    is_square: bool = False

    def apply(self, box: Box, width_px: int, height_px: int) -> Box:
        """Return the crop, cut at the edges of the picture, whose size decides what is square."""
        return grow_box(_square(box, width_px, height_px) if self.is_square else box, self.margin)


RESHAPINGS: Final = tuple(
    Reshaping(margin, is_square) for is_square in (False, True) for margin in (0.0, 0.05, 0.1, 0.15, 0.2, 0.3)
)


def build_grid(scales: Sequence[float], stride: float) -> tuple[Box, ...]:
    """Return boxes whose sides are the same fraction of the image's, on one even lattice per scale.

    Along an axis a box of side s takes `1 + ceil((1 - s) / (stride * s))` evenly spaced places, the first at
    0 and the last ending at 1; so the step is at most `stride * s`.

    Args:
        scales: sides as fractions of the image, each in (0, 1); a repeated scale adds nothing.
        stride: largest step in box sides, above 0; above 1 leaves gaps between boxes.

    Returns:
        Distinct boxes, by scale as given, then from top to bottom and left to right.

    Raises:
        ValueError: no scale, or a scale or the stride is out of range.
    """
    if not scales or not all(0.0 < scale < 1.0 for scale in scales):
        raise ValueError(f"scales must name sides above 0 and below 1, got {tuple(scales)}")
    if not (math.isfinite(stride) and stride > 0.0):
        raise ValueError(f"stride must be above 0, got {stride}")
    boxes: dict[Box, None] = {}
    for scale in scales:
        spans = _place(scale, stride)
        boxes.update((Box(x0, y0, x1, y1), None) for y0, y1 in spans for x0, x1 in spans)
    return tuple(boxes)


def refine_boxes(box: Box) -> tuple[Box, ...]:
    """Return the box's neighbours for a second pass, without the box itself and without duplicates.

    By a quarter and by an eighth of its sides: moved along each axis (stopped at the image's edge, size
    kept), and grown or shrunk about its centre along x, along y and along both (clipped to the image).
    """
    neighbours = {neighbour: None for step in _STEPS for neighbour in _build_neighbours(box, step)}
    neighbours.pop(box, None)
    return tuple(neighbours)


def choose_label(
    query_id: str, boxes: Sequence[Box], rewards: Sequence[float], min_gain: float, full_reward: float
) -> RegionLabel:
    """Return a query's label: the crop of highest reward if it gains enough over the full image, else FULL.

    `gain = max(rewards) - full_reward`; the box is None unless `gain >= min_gain`. Of equal rewards the first
    wins.

    Args:
        query_id: the query.
        boxes: the crops that were scored.
        rewards: reward of each crop, in the same order.
        min_gain: gain from which a crop is worth learning.
        full_reward: reward of keeping the full image.

    Raises:
        ValueError: no boxes, another number of rewards than boxes, or a number that is not finite.
    """
    if not boxes or len(boxes) != len(rewards):
        raise ValueError(f"{query_id}: {len(boxes)} boxes and {len(rewards)} rewards")
    if not all(math.isfinite(value) for value in (*rewards, min_gain, full_reward)):
        raise ValueError(f"{query_id}: rewards must be finite")
    best = max(range(len(rewards)), key=rewards.__getitem__)
    gain = float(rewards[best] - full_reward)
    return RegionLabel(query_id=query_id, box=boxes[best] if gain >= min_gain else None, gain=gain)


def _place(side: float, stride: float) -> list[tuple[float, float]]:
    room = 1.0 - side
    num_steps = max(1, math.ceil(room / (stride * side) - 1e-9))
    starts = [room * step / num_steps for step in range(num_steps + 1)]
    return [(start, 1.0 if step == num_steps else start + side) for step, start in enumerate(starts)]


def _build_neighbours(box: Box, step: float) -> Iterator[Box]:
    width, height = box.x1 - box.x0, box.y1 - box.y0
    for sign in (-1.0, 1.0):
        amount = sign * step
        x0, x1 = _move(box.x0, box.x1, amount * width)
        y0, y1 = _move(box.y0, box.y1, amount * height)
        grown_x0, grown_x1 = _grow(box.x0, box.x1, amount * width / 2.0)
        grown_y0, grown_y1 = _grow(box.y0, box.y1, amount * height / 2.0)
        for coords in (
            (x0, box.y0, x1, box.y1),
            (box.x0, y0, box.x1, y1),
            (grown_x0, box.y0, grown_x1, box.y1),
            (box.x0, grown_y0, box.x1, grown_y1),
            (grown_x0, grown_y0, grown_x1, grown_y1),
        ):
            if coords[0] < coords[2] and coords[1] < coords[3]:  # a hair-thin box may vanish in rounding
                yield Box(*coords)


def _square(box: Box, width_px: int, height_px: int) -> Box:
    across, down = (box.x1 - box.x0) * width_px, (box.y1 - box.y0) * height_px
    side = max(across, down)
    x0, x1 = _grow(box.x0, box.x1, (side - across) / 2.0 / width_px)
    y0, y1 = _grow(box.y0, box.y1, (side - down) / 2.0 / height_px)
    return Box(x0, y0, x1, y1)


def _move(start: float, end: float, shift: float) -> tuple[float, float]:
    if start + shift <= 0.0:
        return 0.0, end - start
    if end + shift >= 1.0:
        return 1.0 - (end - start), 1.0
    return start + shift, end + shift


def _grow(start: float, end: float, by: float) -> tuple[float, float]:
    return max(0.0, start - by), min(1.0, end + by)
