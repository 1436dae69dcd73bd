"""The demo world's entities: a look, an invented name and a short article."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

import numpy as np

from demo.drawing.emblems import Look, list_looks

Population = Literal["demo", "studio"]


def _split(words: str) -> tuple[str, ...]:
    return tuple(words.split())


_SPLIT_SEED: Final = 4320  # fixes for ever which looks belong to which population
_ONSETS: Final = _split("V T Br K M D S Gr H L N Or P R El Ash Cal Wy")
_MIDDLES: Final = _split("el or an ur ari eth ol in ava enn ald isk um oth")
_ENDINGS: Final = _split("mar dale wick ia or heim ford is una gard eth mond ay stead")
_TITLES: Final = ("Order of {}", "House of {}", "Guild of {}", "Seal of {}", "Company of {}", "Banner of {}")
_PLACES: Final = (
    "the port of {}",
    "the hill town of {}",
    "the valley of {}",
    "the island of {}",
    "the old city of {}",
)
_MEANINGS: Final = (
    "patience in hard winters",
    "the courage of small towns",
    "a promise kept at sea",
    "the joy of the first harvest",
    "loyalty between neighbours",
    "the wisdom of long journeys",
    "mercy after a victory",
    "the pride of honest work",
    "hope in the darkest night",
    "peace along the border",
)
_TRADES: Final = _split("captain weaver miller abbess mapmaker shipwright ranger physician mason")
_NAMES: Final = _split("Ida Osric Maren Tobias Linna Garet Petra Hugo Selma Anselm Berta")
_LATER: Final = (
    "It is still shown at the yearly market.",
    "Copies of it hang above many doors.",
    "Children learn to draw it at school.",
    "The oldest copy is kept in the town hall.",
)


@dataclass(frozen=True, slots=True)
class Entity:
    """One emblem of the encyclopedia; its document has the same id."""

    entity_id: str
    kind: str
    colour: str
    pattern: str
    accent: str
    title: str
    article: str

    @property
    def look(self) -> Look:
        """The look to draw."""
        return Look(self.kind, self.colour, self.pattern, self.accent)


@lru_cache(maxsize=2)
def list_population(population: Population) -> tuple[Look, ...]:
    """Returns the 2160 looks of a population; "demo" and "studio" are disjoint whatever the seed."""
    looks = list_looks()
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(looks))
    half = len(looks) // 2
    chosen = order[:half] if population == "demo" else order[half:]
    return tuple(looks[int(index)] for index in chosen)


def build_entities(seed: int, count: int, population: Population) -> tuple[Entity, ...]:
    """Samples entities with distinct looks and titles.

    Args:
        seed: Not negative.
        count: 1 to 2160.
        population: "demo" for demo worlds, "studio" for training the base models.

    Raises:
        ValueError: If `count` is out of range.
    """
    pool = list_population(population)
    if not 1 <= count <= len(pool):
        raise ValueError(f"count must be 1 to {len(pool)}, got {count}")
    rng = np.random.default_rng((seed, 1))
    chosen = rng.permutation(len(pool))[:count]
    titles: dict[str, None] = {}
    while len(titles) < count:
        titles[_pick(rng, _TITLES).format(_invent_name(rng))] = None
    return tuple(
        _build_entity(f"e{number:04d}", pool[int(index)], title, rng)
        for number, (index, title) in enumerate(zip(chosen, titles, strict=True), start=1)
    )


def invent_entity(entity_id: str, look: Look, rng: np.random.Generator) -> Entity:
    """Returns an entity of this look with a title and an article made up on the spot."""
    return _build_entity(entity_id, look, _pick(rng, _TITLES).format(_invent_name(rng)), rng)


def describe_look(look: Look) -> str:
    """Returns, for example, "a red moth with white dots"."""
    article = "an" if look.colour[0] in "aeiou" else "a"
    pattern = f"{look.accent} dots" if look.pattern == "dots" else _with_article(f"{look.accent} {look.pattern}")
    return f"{article} {look.colour} {look.kind} with {pattern}"


def _with_article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _build_entity(entity_id: str, look: Look, title: str, rng: np.random.Generator) -> Entity:
    bearer = f"{_pick(rng, _NAMES)} the {_pick(rng, _TRADES)}"
    sentences = [
        f"The {title} comes from {_pick(rng, _PLACES).format(_invent_name(rng))}.",
        f"It shows {describe_look(look)}.",
        f"It stands for {_pick(rng, _MEANINGS)}.",
        f"{bearer} was the first to carry it.",
        f"It was first drawn in {int(rng.integers(1100, 1900))}.",
        _pick(rng, _LATER),
    ]
    article = " ".join(sentences[: 5 + int(rng.integers(2))])
    return Entity(entity_id, look.kind, look.colour, look.pattern, look.accent, title, article)


def _invent_name(rng: np.random.Generator) -> str:
    return _pick(rng, _ONSETS) + _pick(rng, _MIDDLES) + _pick(rng, _ENDINGS)


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]
