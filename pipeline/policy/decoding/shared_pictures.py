"""A picture that several rows of a batch share goes through the vision tower once (ADR 0008).

The rows of a GRPO group show one picture, and TRL's trainer encodes it for each of them: 8 times over in generation,
in the reference and in the step itself, forward and backward. The tower's output does not depend on the prompt, so
one pass for each distinct picture gives the same numbers, and gradients sum over the rows that shared it.

Towers take pictures in one of two ways, and a model's name for its tower tells which:
- a row a picture, (B, C, H, W): LLaVA's `vision_tower`; `vision_model` of Idefics3 and SmolVLM, whose rows are tiles of
  pictures and come with a mask of their real patches;
- the patches of all pictures end to end, (P, N), and a grid (B, 3) that says how many are whose: Qwen's `visual`.

Shapes: B pictures (or tiles), U distinct ones, C channels, H and W pixels, P patches of all pictures, N numbers each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from typing import Any, Final

import torch
from torch import nn
from transformers.utils import ModelOutput

_PRIME: Final = 1_000_003
_OTHER_PRIME: Final = 998_244_353


@contextmanager
def share_pictures(*models: nn.Module | None) -> Iterator[None]:
    """Make the vision towers of models encode each distinct picture of a batch once, for as long as the context lasts.

    A model whose tower bears another name than those above stays as it is.
    """
    with ExitStack() as hooks:
        for model in models:
            for name, module in () if model is None else model.named_modules():
                if (kind := _TOWERS.get(name.rpartition(".")[2])) is not None:
                    sharing = kind()
                    hooks.callback(module.register_forward_pre_hook(sharing.drop_copies, with_kwargs=True).remove)
                    hooks.callback(module.register_forward_hook(sharing.hand_out).remove)
        yield


def find_copies(pixels_BCHW: torch.Tensor, mask_BHW: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first row of each distinct picture, (U,), and which of them each row is, (B,).

    Equal rows are found by an exact integer fingerprint and then compared whole; if two different pictures ever had
    one fingerprint, every row counts as distinct.

    Args:
        pixels_BCHW: pictures.
        mask_BHW: which patches of them are real; equal pixels under different masks are different pictures.
    """
    parts = [pixels_BCHW] if mask_BHW is None else [pixels_BCHW, mask_BHW]
    prints_B = torch.stack([_print_rows(part) for part in parts]).sum(0)
    first_U, index_B = _group(prints_B)
    if all(torch.equal(part[first_U][index_B], part) for part in parts):
        return first_U, index_B
    rows_B = torch.arange(len(pixels_BCHW), device=pixels_BCHW.device)
    return rows_B, rows_B


