"""What tells one tiny scorer of the demo from another: its shape, its loss and its training rounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

Untyped = Any
"""A class of transformers, whose attributes depend on the model."""

PairLoss = Callable[[Untyped, torch.Tensor, torch.Tensor], torch.Tensor]
"""From the model (its scale, its bias) and two (B, D) sets of unit vectors, row by row a pair, to the loss."""


@dataclass(frozen=True, kw_only=True)
class ContrastRecipe:
    """Settings of one round of training; `scene_share` of the views are whole scenes, the rest crops."""

    num_scenes: int = 10_000
    num_steps: int = 1200
    scene_share: float = 0.4
    num_groups: int = 20
    group_size: int = 6
    learning_rate: float = 1.5e-3
    warmup_steps: int = 100
    weight_decay: float = 0.05
    max_logit_scale: float = math.log(50.0)


@dataclass(frozen=True, kw_only=True)
class ScorerDesign:
    """A tiny scorer to be built.

    Attributes:
        name: of its folder; `builtin:NAME` in params.yaml.
        summary: what it is, for its card.
        image_size_px: side of its square input.
        dim: length of its vectors.
        text_padding: how a batch of texts is padded: to the longest, or to full length as SigLIP's tower learned it.
        rounds: the first learns what lies in a scene, the second to tell entries apart that differ in a detail.
        build_processor: from the articles that teach its tokenizer.
        build_model: the untrained model, from its processor; seed torch first.
        compute_loss: the family's own loss of a batch of pairs.
    """

    name: str
    summary: str
    image_size_px: int
    dim: int
    text_padding: bool | str
    rounds: tuple[ContrastRecipe, ...]
    build_processor: Callable[[Iterable[str]], Untyped]
    build_model: Callable[[Untyped], Untyped]
    compute_loss: PairLoss
