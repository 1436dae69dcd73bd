"""Pictures of the demo world: gallery pictures, close-ups and cluttered scenes.

Laying out (pure geometry, exact boxes) is apart from drawing, so a whole world is planned without a pixel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Generic, Literal, Protocol, TypeVar

import numpy as np
from PIL import Image

from demo.drawing.backgrounds import draw_background
from demo.drawing.emblems import MAX_ROTATION_RAD, Look, compute_extent, paste_emblem

Box = tuple[float, float, float, float]
Focus = Literal["any", "largest", "smallest"]

MIN_THINGS: Final = 2
MAX_THINGS: Final = 6
CLUTTER_SIZE: Final = (0.20, 0.42)  # longer side of a thing / shorter side of the picture
CLOSE_UP_SIZE: Final = (0.70, 0.90)
GALLERY_SIZE: Final = (0.72, 0.92)
SIZE_MARGIN: Final = 1.3  # a largest or smallest thing's side differs from all others by this factor
_PLANNED_MARGIN: Final = 1.34
_ROTATION_STEPS: Final = 30
_GAP: Final = 0.02  # least gap between things / shorter side of the picture


class Drawable(Protocol):
    """Anything that has a look, such as an Entity."""

    @property
    def look(self) -> Look:
        """The look to draw."""


EntityT = TypeVar("EntityT", bound=Drawable)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a thing goes: `scale_px` is half its unrotated longer side, `box` tight, in fractions."""

    centre_px: tuple[float, float]
    scale_px: float
    rotation_rad: float
    box: Box


@dataclass(frozen=True, slots=True)
class Thing(Generic[EntityT]):
    """An entity in a picture and its tight box (x0, y0, x1, y1), in fractions, shadow left out."""

    entity: EntityT
    box: Box


@dataclass(frozen=True, slots=True)
class Scene(Generic[EntityT]):
    """An RGB picture and what it shows."""

    image: Image.Image
    things: tuple[Thing[EntityT], ...]


def draw_scene(
    entities: Sequence[EntityT], rng: np.random.Generator, size_px: tuple[int, int], focus: Focus = "any"
) -> Scene[EntityT]:
    """Draws a cluttered scene of 2 to 6 entities, distinct in (kind, colour); `focus` is about the first."""
    return draw_placements(entities, lay_out_clutter([e.look for e in entities], rng, size_px, focus), rng, size_px)


def draw_close_up(entity: EntityT, rng: np.random.Generator, size_px: tuple[int, int]) -> Scene[EntityT]:
    """Draws one entity filling 0.70 to 0.90 of the shorter side."""
    return draw_placements((entity,), lay_out_single(entity.look, rng, size_px, CLOSE_UP_SIZE), rng, size_px)


def draw_gallery(entity: EntityT, rng: np.random.Generator, size_px: tuple[int, int] = (128, 128)) -> Scene[EntityT]:
    """Draws an encyclopedia picture: one entity filling 0.72 to 0.92 of the shorter side."""
    return draw_placements((entity,), lay_out_single(entity.look, rng, size_px, GALLERY_SIZE), rng, size_px)


def draw_placements(
    entities: Sequence[EntityT],
    placements: Sequence[Placement],
    rng: np.random.Generator,
    size_px: tuple[int, int],
) -> Scene[EntityT]:
    """Draws entities at their placements on a random ground (`rng` decides only the ground)."""
    image = draw_background(rng, size_px)
    for entity, place in zip(entities, placements, strict=True):
        paste_emblem(image, entity.look, place.centre_px, place.scale_px, place.rotation_rad)
    things = tuple(Thing(entity, place.box) for entity, place in zip(entities, placements, strict=True))
    return Scene(image, things)


def lay_out_single(
    look: Look, rng: np.random.Generator, size_px: tuple[int, int], size_range: tuple[float, float]
) -> tuple[Placement]:
    """Places one thing whose longer side is within `size_range` x the picture's shorter side."""
    side_px = _draw_uniform(rng, *size_range) * min(size_px)
    return (_place(look, rng, size_px, side_px),)