def find_packed_copies(patches_PN: torch.Tensor, grid_B3: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return, as `find_copies` does, which pictures are distinct where the patches of all lie end to end.

    Args:
        patches_PN: patches, picture after picture.
        grid_B3: frames, rows and columns of patches of each picture; their product is its number of patches.
    """
    lengths_B = grid_B3.prod(1)
    owner_P = torch.repeat_interleave(torch.arange(len(grid_B3), device=grid_B3.device), lengths_B)
    start_B = lengths_B.cumsum(0) - lengths_B
    place_P = torch.arange(len(patches_PN), device=grid_B3.device) - start_B[owner_P]
    # A patch's fingerprint is weighed by its place in its own picture, so that swapped patches make another picture.
    weighed_P = _print_rows(patches_PN) * (place_P * _OTHER_PRIME + 1)
    prints_B = _print_rows(grid_B3).index_add(0, owner_P, weighed_P)
    first_U, index_B = _group(prints_B)
    if torch.equal(grid_B3[first_U][index_B], grid_B3):
        copied_P = _list_rows(lengths_B.tolist(), first_U[index_B].tolist(), patches_PN.device)
        if torch.equal(patches_PN[copied_P], patches_PN):
            return first_U, index_B
    rows_B = torch.arange(len(grid_B3), device=grid_B3.device)
    return rows_B, rows_B


def find_first(index_B: torch.Tensor) -> torch.Tensor:
    """Return the first row of each kind, (U,), where rows are of these kinds, 0 to U - 1."""
    rows_B = torch.arange(len(index_B), device=index_B.device)
    none_U = torch.full((int(index_B.max()) + 1,), len(index_B), device=index_B.device)
    return none_U.scatter_reduce(0, index_B, rows_B, "amin")


class _Sharing(ABC):
    """Between a tower's input and its output: which row showed which of the distinct pictures."""

    @abstractmethod
    def drop_copies(
        self, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Leave one of each distinct picture in the tower's input."""

    @abstractmethod
    def _copy_out(self, features: torch.Tensor) -> torch.Tensor:
        """Return features of the distinct pictures again for each picture of the input."""

    def hand_out(self, tower: nn.Module, args: tuple[Any, ...], output: ModelOutput) -> ModelOutput:
        """Give every picture of the input its features."""
        return type(output)(**{entry.name: self._expand(getattr(output, entry.name)) for entry in fields(output)})

    def _expand(self, value: Any) -> Any:  # noqa: ANN401 - an output's entries are tensors, sequences of them, or None
        if isinstance(value, list | tuple):
            return type(value)(self._expand(entry) for entry in value)
        return value if value is None else self._copy_out(value)


class _RowSharing(_Sharing):
    """For towers that take a row a picture."""

    _index_B: torch.Tensor

    def drop_copies(
        self, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        pixels_BCHW = args[0] if args else kwargs["pixel_values"]
        mask_BHW = kwargs.get("patch_attention_mask")
        first_U, self._index_B = find_copies(pixels_BCHW, mask_BHW)
        if mask_BHW is not None:
            kwargs = kwargs | {"patch_attention_mask": mask_BHW[first_U]}
        distinct_UCHW = pixels_BCHW[first_U]
        return ((distinct_UCHW, *args[1:]), kwargs) if args else ((), kwargs | {"pixel_values": distinct_UCHW})

    def _copy_out(self, features: torch.Tensor) -> torch.Tensor:
        return features.index_select(0, self._index_B)


class _PackedSharing(_Sharing):
    """For towers that take the patches of all pictures end to end."""

    _lengths_U: list[int]
    _index_B: list[int]

    def drop_copies(
        self, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        patches_PN, grid_B3 = args[0], kwargs["grid_thw"]
        first_U, index_B = find_packed_copies(patches_PN, grid_B3)
        self._lengths_U, self._index_B = grid_B3[first_U].prod(1).tolist(), index_B.tolist()
        kept = _list_rows(grid_B3.prod(1).tolist(), first_U.tolist(), patches_PN.device)
        return (patches_PN[kept], *args[1:]), kwargs | {"grid_thw": grid_B3[first_U]}

    def _copy_out(self, features: torch.Tensor) -> torch.Tensor:
        merged = sum(self._lengths_U) // len(features)  # the tower makes one feature of so many neighbouring patches
        lengths_U = [length // merged for length in self._lengths_U]
        return features.index_select(0, _list_rows(lengths_U, self._index_B, features.device))


_TOWERS: Final[dict[str, type[_Sharing]]] = {
    "vision_tower": _RowSharing,
    "vision_model": _RowSharing,
    "visual": _PackedSharing,
}


def _print_rows(values: torch.Tensor) -> torch.Tensor:
    """Return an integer for each row; equal rows have equal ones."""
    bits = values.detach()
    if bits.is_floating_point():
        bits = bits.contiguous().view(torch.int32 if bits.element_size() == 4 else torch.int16)
    flat = bits.flatten(1)
    weights = torch.arange(flat.shape[1], device=flat.device) * _PRIME + 1
    return (flat * weights).sum(1)  # wraps around, exactly


def _group(prints_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first place of each distinct fingerprint, (U,), and which of them each one is, (B,)."""
    _, index_B = torch.unique(prints_B, return_inverse=True)
    return find_first(index_B), index_B


def _list_rows(lengths: Sequence[int], wanted: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return the row numbers of the wanted pieces, one piece after another, where pieces of these lengths lie so."""
    starts = [sum(lengths[:place]) for place in range(len(lengths))]
    return torch.cat([torch.arange(starts[place], starts[place] + lengths[place]) for place in wanted]).to(device)
