"""Tiny random checkpoints of every policy family, with tokenizer, chat template and processor; no network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
import trl
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from pipeline.policy import image_only
from tests.tiny_models import build_tiny_llava

_QWEN_TOKENS: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
                       "<|image_pad|>", "<|video_pad|>")  # fmt: skip
_IDEFICS_TOKENS: Final = ("<|endoftext|>", "<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>",
                          "<image>", "<global-img>", "<row_1_col_1>", "<row_1_col_2>", "<row_2_col_1>",
                          "<row_2_col_2>")  # fmt: skip
_TEXT: Final = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
_TILE_PX: Final = 28


def _build_tokenizer(special: tuple[str, ...], end: str, texts: tuple[str, ...]) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # As large vocabularies do, a space joins the sign after it.
    joined = [("\u0120", "<"), ("\u0120", "N")]
    words = [*special, *alphabet, *(first + second for first, second in joined)]
    vocabulary = {token: row for row, token in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=joined))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=end, pad_token=special[0], padding_side="left", model_max_length=1024
    )
    fast.add_special_tokens({"additional_special_tokens": [token for token in special[1:] if token != end]})
    fast.add_tokens([AddedToken(text, special=False, normalized=False) for text in texts])
    return fast


def _read_template(name: str) -> str:
    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()


def _save(model: Any, processor: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _build_qwen(
    folder: Path, config_class: Any, model_class: Any, processor_class: Any, vision: dict[str, Any], template: str
) -> Path:
    tokenizer = _build_tokenizer(_QWEN_TOKENS, "<|im_end|>", ("<tool_call>", "</tool_call>"))
    find = tokenizer.convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
    text = {
        **_TEXT,
        "head_dim": 16,
        "vocab_size": len(tokenizer),
        "rope_parameters": rope,
        "bos_token_id": find("<|endoftext|>"),
        "eos_token_id": find("<|im_end|>"),
        "pad_token_id": find("<|endoftext|>"),
    }
    config = config_class(
        text_config=text,
        vision_config=vision,
        image_token_id=find("<|image_pad|>"),
        video_token_id=find("<|video_pad|>"),
        vision_start_token_id=find("<|vision_start|>"),
        vision_end_token_id=find("<|vision_end|>"),
    )
    side_px = vision["patch_size"] * 2
    image_processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": side_px**2, "longest_edge": (4 * side_px) ** 2},
        patch_size=vision["patch_size"],
        merge_size=2,
        temporal_patch_size=2,
    )
    processor = processor_class(image_processor, tokenizer, chat_template=_read_template(template))
    return _save(model_class(config), processor, tokenizer, folder)


def _build_qwen2_vl(folder: Path) -> Path:
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2, "num_heads": 2, "patch_size": 14}
    return _build_qwen(
        folder, Qwen2VLConfig, Qwen2VLForConditionalGeneration, image_only.Qwen2VLProcessor, vision, "qwen2_5_vl"
    )


def _build_qwen2_5_vl(folder: Path) -> Path:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 64,
        "patch_size": 14,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    }
    return _build_qwen(
        folder,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        image_only.Qwen2_5_VLProcessor,
        vision,
        "qwen2_5_vl",
    )


def _build_qwen3_vl(folder: Path) -> Path:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 64,
        "patch_size": 16,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    return _build_qwen(
        folder, Qwen3VLConfig, Qwen3VLForConditionalGeneration, image_only.Qwen3VLProcessor, vision, "qwen3_vl"
    )


def _build_tiled(
    folder: Path, config_class: Any, model_class: Any, processor_class: Any, image_processor_class: Any
) -> Path:
    """SmolVLM and Idefics3: a picture is cut into tiles; `<tool_call>` is no token of theirs."""
    tokenizer = _build_tokenizer(_IDEFICS_TOKENS, "<end_of_utterance>", ())
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = config_class(
        text_config={
            **_TEXT,
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.pad_token_id,
        },
        vision_config={**vision, "image_size": _TILE_PX, "patch_size": 7},
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    image_processor = image_processor_class(
        size={"longest_edge": 2 * _TILE_PX}, max_image_size={"longest_edge": _TILE_PX}
    )
    template = _read_template("smolvlm")
    processor = processor_class(image_processor, tokenizer, image_seq_len=4, chat_template=template)
    return _save(model_class(config), processor, tokenizer, folder)


def _build_idefics3(folder: Path) -> Path:
    return _build_tiled(
        folder, Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor, Idefics3ImageProcessorPil
    )


def _build_smolvlm(folder: Path) -> Path:
    return _build_tiled(
        folder,
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        image_only.SmolVLMProcessor,
        SmolVLMImageProcessorPil,
    )


BUILDERS: Final[dict[str, Callable[[Path], Path]]] = {
    "llava": build_tiny_llava,
    "qwen2_vl": _build_qwen2_vl,
    "qwen2_5_vl": _build_qwen2_5_vl,
    "qwen3_vl": _build_qwen3_vl,
    "idefics3": _build_idefics3,
    "smolvlm": _build_smolvlm,
}


def build_tiny_policy(family: str, folder: Path, *, seed: int = 0) -> Path:
    """Save a random checkpoint of the family."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BUILDERS[family](folder)
