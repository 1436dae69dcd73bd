"""Sizes of models, read from the headers of their files, and the memory that they are expected to take.

The estimate counts weights, gradients and AdamW's two moments exactly as they are kept, and activations after
Korthikanti et al. (2022, "Reducing Activation Recomputation in Large Transformer Models", arXiv 2205.05198): 34 bytes
for each token, layer and hidden unit at 16 bits, without the attention matrix, which SDPA does not keep; with gradient
checkpointing (on a GPU) one layer's worth, and 2 bytes for each input of a layer. Vision towers, caches of generation
and the allocator's waste are not in it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pipeline.config import PolicyParams, ScorerParams, StatedSize
from pipeline.errors import ModelError
from pipeline.files.store import read_json
from pipeline.models.model_folder import resolve_model_path

GB: Final = 1e9
_ACTIVATION_BYTES: Final = 34
_LAYER_INPUT_BYTES: Final = 2
_PROMPT_TOKENS: Final = 64
_PICTURE_TOKENS: Final = 1024
"""Taken where config.json does not say how many tokens a picture has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """How large a model is.

    Attributes:
        role: policy, scorer or second scorer.
        path: as the parameters name it.
        present: whether its folder is there.
        parameters: number of weights; None where neither the folder nor the parameters say it.
        adapter_parameters: weights of a LoRA adapter on it; None without one, or without the folder.
        source: who says so.
        shape: layers, hidden units and tokens of a picture; None where unknown.
    """

    role: str
    path: str
    present: bool
    parameters: int | None
    adapter_parameters: int | None
    source: str
    shape: tuple[int, int, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes that a stage is expected to take; an estimate. None where a size is not known."""

    weights: float | None
    gradients: float
    optimiser: float
    activations: float | None

    def total(self) -> float | None:
        """Return the sum; None if a part of it is not known."""
        if self.weights is None or self.activations is None:
            return None
        return self.weights + self.gradients + self.optimiser + self.activations


def measure_policy(params: PolicyParams) -> ModelSize:
    """Return the policy's size, from its folder if it is there."""
    return _measure("policy", params.path, params.size, None if params.lora is None else params.lora.rank)


def measure_scorer(params: ScorerParams) -> ModelSize:
    """Return the scorer's size, from its folder if it is there."""
    return _measure("scorer", params.path, params.size, None)


def measure_second_scorer(path: str) -> ModelSize:
    """Return the second scorer's size, from its folder if it is there."""
    return _measure("second scorer", path, None, None)


def estimate_training(
    policy: ModelSize, params: PolicyParams, *, num_rows: int, num_copies: int, on_gpu: bool
) -> Memory:
    """Return what training the policy takes.

    Args:
        policy: its size.
        params: dtype, adapter, length of answers.
        num_rows: answers that go forward and backward at once.
        num_copies: 2 where a frozen copy serves as the reference, else 1.
        on_gpu: whether weights below an adapter are half precision and activations are checkpointed.
    """
    trained = (policy.parameters if params.lora is None else policy.adapter_parameters) or 0
    weights = None if policy.parameters is None else float(policy.parameters * weight_bytes(params, on_gpu=on_gpu))
    activations = None
    if policy.shape is not None:
        num_layers, hidden_size, picture_tokens = policy.shape
        units = num_rows * (picture_tokens + _PROMPT_TOKENS + params.max_new_tokens) * hidden_size
        activations = float(
            units * (_ACTIVATION_BYTES + num_layers * _LAYER_INPUT_BYTES)
            if on_gpu
            else 2 * units * num_layers * _ACTIVATION_BYTES
        )
    return Memory(
        weights=None if weights is None else weights * num_copies + 4.0 * (trained if params.lora else 0),
        gradients=4.0 * trained,
        optimiser=8.0 * trained,
        activations=activations,
    )


def weight_bytes(params: PolicyParams | ScorerParams, *, on_gpu: bool) -> int:
    """Return the bytes of one weight as the parameters ask for it; a scorer's `auto` on a GPU counts as half."""
    if params.dtype != "auto":
        return 4 if params.dtype == "float32" else 2
    half = on_gpu and (isinstance(params, ScorerParams) or params.lora is not None)
    return 2 if half else 4


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a folder's safetensors files; only their headers are read.

    Raises:
        ModelError: a header is broken.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with path.open("rb") as stream:
                header: Mapping[str, Any] = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
            shapes |= {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
        except (OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
            raise ModelError(f"{path}: its header cannot be read: {error}") from error
    return shapes


def _measure(role: str, path: str, stated: StatedSize | None, lora_rank: int | None) -> ModelSize:
    try:
        folder = resolve_model_path(path)
    except ModelError:
        return ModelSize(
            role=role,
            path=path,
            present=False,
            parameters=None if stated is None else stated.parameters,
            adapter_parameters=None,
            source="not known" if stated is None else stated.source,
            shape=None if stated is None else _read_stated_shape(stated),
        )
    shapes = read_shapes(folder)
    return ModelSize(
        role=role,
        path=path,
        present=True,
        parameters=sum(math.prod(shape) for shape in shapes.values()),
        adapter_parameters=None if lora_rank is None else sum(_count_adapter(shapes, lora_rank)),
        source="headers of its safetensors",
        shape=_read_shape(folder),
    )


def _count_adapter(shapes: Mapping[str, tuple[int, ...]], rank: int) -> Iterator[int]:
    """Yield the adapter's weights for each linear layer; tables of embeddings and the output layer get none."""
    for name, shape in shapes.items():
        if len(shape) == 2 and name.endswith(".weight") and "embed" not in name and "lm_head" not in name:
            yield rank * (shape[0] + shape[1])


def _read_shape(folder: Path) -> tuple[int, int, int] | None:
    config: Mapping[str, Any] = read_json(folder / "config.json")
    text = config.get("text_config", config)
    if not isinstance(text, dict) or not {"num_hidden_layers", "hidden_size"} <= text.keys():
        return None
    return (
        int(text["num_hidden_layers"]),
        int(text["hidden_size"]),
        int(config.get("image_seq_length") or _PICTURE_TOKENS),
    )


def _read_stated_shape(stated: StatedSize) -> tuple[int, int, int] | None:
    if stated.num_layers is None or stated.hidden_size is None:
        return None
    return stated.num_layers, stated.hidden_size, _PICTURE_TOKENS
