"""Region search: which boxes the frozen scorer is asked about, and the label that the best one earns.

Ours, not the paper's: the labels warm the policy up before r-GRPO.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.types import Box, RegionLabel

_STEPS = (1 / 4, 1 / 8)
_OUTWARDS = (-0.1, 0.4)
"""How far a drawn neighbour's sides may move, in parts of the box's width or height."""


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


def draw_neighbours(box: Box, rng: np.random.Generator, count: int) -> list[Box]:
    """Return boxes near one: each side is moved by itself, a little inwards or further outwards.

    By -0.1 to 0.4 of the box's width or height, evenly drawn, and stopped at the image's edge. More room outwards than
    inwards: a box that cuts the thing asked about loses it, one that shows some ground around it does not. Sides that
    move by themselves can make a box squarer, which an encoder that squashes its input to a square rewards.

    Args:
        box: where to look.
        rng: gives the moves.
        count: boxes wanted, 0 or more.
    """
    low, high = _OUTWARDS
    return [_move_sides(box, rng.uniform(low, high, size=4).tolist()) for _ in range(count)]


def weigh_boxes(rewards: Sequence[float], temperature: float) -> list[float]:
    """Return how often each box is to be taught: a softmax of the rewards, summing to 1.

    The best box of a single query is mostly the scorer's noise; what boxes that earn much have in common over many
    queries is not. So boxes are taught in the shares in which a policy would draw them that trades reward against
    staying close to even draws: `softmax(reward / temperature)`.

    Args:
        rewards: of the boxes of one query, at least one.
        temperature: difference in reward, above 0, that makes a box e times as frequent.

    Raises:
        ValueError: there is no box, or a reward is not finite.
    """
    if not rewards or not all(math.isfinite(reward) for reward in rewards):
        raise ValueError("rewards must be finite, and at least one")
    best = max(rewards)
    powers = [math.exp((reward - best) / temperature) for reward in rewards]
    return [power / sum(powers) for power in powers]


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


def _move_sides(box: Box, outwards: Sequence[float]) -> Box:
    width, height = box.x1 - box.x0, box.y1 - box.y0
    left, top, right, bottom = outwards
    return Box(
        max(0.0, box.x0 - left * width),
        max(0.0, box.y0 - top * height),
        min(1.0, box.x1 + right * width),
        min(1.0, box.y1 + bottom * height),
    )


def _move(start: float, end: float, shift: float) -> tuple[float, float]:
    if start + shift <= 0.0:
        return 0.0, end - start
    if end + shift >= 1.0:
        return 1.0 - (end - start), 1.0
    return start + shift, end + shift


def _grow(start: float, end: float, by: float) -> tuple[float, float]:
    return max(0.0, start - by), min(1.0, end + by)
