"""A picture that several rows of a batch share goes through the vision tower once.

The rows of a GRPO group show one picture, and TRL's trainer encodes it for each of them: 8 times over in generation,
in the reference and in the step itself, forward and backward. The tower's output does not depend on the prompt, so
one pass for each distinct picture gives the same numbers, and gradients sum over the rows that shared it.

Shapes: B rows, U distinct pictures, C channels, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from typing import Any

import torch
from torch import nn
from transformers.utils import ModelOutput

_PRIME = 1_000_003


@contextmanager
def share_pictures(*models: nn.Module | None) -> Iterator[None]:
    """Make the vision towers of models encode each distinct picture of a batch once, for as long as the context lasts.

    Towers that take (B, C, H, W) pixels are served (CLIP, SigLIP as in LLaVA); a model without such a tower stays as
    it is.
    """
    with ExitStack() as hooks:
        for model in models:
            for name, module in () if model is None else model.named_modules():
                if name.endswith("vision_tower"):
                    sharing = _Sharing()
                    hooks.callback(module.register_forward_pre_hook(sharing.drop_copies, with_kwargs=True).remove)
                    hooks.callback(module.register_forward_hook(sharing.hand_out).remove)
        yield


def find_copies(pixels_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first row of each distinct picture, (U,), and which of them each row is, (B,).

    Equal rows are found by an exact integer fingerprint and then compared whole; if two different pictures ever had
    one fingerprint, every row counts as distinct.
    """
    num_rows = len(pixels_BCHW)
    rows_B = torch.arange(num_rows, device=pixels_BCHW.device)
    as_integers = torch.int32 if pixels_BCHW.element_size() == 4 else torch.int16
    bits_BN = pixels_BCHW.detach().contiguous().flatten(1).view(as_integers)
    weights_N = torch.arange(bits_BN.shape[1], device=bits_BN.device) * _PRIME + 1
    prints_B = (bits_BN * weights_N).sum(1)  # wraps around, exactly
    _, index_B = torch.unique(prints_B, return_inverse=True)
    num_distinct = int(index_B.max()) + 1
    first_U = torch.full((num_distinct,), num_rows, device=rows_B.device).scatter_reduce(0, index_B, rows_B, "amin")
    if not torch.equal(pixels_BCHW[first_U][index_B], pixels_BCHW):
        return rows_B, rows_B
    return first_U, index_B


class _Sharing:
    """Between a tower's input and its output: which row showed which of the distinct pictures."""

    def __init__(self) -> None:
        self._index_B: torch.Tensor | None = None

    def drop_copies(
        self, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Leave one row of each distinct picture."""
        pixels_BCHW = args[0] if args else kwargs["pixel_values"]
        first_U, self._index_B = find_copies(pixels_BCHW)
        distinct_UCHW = pixels_BCHW[first_U]
        return ((distinct_UCHW, *args[1:]), kwargs) if args else ((), kwargs | {"pixel_values": distinct_UCHW})

    def hand_out(self, tower: nn.Module, args: tuple[Any, ...], output: ModelOutput) -> ModelOutput:
        """Give every row the features of its picture."""
        assert self._index_B is not None
        return type(output)(**{field.name: self._expand(getattr(output, field.name)) for field in fields(output)})

    def _expand(self, value: Any) -> Any:  # noqa: ANN401 - an output's entries are tensors, tuples of them, or None
        if isinstance(value, tuple):
            return tuple(self._expand(entry) for entry in value)
        return value if value is None else value.index_select(0, self._index_B)
