"""Two photos in one picture: at one height, side by side, nothing between them."""

from __future__ import annotations

from typing import Final

from PIL import Image

from pipeline.types import Box, Query

MAX_ASPECT: Final = 8.0
"""Longer side over the shorter; the half of a longer strip would be a sliver, or leave none to the other."""


def find_shape_fault(query: Query, height_px: int, max_pixels: int) -> str | None:
    """Return why a photo cannot be half of a picture, or None if it can."""
    width, height = query.width_px, query.height_px
    if max(width, height) > MAX_ASPECT * min(width, height):
        return f"with one side more than {MAX_ASPECT:g} times the other"
    if 2 * _scale_width(width, height, height_px) * height_px > max_pixels:
        return "larger at this height than half of data.max_image_pixels"
    return None


def join_photos(left: Image.Image, right: Image.Image, height_px: int) -> tuple[Image.Image, tuple[Box, Box]]:
    """Return the picture and where in it each photo lies, on whole pixels and in fractions of the picture.

    Args:
        left: upright, of any size.
        right: likewise.
        height_px: of the picture; both photos are scaled to it and keep their aspect.
    """
    halves = [_scale(photo, height_px) for photo in (left, right)]
    seam, width = halves[0].width, halves[0].width + halves[1].width
    picture = Image.new("RGB", (width, height_px))
    picture.paste(halves[0], (0, 0))
    picture.paste(halves[1], (seam, 0))
    return picture, (Box(0.0, 0.0, seam / width, 1.0), Box(seam / width, 0.0, 1.0, 1.0))


def _scale(photo: Image.Image, height_px: int) -> Image.Image:
    size = (_scale_width(*photo.size, height_px), height_px)
    return photo if photo.size == size else photo.resize(size, Image.Resampling.LANCZOS)


def _scale_width(width_px: int, height_px: int, new_height_px: int) -> int:
    return max(1, round(width_px * new_height_px / height_px))
