"""Teach a tiny scorer to recognise products: views of photos against all entries of the catalogue at once.

With 81 entries a step needs no negatives from its batch: every view is told from every entry. A view that shows
several products belongs to each of them in equal parts, so that a mosaic's vector leans towards all that it shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPModel, CLIPProcessor

from demo.recipes.contrast import compute_lr_factor
from demo.recipes.training_scenes import normalise

# Shapes: V views, E entries, B views of a step, D dimensions.
_MAX_LOGIT_SCALE: Final = float(np.log(50.0))


@dataclass(frozen=True, kw_only=True)
class PhotoContrastRecipe:
    """Settings of the scorer's training; `whole_share` of the views are whole pictures, the rest cut-out photos."""

    num_views: int = 24_000
    num_steps: int = 1500
    num_views_per_step: int = 96
    whole_share: float = 0.3
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 0.1


@dataclass(frozen=True)
class PhotoViews:
    """What a scorer of the groceries learns from.

    Attributes:
        views_V: (V, 3, side, side) pixels.
        target_VE: which entries each view shows; its rows sum to 1.
        iconic_E: (E, 3, side, side) pixels of the entries' pictures.
        texts_E: their texts.
    """

    views_V: npt.NDArray[np.uint8]
    target_VE: npt.NDArray[np.float32]
    iconic_E: npt.NDArray[np.uint8]
    texts_E: Sequence[str]


def build_targets(shown: Sequence[Sequence[int]], num_entries: int) -> npt.NDArray[np.float32]:
    """Return (V, E): each view's weight is shared equally by the entries that it shows."""
    target_VE = np.zeros((len(shown), num_entries), dtype=np.float32)
    for view, entries in enumerate(shown):
        target_VE[view, list(entries)] = 1.0 / len(entries)
    return target_VE


def train_photo_contrast(
    model: CLIPModel,
    processor: CLIPProcessor,
    data: PhotoViews,
    recipe: PhotoContrastRecipe,
    seed: int,
    report: Callable[[int, dict[str, float]], None],
) -> None:
    """Train model in place: a view finds its entries (picture and text together), a picture finds its text."""
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: compute_lr_factor(step, recipe.warmup_steps, recipe.num_steps)
    )
    tokens = processor.tokenizer(list(data.texts_E), padding=True, truncation=True, return_tensors="pt")
    same_E = torch.arange(len(data.texts_E))
    model.train()
    for step in range(recipe.num_steps):
        rows = rng.integers(len(data.views_V), size=recipe.num_views_per_step)
        target_BE = torch.from_numpy(data.target_VE[rows])
        with torch.autocast("cpu", torch.bfloat16):
            pixels = torch.cat([normalise(data.views_V[rows]), normalise(data.iconic_E)])
            images = model.get_image_features(pixel_values=pixels).pooler_output
            texts = model.get_text_features(**tokens).pooler_output
        view_BD, iconic_ED = F.normalize(images.float(), dim=-1).split([len(rows), len(same_E)])
        text_ED = F.normalize(texts.float(), dim=-1)
        entry_ED = F.normalize(iconic_ED + text_ED, dim=-1)
        scale = model.logit_scale.exp()
        found_loss = F.cross_entropy(scale * view_BD @ entry_ED.T, target_BE)
        loss = found_loss + 0.25 * F.cross_entropy(scale * iconic_ED @ text_ED.T, same_E)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=_MAX_LOGIT_SCALE)
            hit_B = target_BE.gather(1, (view_BD @ entry_ED.T).argmax(1, keepdim=True)) > 0
        report(step, {"loss": loss.item(), "train_recall": hit_B.float().mean().item()})
    model.eval()
