"""The visual vocabulary of the demo world and the drawing of one emblem.

An emblem's look is (kind, colour, pattern, accent). Its silhouette is a union of polygons with a slim darker
rim, in a unit frame: x to the right, y down, the tight box of the unrotated silhouette centred on 0 with its
longer half side 1. Only scalar `math`, plain array arithmetic and Pillow are used, so one look is the same
bytes on every x86 machine.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from demo.drawing.silhouettes import KINDS, Point, Polygon, Silhouette, build_silhouette, make_disc

RGB = tuple[int, int, int]

COLOURS: Final[dict[str, RGB]] = {
    "red": (218, 34, 42),
    "orange": (246, 128, 16),
    "yellow": (252, 216, 36),
    "green": (38, 160, 66),
    "cyan": (40, 200, 218),
    "blue": (32, 82, 214),
    "purple": (130, 52, 176),
    "pink": (248, 128, 192),
}
ACCENTS: Final[dict[str, RGB]] = {"white": (252, 252, 248), "black": (26, 24, 30), **COLOURS}
PATTERNS: Final = ("dots", "ring", "cross", "bar", "core", "chevron")
MAX_ACCENT_SHARE: Final = 0.22
MAX_ROTATION_RAD: Final = 0.30

_MASTER_PX: Final = 256
_SUPERSAMPLING: Final = 4
_FRAME: Final = 1.06  # a master covers [-_FRAME, _FRAME] of the unit frame
_SHADOW_FRAME: Final = 1.40
_SHADOW_PX: Final = 96
_RIM: Final = 0.045  # width of the rim outside the body, unit frame


@dataclass(frozen=True, slots=True)
class Look:
    """What an emblem looks like; `accent` differs from `colour`."""

    kind: str
    colour: str
    pattern: str
    accent: str


def list_looks() -> tuple[Look, ...]:
    """Returns all 10 x 8 x 6 x 9 = 4320 looks in a fixed order."""
    return tuple(
        Look(kind, colour, pattern, accent)
        for kind in KINDS
        for colour in COLOURS
        for pattern in PATTERNS
        for accent in ACCENTS
        if accent != colour
    )


@lru_cache(maxsize=4096)
def compute_extent(kind: str, rotation_rad: float) -> tuple[float, float, float, float]:
    """Returns the tight box (x0, y0, x1, y1) of the rotated silhouette with its rim, in the unit frame."""
    cos, sin = math.cos(rotation_rad), math.sin(rotation_rad)
    points = [point for polygon in build_silhouette(kind, _RIM).bodies for point in polygon]
    xs = [x * cos - y * sin for x, y in points]
    ys = [x * sin + y * cos for x, y in points]
    return min(xs) - _RIM, min(ys) - _RIM, max(xs) + _RIM, max(ys) + _RIM


def paste_emblem(
    canvas: Image.Image, look: Look, centre_px: tuple[float, float], scale_px: float, rotation_rad: float
) -> None:
    """Draws one emblem with its soft shadow onto an RGB canvas, in place.

    Args:
        canvas: RGB picture.
        look: What to draw.
        centre_px: Where the unit frame's origin goes.
        scale_px: Pixels per unit (half the longer side of the unrotated emblem).
        rotation_rad: Clockwise turn, within +-MAX_ROTATION_RAD.
    """
    x_px, y_px = centre_px
    drop_px = 0.07 * scale_px
    shadow = _render_shadow(look.kind)
    origin_px, patch = _transform(
        shadow, _SHADOW_FRAME, (x_px + 0.6 * drop_px, y_px + drop_px), scale_px, rotation_rad, 1.25 * scale_px
    )
    canvas.paste((18, 16, 24), (*origin_px, origin_px[0] + patch.width, origin_px[1] + patch.height), patch)
    level_px = 256 if scale_px > 64 else 128 if scale_px > 32 else 64 if scale_px > 16 else 32
    x0, y0, x1, y1 = compute_extent(look.kind, rotation_rad)
    reach_px = max(-x0, -y0, x1, y1) * scale_px + 1.0
    origin_px, patch = _transform(_render_master(look, level_px), _FRAME, centre_px, scale_px, rotation_rad, reach_px)
    emblem = patch.convert("RGBA")
    canvas.paste(emblem, origin_px, emblem)


def measure_accent_share(kind: str, pattern: str) -> float:
    """Returns the share (0 to 1) of the silhouette's pixels, rim included, that the accent colour covers."""
    silhouette = np.asarray(_render_masks(kind)[0], dtype=np.float64)
    accent = np.asarray(_render_pattern(kind, pattern), dtype=np.float64)
    return float(accent.sum() / silhouette.sum())


