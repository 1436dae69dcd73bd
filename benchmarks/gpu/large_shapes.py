"""Checkpoints of published shapes with random weights, written without the hub.

What they cost is measured, never what they say.
`paper` is Qwen2.5-VL-3B (the paper's policy) and CLIP ViT-L/14; `tiny` is the same classes, for a try on a CPU. The
tokenizers are trained here on what is asked and answered, so a word is about one token, as in a published vocabulary;
the embedding tables have the published number of rows all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import trl
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from pipeline.core.boxes import Frame
from pipeline.core.completion import FULL_ANSWER, format_decision
from pipeline.core.prompts import build_prompt
from pipeline.policy.image_only import Qwen2_5_VLProcessor
from pipeline.types import Box, Crop

Untyped = Any
"""A class of transformers, whose attributes depend on the model."""

_END, _PAD, _IMAGE = "<|im_end|>", "<|endoftext|>", "<|image_pad|>"
_SPECIAL: Final = (_PAD, "<|im_start|>", _END, "<|vision_start|>", "<|vision_end|>", _IMAGE, "<|video_pad|>")
_WORDS: Final = Regex(r"\d|[ _]?[A-Za-z]+| ?[^\sA-Za-z\d]+|\s")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Sizes of a policy and a scorer, and what they are asked.

    Attributes:
        name: how the command line calls it.
        text: Qwen2.5-VL's text decoder.
        vision: its vision tower.
        clip_text: text tower of the scorer.
        clip_vision: its vision tower.
        clip_dim: length of its vectors.
        side_px: of the pictures, which are square.
        max_new_tokens: longest answer.
        batch_sizes: of evaluation.
        scorer_batch: pictures that the scorer embeds at once.
    """

    name: str
    text: dict[str, Any]
    vision: dict[str, Any]
    clip_text: dict[str, Any]
    clip_vision: dict[str, Any]
    clip_dim: int
    side_px: int
    max_new_tokens: int
    batch_sizes: tuple[int, ...]
    scorer_batch: int


PAPER: Final = Shape(
    name="paper",
    text={
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    vision={
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 2048,
        "patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
    clip_text={
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
    },
    clip_vision={
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
    },
    clip_dim=768,
    side_px=616,
    max_new_tokens=256,
    batch_sizes=(8, 32, 128),
    scorer_batch=256,
)

TINY: Final = Shape(
    name="tiny",
    text={
        "vocab_size": 1024,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
    },
    vision={
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 64,
        "patch_size": 14,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    },
    clip_text={
        "vocab_size": 1024,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
    },
    clip_vision={
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 7,
    },
    clip_dim=16,
    side_px=84,
    max_new_tokens=96,
    batch_sizes=(2, 4),
    scorer_batch=8,
)

SHAPES: Final = {shape.name: shape for shape in (PAPER, TINY)}


def build_policy_config(shape: Shape, tokenizer: Untyped) -> Qwen2_5_VLConfig:
    """Return the policy's configuration; its special tokens are the tokenizer's."""
    find = tokenizer.convert_tokens_to_ids
    ends = {"bos_token_id": find(_PAD), "eos_token_id": find(_END), "pad_token_id": find(_PAD)}
    return Qwen2_5_VLConfig(
        text_config=shape.text | ends,
        vision_config=shape.vision,
        image_token_id=find(_IMAGE),
        video_token_id=find("<|video_pad|>"),
        vision_start_token_id=find("<|vision_start|>"),
        vision_end_token_id=find("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def build_scorer_config(shape: Shape) -> CLIPConfig:
    """Return the scorer's configuration."""
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return CLIPConfig(
        text_config={**shape.clip_text, **ends, "projection_dim": shape.clip_dim},
        vision_config={**shape.clip_vision, "projection_dim": shape.clip_dim},
        projection_dim=shape.clip_dim,
    )


def save_policy(shape: Shape, folder: Path, questions: Sequence[str], device: torch.device) -> None:
    """Write a random policy in bfloat16, with the processor that the published one has."""
    tokenizer = build_policy_tokenizer(questions)
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration._from_config(
            build_policy_config(shape, tokenizer), dtype=torch.bfloat16
        )
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    image_processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": 56 * 56, "longest_edge": 12_845_056}, patch_size=14, merge_size=2, temporal_patch_size=2
    )
    template = (Path(trl.__file__).parent / "chat_templates" / "qwen2_5_vl.jinja").read_text(encoding="utf-8")
    Qwen2_5_VLProcessor(image_processor, tokenizer, chat_template=template).save_pretrained(folder)


def save_scorer(shape: Shape, folder: Path, device: torch.device) -> None:
    """Write a random scorer in float16, as the paper's is kept."""
    with torch.device(device):
        model = CLIPModel._from_config(build_scorer_config(shape), dtype=torch.float16)
    model.save_pretrained(folder)
    side_px = shape.clip_vision["image_size"]
    image_processor = CLIPImageProcessorPil(size={"height": side_px, "width": side_px}, do_center_crop=False)
    CLIPProcessor(image_processor, _build_clip_tokenizer()).save_pretrained(folder)


def build_policy_tokenizer(questions: Sequence[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on prompts and answers: a word is about one token, a digit is one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_WORDS, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    crop = format_decision(Crop(Box(0.0, 0.0, 1.0, 1.0)), Frame(1000, 1000))
    texts = [*(build_prompt(question, "instruct") for question in questions), crop, FULL_ANSWER]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=alphabet, special_tokens=list(_SPECIAL), show_progress=False
    )
    tokenizer.train_from_iterator(texts * 10, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=_END, pad_token=_PAD, padding_side="left", model_max_length=128000
    )
    fast.add_tokens([AddedToken(text, special=False, normalized=False) for text in ("<tool_call>", "</tool_call>")])
    return fast


def _build_clip_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: row for row, token in enumerate(["<pad>", "<start>", "<end>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<start>", eos_token="<end>", pad_token="<pad>", model_max_length=77
    )
