"""Boxes as fractions of the image, in a model's coordinate frame and in pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.types import Box, Malformed

_LARGEST_SIDE = 2**24


@dataclass(frozen=True, slots=True)
class Frame:
    """The coordinates that a model writes: x from 0 to `width`, y from 0 to `height`, origin at the top left.

    1000 x 1000 for Qwen3-VL, the resized image's pixels for Qwen2.5-VL.

    Raises:
        ValueError: a side is below 1, above 2**24 or not finite.
    """

    width: float
    height: float

    def __post_init__(self) -> None:
        if not (1.0 <= self.width <= _LARGEST_SIDE and 1.0 <= self.height <= _LARGEST_SIDE):
            raise ValueError(f"a frame's sides must lie in [1, {_LARGEST_SIDE}], got {self.width} x {self.height}")


def box_to_frame(box: Box, frame: Frame) -> tuple[int, int, int, int]:
    """Return the box as integers (x0, y0, x1, y1) of the frame.

    Each side is rounded to the nearest unit; a box thinner than a unit becomes the unit that holds its
    centre. The result lies inside the frame and is at least 1 unit wide and high.
    """
    x0, x1 = _snap(box.x0, box.x1, frame.width)
    y0, y1 = _snap(box.y0, box.y1, frame.height)
    return x0, y0, x1, y1


def frame_to_box(coords: Sequence[float], frame: Frame) -> Box | Malformed:
    """Return the box that (x0, y0, x1, y1) of the frame name, clipped to the frame.

    Integers inside the frame survive `box_to_frame(frame_to_box(coords, frame), frame)` unchanged.

    Returns:
        Malformed when a coordinate is not finite, or what clipping leaves is under one unit wide or high: fractions
        where the frame counts pixels name no place that the model could mean, and nothing that a crop could show.

    Raises:
        ValueError: there are not four coordinates.
    """
    if len(coords) != 4:
        raise ValueError(f"a box has 4 coordinates, got {len(coords)}")
    try:
        values = [float(value) for value in coords]
    except OverflowError:  # an int beyond the range of float
        return Malformed("box is not finite")
    if not all(math.isfinite(value) for value in values):
        return Malformed("box is not finite")
    x0, x1 = (_clip(value, frame.width) for value in (values[0], values[2]))
    y0, y1 = (_clip(value, frame.height) for value in (values[1], values[3]))
    if x1 <= x0 or y1 <= y0:
        return Malformed("box is empty")
    if x1 - x0 < 1.0 or y1 - y0 < 1.0:
        return Malformed("box is under one unit of its frame wide or high")
    return Box(x0 / frame.width, y0 / frame.height, x1 / frame.width, y1 / frame.height)


def box_to_px(box: Box, width_px: int, height_px: int) -> tuple[int, int, int, int]:
    """Return the box as pixel edges (left, top, right, bottom), each side at least 1 px, in the image.

    Raises:
        ValueError: the image has no pixels.
    """
    return box_to_frame(box, Frame(width_px, height_px))


def grow_box(box: Box, margin: float) -> Box:
    """Return the box with each side moved outwards by `margin` of the box's own width or height, cut at the picture.

    Args:
        box: any box.
        margin: not negative; 0 gives the box back.

    Raises:
        ValueError: the margin is negative or not finite.
    """
    if not (math.isfinite(margin) and margin >= 0.0):
        raise ValueError(f"a margin must not be negative, got {margin}")
    across, down = margin * (box.x1 - box.x0), margin * (box.y1 - box.y0)
    return Box(max(0.0, box.x0 - across), max(0.0, box.y0 - down), min(1.0, box.x1 + across), min(1.0, box.y1 + down))


def compute_iou(a: Box, b: Box) -> float:
    """Return intersection over union of the two boxes' areas, in [0, 1]."""
    overlap_x = min(a.x1, b.x1) - max(a.x0, b.x0)
    overlap_y = min(a.y1, b.y1) - max(a.y0, b.y0)
    if overlap_x <= 0.0 or overlap_y <= 0.0:
        return 0.0
    intersection = overlap_x * overlap_y
    union = _compute_area(a) + _compute_area(b) - intersection
    return min(1.0, intersection / union) if union > 0.0 else 0.0  # areas may underflow to 0


def _compute_area(box: Box) -> float:
    return (box.x1 - box.x0) * (box.y1 - box.y0)


def _clip(value: float, side: float) -> float:
    return min(max(value, 0.0), side)


def _snap(start: float, end: float, side: float) -> tuple[int, int]:
    low, high = round(start * side), round(end * side)
    if high <= low:
        low = math.floor((start + end) / 2.0 * side)
        high = low + 1
    limit = math.floor(side)
    low = min(low, limit - 1)
    return low, min(max(high, low + 1), limit)
