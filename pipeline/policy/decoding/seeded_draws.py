"""Sampling that a query's own seed decides, whatever else is decoded beside it.

torch's generator hands its numbers to the rows of a batch in turn, so what a query draws would depend on how many
others share its batch. Here every row has a stream of its own.

Shapes: B rows of a batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LogitsProcessor

from pipeline.core.seeds import derive_seed


class SeededDraws(LogitsProcessor):  # type: ignore[misc]
    """Draws each row's next token by inversion, and leaves it alone for `generate` to take.

    The token is the first whose cumulative probability exceeds a uniform number, which follows the softmax exactly. One
    number a row and step suffices, where Gumbel noise would take V of them.

    Args:
        seeds: one per query.
        num_samples: rows to a query, one after another; each has a stream of its own.
    """

    def __init__(self, seeds: Sequence[int], num_samples: int) -> None:
        self._streams = [
            torch.Generator().manual_seed(derive_seed(seed, number)) for seed in seeds for number in range(num_samples)
        ]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return (B, V) scores of which one a row is 0 and the others are minus infinity."""
        uniform_B = [torch.rand(1, generator=stream, dtype=torch.float64) for stream in self._streams]
        # In float64 and divided by its own end, so that no rounding leaves a number above the whole sum.
        mass_BV = scores.double().softmax(-1).cumsum(-1)
        wanted_B1 = torch.stack(uniform_B).to(scores.device) * mass_BV[:, -1:]
        chosen_B1 = torch.searchsorted(mass_BV, wanted_B1, right=True).clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen_B1, 0.0)
