"""Where a model lies; the type of the policy's weights, and the attention that it computes with."""

from __future__ import annotations

import torch
from transformers.utils import is_flash_attn_2_available

from pipeline.config import PolicyParams
from pipeline.errors import ModelError


def choose_device(wanted: str, parameter: str) -> torch.device:
    """Return the device: `auto` takes a GPU where there is one.

    Args:
        wanted: auto, cpu or cuda.
        parameter: that says so, for the message.

    Raises:
        ModelError: a GPU is asked for and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"{parameter} is cuda, but there is no CUDA device; set it to auto or cpu")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def choose_dtype(params: PolicyParams, device: torch.device) -> torch.dtype:
    """Return the type of the weights: `auto` is float32, but bfloat16 below a LoRA adapter on a GPU.

    Weights that are trained stay float32, whatever the arithmetic: the adapter, or all of them.
    """
    if params.dtype != "auto":
        return torch.bfloat16 if params.dtype == "bfloat16" else torch.float32
    return torch.bfloat16 if params.lora is not None and device.type == "cuda" else torch.float32


def choose_attention(params: PolicyParams, device: torch.device) -> str | None:
    """Return transformers' name of the attention; None leaves it to the model, which takes SDPA where it has it.

    Raises:
        ModelError: FlashAttention is asked for where it cannot run.
    """
    if params.attention == "auto":
        return None
    if params.attention == "flash_attention_2":
        if device.type != "cuda" or not is_flash_attn_2_available():
            raise ModelError(
                "policy.attention is flash_attention_2, which needs a CUDA device and the package flash-attn; "
                "set it to auto or sdpa"
            )
        if choose_dtype(params, device) == torch.float32:
            raise ModelError("policy.attention is flash_attention_2, which needs policy.dtype: bfloat16")
    return params.attention
