"""How an answer opens: read from its tokens, measured at its first step, or forced.

An answer opens an arm by its text, as `core/completion.py` reads it: `<tool_call>` is REGION and NO_CROP_NEEDED is FULL
whatever tokens spell them (docs/method.md, D62). A policy may say `<`, `tool_call`, `>` where SFT has taught one token.

Shapes: B rows of a batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from transformers import LogitsProcessor

from pipeline.core.advantage import FULL, MALFORMED, REGION
from pipeline.core.completion import FULL_ANSWER, REGION_OPENING

Untyped = Any
"""A class of transformers, whose attributes depend on the model."""

_ARMS: Final = ((REGION_OPENING, REGION), (FULL_ANSWER, FULL))


def read_opening(tokenizer: Untyped, completion_ids: Sequence[int]) -> tuple[int, int]:
    """Return the code of the arm that a completion's text opens, and how many tokens say so.

    Args:
        tokenizer: of the policy; special tokens say nothing, as where answers are parsed.
        completion_ids: one row, padding behind it or not.

    Returns:
        REGION or FULL with the number of tokens that spell the opening; MALFORMED with the number of tokens up to the
        one that leaves both openings. A row that ends before it opens anything counts up to its last text. At least 1.
    """
    num_tokens, seen = 1, ""
    for count in range(1, len(completion_ids) + 1):
        text = tokenizer.decode(completion_ids[:count], skip_special_tokens=True).lstrip()
        if text == seen:
            continue
        num_tokens, seen = count, text
        for opening, code in _ARMS:
            if text.startswith(opening):
                return code, count
        if not any(opening.startswith(text) for opening, _ in _ARMS):
            break
    return MALFORMED, num_tokens


class FirstTokenProbability(LogitsProcessor):  # type: ignore[misc]
    """Reads how likely one token is to begin an answer: a number a row, where `output_logits` keeps (B, V) a step.

    Put it before any processor that forces tokens.

    Args:
        token_id: the token.
        num_prompt_tokens: length of the padded prompts.

    Attributes:
        p_B: the probabilities after `generate`, among the tokens that may be generated.
    """

    def __init__(self, token_id: int, num_prompt_tokens: int) -> None:
        self._token_id = token_id
        self._num_prompt_tokens = num_prompt_tokens
        self.p_B: torch.Tensor

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores, (B, V), as they came."""
        if input_ids.shape[1] == self._num_prompt_tokens:
            self.p_B = scores.float().softmax(-1)[:, self._token_id]
        return scores


class ForcedOpenings(LogitsProcessor):  # type: ignore[misc]
    """Leaves each row one token at its first steps, as long as its opening lasts.

    Args:
        openings: for each row the tokens that it begins with; none leaves the row free.
        num_prompt_tokens: length of the padded prompts.
    """

    def __init__(self, openings: Sequence[Sequence[int]], num_prompt_tokens: int) -> None:
        self._openings = openings
        self._num_prompt_tokens = num_prompt_tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores, (B, V), that leave one token in every row whose opening is not over."""
        step = input_ids.shape[1] - self._num_prompt_tokens
        rows = [row for row, opening in enumerate(self._openings) if step < len(opening)]
        if not rows:
            return scores
        forced = scores.clone()
        forced[rows] = -torch.inf
        forced[rows, [self._openings[row][step] for row in rows]] = 0.0
        return forced
