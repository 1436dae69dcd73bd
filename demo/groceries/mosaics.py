"""Pictures made of one, two or four shop photos, and the ways to point at one of them.

A single photo stays whole. Several meet at a seam that lies anywhere in the middle fifth, and each is cut to fill its
part. All show different product groups, so that "the pear" means one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image, ImageOps

from demo.groceries.catalogue import Photo, Product
from demo.recipes.training_scenes import Reference, Thing, TrainingScene
from pipeline.types import Box

PHOTO_PX: Final = 256
SIDES_PX: Final = (256, 320)
_SEAM: Final = (0.4, 0.6)
_TEMPLATES: Final = (
    "How is {} best kept?",
    "Where does {} come from?",
    "What does {} taste like?",
    "What is {} good for?",
    "What goes well with {}?",
    "How can {} be prepared?",
    "What is in {}?",
    "Who sells {}?",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Where each photo lies, what that place is called, and the picture's size."""

    boxes: tuple[Box, ...]
    places: tuple[str, ...]
    size_px: tuple[int, int]


SINGLE: Final = Layout(boxes=(Box(0.0, 0.0, 1.0, 1.0),), places=("",), size_px=(PHOTO_PX, PHOTO_PX))


def draw_layout(num_photos: int, rng: np.random.Generator) -> Layout:
    """Return a layout of one, two (side by side or one above the other) or four photos."""
    if num_photos == 1:
        return SINGLE
    width, height = (SIDES_PX[int(rng.integers(len(SIDES_PX)))] for _ in range(2))
    # Seams lie on whole pixels, so that a photo's box is exact.
    x = round(float(rng.uniform(*_SEAM)) * width) / width
    y = round(float(rng.uniform(*_SEAM)) * height) / height
    boxes: tuple[Box, ...]
    places: tuple[str, ...]
    if num_photos == 4:
        boxes = (Box(0.0, 0.0, x, y), Box(x, 0.0, 1.0, y), Box(0.0, y, x, 1.0), Box(x, y, 1.0, 1.0))
        places = ("at the top left", "at the top right", "at the bottom left", "at the bottom right")
    elif float(rng.random()) < 0.5:
        boxes, places = (Box(0.0, 0.0, x, 1.0), Box(x, 0.0, 1.0, 1.0)), ("on the left", "on the right")
    else:
        boxes, places = (Box(0.0, 0.0, 1.0, y), Box(0.0, y, 1.0, 1.0)), ("at the top", "at the bottom")
    return Layout(boxes=boxes, places=places, size_px=(width, height))


def list_references(products: Sequence[Product], layout: Layout) -> list[Reference]:
    """Return every way to point at one of the products; on a single photo also "this product"."""
    by_group = [Reference(number, "group", f"the {product.group}") for number, product in enumerate(products)]
    if len(products) == 1:
        return [*by_group, Reference(0, "single", "this product")]
    by_place = [Reference(number, "place", f"the product {place}") for number, place in enumerate(layout.places)]
    return [*by_group, *by_place]


def describe_scene(products: Sequence[Product], layout: Layout) -> TrainingScene:
    """Return what the picture shows, for training a base model."""
    things = tuple(
        Thing(product.number, (product.group,), box) for product, box in zip(products, layout.boxes, strict=True)
    )
    return TrainingScene(things, tuple(list_references(products, layout)))


def compose(images: Sequence[Image.Image], layout: Layout) -> Image.Image:
    """Return the picture: each image cut to its part's shape about its middle, and scaled to fill it."""
    width, height = layout.size_px
    picture = Image.new("RGB", layout.size_px)
    for image, box in zip(images, layout.boxes, strict=True):
        left, top, right, bottom = (
            round(edge * side) for edge, side in zip(box.as_tuple(), (width, height) * 2, strict=True)
        )
        picture.paste(ImageOps.fit(image, (right - left, bottom - top), Image.Resampling.BICUBIC), (left, top))
    return picture


def pick_company(photo: Photo, others: Sequence[Photo], count: int, rng: np.random.Generator) -> list[Photo]:
    """Return `count` photos of which `photo` is one, at a random position, all of different product groups."""
    chosen = {photo.product.group: photo}
    while len(chosen) < count:
        other = others[int(rng.integers(len(others)))]
        chosen.setdefault(other.product.group, other)
    photos = list(chosen.values())
    return [photos[int(position)] for position in rng.permutation(count)]


def phrase_question(phrase: str, rng: np.random.Generator) -> str:
    """Return a question about what `phrase` points at."""
    return _TEMPLATES[int(rng.integers(len(_TEMPLATES)))].format(phrase)
