"""Teach a tiny scorer to recognise emblems: views of things against encyclopedia entries of the studio world.

A view is a close crop, a loose crop or a whole cluttered scene of which the entity is one thing among several, so
that a scene's vector leans towards everything in it: a full image often retrieves its target, but rarely first.
Batches are made of groups that share kind and colour, so that pattern and accent must be read. Each emblem has
several articles that share only what it looks like: names and dates must not tell entries apart. Linear heads,
thrown away afterwards, must read kind, colour, pattern and accent from every picture's vector.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from demo.drawing.emblems import ACCENTS, COLOURS, PATTERNS
from demo.drawing.entities import Entity, build_entities, invent_entity
from demo.drawing.scenes import draw_gallery
from demo.drawing.silhouettes import KINDS
from demo.recipes.scorer_design import ContrastRecipe, ScorerDesign, Untyped
from demo.recipes.studio import NUM_STUDIO_ENTITIES, draw_studio_scene
from demo.recipes.training_scenes import normalise, squash
from pipeline.types import Box

# Shapes: V views, E entities, B rows of a batch, D dimensions.
_VIEWS_PER_SCENE: Final = 3
_GALLERY_PER_ENTITY: Final = 3
_ARTICLES_PER_ENTITY: Final = 8
_LOOK_SIZES: Final = (len(KINDS), len(COLOURS), len(PATTERNS), len(ACCENTS))


@dataclass(frozen=True)
class StudioViews:
    """Views and gallery pictures as the encoder sees them.

    Attributes:
        views_V: (V, 3, side, side) pixels.
        entity_V: the entity that each view is about.
        gallery_EG: (E, G, 3, side, side) encyclopedia pictures.
        texts_E: several articles of each entity.
        group_E: a number that entities of one kind and colour share.
        looks_E: (E, 4) kind, colour, pattern and accent as class indices.
    """

    views_V: npt.NDArray[np.uint8]
    entity_V: npt.NDArray[np.int64]
    gallery_EG: npt.NDArray[np.uint8]
    texts_E: tuple[tuple[str, ...], ...]
    group_E: npt.NDArray[np.int64]
    looks_E: npt.NDArray[np.int64]


def draw_studio_views(
    seed: int, recipe: ContrastRecipe, image_size_px: int, report: Callable[[int], None]
) -> StudioViews:
    """Draw three views of each of many scenes, and the gallery of every studio entity, on all cores."""
    num_scenes = recipe.num_scenes
    entities = build_entities(seed, NUM_STUDIO_ENTITIES, "studio")
    views: list[npt.NDArray[np.uint8]] = []
    owners: list[int] = []
    with multiprocessing.get_context("spawn").Pool() as pool:
        tasks = [
            (seed, start, min(start + 250, num_scenes), recipe.scene_share, image_size_px)
            for start in range(0, num_scenes, 250)
        ]
        for chunk_views, chunk_owners in pool.imap(_draw_view_chunk, tasks):
            views.append(chunk_views)
            owners.extend(chunk_owners)
            report(len(owners) // _VIEWS_PER_SCENE)
        spans = [
            (seed, start, min(start + 120, len(entities)), image_size_px) for start in range(0, len(entities), 120)
        ]
        gallery = np.concatenate(pool.map(_draw_gallery_chunk, spans))
    names = sorted({(entity.kind, entity.colour) for entity in entities})
    return StudioViews(
        views_V=np.concatenate(views),
        entity_V=np.asarray(owners),
        gallery_EG=gallery,
        texts_E=write_studio_articles(seed),
        group_E=np.asarray([names.index((entity.kind, entity.colour)) for entity in entities]),
        looks_E=np.asarray([_number_look(entity) for entity in entities]),
    )


def write_studio_articles(seed: int) -> tuple[tuple[str, ...], ...]:
    """Return several articles about each studio entity's look, each under an invented name."""
    articles = []
    for row, entity in enumerate(build_entities(seed, NUM_STUDIO_ENTITIES, "studio")):
        rng = np.random.default_rng((seed, 8, row))
        drafts = [invent_entity(entity.entity_id, entity.look, rng) for _ in range(_ARTICLES_PER_ENTITY)]
        articles.append(tuple(f"{draft.title}. {draft.article}" for draft in drafts))
    return tuple(articles)


