"""Training pictures for the groceries' base policy: mosaics of photos, cut, mirrored and coloured at random."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageOps

from demo.groceries.catalogue import Photo, open_picture
from demo.groceries.mosaics import compose, describe_scene, draw_layout, pick_company
from demo.recipes.training_scenes import TrainingScene, squash

Report = Callable[[int], None]

_LOADED_PX: Final = 192
_NUM_THREADS: Final = 2
_NUM_PHOTOS: Final = (1, 2, 4)
_NUM_PHOTOS_SHARES: Final = (0.15, 0.35, 0.5)
_SMALLEST_CUT: Final = 0.65
_BRIGHTNESS: Final = (0.7, 1.3)
_COLOUR: Final = (0.8, 1.2)


def load_photos(photos: Sequence[Photo]) -> dict[Photo, Image.Image]:
    """Return each photo, upright and small: about 0.1 MB each, kept in memory while scenes are drawn."""

    def load(photo: Photo) -> Image.Image:
        return open_picture(photo.path).resize((_LOADED_PX, _LOADED_PX), Image.Resampling.BICUBIC)

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        return dict(zip(photos, pool.map(load, photos), strict=True))


def draw_photo_scenes(
    images: dict[Photo, Image.Image], seed: int, count: int, size_px: int, report: Report
) -> tuple[list[TrainingScene], npt.NDArray[np.uint8]]:
    """Draw many scenes on a few threads, since Pillow lets go of the interpreter; seed and photos say which.

    Args:
        images: the photos to draw from.
        seed: names the scenes.
        count: number of scenes.
        size_px: side of the square that each picture is squashed to.
        report: called with the number drawn so far.

    Returns:
        The scenes, and their pictures as (count, 3, size_px, size_px).
    """

    def draw(number: int) -> tuple[TrainingScene, npt.NDArray[np.uint8]]:
        scene, picture = _draw_scene(images, np.random.default_rng((seed, number)))
        return scene, squash(picture, size_px)

    scenes: list[TrainingScene] = []
    pixels = np.empty((count, 3, size_px, size_px), dtype=np.uint8)
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for number, (scene, drawn) in enumerate(pool.map(draw, range(count))):
            scenes.append(scene)
            pixels[number] = drawn
            report(number + 1)
    return scenes, pixels


def _draw_scene(images: dict[Photo, Image.Image], rng: np.random.Generator) -> tuple[TrainingScene, Image.Image]:
    photos = list(images)
    num_photos = int(rng.choice(_NUM_PHOTOS, p=_NUM_PHOTOS_SHARES))
    cast = pick_company(photos[int(rng.integers(len(photos)))], photos, num_photos, rng)
    layout = draw_layout(num_photos, rng)
    picture = compose([vary(images[photo], rng) for photo in cast], layout)
    return describe_scene([photo.product for photo in cast], layout), picture


def vary(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return a photo as it might have been taken otherwise: nearer, from the other side, in other light."""
    share = float(rng.uniform(_SMALLEST_CUT, 1.0))
    width, height = round(share * image.width), round(share * image.height)
    left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
    cut = image.crop((left, top, left + width, top + height))
    if float(rng.random()) < 0.5:
        cut = ImageOps.mirror(cut)
    brighter = ImageEnhance.Brightness(cut).enhance(float(rng.uniform(*_BRIGHTNESS)))
    return ImageEnhance.Color(brighter).enhance(float(rng.uniform(*_COLOUR)))
