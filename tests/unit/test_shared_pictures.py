"""Sharing pictures changes the cost of a pass, never its numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from pipeline.learn.shared_pictures import find_copies, share_pictures


def test_copies_are_found_wherever_they_lie() -> None:
    distinct = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([2, 0, 2, 1, 1, 0])
    first, index = find_copies(distinct[order])
    assert len(first) == 3
    assert torch.equal(distinct[order][first][index], distinct[order])


def test_pictures_with_one_fingerprint_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "unique", lambda prints, return_inverse: (prints[:1], torch.zeros_like(prints)))
    pixels = torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)])
    first, index = find_copies(pixels)
    assert first.tolist() == index.tolist() == [0, 1]


def test_half_precision_is_served() -> None:
    pixels = torch.tensor([1.0, 2.0, 1.0]).to(torch.bfloat16).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    assert find_copies(pixels)[1].tolist() in ([0, 1, 0], [1, 0, 1])


@pytest.fixture
def pair(tiny_llava_dir: Path) -> Iterator[tuple[Any, Any]]:
    plain, sharing = (
        AutoModelForImageTextToText.from_pretrained(tiny_llava_dir, dtype=torch.float64) for _ in range(2)
    )
    with share_pictures(sharing, None):
        yield plain, sharing


def _build_inputs(model: Any) -> dict[str, torch.Tensor]:
    config = model.config
    side = config.vision_config.image_size
    num_patches = (side // config.vision_config.patch_size) ** 2
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ids = torch.full((5, num_patches + 3), config.image_token_id)
    ids[:, -3:] = config.image_token_id + 1 + torch.arange(15).view(5, 3) % 7
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels[[0, 1, 0, 0, 1]]}


def test_logits_and_gradients_are_those_of_the_plain_model(pair: tuple[Any, Any]) -> None:
    found = []
    for model in pair:
        logits = model(**_build_inputs(model)).logits
        logits.square().mean().backward()
        found.append((logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (logits, grads), (shared_logits, shared_grads) = found
    torch.testing.assert_close(shared_logits, logits)
    assert grads.keys() == shared_grads.keys()
    for name in grads:
        torch.testing.assert_close(shared_grads[name], grads[name], msg=name)
    assert any("vision_tower" in name for name in grads)


def test_the_tower_sees_each_picture_once(pair: tuple[Any, Any]) -> None:
    seen = []
    for model in pair:
        embeddings = next(m for n, m in model.named_modules() if n.endswith("patch_embedding"))
        embeddings.register_forward_hook(lambda _module, args, _output: seen.append(len(args[0])))
        model(**_build_inputs(model))
    assert seen == [5, 2]


def test_sharing_ends_with_its_context(pair: tuple[Any, Any]) -> None:
    plain, _ = pair
    wanted = plain(**_build_inputs(plain)).logits
    for _ in range(2):  # a second training of the same policy
        with share_pictures(plain):
            torch.testing.assert_close(plain(**_build_inputs(plain)).logits, wanted)
    assert not any(module._forward_hooks for name, module in plain.named_modules() if name.endswith("vision_tower"))
