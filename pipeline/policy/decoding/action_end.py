"""Generation ends where the action ends: `</tool_call>` closed or NO_CROP_NEEDED said (docs/method.md, D35).

A row is decoded one token beyond its action. If that is an end token, it was drawn like any other and stays in the
completion, so r-GRPO still sees it; any other token is dropped. What other rows are padded with never counts.

transformers' `stop_strings` would not do: it wants the tokenizer in the call of `generate`, which TRL makes, it stops
before the end token, and it would also stop at a mere mention of an action.

Shapes: B rows, T tokens, prompt included.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, Final

import torch
from transformers import StoppingCriteria

from pipeline.core.completion import FULL_ANSWER, REGION_CLOSING, find_action_end

Untyped = Any
"""A class of transformers, whose attributes depend on the model."""

_LAST_SIGNS: Final = (REGION_CLOSING[-1], FULL_ANSWER[-1])


class ActionEnd(StoppingCriteria):  # type: ignore[misc]
    """Ends each row of one `generate` by itself, one token after its action is complete.

    Args:
        tokenizer: of the policy.
        num_prompt_tokens: length of the padded prompts.
        num_rows: B.
    """

    def __init__(self, tokenizer: Untyped, num_prompt_tokens: int, num_rows: int) -> None:
        self._tokenizer = tokenizer
        self._num_prompt_tokens = num_prompt_tokens
        self._complete = [False] * num_rows

    def __call__(self, input_ids: torch.Tensor, scores: object, **keywords: object) -> torch.Tensor:
        """Return which rows are over, (B,), once for each new token of `input_ids`, (B, T)."""
        over = torch.tensor(self._complete, device=input_ids.device)
        for row, newest in enumerate(input_ids[:, -1].tolist()):
            if not self._complete[row] and self._may_end_an_action(newest):
                self._complete[row] = is_complete(self._tokenizer, input_ids[row, self._num_prompt_tokens :].tolist())
        return over

    def _may_end_an_action(self, token_id: int) -> bool:
        """Spare most tokens the decoding; no tokenizer writes these signs as anything but themselves."""
        token: str | None = self._tokenizer.convert_ids_to_tokens(token_id)
        return token is not None and any(sign in token for sign in _LAST_SIGNS)


def is_complete(tokenizer: Untyped, completion_ids: Sequence[int]) -> bool:
    """Return whether these tokens say a whole action."""
    return find_action_end(tokenizer.decode(completion_ids, skip_special_tokens=True)) is not None


def drop_beyond_action(tokenizer: Untyped, completion_ids: Sequence[int], end_ids: Sequence[int]) -> list[int]:
    """Return a completion up to its action's end, with the end token if that is what came next.

    Args:
        tokenizer: of the policy.
        completion_ids: forced opening, generated tokens, and whatever the row was padded with.
        end_ids: tokens that end an answer.
    """
    num_tokens = len(completion_ids)
    lengths = range(num_tokens + 1)
    count = bisect_left(lengths, True, key=lambda length: is_complete(tokenizer, completion_ids[:length]))
    if count < num_tokens and completion_ids[count] in end_ids:
        count += 1
    return list(completion_ids[:count])
