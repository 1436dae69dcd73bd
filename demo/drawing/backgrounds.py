"""Muted grounds (cloth, paper, slate, wood, soft gradients) that let the coloured emblems stand out."""

from functools import lru_cache
from typing import Final

import numpy as np
from PIL import Image

STYLES: Final = ("cloth", "paper", "slate", "wood", "gradient")
_TEXTURE_PX: Final = 640
_SEED: Final = 20_240_911
_Grid = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def draw_background(rng: np.random.Generator, size_px: tuple[int, int]) -> Image.Image:
    """Draws a muted RGB ground, textured and lit; `size_px` is (width, height), each at most 320 px."""
    level = 2 if min(size_px) > 160 else 1
    texture = _crop(_build_texture(int(rng.integers(len(STYLES))), level), rng, size_px)
    light = _crop(_build_light(level), rng, size_px)
    grey = Image.blend(texture, light, 0.42)
    base = int(rng.integers(96, 196))
    tint = [int(v) for v in rng.integers(-15, 16, 3)]
    contrast = int(rng.integers(70, 120))
    tables = [[min(255, max(0, base + shift + (v - 128) * contrast // 128)) for v in range(256)] for shift in tint]
    return Image.merge("RGB", [grey.point(table) for table in tables])


def _crop(tile: Image.Image, rng: np.random.Generator, size_px: tuple[int, int]) -> Image.Image:
    left_px = int(rng.integers(tile.width - size_px[0] + 1))
    top_px = int(rng.integers(tile.height - size_px[1] + 1))
    part = tile.crop((left_px, top_px, left_px + size_px[0], top_px + size_px[1]))
    turn = int(rng.integers(4))
    if turn & 1:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if turn & 2:
        part = part.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return part


@lru_cache(maxsize=16)
def _build_texture(style_index: int, level: int) -> Image.Image:
    """Returns a fixed grey texture around 128; level 2 is 640 px, level 1 half of that."""
    if level == 1:
        return _build_texture(style_index, 2).reduce(2)
    rng = np.random.default_rng((_SEED, style_index))
    grain = rng.random((_TEXTURE_PX, _TEXTURE_PX)) - 0.5
    style = STYLES[style_index]
    if style == "cloth":
        steps = np.arange(_TEXTURE_PX)
        over = ((steps[:, None] // 3 + steps[None, :] // 3) % 2) * 1.0 - 0.5
        threads = _noise(rng, (_TEXTURE_PX // 3, 4)) + _noise(rng, (4, _TEXTURE_PX // 3))
        grid = 22.0 * over + 30.0 * threads + 14.0 * grain
    elif style == "paper":
        grid = 34.0 * _noise(rng, (12, 12)) + 26.0 * _noise(rng, (120, 120)) + 12.0 * grain
    elif style == "slate":
        grid = (
            70.0 * _noise(rng, (7, 14)) + 50.0 * _noise(rng, (30, 70)) + 34.0 * _noise(rng, (160, 260)) + 10.0 * grain
        )
    elif style == "wood":
        planks = (np.arange(_TEXTURE_PX) % 128 < 3) * -60.0
        grid = 80.0 * _noise(rng, (90, 4)) + 50.0 * _noise(rng, (260, 6)) + 8.0 * grain + planks[:, None]
    else:
        grid = 120.0 * _noise(rng, (4, 4)) + 5.0 * grain
    return _to_grey(grid)


@lru_cache(maxsize=2)
def _build_light(level: int) -> Image.Image:
    if level == 1:
        return _build_light(2).reduce(2)
    return _to_grey(190.0 * _noise(np.random.default_rng((_SEED, 99)), (5, 5)))


def _noise(rng: np.random.Generator, cells: tuple[int, int]) -> _Grid:
    """Returns smooth noise in [-0.5, 0.5] with `cells` = (rows, columns) random cells over the texture."""
    coarse = Image.fromarray(rng.integers(0, 256, cells, dtype=np.uint8))
    fine = coarse.resize((_TEXTURE_PX, _TEXTURE_PX), Image.Resampling.BICUBIC)
    return np.asarray(fine, dtype=np.float64) / 255.0 - 0.5


def _to_grey(grid: _Grid) -> Image.Image:
    return Image.fromarray(np.clip(grid + 128.0, 0.0, 255.0).astype(np.uint8))
