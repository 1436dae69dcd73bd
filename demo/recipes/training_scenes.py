"""What a base model learns pointing from: a picture's things, their names and boxes, and the ways to ask for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from pipeline.types import Box

# Kinds of reference that name the thing itself: to follow one, a model must recognise what it sees.
_BY_NAME: Final = frozenset({"colour", "group"})


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing of a scene.

    Attributes:
        index: of its entity or product among all that there are.
        names: a word (or words) of each vocabulary that the data know, such as (kind, colour) or (group,).
        box: where it lies.
    """

    index: int
    names: tuple[str, ...]
    box: Box


@dataclass(frozen=True, slots=True)
class Reference:
    """One valid way to point at a thing: its position in the scene, the kind of reference, the words."""

    thing: int
    kind: str
    phrase: str


@dataclass(frozen=True, slots=True)
class TrainingScene:
    """What a training picture shows and how its things can be pointed at."""

    things: tuple[Thing, ...]
    references: tuple[Reference, ...]

    def pick_reference(self, rng: np.random.Generator) -> Reference:
        """Return one reference: half of them by name, the hardest to learn, the rest evenly among the other kinds."""
        kinds = {reference.kind for reference in self.references}
        (named,) = kinds & _BY_NAME
        others = sorted(kinds - _BY_NAME)
        by_name = not others or float(rng.random()) < 0.5
        kind = named if by_name else others[int(rng.integers(len(others)))]
        options = [reference for reference in self.references if reference.kind == kind]
        return options[int(rng.integers(len(options)))]


def squash(image: Image.Image, size_px: int) -> npt.NDArray[np.uint8]:
    """Return the picture as (3, size_px, size_px), its aspect ratio given up."""
    resized = image.resize((size_px, size_px), Image.Resampling.BICUBIC)
    return np.asarray(resized, dtype=np.uint8).transpose(2, 0, 1)


def normalise(pixels: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Return float pixels as the tiny models' processors give them: mean 0.5, deviation 0.5."""
    return torch.from_numpy(pixels).float().div_(127.5).sub_(1.0)
