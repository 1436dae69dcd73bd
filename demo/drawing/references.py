"""Ways to point at one thing of a scene, each visible and unambiguous, and the questions asked about it."""

import math
from collections.abc import Sequence
from typing import Final, Literal

import numpy as np

from demo.drawing.emblems import Look
from demo.drawing.scenes import SIZE_MARGIN, Box, EntityT, Scene

ReferenceKind = Literal["place", "colour", "size", "single"]
Reference = tuple[int, ReferenceKind, str]

CORNER_MARGIN: Final = 0.15
EDGE_MARGIN: Final = 0.12
_AREA_MARGIN: Final = 1.15
_CORNERS: Final = {
    "top left": (0.0, 0.0),
    "top right": (1.0, 0.0),
    "bottom left": (0.0, 1.0),
    "bottom right": (1.0, 1.0),
}
_EDGES: Final = (  # phrase, axis (0: x, 1: y), sign
    ("on the far left", 0, 1.0),
    ("on the far right", 0, -1.0),
    ("at the very top", 1, 1.0),
    ("at the very bottom", 1, -1.0),
)

QUESTION_TEMPLATES: Final = (
    "Where does {} come from?",
    "What does {} stand for?",
    "Who first carried {}?",
    "When was {} first drawn?",
    "In which year was {} first recorded?",
    "What is the meaning of {}?",
    "Which place is {} the sign of?",
    "Who was the first bearer of {}?",
    "What is {} called?",
    "Where was {} first seen?",
    "What virtue does {} honour?",
    "Whose sign is {}?",
)


def list_references(scene: Scene[EntityT]) -> list[Reference]:
    """Returns every valid reference (thing index, kind of reference, phrase) to a thing of the scene."""
    return find_references([t.entity.look for t in scene.things], [t.box for t in scene.things], scene.image.size)


def find_references(looks: Sequence[Look], boxes: Sequence[Box], size_px: tuple[int, int]) -> list[Reference]:
    """Returns every valid reference, from looks and boxes (fractions of a picture of `size_px`)."""
    colour: list[Reference] = [(i, "colour", f"the {look.colour} {look.kind}") for i, look in enumerate(looks)]
    if len(looks) == 1:
        return [*colour, (0, "single", "this emblem")]
    named = [(look.kind, look.colour) for look in looks]
    unique = [ref for ref, name in zip(colour, named, strict=True) if named.count(name) == 1]
    return [*unique, *_find_corners(boxes), *_find_edges(boxes), *_find_sizes(boxes, size_px)]


def phrase_question(phrase: str, rng: np.random.Generator) -> str:
    """Returns a question about the thing that `phrase` points at."""
    return QUESTION_TEMPLATES[int(rng.integers(len(QUESTION_TEMPLATES)))].format(phrase)


def _compute_centres(boxes: Sequence[Box]) -> list[tuple[float, float]]:
    return [((x0 + x1) / 2.0, (y0 + y1) / 2.0) for x0, y0, x1, y1 in boxes]


def _find_corners(boxes: Sequence[Box]) -> list[Reference]:
    """A corner names the thing in that quadrant which is nearer to it than any other by CORNER_MARGIN."""
    centres = _compute_centres(boxes)
    found: list[Reference] = []
    for name, (corner_x, corner_y) in _CORNERS.items():
        distances = [math.hypot(x - corner_x, y - corner_y) for x, y in centres]
        order = sorted(range(len(boxes)), key=distances.__getitem__)
        x, y = centres[order[0]]
        inside = abs(x - corner_x) < 0.5 and abs(y - corner_y) < 0.5
        if inside and distances[order[1]] - distances[order[0]] >= CORNER_MARGIN:
            found.append((order[0], "place", f"the emblem at the {name}"))
    return found


def _find_edges(boxes: Sequence[Box]) -> list[Reference]:
    """An edge names the thing whose centre is the extreme by EDGE_MARGIN of the picture's width or height."""
    centres = _compute_centres(boxes)
    found: list[Reference] = []
    for name, axis, sign in _EDGES:
        depths = [sign * centre[axis] for centre in centres]
        order = sorted(range(len(boxes)), key=depths.__getitem__)
        if depths[order[1]] - depths[order[0]] >= EDGE_MARGIN:
            found.append((order[0], "place", f"the emblem {name}"))
    return found


def _find_sizes(boxes: Sequence[Box], size_px: tuple[int, int]) -> list[Reference]:
    """The largest (smallest) beats all others by SIZE_MARGIN in its longer side, and clearly in area."""
    widths = [(x1 - x0) * size_px[0] for x0, _, x1, _ in boxes]
    heights = [(y1 - y0) * size_px[1] for _, y0, _, y1 in boxes]
    sides = [max(w, h) for w, h in zip(widths, heights, strict=True)]
    areas = [w * h for w, h in zip(widths, heights, strict=True)]
    order = sorted(range(len(boxes)), key=sides.__getitem__)
    found: list[Reference] = []
    first, second, last, previous = order[0], order[1], order[-1], order[-2]
    others_first = min(areas[i] for i in order[1:])
    others_last = max(areas[i] for i in order[:-1])
    if sides[last] >= SIZE_MARGIN * sides[previous] and areas[last] >= _AREA_MARGIN * others_last:
        found.append((last, "size", "the largest emblem"))
    if sides[second] >= SIZE_MARGIN * sides[first] and others_first >= _AREA_MARGIN * areas[first]:
        found.append((first, "size", "the smallest emblem"))
    return found
