"""Sharing pictures changes the cost of a pass, never its numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from pipeline.config import PolicyParams
from pipeline.policy.decoding.shared_pictures import find_copies, find_packed_copies, share_pictures
from pipeline.policy.policy import Policy, load_policy
from tests.tiny_families import BUILDERS, build_tiny_policy


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


def test_equal_pixels_under_another_mask_are_another_picture() -> None:
    pixels = torch.zeros(3, 1, 2, 2)
    mask = torch.tensor([[[True, True]], [[True, False]], [[True, True]]])
    first, index = find_copies(pixels, mask)
    assert len(first) == 2
    assert index[0] == index[2] != index[1]


def _pack(pictures: Sequence[torch.Tensor], grids: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat(list(pictures)), torch.tensor(grids)


def test_packed_copies_are_found_wherever_they_lie() -> None:
    rng = torch.Generator().manual_seed(0)
    small, large = torch.randn(4, 3, generator=rng), torch.randn(8, 3, generator=rng)
    patches, grid = _pack([large, small, large, small], [[1, 2, 4], [1, 2, 2], [1, 2, 4], [1, 2, 2]])
    first, index = find_packed_copies(patches, grid)
    assert sorted(first.tolist()) == [0, 1]
    assert first[index].tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("other", ["swapped patches", "another grid", "another length"])
def test_packed_pictures_that_differ_stay_apart(other: str) -> None:
    picture = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    grids = {"swapped patches": [1, 2, 2], "another grid": [1, 4, 1], "another length": [1, 1, 2]}
    second = {"swapped patches": picture[[1, 0, 2, 3]], "another grid": picture, "another length": picture[:2]}
    patches, grid = _pack([picture, second[other]], [[1, 2, 2], grids[other]])
    assert find_packed_copies(patches, grid)[1].unique().tolist() == [0, 1]


def test_packed_pictures_with_one_fingerprint_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "unique", lambda prints, return_inverse: (prints[:1], torch.zeros_like(prints)))
    patches, grid = _pack([torch.zeros(2, 2), torch.ones(2, 2)], [[1, 1, 2]] * 2)
    first, index = find_packed_copies(patches, grid)
    assert first.tolist() == index.tolist() == [0, 1]


class Pair:
    """A plain model of a family and the same one with shared pictures, and five rows that show two pictures."""

    def __init__(self, family: str, folder: Path) -> None:
        build_tiny_policy(family, folder)
        policy = load_policy(folder, PolicyParams(path=str(folder), device="cpu"))
        prompts = [policy.conversation.write_prompt(f"What is thing {row}?") for row in range(5)]
        rng = np.random.default_rng(1)
        sizes = [(90, 50), (40, 64)]
        shown = [Image.fromarray(rng.integers(0, 255, size=(*size, 3), dtype=np.uint8)) for size in sizes]
        images = [[shown[number]] for number in (0, 1, 0, 0, 1)]
        self.inputs = dict(policy.processor(text=prompts, images=images, padding=True, return_tensors="pt"))
        self.num_encoded = len(self._encode(policy, [[shown[0]], [shown[1]]], prompts[:2]))
        self.models = [AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float64) for _ in range(2)]

    def _encode(self, policy: Policy, images: list[list[Image.Image]], prompts: list[str]) -> torch.Tensor:
        """Return what a tower takes of these pictures: patches, tiles without the empty ones, or pictures."""
        pixels: torch.Tensor = policy.processor(text=prompts, images=images, padding=True, return_tensors="pt")[
            "pixel_values"
        ]
        if pixels.ndim == 5:  # tiles of a picture, and black ones up to the number of the largest
            pixels = pixels.flatten(0, 1)
            pixels = pixels[pixels.flatten(1).any(1)]
        return pixels

    def watch_tower(self, model: Any) -> list[int]:
        """Return a list that will hold how many rows each pass gives to the tower's first layer."""
        seen: list[int] = []
        names = ("patch_embedding", "patch_embed")
        layer = next(m for n, m in model.named_modules() if n.rpartition(".")[2] in names)
        layer.register_forward_pre_hook(lambda _module, args: seen.append(len(args[0])))
        return seen


@pytest.fixture(scope="module", params=list(BUILDERS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    pair = Pair(request.param, tmp_path_factory.mktemp(request.param))
    with share_pictures(pair.models[1], None):
        yield pair


def test_logits_and_gradients_are_those_of_the_plain_model(pair: Pair) -> None:
    found = []
    for model in pair.models:
        logits = model(**pair.inputs).logits
        logits.square().mean().backward()
        found.append((logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (logits, grads), (shared_logits, shared_grads) = found
    torch.testing.assert_close(shared_logits, logits, atol=1e-5, rtol=1e-5)
    assert grads.keys() == shared_grads.keys()
    for name in grads:
        torch.testing.assert_close(shared_grads[name], grads[name], msg=name, atol=1e-5, rtol=1e-5)
    assert any("vision" in name or "visual" in name for name in grads)


def test_the_tower_sees_each_picture_once(pair: Pair) -> None:
    seen = [pair.watch_tower(model) for model in pair.models]
    for model in pair.models:
        model(**pair.inputs)
    (plain,), (shared,) = seen
    assert shared == pair.num_encoded < plain


def test_all_that_a_tower_says_is_handed_out(pair: Pair) -> None:
    arguments = {
        name: value
        for name, value in pair.inputs.items()
        if name in ("pixel_values", "image_grid_thw", "pixel_attention_mask")
    }
    plain, shared = (model.model.get_image_features(**arguments, return_dict=True) for model in pair.models)
    assert plain.keys() == shared.keys()
    torch.testing.assert_close(shared.last_hidden_state, plain.last_hidden_state, atol=1e-5, rtol=1e-5)


def test_sharing_ends_with_its_context(pair: Pair) -> None:
    plain, _ = pair.models
    wanted, hooks = plain(**pair.inputs).logits, [dict(module._forward_hooks) for module in plain.modules()]
    for _ in range(2):  # a second training of the same policy
        with share_pictures(plain):
            torch.testing.assert_close(plain(**pair.inputs).logits, wanted)
    assert [dict(module._forward_hooks) for module in plain.modules()] == hooks