def _transform(
    master: Image.Image,
    frame: float,
    centre_px: tuple[float, float],
    scale_px: float,
    rotation_rad: float,
    reach_px: float,
) -> tuple[tuple[int, int], Image.Image]:
    """Returns the origin (px) and the scaled, rotated patch of a master."""
    x_px, y_px = centre_px
    left_px, top_px = math.floor(x_px - reach_px), math.floor(y_px - reach_px)
    width_px, height_px = math.ceil(x_px + reach_px) - left_px, math.ceil(y_px + reach_px) - top_px
    zoom = master.width / (2.0 * frame * scale_px)
    cos, sin = math.cos(rotation_rad) * zoom, math.sin(rotation_rad) * zoom
    dx, dy = left_px - x_px, top_px - y_px
    half_px = master.width / 2.0
    coefficients = (cos, sin, half_px + dx * cos + dy * sin, -sin, cos, half_px - dx * sin + dy * cos)
    resample = Image.Resampling.BICUBIC if zoom > 1.0 and master.mode == "RGBa" else Image.Resampling.BILINEAR
    patch = master.transform((width_px, height_px), Image.Transform.AFFINE, coefficients, resample)
    return (left_px, top_px), patch


@lru_cache(maxsize=6000)
def _render_master(look: Look, level_px: int) -> Image.Image:
    """Renders the upright sprite at 256 px or a halved copy of it (premultiplied alpha)."""
    if level_px < _MASTER_PX:
        return _render_master(look, level_px * 2).reduce(2)
    silhouette, body, detail = _render_masks(look.kind)
    main = COLOURS[look.colour]
    dark: RGB = (main[0] * 2 // 5, main[1] * 2 // 5, main[2] * 2 // 5)
    sprite = Image.new("RGB", silhouette.size, dark)
    sprite.paste(main, (0, 0, *sprite.size), body)
    sprite.paste(dark, (0, 0, *sprite.size), detail)
    sprite.paste(ACCENTS[look.accent], (0, 0, *sprite.size), _render_pattern(look.kind, look.pattern))
    shaded = np.asarray(sprite, dtype=np.int32) * _build_shading()[:, :, None] // 1024
    lit = Image.fromarray(np.minimum(shaded, 255).astype(np.uint8))
    lit.putalpha(silhouette)
    return lit.convert("RGBa")


@lru_cache(maxsize=1)
def _build_shading() -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    """Returns brightness factors x 1024: light falls from the upper left."""
    steps = np.arange(_MASTER_PX, dtype=np.int32)
    ramp = steps[None, :] + 2 * steps[:, None]  # 0 .. 765
    return (1105 - ramp * 190 // 765).astype(np.int32)


@lru_cache(maxsize=len(KINDS))
def _render_masks(kind: str) -> tuple[Image.Image, Image.Image, Image.Image]:
    """Returns the 256 px masks of the silhouette with rim, of the body inside, and of the dark details."""
    shape = build_silhouette(kind, _RIM)
    rim_px = round(2 * _RIM * _pixels_per_unit())
    silhouette, body, detail = _new_mask(), _new_mask(), _new_mask()
    for polygon in shape.bodies:
        points = _to_pixels(polygon)
        _fill(silhouette, points)
        ImageDraw.Draw(silhouette).line([*points, *points[:2]], fill=255, width=rim_px, joint="curve")
        _fill(body, points)
    for polygon in shape.details:
        _fill(detail, _to_pixels(polygon))
    return silhouette.reduce(_SUPERSAMPLING), body.reduce(_SUPERSAMPLING), detail.reduce(_SUPERSAMPLING)


@lru_cache(maxsize=len(KINDS))
def _render_shadow(kind: str) -> Image.Image:
    silhouette = _render_masks(kind)[0]
    inner_px = round(_SHADOW_PX * _FRAME / _SHADOW_FRAME)
    shadow = Image.new("L", (_SHADOW_PX, _SHADOW_PX))
    offset_px = (_SHADOW_PX - inner_px) // 2
    shadow.paste(silhouette.resize((inner_px, inner_px), Image.Resampling.BOX), (offset_px, offset_px))
    return shadow.filter(ImageFilter.BoxBlur(3)).filter(ImageFilter.BoxBlur(2)).point([v * 3 // 5 for v in range(256)])


@lru_cache(maxsize=len(KINDS) * len(PATTERNS))
def _render_pattern(kind: str, pattern: str) -> Image.Image:
    """Returns the 256 px mask of the pattern, the largest that keeps clear of MAX_ACCENT_SHARE."""
    shape = build_silhouette(kind, _RIM)
    silhouette, body, _ = _render_masks(kind)
    area = float(np.asarray(silhouette, dtype=np.float64).sum())
    for step in range(20):
        mask = _new_mask()
        for polygon in _build_pattern(shape, pattern, 1.0 - 0.04 * step):
            _fill(mask, _to_pixels(polygon))
        small = Image.composite(mask.reduce(_SUPERSAMPLING), Image.new("L", body.size), body)
        if float(np.asarray(small, dtype=np.float64).sum()) <= (MAX_ACCENT_SHARE - 0.02) * area:
            break
    return small


def _build_pattern(shape: Silhouette, pattern: str, scale: float) -> list[Polygon]:
    """Returns the pattern's polygons around the silhouette's focus; `scale` (0 to 1] shrinks it."""
    (x, y), r = shape.focus, shape.focus_radius * scale
    if pattern == "core":
        return [make_disc((x, y), 0.68 * r)]
    if pattern == "dots":
        return [make_disc((x + a * r, y + b * r), 0.27 * r) for a, b in _DOTS]
    if pattern == "ring":
        outer, inner = make_disc((x, y), 0.92 * r), make_disc((x, y), 0.58 * r)
        return [(*outer, outer[0], inner[0], *reversed(inner))]
    if pattern == "bar":
        return [_box(x - 3.0, y - 0.2 * r, x + 3.0, y + 0.2 * r)]
    if pattern == "cross":
        a, b = 1.0 * r, 0.2 * r
        return [_box(x - a, y - b, x + a, y + b), _box(x - b, y - a, x + b, y + a)]
    w = 0.5 * r
    points = ((-1.0, -0.55), (0.0, 0.35), (1.0, -0.55))
    upper = tuple((x + a * r, y + b * r) for a, b in points)
    return [(*upper, *((px, py + w) for px, py in reversed(upper)))]


_DOTS: Final = ((0.0, 0.0), (-0.72, -0.5), (0.72, -0.5), (-0.72, 0.5), (0.72, 0.5))


def _box(x0: float, y0: float, x1: float, y1: float) -> Polygon:
    return ((x0, y0), (x1, y0), (x1, y1), (x0, y1))


def _pixels_per_unit() -> float:
    return _MASTER_PX * _SUPERSAMPLING / (2.0 * _FRAME)


def _to_pixels(polygon: Polygon) -> list[Point]:
    unit_px, half_px = _pixels_per_unit(), _MASTER_PX * _SUPERSAMPLING / 2.0
    return [(round(x * unit_px + half_px), round(y * unit_px + half_px)) for x, y in polygon]


def _new_mask() -> Image.Image:
    return Image.new("L", (_MASTER_PX * _SUPERSAMPLING, _MASTER_PX * _SUPERSAMPLING))


def _fill(mask: Image.Image, points: list[Point]) -> None:
    ImageDraw.Draw(mask).polygon(points, fill=255)
