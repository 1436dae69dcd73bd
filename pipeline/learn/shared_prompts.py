"""Prompt and picture of a GRPO group go through the model once, not once for each of its completions.

The rows of a group differ only behind their prompt, and a prompt with its picture is far longer than an answer. So the
prompts are run first, one of each group, and every completion continues from the keys and values of its own. Log
probabilities and gradients are those of whole rows: attention is causal, so a prompt's keys do not depend on what
follows, and the gradients of all completions sum in them.

Shapes: B rows, U distinct prompts, P prompt tokens, T completion tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from transformers import DynamicCache

Untyped = Any
"""A model or an output of transformers."""

TOKEN_FIELDS: Final = ("mm_token_type_ids", "token_type_ids")
"""What transformers' processors say of each token: 0 for text."""

_PICTURE_FIELDS: Final = ("image_grid_thw", "image_sizes", "pixel_attention_mask")
"""What they say of each picture, beside its pixels."""


def count_repeats(
    prompt_ids_BP: torch.Tensor, prompt_mask_BP: torch.Tensor, pictures: Mapping[str, torch.Tensor]
) -> list[int]:
    """Return how many rows in succession share each prompt and picture, (U,); they sum to B."""
    pixels = split_pixels(pictures)
    repeats: list[int] = []
    for row in range(len(prompt_ids_BP)):
        if (
            row
            and torch.equal(prompt_ids_BP[row], prompt_ids_BP[row - 1])
            and torch.equal(prompt_mask_BP[row], prompt_mask_BP[row - 1])
            and torch.equal(pixels[row], pixels[row - 1])
        ):
            repeats[-1] += 1
        else:
            repeats.append(1)
    return repeats


def select_pictures(fields: Mapping[str, Any], rows: Sequence[int], num_tokens: int) -> dict[str, torch.Tensor]:
    """Return what a forward pass over some rows, one picture each, needs beside their tokens.

    Args:
        fields: what the processor said of all rows; entries that a family does not have are missing or None.
        rows: the rows wanted, in order.
        num_tokens: length that the rows are cut to.
    """
    selected = {name: fields[name][list(rows)] for name in _PICTURE_FIELDS if fields.get(name) is not None}
    pixels = split_pixels(fields)
    selected["pixel_values"] = (
        torch.cat([pixels[row] for row in rows])
        if fields.get("image_grid_thw") is not None
        else torch.stack([pixels[row] for row in rows])
    )
    return selected | {
        name: fields[name][list(rows), :num_tokens] for name in TOKEN_FIELDS if fields.get(name) is not None
    }


def split_pixels(fields: Mapping[str, Any]) -> Sequence[torch.Tensor]:
    """Return the pixels of each row's picture; Qwen lays the patches of all pictures end to end."""
    if fields.get("image_grid_thw") is None:
        pixels: Sequence[torch.Tensor] = fields["pixel_values"]
        return pixels
    patches: Sequence[torch.Tensor] = fields["pixel_values"].split(fields["image_grid_thw"].prod(1).tolist())
    return patches


def compute_completion_logps(
    model: Untyped,
    input_ids_BN: torch.Tensor,
    attention_mask_BN: torch.Tensor,
    num_completion_tokens: int,
    pictures: Mapping[str, Any],
) -> Untyped:
    """Return TRL's fused output (`log_probs` and `entropy`, (B, T)) for completions that share their prompts in runs.

    Args:
        model: one that TRL has given its fused head.
        input_ids_BN: prompts, padded on the left to P tokens, and completions, padded on the right to T.
        attention_mask_BN: 1 for each token that is no padding.
        num_completion_tokens: T.
        pictures: fields of the processor, one picture a row.
    """
    num_prompt_tokens = input_ids_BN.shape[1] - num_completion_tokens
    cache = _run_prompts(model, input_ids_BN[:, :num_prompt_tokens], attention_mask_BN[:, :num_prompt_tokens], pictures)
    # The last token of a prompt predicts the first of a completion, so it is run again with each of them.
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
    if _counts_own_positions(model):
        return dict(keywords)
    fields = ("pixel_values", *_PICTURE_FIELDS, *TOKEN_FIELDS)
    pictures = {name: keywords[name] for name in fields if name in keywords}
    cache = _run_prompts(model, keywords["input_ids"], keywords["attention_mask"], pictures)
    rest = {name: value for name, value in keywords.items() if name not in fields}
    return rest | {"past_key_values": cache}


def _run_prompts(
    model: Untyped, prompt_ids_BP: torch.Tensor, prompt_mask_BP: torch.Tensor, pictures: Mapping[str, Any]
) -> DynamicCache:
    """Return keys and values of all but the last token of every row's prompt; each distinct prompt is run once."""
    num_tokens = prompt_ids_BP.shape[1] - 1
    repeats = count_repeats(prompt_ids_BP, prompt_mask_BP, pictures)
    first_U = [sum(repeats[:number]) for number in range(len(repeats))]
    mask_UP = prompt_mask_BP[first_U, :num_tokens]
    cache = DynamicCache(config=model.config.get_text_config())
    model(
        input_ids=prompt_ids_BP[first_U, :num_tokens],
        attention_mask=mask_UP,
        position_ids=_count_positions(model, mask_UP, 0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        **select_pictures(pictures, first_U, num_tokens),
    )
    cache.batch_select_indices(torch.repeat_interleave(torch.tensor(repeats, device=mask_UP.device)))
    return cache


def _count_positions(model: Untyped, mask_BN: torch.Tensor, start: int) -> torch.Tensor | None:
    """Return the positions of tokens from `start` on, padding not counted, as `generate` counts them."""
    if _counts_own_positions(model):
        return None
    return (mask_BN.long().cumsum(1) - 1).clamp(min=0)[:, start:]


def _counts_own_positions(model: Untyped) -> bool:
    """Return whether the model lays out positions itself: Qwen's, where a picture's tokens have two dimensions."""
    return any(hasattr(module, "rope_deltas") for module in model.modules())
