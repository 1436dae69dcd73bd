"""The ten silhouettes of the demo world as polygons, each easy to tell from the others at 14 px."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Final

Point = tuple[float, float]
Polygon = tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Silhouette:
    """A filled union of polygons in the unit frame (x right, y down, longer half side 1).

    Attributes:
        bodies: Polygons whose union is the body.
        details: Thin dark marks (an eye, a midrib) inside the body.
        focus: Where a pattern is centred.
        focus_radius: Reach of a pattern around the focus, unit frame.
    """

    bodies: tuple[Polygon, ...]
    details: tuple[Polygon, ...]
    focus: Point
    focus_radius: float


@lru_cache(maxsize=64)
def build_silhouette(kind: str, margin: float) -> Silhouette:
    """Returns the silhouette of a kind, centred; the body plus `margin` just fills [-1, 1]."""
    raw = _BUILDERS[kind]()
    xs = [x for polygon in raw.bodies for x, _ in polygon]
    ys = [y for polygon in raw.bodies for _, y in polygon]
    cx, cy = (min(xs) + max(xs)) / 2.0, (min(ys) + max(ys)) / 2.0
    zoom = (1.0 - margin) / (max(max(xs) - min(xs), max(ys) - min(ys)) / 2.0)

    def fit(polygon: Polygon) -> Polygon:
        return tuple((_snap((x - cx) * zoom), _snap((y - cy) * zoom)) for x, y in polygon)

    return Silhouette(
        tuple(fit(polygon) for polygon in raw.bodies),
        tuple(fit(polygon) for polygon in raw.details),
        ((raw.focus[0] - cx) * zoom, (raw.focus[1] - cy) * zoom),
        raw.focus_radius * zoom,
    )


def make_disc(centre: Point, radius: float, squash: float = 1.0) -> Polygon:
    """Returns a 40-gon for a circle, or for an ellipse whose height is `squash` times its width."""
    turns = [2.0 * math.pi * k / 40 for k in range(40)]
    return tuple((centre[0] + radius * math.cos(t), centre[1] + squash * radius * math.sin(t)) for t in turns)


def _snap(value: float) -> float:
    return round(value * 4096.0) / 4096.0


def _smooth(polygon: Polygon, rounds: int = 3) -> Polygon:
    """Cuts the corners (Chaikin's curve)."""
    for _ in range(rounds):
        cut: list[Point] = []
        for (ax, ay), (bx, by) in zip(polygon, (*polygon[1:], polygon[0]), strict=True):
            cut += [
                (0.75 * ax + 0.25 * bx, 0.75 * ay + 0.25 * by),
                (0.25 * ax + 0.75 * bx, 0.25 * ay + 0.75 * by),
            ]
        polygon = tuple(cut)
    return polygon


def _mirror(polygon: Polygon) -> Polygon:
    return tuple((-x, y) for x, y in polygon)


def _bar(a: Point, b: Point, width: float) -> Polygon:
    dx, dy = b[0] - a[0], b[1] - a[1]
    length = math.hypot(dx, dy)
    nx, ny = -dy / length * width / 2.0, dx / length * width / 2.0
    return ((a[0] + nx, a[1] + ny), (b[0] + nx, b[1] + ny), (b[0] - nx, b[1] - ny), (a[0] - nx, a[1] - ny))


def _build_moth() -> Silhouette:
    upper = _smooth(((0.0, -0.1), (0.2, -0.5), (0.75, -0.95), (1.15, -0.75), (1.0, -0.05), (0.45, 0.15), (0.0, 0.15)))
    lower = _smooth(((0.0, 0.0), (0.5, 0.0), (0.85, 0.15), (0.85, 0.65), (0.5, 0.95), (0.2, 0.55), (0.0, 0.35)))
    feeler = _bar((0.02, -0.45), (0.3, -0.92), 0.07)
    tip = make_disc((0.3, -0.92), 0.07)
    thorax = make_disc((0.0, 0.08), 0.13, 4.3)
    right = (upper, lower, feeler, tip)
    edges = (_bar((0.12, 0.17), (0.62, 0.08), 0.045), _bar((-0.12, 0.17), (-0.62, 0.08), 0.045))
    return Silhouette((*right, *(_mirror(p) for p in right), thorax), edges, (0.0, -0.04), 0.62)


def _build_star() -> Silhouette:
    radii = (1.0, 0.5)
    turns = [math.pi * k / 5 - math.pi / 2 for k in range(10)]
    star = tuple((radii[k % 2] * math.cos(t), radii[k % 2] * math.sin(t)) for k, t in enumerate(turns))
    return Silhouette((star,), (), (0.0, 0.02), 0.5)


def _build_fish() -> Silhouette:
    body = _smooth(((-0.62, 0.0), (-0.2, -0.55), (0.45, -0.62), (1.08, -0.1), (1.08, 0.1), (0.45, 0.62), (-0.2, 0.55)))
    tail = ((-0.4, 0.0), (-1.0, -0.52), (-0.82, 0.0), (-1.0, 0.52))
    fin = ((-0.15, -0.35), (0.0, -0.72), (0.45, -0.4))
    eye = make_disc((0.7, -0.12), 0.075)
    return Silhouette((body, tail, fin), (eye,), (0.12, 0.02), 0.44)


def _build_leaf() -> Silhouette:
    half = (
        (0.0, -1.0),
        (0.3, -0.72),
        (0.28, -0.6),
        (0.52, -0.32),
        (0.46, -0.2),
        (0.62, 0.12),
        (0.5, 0.2),
        (0.42, 0.5),
    )
    blade = (*half, (0.0, 0.68), *reversed(_mirror(half[1:])))
    stem = _bar((0.0, 0.5), (0.06, 1.0), 0.13)
    veins = (_bar((0.0, -0.75), (0.0, 0.62), 0.05),)
    return Silhouette((blade, stem), veins, (0.0, -0.02), 0.42)


def _build_flower() -> Silhouette:
    turns = [2.0 * math.pi * k / 6 for k in range(6)]
    petals = tuple(make_disc((0.66 * math.cos(t), 0.66 * math.sin(t)), 0.31) for t in turns)
    return Silhouette((*petals, make_disc((0.0, 0.0), 0.55)), (), (0.0, 0.0), 0.62)


def _build_key() -> Silhouette:
    bow = tuple(make_disc(centre, 0.36) for centre in ((-0.78, 0.0), (-0.46, -0.3), (-0.46, 0.3), (-0.44, 0.0)))
    shaft = _bar((-0.3, 0.0), (1.0, 0.0), 0.26)
    teeth = (_bar((0.52, 0.0), (0.52, 0.46), 0.2), _bar((0.9, 0.0), (0.9, 0.58), 0.2))
    return Silhouette((*bow, shaft, *teeth), (), (-0.54, 0.0), 0.44)


def _build_crown() -> Silhouette:
    band = (
        (-0.82, 0.72),
        (-0.98, -0.4),
        (-0.48, 0.08),
        (0.0, -0.62),
        (0.48, 0.08),
        (0.98, -0.4),
        (0.82, 0.72),
    )
    balls = tuple(make_disc(tip, 0.14) for tip in ((-0.98, -0.42), (0.0, -0.66), (0.98, -0.42)))
    line = _bar((-0.8, 0.56), (0.8, 0.56), 0.05)
    return Silhouette((band, *balls), (line,), (0.0, 0.16), 0.5)


def _build_bell() -> Silhouette:
    half = ((0.0, -0.85), (0.3, -0.85), (0.5, -0.6), (0.52, -0.1), (0.6, 0.3), (0.95, 0.52), (0.95, 0.66))
    dome = _smooth((*half, *reversed(_mirror(half))), 2)
    loop, clapper = make_disc((0.0, -0.86), 0.16), make_disc((0.0, 0.72), 0.22)
    line = _bar((-0.66, 0.45), (0.66, 0.45), 0.05)
    return Silhouette((clapper, loop, dome), (line,), (0.0, -0.1), 0.54)


def _build_moon() -> Silhouette:
    outer = [math.radians(38.0 + 284.0 * k / 60) for k in range(61)]
    start, end = (math.cos(outer[0]), math.sin(outer[0])), (math.cos(outer[-1]), math.sin(outer[-1]))
    centre_x = 0.62
    radius = math.hypot(start[0] - centre_x, start[1])
    first = math.atan2(end[1], end[0] - centre_x) % (2.0 * math.pi)
    last = math.atan2(start[1], start[0] - centre_x) % (2.0 * math.pi)
    inner = [first + (last - first) * k / 40 for k in range(1, 40)]
    arc = tuple((math.cos(t), math.sin(t)) for t in outer)
    bite = tuple((centre_x + radius * math.cos(t), radius * math.sin(t)) for t in inner)
    return Silhouette(((*arc, *bite),), (), (-0.5, 0.0), 0.46)


def _build_heart() -> Silhouette:
    half = ((0.0, -0.45), (0.12, -0.78), (0.45, -0.98), (0.9, -0.85), (1.12, -0.4), (0.9, 0.1), (0.4, 0.6))
    heart = (*_smooth_open((*half, (0.0, 0.95))), *reversed(_mirror(_smooth_open((*half, (0.0, 0.95))))))
    return Silhouette((heart,), (), (0.0, -0.12), 0.56)


def _smooth_open(line: Polygon, rounds: int = 3) -> Polygon:
    """Chaikin's curve that keeps both end points."""
    for _ in range(rounds):
        cut: list[Point] = [line[0]]
        for (ax, ay), (bx, by) in pairwise(line):
            cut += [
                (0.75 * ax + 0.25 * bx, 0.75 * ay + 0.25 * by),
                (0.25 * ax + 0.75 * bx, 0.25 * ay + 0.75 * by),
            ]
        line = (*cut, line[-1])
    return line


_BUILDERS: Final[dict[str, Callable[[], Silhouette]]] = {
    "moth": _build_moth,
    "star": _build_star,
    "fish": _build_fish,
    "leaf": _build_leaf,
    "flower": _build_flower,
    "key": _build_key,
    "crown": _build_crown,
    "bell": _build_bell,
    "moon": _build_moon,
    "heart": _build_heart,
}
KINDS: Final = tuple(_BUILDERS)
