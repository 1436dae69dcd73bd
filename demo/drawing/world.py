"""A whole demo world as a light description: entities, documents and queries, without pixels or files.

Half of the val and test queries ask about entities that no train query asks about ("unseen"); val and test
have different unseen entities. Held-out entities may still stand beside a train query's target.
"""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from demo.drawing.entities import Entity, Population, build_entities, list_population
from demo.drawing.references import (
    Reference,
    ReferenceKind,
    find_references,
    list_references,
    phrase_question,
)
from demo.drawing.scenes import (
    CLOSE_UP_SIZE,
    MAX_THINGS,
    MIN_THINGS,
    Box,
    Focus,
    Placement,
    Scene,
    draw_gallery,
    draw_placements,
    lay_out_clutter,
    lay_out_single,
)

__all__ = [
    "DocumentSpec",
    "Entity",
    "GallerySpec",
    "QuerySpec",
    "World",
    "build_entities",
    "build_world",
    "draw_gallery_picture",
    "draw_query",
    "list_population",
    "list_references",
    "phrase_question",
]

Split = Literal["train", "val", "test"]

GALLERY_SIZE_PX: Final = (128, 128)
_QUERY_SIDES_PX: Final = (224, 256)
_COLOUR_SHARE_CLOSE_UP: Final = 0.6
_CLUTTER_KINDS: Final[tuple[ReferenceKind, ...]] = ("place", "colour", "size")


@dataclass(frozen=True, slots=True)
class GallerySpec:
    """One picture of a document, drawn from its own seed."""

    entity: Entity
    picture_index: int
    seed: int
    size_px: tuple[int, int] = GALLERY_SIZE_PX


@dataclass(frozen=True, slots=True)
class DocumentSpec:
    """An encyclopedia entry: the entity and at least two pictures of it."""

    entity: Entity
    gallery: tuple[GallerySpec, ...]


@dataclass(frozen=True, slots=True)
class QuerySpec:
    """A question about a picture; `entities[0]` at `placements[0]` is the target, `seed` the ground."""

    query_id: str
    split: Split
    question: str
    entities: tuple[Entity, ...]
    placements: tuple[Placement, ...]
    size_px: tuple[int, int]
    seed: int
    reference: ReferenceKind
    phrase: str
    is_seen: bool

    @property
    def target(self) -> Entity:
        """The entity that the question is about."""
        return self.entities[0]

    @property
    def target_box(self) -> Box:
        """The target's tight box, fractions of the picture."""
        return self.placements[0].box

    @property
    def is_close_up(self) -> bool:
        """Whether the picture shows only the target."""
        return len(self.entities) == 1


@dataclass(frozen=True, slots=True)
class World:
    """A planned demo world."""

    seed: int
    entities: tuple[Entity, ...]
    documents: tuple[DocumentSpec, ...]
    queries: tuple[QuerySpec, ...]


