"""Prompt and picture of a GRPO group go through the model once, not once for each of its completions.

The rows of a group differ only behind their prompt, and a prompt with its picture is far longer than an answer. So each
distinct prompt is run first, and every completion continues from its keys and values. Log probabilities and gradients
are those of whole rows: attention is causal, so a prompt's keys do not depend on what follows, and the gradients of all
completions sum in them. (docs/method.md, D40)

Rows that share a prompt are found wherever they lie, since TRL shuffles the rows of a generation before it learns.

Shapes: B rows, U distinct prompts, P prompt tokens, T completion tokens, N = P + T.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import nn
from transformers import DynamicCache

from pipeline.policy.decoding.shared_pictures import find_copies, find_first, find_packed_copies

Untyped = Any
"""A model or an output of transformers."""

_TOKEN_FIELDS: Final = ("mm_token_type_ids", "token_type_ids")
"""What transformers' processors say of each token: 0 for text."""

_PICTURE_FIELDS: Final = ("image_grid_thw", "image_sizes", "pixel_attention_mask")
"""What they say of each picture, beside its pixels."""


def can_share_prompts(model: nn.Module) -> bool:
    """Return whether a pass may go on from a cache: layers that compute their activations again keep none."""
    return not any(module.training and getattr(module, "gradient_checkpointing", False) for module in model.modules())


def find_shared_prompts(
    prompt_ids_BP: torch.Tensor, prompt_mask_BP: torch.Tensor, pictures: Mapping[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first row of each distinct prompt with its picture, (U,), and which of them each row has, (B,)."""
    grid_B3 = pictures.get("image_grid_thw")
    if grid_B3 is None:
        _, picture_B = find_copies(pictures["pixel_values"], pictures.get("pixel_attention_mask"))
    else:
        _, picture_B = find_packed_copies(pictures["pixel_values"], grid_B3)
    keys = torch.cat([prompt_ids_BP, prompt_mask_BP, picture_B[:, None]], dim=1)
    _, index_B = torch.unique(keys, dim=0, return_inverse=True)
    return find_first(index_B), index_B


def select_pictures(fields: Mapping[str, Any], rows: Sequence[int], num_tokens: int) -> dict[str, Any]:
    """Return what a forward pass over some rows, one picture each, needs beside their tokens.

    Args:
        fields: what the processor said of all rows; entries that a family does not have are missing or None.
        rows: the rows wanted, in order.
        num_tokens: length that the rows are cut to.
    """
    rows = list(rows)
    selected = {name: fields[name][rows] for name in _PICTURE_FIELDS if fields.get(name) is not None}
    if fields.get("image_grid_thw") is None:
        selected["pixel_values"] = fields["pixel_values"][rows]
    else:  # Qwen lays the patches of all pictures end to end
        patches = fields["pixel_values"].split(fields["image_grid_thw"].prod(1).tolist())
        selected["pixel_values"] = torch.cat([patches[row] for row in rows])
    return selected | {name: fields[name][rows, :num_tokens] for name in _TOKEN_FIELDS if fields.get(name) is not None}


def compute_completion_logps(
    model: Untyped,
    input_ids_BN: torch.Tensor,
    attention_mask_BN: torch.Tensor,
    num_completion_tokens: int,
    pictures: Mapping[str, Any],
) -> Untyped:
    """Return TRL's fused output (`log_probs` and `entropy`, (B, T)) for completions behind prompts that are run once.

    Args:
        model: one that TRL has given its fused head, and that may share prompts.
        input_ids_BN: prompts, padded on the left to P tokens, and completions, padded on the right to T.
        attention_mask_BN: 1 for each token that is no padding.
        num_completion_tokens: T.
        pictures: fields of the processor, one picture a row.
    """
    num_prompt_tokens = input_ids_BN.shape[1] - num_completion_tokens
    cache = _run_prompts(model, input_ids_BN[:, :num_prompt_tokens], attention_mask_BN[:, :num_prompt_tokens], pictures)
    # The last token of a prompt predicts the first of a completion, so it is run with each of them.
    continued_BT = input_ids_BN[:, num_prompt_tokens - 1 :]
    labels_BT = continued_BT.masked_fill(attention_mask_BN[:, num_prompt_tokens - 1 :] == 0, -100)
    return model(
        input_ids=continued_BT,
        attention_mask=attention_mask_BN,
        position_ids=_count_positions(model, attention_mask_BN, num_prompt_tokens - 1),
        past_key_values=cache,
        labels=labels_BT,
        fused_lm_head=True,
    )


def start_from_prompts(model: Untyped, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of `generate` that go on from prompts which have been run once each.

    Args:
        model: the model.
        keywords: `input_ids` (B, P), `attention_mask`, fields of the processor, and whatever else `generate` takes.
    """
    fields = ("pixel_values", *_PICTURE_FIELDS, *_TOKEN_FIELDS)
    pictures = {name: keywords[name] for name in fields if name in keywords}
    cache = _run_prompts(model, keywords["input_ids"], keywords["attention_mask"], pictures)
    rest = {name: value for name, value in keywords.items() if name not in fields}
    return rest | {"past_key_values": cache}


def _run_prompts(
    model: Untyped, prompt_ids_BP: torch.Tensor, prompt_mask_BP: torch.Tensor, pictures: Mapping[str, Any]
) -> DynamicCache:
    """Return keys and values of all but the last token of every row's prompt; each distinct prompt is run once."""
    num_tokens = prompt_ids_BP.shape[1] - 1
    first_U, index_B = find_shared_prompts(prompt_ids_BP, prompt_mask_BP, pictures)
    layout = _find_layout(model)
    mask_UP = prompt_mask_BP[first_U, :num_tokens]
    cache = DynamicCache(config=model.config.get_text_config())
    model(
        input_ids=prompt_ids_BP[first_U, :num_tokens],
        attention_mask=mask_UP,
        position_ids=_count_positions(model, mask_UP, 0) if layout is None else None,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        **select_pictures(pictures, first_U.tolist(), num_tokens),
    )
    # Not `cache.batch_select_indices`: the gradient of indexing is summed in whatever order threads come, that of
    # `index_select` row by row, so that a run on several threads can be repeated.
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys.index_select(0, index_B), layer.values.index_select(0, index_B)
    if layout is not None:
        layout.rope_deltas = layout.rope_deltas[index_B]
    return cache


def _count_positions(model: Untyped, mask_BN: torch.Tensor, start: int) -> torch.Tensor:
    """Return the positions of text from `start` on, as `generate` counts them: padding has none."""
    positions_BT = (mask_BN.long().cumsum(1) - 1).clamp(min=0)[:, start:]
    layout = _find_layout(model)
    return positions_BT if layout is None else (positions_BT + layout.rope_deltas).expand(3, -1, -1)


def _find_layout(model: nn.Module) -> Untyped:
    """Return the module that lays out positions in Qwen's models, else None.

    A picture's tokens have two dimensions there, and `rope_deltas`, (B, 1), says by how much the text behind it lies
    nearer than their number. The module keeps it from the pass over the prompts for what continues them.
    """
    return next((module for module in model.modules() if "rope_deltas" in vars(module)), None)
