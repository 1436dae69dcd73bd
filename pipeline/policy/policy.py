"""The policy at inference: picture and question in, one decision out (paper section 3).

Shapes: N queries, B rows of a batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, LogitsProcessorList, StoppingCriteriaList

from pipeline.config import BatchParams, PolicyParams
from pipeline.core.boxes import Frame
from pipeline.core.completion import FULL_ANSWER, REGION_OPENING, cut_after_action, format_decision
from pipeline.core.region_search import Reshaping
from pipeline.errors import ModelError
from pipeline.models.model_folder import check_model_folder, compute_model_digest, resolve_model_path
from pipeline.models.precision import choose_attention, choose_device, choose_dtype
from pipeline.policy.adapters import attach_adapter, has_adapter, load_adapter, save_adapter
from pipeline.policy.conversation import Conversation
from pipeline.policy.decoding.action_end import ActionEnd
from pipeline.policy.decoding.generation import (
    DRAWING_TEMPERATURE,
    GenerationSettings,
    find_answer_tokens,
    forget_generation_config,
)
from pipeline.policy.decoding.length_batches import TOKENS_PER_ROW, cut_by_length
from pipeline.policy.decoding.openings import FirstTokenProbability, ForcedOpenings
from pipeline.policy.decoding.seeded_draws import SeededDraws
from pipeline.policy.decoding.shared_prompts import select_pictures, start_from_prompts
from pipeline.policy.families import LOADING_ERRORS, FrameOf, build_frames, find_family, load_processor
from pipeline.policy.view_shape import AS_NAMED, load_view_shape, read_decision, save_view_shape
from pipeline.process.progress import Advance
from pipeline.types import Box, Crop, Decision

Untyped = Any
"""A class of transformers, whose attributes depend on the model."""

# Any crop shows how a crop's answer begins.
_SOME_CROP: Final = Crop(Box(0.0, 0.0, 1.0, 1.0))
_SOME_FRAME: Final = Frame(1.0, 1.0)


@dataclass(frozen=True, slots=True)
class PolicyAnswer:
    """What the policy said about one query.

    Attributes:
        decision: the parsed answer.
        completion: the text as it was generated up to the action's end, special tokens left out.
        p_region: probability that the answer opens a region, 0 to 1: that of the canonical opening's first token,
            before any sampling or forcing.
    """

    decision: Decision
    completion: str
    p_region: float


class Policy:
    """A vision-language model that keeps the full image or names one region.

    Args:
        model: any `AutoModelForImageTextToText`.
        processor: its processor, padding on the left.
        params: prompt style, answer length, adapter.
        base_digest: names the folder of the model without any adapter.
        get_frame: width and height of an upright picture in pixels -> the frame of the boxes on it.
        batch_size: most answers that are decoded together; fewer where prompts are long (`length_batches.py`).
        view_shape: how a crop lies around the box that the model names.

    Raises:
        ModelError: both answers begin with the same token.
    """

    def __init__(
        self,
        model: Untyped,
        processor: Untyped,
        params: PolicyParams,
        base_digest: str,
        get_frame: FrameOf,
        *,
        batch_size: int,
        view_shape: Reshaping = AS_NAMED,
    ) -> None:
        self.model = model
        self.processor = processor
        self.params = params
        self.base_digest: Final = base_digest
        self.get_frame: Final = get_frame
        self.view_shape = view_shape
        self.tokens: Final = find_answer_tokens(model, processor.tokenizer)
        self.batch_size = batch_size
        self.conversation: Final = Conversation(processor, params)
        encode = self.conversation.encode_opening
        self.region_ids: Final = encode(format_decision(_SOME_CROP, _SOME_FRAME), REGION_OPENING)
        self.full_ids: Final = encode(FULL_ANSWER, FULL_ANSWER)
        if self.region_ids[0] == self.full_ids[0]:
            raise ModelError("the tokenizer begins REGION and FULL with the same token: p(REGION) cannot be read there")

    def decide(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        *,
        force_region: bool = False,
        advance: Advance | None = None,
    ) -> list[PolicyAnswer]:
        """Answer every query greedily; the same queries in the same order give the same answers.

        Args:
            images: upright pictures, any size.
            questions: one per picture.
            force_region: every answer opens a region, whatever the policy would say; `p_region` stays its own.
            advance: told how many queries are done.

        Raises:
            ValueError: not one question per picture.
            ModelError: the family cannot read a picture of that shape.
        """
        settings = GenerationSettings.greedy(self.params.max_new_tokens, self.tokens)
        answers: list[PolicyAnswer] = []
        for start, batch_images, batch_questions in self._split(images, questions, self.batch_size):
            answers += self._answer_batch(batch_images, batch_questions, settings, force_region=force_region)
            if advance is not None:
                advance(len(answers) - start)
        return answers

    def read(self, text: str, width_px: int, height_px: int) -> Decision:
        """Return the decision that a completion states about a picture of that size, the crop in its final shape."""
        return self._read_on((width_px, height_px))(text)

    @property
    def trains_in_bfloat16(self) -> bool:
        """Whether training computes in bfloat16: so on a GPU, unless `policy.dtype` says otherwise."""
        if self.params.dtype == "auto":
            return bool(self.model.device.type == "cuda")
        return self.params.dtype == "bfloat16"

    def prepare_training(self) -> None:
        """Put a fresh adapter on the model if `policy.lora` asks for one and it has none yet.

        Raises:
            ModelError: all weights would be trained, and they are bfloat16.
        """
        if self.params.lora is None and self.model.dtype == torch.bfloat16:
            raise ModelError(
                "policy.dtype is bfloat16 without policy.lora: the small updates of a full fine-tune would be rounded "
                "away; set policy.dtype to auto (a GPU computes in bfloat16 anyway) or train an adapter"
            )
        if self.params.lora is not None and not isinstance(self.model, PeftModel):
            self.model = attach_adapter(self.model, self.params.lora)

    def sample_regions(
        self, images: Sequence[Image.Image], questions: Sequence[str], *, num_samples: int, seeds: Sequence[int]
    ) -> list[list[PolicyAnswer]]:
        """Draw several answers to every query with REGION forced, at temperature 1.

        A query's seed alone decides its lots, not the queries beside it, so the draws do not depend on the batch size.

        Args:
            images: upright pictures, any size.
            questions: one per picture.
            num_samples: answers to a query, at least 1.
            seeds: one per picture.

        Returns:
            `num_samples` answers for each query.

        Raises:
            ValueError: not one question and one seed per picture.
            ModelError: the family cannot read a picture of that shape.
        """
        if len(seeds) != len(images):
            raise ValueError(f"{len(images)} images and {len(seeds)} seeds")
        settings = GenerationSettings.sampling(self.params.max_new_tokens, DRAWING_TEMPERATURE, self.tokens)
        samples: list[list[PolicyAnswer]] = []
        size = max(1, self.batch_size // num_samples)
        for start, batch_images, batch_questions in self._split(images, questions, size):
            lots = seeds[start : start + size]
            rows = self._answer_batch(
                batch_images, batch_questions, settings, force_region=True, num_samples=num_samples, seeds=lots
            )
            samples += [rows[start : start + num_samples] for start in range(0, len(rows), num_samples)]
        return samples

    def save(self, folder: Path) -> None:
        """Write processor and weights (safetensors) to a folder: the adapter's where there is one, else all."""
        if isinstance(self.model, PeftModel):
            save_adapter(self.model, folder, self.base_digest)
        else:
            self.model.save_pretrained(folder, safe_serialization=True)
        self.processor.save_pretrained(folder)
        save_view_shape(self.view_shape, folder)

    def save_merged(self, folder: Path) -> None:
        """Write a folder that stands alone: an adapter is merged into its base first, for good."""
        if isinstance(self.model, PeftModel):
            self.model = self.model.merge_and_unload()
        self.save(folder)

    def _read_on(self, size_px: tuple[int, int]) -> Callable[[str], Decision]:
        return partial(read_decision, frame=self.get_frame(*size_px), shape=self.view_shape, size_px=size_px)

    def _split(
        self, images: Sequence[Image.Image], questions: Sequence[str], size: int
    ) -> Iterator[tuple[int, Sequence[Image.Image], Sequence[str]]]:
        if len(images) != len(questions):
            raise ValueError(f"{len(images)} images and {len(questions)} questions")
        self.model.eval()
        for start in range(0, len(images), size):
            yield start, images[start : start + size], questions[start : start + size]

    def _answer_batch(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        settings: GenerationSettings,
        *,
        force_region: bool,
        num_samples: int = 1,
        seeds: Sequence[int] | None = None,
    ) -> list[PolicyAnswer]:
        """Answer every query `num_samples` times; answers to one query follow one another.

        Rows that would be padded beyond what a batch holds are answered in several parts, by length.
        """
        readers = [self._read_on(image.size) for image in images]  # refuses a shape before the processor trips over it
        prompts = [self.conversation.write_prompt(question) for question in questions]
        inputs = self.processor(text=prompts, images=[[image] for image in images], padding=True, return_tensors="pt")
        parts = cut_by_length(inputs["attention_mask"].sum(1).tolist(), self.batch_size * TOKENS_PER_ROW // num_samples)
        if len(parts) == 1:
            readers = [read for read in readers for _ in range(num_samples)]
            draws = [] if seeds is None else [SeededDraws(seeds, num_samples)]
            return self._generate(inputs.to(self.model.device), readers, settings, num_samples, draws, force_region)
        answers: dict[int, list[PolicyAnswer]] = {}
        for rows in parts:
            replies = self._answer_batch(
                [images[row] for row in rows],
                [questions[row] for row in rows],
                settings,
                force_region=force_region,
                num_samples=num_samples,
                seeds=None if seeds is None else [seeds[row] for row in rows],
            )
            answers |= {row: replies[at * num_samples : (at + 1) * num_samples] for at, row in enumerate(rows)}
        return [answer for row in range(len(questions)) for answer in answers[row]]

    @torch.inference_mode()
    def _generate(
        self,
        inputs: Mapping[str, Any],
        readers: Sequence[Callable[[str], Decision]],
        settings: GenerationSettings,
        num_samples: int,
        draws: Sequence[SeededDraws],
        force_region: bool,
    ) -> list[PolicyAnswer]:
        """Answer the prompts of one batch; `readers` has one for each answer."""
        num_prompt_tokens = inputs["input_ids"].shape[1]
        if num_samples > 1:
            inputs = start_from_prompts(self.model, _repeat_rows(inputs, num_samples))
        p_region = FirstTokenProbability(self.region_ids[0], num_prompt_tokens)
        forced = [ForcedOpenings([self.region_ids] * len(readers), num_prompt_tokens)] if force_region else []
        sequences = self.model.generate(
            **inputs,
            generation_config=settings.build_config(),
            # The draws come last: they pick from what the other processors leave.
            logits_processor=LogitsProcessorList([p_region, *forced, *draws]),
            stopping_criteria=StoppingCriteriaList(
                [ActionEnd(self.processor.tokenizer, num_prompt_tokens, len(readers))]
            ),
        )
        completion_BT = sequences[:, num_prompt_tokens:]
        texts = [
            cut_after_action(text) for text in self.processor.batch_decode(completion_BT, skip_special_tokens=True)
        ]
        return [
            PolicyAnswer(read(text), text, p)
            for text, read, p in zip(texts, readers, p_region.p_B.tolist(), strict=True)
        ]


def _repeat_rows(inputs: Mapping[str, Any], times: int) -> dict[str, Any]:
    """Return a processor's output with every row and its picture `times` over, one after another."""
    ids_BP = inputs["input_ids"]
    rows = [row for row in range(len(ids_BP)) for _ in range(times)]
    pictures = select_pictures(inputs, rows, ids_BP.shape[1])
    return {"input_ids": ids_BP[rows], "attention_mask": inputs["attention_mask"][rows], **pictures}


def load_policy(path: str | Path, params: PolicyParams, batch_size: int = BatchParams().policy) -> Policy:
    """Open a policy from a local folder of safetensors: a whole model, or an adapter on the base `params.path`.

    Args:
        path: a folder.
        params: how to prompt and decode.
        batch_size: `batches.policy`; training does not ask for it.

    Raises:
        ModelError: no such folder, weights in an unsafe format, an unknown family, a broken file, an adapter of
            another base, or an attention that cannot run here.
    """
    folder = resolve_model_path(path)
    base_dir = resolve_model_path(params.path) if has_adapter(folder) else folder
    check_model_folder(base_dir)
    base_digest = compute_model_digest(base_dir)
    device = choose_device(params.device, "policy.device")
    try:
        config = AutoConfig.from_pretrained(base_dir, local_files_only=True)
        processor = load_processor(folder, find_family(config))
        get_frame = build_frames(config, processor)
        model, report = AutoModelForImageTextToText.from_pretrained(
            base_dir,
            local_files_only=True,
            use_safetensors=True,
            dtype=choose_dtype(params, device),
            attn_implementation=choose_attention(params, device),
            output_loading_info=True,
        )
        if report["missing_keys"]:
            raise ModelError(f"{base_dir}: the weights lack {len(report['missing_keys'])} of the model's tensors")
        forget_generation_config(model, processor.tokenizer)
        if has_adapter(folder):
            model = load_adapter(model, folder, base_digest)
    except LOADING_ERRORS as error:
        raise ModelError(f"{folder}: cannot be loaded: {' '.join(str(error).split())}") from error
    return Policy(
        model.to(device),
        processor,
        params,
        base_digest,
        get_frame,
        batch_size=batch_size,
        view_shape=load_view_shape(folder),
    )
