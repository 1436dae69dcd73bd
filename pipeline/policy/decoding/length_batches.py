"""Batches of prompts whose padded length is bounded, so that one long question cannot take the machine's memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

TOKENS_PER_ROW: Final = 1024
"""A batch holds this many tokens, padding among them, for each row that `batches.policy` allows.

A picture of a million pixels has about as many in Qwen's families, a question of the demo twenty.
"""


def cut_by_length(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Return the rows of each batch: all in order where they fit, else sorted by length and cut as late as possible.

    Args:
        lengths: tokens of each row.
        max_tokens: of a batch whose rows are all as long as its longest; a row that is longer by itself stands alone.
    """
    if not lengths or max(lengths) * len(lengths) <= max_tokens:
        return [list(range(len(lengths)))] if lengths else []
    batches: list[list[int]] = [[]]
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        if batches[-1] and lengths[row] * (len(batches[-1]) + 1) > max_tokens:
            batches.append([])
        batches[-1].append(row)
    return batches
