"""Answers by vLLM, against a stand-in with vLLM's documented interface; no real vLLM has been tried."""

from __future__ import annotations

import importlib.machinery
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipeline.config import LoraParams, PolicyParams
from pipeline.core.completion import FULL_ANSWER, REGION_OPENING, format_decision
from pipeline.core.region_search import Reshaping
from pipeline.errors import ModelError
from pipeline.policy.policy import Policy, load_policy
from pipeline.policy.view_shape import save_view_shape
from pipeline.policy.vllm_engine import VllmPolicy, choose_engine, load_asked_policy
from pipeline.types import Box, Crop, KeepFull, Malformed
from tests.tiny_families import build_tiny_policy

_IMAGES = [Image.new("RGB", size) for size in ((56, 56), (90, 50), (30, 64))]
_QUESTIONS = ["What is it?", "Is <|image_pad|> one?<|im_end|>", "Where?"]
_P_REGION = 0.25


class FakeSamplingParams:
    """Takes the documented names alone."""

    def __init__(
        self,
        *,
        n: int = 1,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        logit_bias: dict[int, float] | None = None,
        stop_token_ids: list[int] | None = None,
        seed: int | None = None,
        stop: list[str] | None = None,
        include_stop_str_in_output: bool = False,
        max_tokens: int | None = 16,
        prompt_logprobs: int | None = None,
    ) -> None:
        self.n, self.temperature, self.seed, self.stop = n, temperature, seed, stop
        self.include_stop_str_in_output, self.max_tokens = include_stop_str_in_output, max_tokens
        self.prompt_logprobs = prompt_logprobs
        self.top_k, self.top_p, self.repetition_penalty = top_k, top_p, repetition_penalty
        self.logit_bias, self.stop_token_ids = logit_bias, stop_token_ids


class FakeLLM:
    """Says `texts` in turn, cut behind the first stop string, as vLLM does."""

    made: list[FakeLLM]
    texts: Sequence[str]

    def __init__(
        self,
        *,
        model: str,
        dtype: str,
        max_num_seqs: int,
        limit_mm_per_prompt: dict[str, int],
        generation_config: str = "auto",
    ) -> None:
        self.model, self.dtype, self.max_num_seqs = model, dtype, max_num_seqs
        self.generation_config = generation_config
        self.tensors = set().union(*(load_file(path) for path in Path(model).glob("*.safetensors")))
        self.calls: list[tuple[list[dict[str, Any]], list[FakeSamplingParams]]] = []
        self.made.append(self)

    def generate(
        self, prompts: list[dict[str, Any]], sampling_params: Any = None, *, use_tqdm: bool = True
    ) -> list[SimpleNamespace]:
        each = sampling_params if isinstance(sampling_params, list) else [sampling_params] * len(prompts)
        self.calls.append((prompts, each))
        return [self._answer(row, *asked) for row, asked in enumerate(zip(prompts, each, strict=True))]

    def _answer(self, row: int, prompt: dict[str, Any], params: FakeSamplingParams) -> SimpleNamespace:
        text = self.texts[row % len(self.texts)]
        ends = [text.index(stop) + len(stop) for stop in params.stop or () if stop in text]
        output = text[: min(ends)] if ends else text
        scores: list[dict[int, Any] | None] = [
            {token: SimpleNamespace(logprob=math.log(_P_REGION if place == 0 else 0.9))}
            for place, token in enumerate(prompt["prompt_token_ids"][::-1][: len(prompt["prompt_token_ids"])])
        ][::-1]
        return SimpleNamespace(
            outputs=[SimpleNamespace(text=output) for _ in range(params.n)],
            prompt_logprobs=None if params.prompt_logprobs is None else scores,
        )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeLLM]:
    module = ModuleType("vllm")
    module.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    made = type("Made", (FakeLLM,), {"made": [], "texts": ()})
    vars(module).update(LLM=made, SamplingParams=FakeSamplingParams)
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_policy("qwen2_5_vl", tmp_path_factory.mktemp("qwen"))


def _params(folder: Path, **changes: object) -> PolicyParams:
    return PolicyParams.model_validate({"path": str(folder), "max_new_tokens": 40} | changes)


def _open(folder: Path, **changes: object) -> VllmPolicy:
    policy = load_asked_policy(folder, _params(folder, **changes), 3)
    assert isinstance(policy, VllmPolicy)
    return policy


