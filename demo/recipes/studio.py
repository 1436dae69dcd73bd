"""Training pictures for the base models: scenes and galleries of the studio population, never of a demo world's."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from demo.drawing.entities import Entity, build_entities
from demo.drawing.references import find_references, phrase_question
from demo.drawing.scenes import (
    CLOSE_UP_SIZE,
    MAX_THINGS,
    MIN_THINGS,
    Focus,
    draw_placements,
    lay_out_clutter,
    lay_out_single,
)
from demo.recipes.training_scenes import Reference, Thing, TrainingScene, squash
from pipeline.types import Box

NUM_STUDIO_ENTITIES: Final = 2160
_SIDES_PX: Final = (224, 256)
_CLOSE_UP_SHARE: Final = 0.15
_FOCI: Final[tuple[Focus, ...]] = ("any", "largest", "smallest")


def draw_studio_scene(seed: tuple[int, int], entities: Sequence[Entity]) -> tuple[TrainingScene, Image.Image]:
    """Draw one training scene as a demo world would: clutter, or now and then a close-up."""
    rng = np.random.default_rng(seed)
    size_px = (_SIDES_PX[int(rng.integers(2))], _SIDES_PX[int(rng.integers(2))])
    if float(rng.random()) < _CLOSE_UP_SHARE:
        chosen = [int(rng.integers(len(entities)))]
        places = lay_out_single(entities[chosen[0]].look, rng, size_px, CLOSE_UP_SIZE)
    else:
        chosen = _sample_distinct(entities, int(rng.integers(MIN_THINGS, MAX_THINGS + 1)), rng)
        focus = _FOCI[int(rng.integers(3))]
        places = lay_out_clutter([entities[index].look for index in chosen], rng, size_px, focus)  # type: ignore[assignment]
    cast = [entities[index] for index in chosen]
    image = draw_placements(cast, places, rng, size_px).image
    boxes = [place.box for place in places]
    things = tuple(
        Thing(index, (entity.kind, entity.colour), Box(*box))
        for index, entity, box in zip(chosen, cast, boxes, strict=True)
    )
    found = find_references([entity.look for entity in cast], boxes, size_px)
    return TrainingScene(things, tuple(Reference(*reference) for reference in found)), image


def draw_studio_scenes(
    seed: int, count: int, size_px: int, report: Callable[[int], None]
) -> tuple[list[TrainingScene], npt.NDArray[np.uint8]]:
    """Draw many scenes on all cores.

    Args:
        seed: names the scenes; other seeds share none.
        count: number of scenes.
        size_px: side of the square that each picture is squashed to (bicubic, as the processors do).
        report: called with the number drawn so far.

    Returns:
        The scenes, and their pictures as (count, 3, size_px, size_px).
    """
    scenes: list[TrainingScene] = []
    pixels = np.empty((count, 3, size_px, size_px), dtype=np.uint8)
    tasks = [(seed, start, min(start + 250, count), size_px) for start in range(0, count, 250)]
    with multiprocessing.get_context("spawn").Pool() as pool:
        for chunk_scenes, chunk_pixels in pool.imap(_draw_chunk, tasks):
            pixels[len(scenes) : len(scenes) + len(chunk_scenes)] = chunk_pixels
            scenes.extend(chunk_scenes)
            report(len(scenes))
    return scenes, pixels


def iterate_texts(seed: int, count: int) -> Iterator[str]:
    """Yield articles and questions of the studio world, for tokenizers."""
    rng = np.random.default_rng((seed, 77))
    entities = build_entities(seed, NUM_STUDIO_ENTITIES, "studio")
    for entity in entities[:count]:
        yield f"{entity.title}. {entity.article}"
    for number in range(count):
        scene, _ = draw_studio_scene((seed, 10_000_000 + number), entities)
        yield phrase_question(scene.pick_reference(rng).phrase, rng)


def _draw_chunk(task: tuple[int, int, int, int]) -> tuple[list[TrainingScene], npt.NDArray[np.uint8]]:
    seed, start, stop, size_px = task
    entities = build_entities(seed, NUM_STUDIO_ENTITIES, "studio")
    drawn = [draw_studio_scene((seed, number), entities) for number in range(start, stop)]
    return [scene for scene, _ in drawn], np.stack([squash(image, size_px) for _, image in drawn])


def _sample_distinct(entities: Sequence[Entity], count: int, rng: np.random.Generator) -> list[int]:
    """Return indices of entities with distinct (kind, colour)."""
    chosen: dict[tuple[str, str], int] = {}
    while len(chosen) < count:
        index = int(rng.integers(len(entities)))
        chosen.setdefault((entities[index].kind, entities[index].colour), index)
    return list(chosen.values())