def lay_out_clutter(
    looks: Sequence[Look], rng: np.random.Generator, size_px: tuple[int, int], focus: Focus = "any"
) -> tuple[Placement, ...]:
    """Places 2 to 6 things without overlap, by rejection.

    Args:
        looks: What to place; all (kind, colour) distinct.
        rng: Source of chance.
        size_px: Width and height of the picture.
        focus: "largest" or "smallest" makes the first thing so by a clear margin; "any" leaves it to chance.

    Returns:
        One placement per look, in the same order.

    Raises:
        ValueError: If the number of looks is not 2 to 6 or two share kind and colour.
    """
    if not MIN_THINGS <= len(looks) <= MAX_THINGS:
        raise ValueError(f"a scene holds {MIN_THINGS} to {MAX_THINGS} things, got {len(looks)}")
    if len({(look.kind, look.colour) for look in looks}) < len(looks):
        raise ValueError("two things of a scene share kind and colour: no question could tell them apart")
    while True:
        placements = _try_layout(looks, _sample_sides(len(looks), rng, focus), rng, size_px)
        if placements is not None:
            return placements


def _sample_sides(num_things: int, rng: np.random.Generator, focus: Focus) -> list[float]:
    """Returns each thing's longer side as a share of the picture's shorter side."""
    low, high = CLUTTER_SIZE
    if focus == "largest":
        first = _draw_uniform(rng, low * _PLANNED_MARGIN + 0.02, high)
        high = first / _PLANNED_MARGIN
    elif focus == "smallest":
        first = _draw_uniform(rng, low, high / _PLANNED_MARGIN - 0.02)
        low = first * _PLANNED_MARGIN
    else:
        first = _draw_uniform(rng, low, high)
    return [first, *(_draw_uniform(rng, low, high) for _ in range(num_things - 1))]


def _try_layout(
    looks: Sequence[Look], sides: Sequence[float], rng: np.random.Generator, size_px: tuple[int, int]
) -> tuple[Placement, ...] | None:
    """Returns placements, or None when some thing found no room; the larger ones choose first."""
    gap_px = _GAP * min(size_px)
    placed: dict[int, Placement] = {}
    for index in sorted(range(len(looks)), key=lambda i: -sides[i]):
        for _ in range(30):
            candidate = _place(looks[index], rng, size_px, sides[index] * min(size_px))
            if all(_are_apart(candidate.box, other.box, gap_px, size_px) for other in placed.values()):
                placed[index] = candidate
                break
        else:
            return None
    return tuple(placed[index] for index in range(len(looks)))


def _place(look: Look, rng: np.random.Generator, size_px: tuple[int, int], side_px: float) -> Placement:
    """Places a thing anywhere, turned at random, its tight box with the longer side `side_px`."""
    step = int(rng.integers(-_ROTATION_STEPS, _ROTATION_STEPS + 1))
    rotation_rad = MAX_ROTATION_RAD * step / _ROTATION_STEPS
    x0, y0, x1, y1 = compute_extent(look.kind, rotation_rad)
    scale_px = side_px / max(x1 - x0, y1 - y0)
    width_px, height_px = (x1 - x0) * scale_px, (y1 - y0) * scale_px
    left_px = 1.0 + float(rng.random()) * (size_px[0] - 2.0 - width_px)
    top_px = 1.0 + float(rng.random()) * (size_px[1] - 2.0 - height_px)
    box = (
        left_px / size_px[0],
        top_px / size_px[1],
        (left_px + width_px) / size_px[0],
        (top_px + height_px) / size_px[1],
    )
    return Placement((left_px - x0 * scale_px, top_px - y0 * scale_px), scale_px, rotation_rad, box)


def _are_apart(a: Box, b: Box, gap_px: float, size_px: tuple[int, int]) -> bool:
    gap_x, gap_y = gap_px / size_px[0], gap_px / size_px[1]
    return a[2] + gap_x <= b[0] or b[2] + gap_x <= a[0] or a[3] + gap_y <= b[1] or b[3] + gap_y <= a[1]


def _draw_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(rng.random())