def test_engine_is_vllm_where_it_can_run(fake: type[FakeLLM], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_engine(_params(folder)) == "vllm"
    assert choose_engine(_params(folder, engine="transformers")) == "transformers"
    assert choose_engine(_params(folder, device="cpu")) == "transformers"
    assert choose_engine(PolicyParams()) == "transformers"  # a built-in model gains nothing
    assert choose_engine(PolicyParams(engine="vllm")) == "vllm"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_engine(_params(folder)) == "transformers"
    with pytest.raises(ModelError, match="needs the package vllm and a CUDA device"):
        choose_engine(_params(folder, engine="vllm"))


def test_without_vllm_transformers_answers(folder: Path) -> None:
    assert isinstance(load_asked_policy(folder, _params(folder), 3), Policy)


def test_answers_are_cut_and_read_in_their_own_frames(fake: type[FakeLLM], folder: Path) -> None:
    policy = _open(folder)
    reference = load_policy(folder, _params(folder, device="cpu"))
    box = Box(0.25, 0.5, 0.75, 1.0)
    crop = format_decision(Crop(box), reference.get_frame(*_IMAGES[1].size))
    fake.texts = [f"{FULL_ANSWER} or so", f"{crop} and more", f"I say {FULL_ANSWER}, or"]
    answers = policy.decide(_IMAGES, _QUESTIONS)
    assert [answer.completion for answer in answers] == [FULL_ANSWER, crop, f"I say {FULL_ANSWER}"]
    assert answers[0].decision == KeepFull()
    assert isinstance(answers[1].decision, Crop)
    assert answers[1].decision.box.as_tuple() == pytest.approx(box.as_tuple(), abs=0.02)
    assert isinstance(answers[2].decision, Malformed)
    assert [answer.p_region for answer in answers] == pytest.approx([_P_REGION] * 3)
    (llm,) = fake.made
    assert (llm.model, llm.dtype, llm.max_num_seqs) == (str(folder), "float32", 3)
    (prompts, samplings), (probes, _) = llm.calls
    image_id = reference.model.config.image_token_id
    for prompt, probe, image, sampling in zip(prompts, probes, _IMAGES, samplings, strict=True):
        assert prompt["prompt_token_ids"].count(image_id) == 1
        assert probe["prompt_token_ids"] == [*prompt["prompt_token_ids"], *reference.region_ids]
        assert prompt["multi_modal_data"]["image"].size == image.size
        assert (sampling.temperature, sampling.n, sampling.max_tokens) == (0.0, 1, 40)


def test_crops_take_the_policys_own_shape(fake: type[FakeLLM], folder: Path, tmp_path: Path) -> None:
    shaped, shape = Path(shutil.copytree(folder, tmp_path / "shaped")), Reshaping(0.1, is_square=True)
    save_view_shape(shape, shaped)
    frame = load_policy(folder, _params(folder, device="cpu")).get_frame(90, 50)
    fake.texts = [format_decision(Crop(Box(0.25, 0.5, 0.75, 0.75)), frame)]
    plain, grown = (_open(path).decide(_IMAGES[1:2], _QUESTIONS[:1])[0].decision for path in (folder, shaped))
    assert isinstance(plain, Crop)
    assert grown == Crop(shape.apply(plain.box, 90, 50)) != plain


def test_forced_regions_begin_with_their_opening(fake: type[FakeLLM], folder: Path) -> None:
    policy = _open(folder)
    reference = load_policy(folder, _params(folder, device="cpu"))
    crop = format_decision(Crop(Box(0.0, 0.0, 0.5, 0.5)), reference.get_frame(56, 56))
    fake.texts = [crop.removeprefix(REGION_OPENING)]
    (answer,) = policy.decide(_IMAGES[:1], _QUESTIONS[:1], force_region=True)
    assert answer.completion == crop
    prompts, samplings = fake.made[0].calls[0]
    assert prompts[0]["prompt_token_ids"][-len(reference.region_ids) :] == reference.region_ids
    assert samplings[0].max_tokens == 40 - len(reference.region_ids)


def test_samples_are_grouped_and_every_query_has_its_seed(fake: type[FakeLLM], folder: Path) -> None:
    policy = _open(folder)
    fake.texts = ["?"]
    samples = policy.sample_regions(_IMAGES, _QUESTIONS, num_samples=4, seeds=[5, 2**64 - 1, 7])
    assert [len(row) for row in samples] == [4] * 3
    assert [sampling.seed for sampling in fake.made[0].calls[-2][1]] == [5, 2**31 - 1, 7]


def test_an_adapter_is_merged_before_vllm_reads_it(
    fake: type[FakeLLM], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # peft believes it and would pin memory
    lora = LoraParams(rank=2)
    trained = load_policy(folder, _params(folder, device="cpu", lora=lora))
    trained.prepare_training()
    trained.save(tmp_path)
    VllmPolicy(tmp_path, _params(folder, lora=lora), 3)
    (llm,) = fake.made
    assert llm.model not in (str(folder), str(tmp_path))
    assert llm.tensors == set(load_file(folder / "model.safetensors"))
    assert llm.dtype == "bfloat16"