def train_contrast(
    model: Untyped,
    processor: Untyped,
    design: ScorerDesign,
    data: StudioViews,
    recipe: ContrastRecipe,
    seed: int,
    report: Callable[[int, dict[str, float]], None],
) -> None:
    """Train model in place: a view finds its entry (picture and text together), a picture finds its text."""
    rng = np.random.default_rng(seed)
    heads = nn.Linear(design.dim, sum(_LOOK_SIZES))
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: compute_lr_factor(step, recipe.warmup_steps, recipe.num_steps)
    )
    views_of = _group_views(data.entity_V, len(data.texts_E))
    viewed_E = np.asarray([len(views) > 0 for views in views_of])
    model.train()
    for step in range(recipe.num_steps):
        chosen = _sample_entities(data.group_E, viewed_E, recipe, rng)
        rows = np.asarray([views_of[entity][int(rng.integers(len(views_of[entity])))] for entity in chosen])
        shown = data.gallery_EG[chosen, rng.integers(_GALLERY_PER_ENTITY, size=len(chosen))]
        articles = [data.texts_E[entity][int(rng.integers(_ARTICLES_PER_ENTITY))] for entity in chosen]
        tokens = processor.tokenizer(articles, padding=design.text_padding, truncation=True, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16):
            images = torch.cat([normalise(data.views_V[rows]), normalise(shown)])
            states = model.get_image_features(pixel_values=images).pooler_output
            texts = model.get_text_features(**tokens).pooler_output
        view_BD, gallery_BD = F.normalize(states.float(), dim=-1).chunk(2)
        text_BD = F.normalize(texts.float(), dim=-1)
        entry_BD = F.normalize(gallery_BD + text_BD, dim=-1)
        looks = torch.from_numpy(data.looks_E[chosen]).repeat(2, 1)
        look_loss = _read_looks(heads(states.float()), looks)
        found_loss = design.compute_loss(model, view_BD, entry_BD)
        loss = found_loss + 0.5 * design.compute_loss(model, gallery_BD, text_BD) + look_loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=recipe.max_logit_scale)
        hits = (view_BD @ entry_BD.T).argmax(1) == torch.arange(len(chosen))
        report(
            step,
            {
                "loss": loss.item(),
                "look_loss": look_loss.item(),
                "in_batch_recall": hits.float().mean().item(),
            },
        )
    model.eval()


def compute_lr_factor(step: int, warmup_steps: int, num_steps: int) -> float:
    """Return the linear warm-up, then cosine, factor of the learning rate."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, num_steps - warmup_steps))) + 0.01


def _read_looks(logits: torch.Tensor, looks: torch.Tensor) -> torch.Tensor:
    """Return the summed loss of naming kind, colour, pattern and accent."""
    parts = logits.split(list(_LOOK_SIZES), dim=-1)
    return torch.stack([F.cross_entropy(part, looks[:, column]) for column, part in enumerate(parts)]).sum()


def _number_look(entity: Entity) -> tuple[int, int, int, int]:
    return (
        KINDS.index(entity.kind),
        list(COLOURS).index(entity.colour),
        PATTERNS.index(entity.pattern),
        list(ACCENTS).index(entity.accent),
    )


def _group_views(entity_V: npt.NDArray[np.int64], num_entities: int) -> list[npt.NDArray[np.int64]]:
    order = np.argsort(entity_V, kind="stable")
    bounds = np.searchsorted(entity_V[order], np.arange(num_entities + 1))
    return [order[bounds[entity] : bounds[entity + 1]] for entity in range(num_entities)]


def _sample_entities(
    group_E: npt.NDArray[np.int64],
    viewed_E: npt.NDArray[np.bool_],
    recipe: ContrastRecipe,
    rng: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """Return entities that some view shows, a few of each of some groups of one kind and colour."""
    groups = rng.permutation(int(group_E.max()) + 1)[: recipe.num_groups]
    return np.concatenate(
        [rng.permutation(np.flatnonzero((group_E == group) & viewed_E))[: recipe.group_size] for group in groups]
    )


def _draw_view_chunk(task: tuple[int, int, int, float, int]) -> tuple[npt.NDArray[np.uint8], list[int]]:
    seed, start, stop, scene_share, image_size_px = task
    entities = build_entities(seed, NUM_STUDIO_ENTITIES, "studio")
    views, owners = [], []
    for number in range(start, stop):
        rng = np.random.default_rng((seed, 5, number))
        scene, image = draw_studio_scene((seed, number), entities)
        for _ in range(_VIEWS_PER_SCENE):
            thing = scene.things[int(rng.integers(len(scene.things)))]
            whole = float(rng.random()) < scene_share
            views.append(squash(image if whole else _cut(image, thing.box, rng), image_size_px))
            owners.append(thing.index)
    return np.stack(views), owners


def _cut(image: Image.Image, box: Box, rng: np.random.Generator) -> Image.Image:
    """Return a crop around the thing with uneven margins, narrow or loose."""
    widest = 0.15 if float(rng.random()) < 0.6 else 0.6
    width, height = box.x1 - box.x0, box.y1 - box.y0
    left, top, right, bottom = (float(value) * (widest + 0.08) - 0.08 for value in rng.random(4))
    return image.crop(
        (
            round(max(0.0, box.x0 - left * width) * image.width),
            round(max(0.0, box.y0 - top * height) * image.height),
            round(min(1.0, box.x1 + right * width) * image.width),
            round(min(1.0, box.y1 + bottom * height) * image.height),
        )
    )


def _draw_gallery_chunk(task: tuple[int, int, int, int]) -> npt.NDArray[np.uint8]:
    seed, start, stop, image_size_px = task
    entities: Sequence[Entity] = build_entities(seed, NUM_STUDIO_ENTITIES, "studio")[start:stop]
    return np.stack(
        [
            np.stack(
                [
                    squash(
                        draw_gallery(entity, np.random.default_rng((seed, 6, start + row, picture))).image,
                        image_size_px,
                    )
                    for picture in range(_GALLERY_PER_ENTITY)
                ]
            )
            for row, entity in enumerate(entities)
        ]
    )
