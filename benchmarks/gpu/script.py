"""Answers of a length that is known beforehand: a policy with random weights never says an action by itself.

The policy computes as always; a logits processor then leaves one token at each step. `action` makes every row say a
crop whole, with another box in each row (rows that were made to open with FULL end at once); `longest` makes no
other row end before the last token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, Final, Literal

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from pipeline.core.completion import format_decision
from pipeline.policy.policy import Policy
from pipeline.types import Box, Crop

Ending = Literal["action", "longest"]
ENDINGS: Final[tuple[Ending, ...]] = ("action", "longest")


class Script(LogitsProcessor):  # type: ignore[misc]
    """Leaves each row of a batch one token at each step: its own, then the filler; an opening forced before stays."""

    def __init__(self, num_prompt_tokens: int, rows: list[list[int]], filler_id: int) -> None:
        self._num_prompt_tokens = num_prompt_tokens
        self._rows = rows
        self._filler_id = filler_id

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores, (B, V), that leave one token a row."""
        step = input_ids.shape[1] - self._num_prompt_tokens
        wanted = [row[step] if step < len(row) else self._filler_id for row in self._rows]
        scripted = torch.full_like(scores, -torch.inf)
        scripted[torch.arange(len(wanted)), wanted] = 0.0
        is_forced_B1 = scores.isfinite().sum(1, keepdim=True) == 1
        return torch.where(is_forced_B1, scores, scripted)


@contextmanager
def speak(policy: Policy, ending: Ending, side_px: int) -> Iterator[list[int]]:
    """Make the policy's model say what the ending asks for; yields the tokens decoded in each call, padding included.

    Args:
        policy: any.
        ending: how long each answer is.
        side_px: of the pictures asked about, which are square.
    """
    generate, tokenizer = policy.model.generate, policy.processor.tokenizer
    numbers, lengths = count(), list[int]()
    # The first letter of an ordinary word: it ends nothing.
    filler_id = tokenizer("word", add_special_tokens=False)["input_ids"][0]

    def say() -> list[int]:
        if ending == "longest":
            return []
        low = 0.05 * (next(numbers) % 9)
        text = format_decision(Crop(Box(low, low, low + 0.5, low + 0.5)), policy.get_frame(side_px, side_px))
        return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]

    def generate_scripted(**keywords: Any) -> Any:  # noqa: ANN401 - as transformers has it
        prompts = keywords["input_ids"]
        rows = [say() for _ in prompts]
        script = Script(prompts.shape[1], rows, filler_id)
        keywords["logits_processor"] = LogitsProcessorList([*keywords.get("logits_processor", ()), script])
        sequences = generate(**keywords)
        lengths.append(sequences.shape[1] - prompts.shape[1])
        return sequences

    policy.model.generate = generate_scripted
    try:
        yield lengths
    finally:
        del policy.model.generate
