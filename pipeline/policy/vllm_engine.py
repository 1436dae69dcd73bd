"""Answers by vLLM in place of transformers' `generate`, for policies that are only asked (stage answer).

Written from vLLM's documentation and tested against a stand-in of its interface; no vLLM has run this yet. Training
never uses it: a trained policy's weights would have to reach vLLM after every step, which nobody could check here.

- p(REGION) is the probability of one given token, which vLLM reports of prompts only. So each query is also asked as a
  prompt that already opens a region, whose first token's log probability is read.
- vLLM puts no adapter on a vision tower, so an adapter is merged into a copy of its base first.
- vLLM prepares pictures with its own copy of the processor; answers may differ from transformers' in single cases.
"""

from __future__ import annotations

import importlib.util
import math
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import torch
from PIL import Image

from pipeline.config import PolicyParams
from pipeline.core.completion import FULL_ANSWER, REGION_CLOSING, cut_after_action
from pipeline.errors import ModelError
from pipeline.models.model_folder import is_builtin, resolve_model_path
from pipeline.models.precision import choose_dtype
from pipeline.policy.adapters import has_adapter
from pipeline.policy.decoding.generation import DRAWING_TEMPERATURE, GenerationSettings
from pipeline.policy.policy import Policy, PolicyAnswer, load_policy
from pipeline.policy.view_shape import read_decision

_MAX_SEED: Final = 2**31


def choose_engine(params: PolicyParams) -> Literal["transformers", "vllm"]:
    """Return what generates: `auto` takes vLLM where it is installed beside a GPU, but not for built-in models.

    Raises:
        ModelError: vLLM is asked for where it cannot run.
    """
    can_run = importlib.util.find_spec("vllm") is not None and torch.cuda.is_available() and params.device != "cpu"
    if params.engine == "vllm" and not can_run:
        raise ModelError("policy.engine is vllm, which needs the package vllm and a CUDA device; set it to auto")
    wanted = can_run and not is_builtin(params.path)
    return "vllm" if params.engine == "vllm" or (params.engine == "auto" and wanted) else "transformers"


def load_asked_policy(path: str | Path, params: PolicyParams, batch_size: int) -> Policy | VllmPolicy:
    """Open a policy that is asked and never trained, with the engine that `params.engine` names.

    Args:
        path: a whole model, or an adapter on the base `params.path`.
        params: how to prompt and decode.
        batch_size: `batches.policy`.

    Raises:
        ModelError: as `load_policy`, and as `choose_engine`.
    """
    if choose_engine(params) == "transformers":
        return load_policy(path, params, batch_size)
    return VllmPolicy(path, params, batch_size)


class VllmPolicy:
    """A policy whose answers vLLM generates; asked like a `Policy`.

    Args:
        path: a whole model, or an adapter on the base `params.path`.
        params: how to prompt and decode.
        batch_size: rows that vLLM decodes at once.
    """

    def __init__(self, path: str | Path, params: PolicyParams, batch_size: int) -> None:
        import vllm

        dtype = str(choose_dtype(params, torch.device("cuda"))).removeprefix("torch.")
        on_cpu = params.model_copy(update={"device": "cpu", "dtype": dtype, "attention": "auto"})
        policy = load_policy(path, on_cpu)  # for its processor and frames, and to merge an adapter
        with tempfile.TemporaryDirectory(prefix="region-r1-vllm-") as merged:
            folder = resolve_model_path(path)
            if has_adapter(folder):
                policy.save_merged(folder := Path(merged))
            self._llm = vllm.LLM(
                model=str(folder),
                dtype=dtype,
                max_num_seqs=batch_size,
                limit_mm_per_prompt={"image": 1},
                generation_config="vllm",  # nothing of the folder's own
            )
        self._sampling_class = vllm.SamplingParams
        self._params = params
        self._processor = policy.processor
        self._conversation = policy.conversation
        # Not the policy itself, whose weights on the CPU may go now.
        self._get_frame, self._view_shape = policy.get_frame, policy.view_shape
        self._region_ids = policy.region_ids
        self._tokens = policy.tokens

    def decide(
        self, images: Sequence[Image.Image], questions: Sequence[str], *, force_region: bool = False
    ) -> list[PolicyAnswer]:
        """Answer every query greedily, as `Policy.decide` does."""
        settings = GenerationSettings.greedy(self._params.max_new_tokens, self._tokens)
        lots = [{"n": 1} for _ in images]
        return [answer for (answer,) in self._answer(images, questions, settings, lots, force_region=force_region)]

    def sample_regions(
        self, images: Sequence[Image.Image], questions: Sequence[str], *, num_samples: int, seeds: Sequence[int]
    ) -> list[list[PolicyAnswer]]:
        """Draw answers with REGION forced, as `Policy.sample_regions` does, each query with a seed of its own."""
        settings = GenerationSettings.sampling(self._params.max_new_tokens, DRAWING_TEMPERATURE, self._tokens)
        lots = [{"n": num_samples, "seed": seed % _MAX_SEED} for seed in seeds]
        return self._answer(images, questions, settings, lots, force_region=True)

    def _answer(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        settings: GenerationSettings,
        lots: Sequence[dict[str, int]],
        *,
        force_region: bool,
    ) -> list[list[PolicyAnswer]]:
        forced = self._region_ids if force_region else []
        common: dict[str, Any] = {
            **settings.list_vllm_arguments(len(forced)),
            "stop": [REGION_CLOSING, FULL_ANSWER],
            "include_stop_str_in_output": True,
        }
        samplings = [self._sampling_class(**common, **lot) for lot in lots]
        rows = self._llm.generate(self._build_prompts(images, questions, forced), samplings, use_tqdm=False)
        opening = self._processor.tokenizer.decode(forced)
        answers = []
        for image, p_region, row in zip(images, self._read_p_region(images, questions), rows, strict=True):
            texts = [cut_after_action(opening + output.text) for output in row.outputs]
            read = partial(
                read_decision, frame=self._get_frame(*image.size), shape=self._view_shape, size_px=image.size
            )
            answers.append([PolicyAnswer(read(text), text, p_region) for text in texts])
        return answers

    def _read_p_region(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[float]:
        probe = self._sampling_class(max_tokens=1, temperature=0.0, prompt_logprobs=0)
        rows = self._llm.generate(self._build_prompts(images, questions, self._region_ids), probe, use_tqdm=False)
        at, first = -len(self._region_ids), self._region_ids[0]
        return [math.exp(row.prompt_logprobs[at][first].logprob) for row in rows]

    def _build_prompts(
        self, images: Sequence[Image.Image], questions: Sequence[str], opening: Sequence[int]
    ) -> list[dict[str, Any]]:
        """Return prompts as token ids with one placeholder a picture, which vLLM widens itself."""
        texts = [self._conversation.write_prompt(question) for question in questions]
        return [
            {
                "prompt_token_ids": [*self._processor.tokenizer(text)["input_ids"], *opening],
                "multi_modal_data": {"image": image.convert("RGB")},
            }
            for text, image in zip(texts, images, strict=True)
        ]
