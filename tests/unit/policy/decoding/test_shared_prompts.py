"""Prompts that are run once change the cost of a pass, never its numbers; all families."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from trl import GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from pipeline.config import LoraParams, PolicyParams
from pipeline.policy.decoding.generation import GenerationSettings
from pipeline.policy.decoding.shared_prompts import (
    can_share_prompts,
    compute_completion_logps,
    find_shared_prompts,
    select_pictures,
    start_from_prompts,
)
from pipeline.policy.policy import Policy, load_policy
from tests.tiny_families import BUILDERS, build_tiny_policy

_SIZES_PX: Final = ((90, 50), (40, 64), (90, 50))
_ASKED: Final = (("What is it?", 0), ("Which thing, on the left or on the right, is it?", 1), ("What is it?", 2))
"""Question and picture of each distinct prompt: of other lengths, and one question about two pictures."""
_ROWS: Final = (0, 0, 1, 0, 2, 1, 2, 2)
"""Which prompt each row has: in no order, and more rows of one than of another."""
_LENGTHS: Final = (5, 1, 6, 3, 6, 2, 4, 6)


class Batch:
    """Eight rows of three prompts, with random completions, as TRL's trainer hands them to a model."""

    def __init__(self, policy: Policy) -> None:
        prompts = [policy.conversation.write_prompt(_ASKED[prompt][0]) for prompt in _ROWS]
        rng = np.random.default_rng(1)
        shown = [Image.fromarray(rng.integers(0, 255, size=(h, w, 3), dtype=np.uint8)) for w, h in _SIZES_PX]
        fields = dict(
            policy.processor(
                text=prompts, images=[[shown[_ASKED[prompt][1]]] for prompt in _ROWS], padding=True, return_tensors="pt"
            )
        )
        self.prompt_ids, self.prompt_mask = fields.pop("input_ids"), fields.pop("attention_mask")
        self.num_tokens = max(_LENGTHS)
        words = policy.processor.tokenizer("a crop of the left part", add_special_tokens=False)["input_ids"]
        completion_ids = torch.from_numpy(rng.choice(words, size=(len(_ROWS), self.num_tokens)))
        completion_mask = (torch.arange(self.num_tokens) < torch.tensor(_LENGTHS)[:, None]).long()
        self.input_ids = torch.cat([self.prompt_ids, completion_ids], dim=1)
        self.mask = torch.cat([self.prompt_mask, completion_mask], dim=1)
        self.fields = fields
        self.pictures = {
            name: torch.cat([values, values.new_zeros(completion_ids.shape)], dim=1)
            if name.endswith("token_type_ids")
            else values
            for name, values in fields.items()
        }
        self.weight = torch.from_numpy(rng.normal(size=completion_ids.shape)) * completion_mask

    def score_whole_rows(self, model: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what TRL's own method makes of the rows."""
        trainer = SimpleNamespace(accelerator=SimpleNamespace(autocast=nullcontext, is_main_process=False))
        logps, entropies, _ = GRPOTrainer._get_per_token_logps_and_entropies(
            trainer,
            model,
            self.input_ids,
            self.mask,
            self.num_tokens,
            compute_entropy=True,
            num_images=[1] * len(_ROWS),
            **self.pictures,
        )
        return logps, entropies

    def score(self, model: Any, rows: Sequence[int] = range(len(_ROWS))) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what continuing from shared prompts makes of some rows."""
        pictures = select_pictures(self.pictures, rows, self.input_ids.shape[1])
        ids, mask = self.input_ids[list(rows)], self.mask[list(rows)]
        output = compute_completion_logps(model, ids, mask, self.num_tokens, pictures)
        return output.log_probs, output.entropy


class Scored:
    """A policy in double precision with TRL's head, and what both ways make of the batch."""

    def __init__(self, family: str, folder: Path, lora: LoraParams | None) -> None:
        build_tiny_policy(family, folder)
        self.policy = load_policy(folder, PolicyParams(path=str(folder), device="cpu", max_new_tokens=12, lora=lora))
        self.policy.prepare_training()
        self.model = self.policy.model.double()
        assert isinstance(self.model, PeftModel) == (lora is not None)
        if lora is not None:
            self.model.add_adapter("ref", self.model.peft_config["default"])
            torch.manual_seed(2)
            for name, weight in self.model.named_parameters():
                if "lora_" in name:
                    torch.nn.init.normal_(weight, std=0.1)
        inner = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        add_fused_lm_head(inner, outputs=("log_probs", "entropy"))
        self.model.eval()
        self.batch = Batch(self.policy)
        self.batch.pictures["pixel_values"] = self.batch.pictures["pixel_values"].double()

    def differentiate(self, scored: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.model.zero_grad()
        logps, entropies = scored
        ((logps + 0.3 * entropies.detach()) * self.batch.weight).sum().backward()
        return {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}


_CASES: Final = [
    *((family, None) for family in BUILDERS),
    ("qwen2_5_vl", LoraParams(rank=2)),
    ("llava", LoraParams(rank=2)),
]


@pytest.fixture(scope="module", params=_CASES, ids=[family + ("-lora" if lora else "") for family, lora in _CASES])
def scored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scored:
    family, lora = request.param
    return Scored(family, tmp_path_factory.mktemp(family), lora)


@pytest.fixture
def prompts_seen(scored: Scored) -> Iterator[list[tuple[int, int]]]:
    """The rows and tokens of each pass through the language model."""
    seen: list[tuple[int, int]] = []
    names = re.compile(r"(language|text)_model\.layers\.0$")
    layer = next(module for name, module in scored.model.named_modules() if names.search(name))
    hook = layer.register_forward_pre_hook(lambda _module, args: seen.append(tuple(args[0].shape[:2])))
    yield seen
    hook.remove()


def test_numbers_and_gradients_are_those_of_whole_rows(scored: Scored) -> None:
    whole, shared = scored.batch.score_whole_rows(scored.model), scored.batch.score(scored.model)
    for wanted, got in zip(whole, shared, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    wanted, got = scored.differentiate(whole), scored.differentiate(shared)
    assert wanted.keys() == got.keys()
    for name in wanted:
        size = wanted[name].abs().max().clamp(min=1.0)  # entries of one gradient round alike
        torch.testing.assert_close(got[name] / size, wanted[name] / size, msg=name, atol=1e-5, rtol=0)
    assert any(grad.abs().max() > 1e-3 for grad in got.values())


@torch.no_grad()
def test_each_prompt_goes_through_the_model_once(scored: Scored, prompts_seen: list[tuple[int, int]]) -> None:
    batch = scored.batch
    batch.score(scored.model)
    num_prompt_tokens = batch.prompt_ids.shape[1]
    assert prompts_seen == [(len(_ASKED), num_prompt_tokens - 1), (len(_ROWS), batch.num_tokens + 1)]


@torch.no_grad()
def test_a_batch_that_splits_a_group_gives_the_same_numbers(scored: Scored) -> None:
    logps, entropies = scored.batch.score_whole_rows(scored.model)
    for rows in ([0, 1, 2], [3, 4, 5, 6], [7]):
        for wanted, got in zip((logps[rows], entropies[rows]), scored.batch.score(scored.model, rows), strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("scored", [case for case in _CASES if case[1]], ids=["qwen2_5_vl", "llava"], indirect=True)
def test_a_reference_adapter_is_the_one_that_answers(scored: Scored) -> None:
    own, _ = scored.batch.score(scored.model)
    scored.model.set_adapter("ref")
    try:
        wanted, got = scored.batch.score_whole_rows(scored.model)[0], scored.batch.score(scored.model)[0]
    finally:
        scored.model.set_adapter("default")
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    assert (got - own).abs().max() > 1e-3


@torch.no_grad()
def test_generation_from_shared_prompts_says_the_same(scored: Scored, prompts_seen: list[tuple[int, int]]) -> None:
    batch, policy = scored.batch, scored.policy
    settings = GenerationSettings.greedy(12, policy.tokens)
    asked = {
        "input_ids": batch.prompt_ids,
        "attention_mask": batch.prompt_mask,
        **select_pictures(batch.fields, range(len(_ROWS)), batch.prompt_ids.shape[1]),
        "generation_config": settings.build_config(),
    }
    asked["pixel_values"] = asked["pixel_values"].double()
    options = {"output_logits": True, "return_dict_in_generate": True}
    wanted = scored.model.generate(**asked, **options)
    prompts_seen.clear()
    got = scored.model.generate(**start_from_prompts(scored.model, asked), **options)
    assert torch.equal(got.sequences, wanted.sequences)
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(wanted.logits), atol=1e-5, rtol=1e-5)
    num_prompt_tokens = batch.prompt_ids.shape[1]
    assert prompts_seen[:2] == [(len(_ASKED), num_prompt_tokens - 1), (len(_ROWS), 1)]


def test_layers_that_compute_again_share_nothing(scored: Scored) -> None:
    model = scored.model
    assert can_share_prompts(model)
    model.activation_checkpointing_enable()
    try:
        assert can_share_prompts(model)
        model.train()
        assert not can_share_prompts(model)
    finally:
        model.activation_checkpointing_disable()
        model.eval()


def test_prompts_are_told_apart_by_words_padding_and_picture() -> None:
    ids = torch.tensor([[5, 6], [5, 6], [5, 7], [5, 6], [5, 6]])
    mask = torch.tensor([[1, 1], [0, 1], [1, 1], [1, 1], [1, 1]])
    pixels = torch.zeros(5, 1, 2, 2)
    pixels[3] = 1.0
    first, index = find_shared_prompts(ids, mask, {"pixel_values": pixels, "image_grid_thw": None})
    assert first[index].tolist() == [0, 1, 2, 3, 0]