def build_world(
    seed: int,
    num_entities: int = 320,
    num_train: int = 2000,
    num_val: int = 400,
    num_test: int = 600,
    close_up_share: float = 0.3,
    population: Population = "demo",
) -> World:
    """Plans a world; the same arguments give the same world.

    Args:
        seed: Not negative.
        num_entities: 12 to 2160.
        num_train: At least 1.
        num_val: Not negative.
        num_test: Not negative.
        close_up_share: Share of queries whose picture shows only the target, 0 to 1.
        population: Which half of the looks to draw from.

    Raises:
        ValueError: If an argument is out of range.
    """
    if num_entities < 12 or num_train < 1 or num_val < 0 or num_test < 0 or not 0.0 <= close_up_share <= 1.0:
        raise ValueError("need num_entities >= 12, num_train >= 1, num_val, num_test >= 0, 0 <= close_up_share <= 1")
    entities = build_entities(seed, num_entities, population)
    rng = np.random.default_rng((seed, 2))
    order = [entities[int(i)] for i in rng.permutation(num_entities)]
    num_held_out = num_entities // 3
    unseen_val, unseen_test = order[: num_held_out // 4], order[num_held_out // 4 : num_held_out]
    train_targets = _repeat(order[num_held_out:], num_train, rng)
    seen = list(dict.fromkeys(train_targets))
    targets: list[tuple[Split, Entity, bool]] = [("train", entity, True) for entity in train_targets]
    held_out: list[tuple[Split, list[Entity], int]] = [
        ("val", unseen_val, num_val),
        ("test", unseen_test, num_test),
    ]
    for split, unseen, count in held_out:
        targets += [(split, entity, True) for entity in _repeat(seen, count - count // 2, rng)]
        targets += [(split, entity, False) for entity in _repeat(unseen, count // 2, rng)]
    queries: list[QuerySpec] = []
    for number, (split, target, is_seen) in enumerate(targets):
        query_rng = np.random.default_rng((seed, 3, number))
        queries.append(_plan_query(f"q{number + 1:05d}", split, target, is_seen, entities, query_rng, close_up_share))
    return World(seed, entities, tuple(_plan_document(seed, entity) for entity in entities), tuple(queries))


def draw_query(spec: QuerySpec) -> Scene[Entity]:
    """Draws a query's picture; its first thing is the target."""
    return draw_placements(spec.entities, spec.placements, np.random.default_rng(spec.seed), spec.size_px)


def draw_gallery_picture(spec: GallerySpec) -> Scene[Entity]:
    """Draws one picture of a document."""
    return draw_gallery(spec.entity, np.random.default_rng(spec.seed), spec.size_px)


def _plan_document(seed: int, entity: Entity) -> DocumentSpec:
    rng = np.random.default_rng((seed, 4, int(entity.entity_id[1:])))
    num_pictures = 2 + int(rng.integers(2))
    return DocumentSpec(
        entity, tuple(GallerySpec(entity, index, int(rng.integers(2**31))) for index in range(num_pictures))
    )


def _plan_query(
    query_id: str,
    split: Split,
    target: Entity,
    is_seen: bool,
    entities: tuple[Entity, ...],
    rng: np.random.Generator,
    close_up_share: float,
) -> QuerySpec:
    size_px = (_QUERY_SIDES_PX[int(rng.integers(2))], _QUERY_SIDES_PX[int(rng.integers(2))])
    if float(rng.random()) < close_up_share:
        wanted: ReferenceKind = "colour" if float(rng.random()) < _COLOUR_SHARE_CLOSE_UP else "single"
        cast: tuple[Entity, ...] = (target,)
        places: tuple[Placement, ...] = lay_out_single(target.look, rng, size_px, CLOSE_UP_SIZE)
        options = _find_target_references(cast, places, size_px, wanted)
    else:
        wanted = _CLUTTER_KINDS[int(rng.integers(len(_CLUTTER_KINDS)))]
        cast, places, options = _plan_clutter(target, entities, rng, size_px, wanted)
    _, reference, phrase = options[int(rng.integers(len(options)))]
    question = phrase_question(phrase, rng)
    seed = int(rng.integers(2**31))
    return QuerySpec(query_id, split, question, cast, places, size_px, seed, reference, phrase, is_seen)


def _plan_clutter(
    target: Entity,
    entities: tuple[Entity, ...],
    rng: np.random.Generator,
    size_px: tuple[int, int],
    wanted: ReferenceKind,
) -> tuple[tuple[Entity, ...], tuple[Placement, ...], list[Reference]]:
    """Samples company and layouts until the target has a reference of the wanted kind."""
    num_things = int(rng.integers(MIN_THINGS, MAX_THINGS + 1))
    focus: Focus = "any" if wanted != "size" else ("largest", "smallest")[int(rng.integers(2))]
    while True:
        cast = _sample_cast(target, entities, num_things, rng)
        places = lay_out_clutter([entity.look for entity in cast], rng, size_px, focus)
        options = _find_target_references(cast, places, size_px, wanted)
        if options:
            return cast, places, options


def _find_target_references(
    cast: tuple[Entity, ...], places: tuple[Placement, ...], size_px: tuple[int, int], wanted: ReferenceKind
) -> list[Reference]:
    found = find_references([entity.look for entity in cast], [place.box for place in places], size_px)
    return [reference for reference in found if reference[0] == 0 and reference[1] == wanted]


def _sample_cast(
    target: Entity, entities: tuple[Entity, ...], num_things: int, rng: np.random.Generator
) -> tuple[Entity, ...]:
    """Returns the target and others, all with distinct (kind, colour)."""
    cast = {(target.kind, target.colour): target}
    for _ in range(1000):
        if len(cast) == num_things:
            break
        other = entities[int(rng.integers(len(entities)))]
        cast.setdefault((other.kind, other.colour), other)
    if len(cast) < MIN_THINGS:
        raise ValueError("the entities share one kind and colour: no scene can be composed")
    return tuple(cast.values())


def _repeat(entities: list[Entity], count: int, rng: np.random.Generator) -> list[Entity]:
    """Returns `count` entities in shuffled rounds, so that each is used about equally often."""
    chosen: list[Entity] = []
    while len(chosen) < count:
        chosen += [entities[int(i)] for i in rng.permutation(len(entities))]
    return chosen[:count]
