"""A policy that says what a test tells it to, token by token, through the real `generate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import LogitsProcessorList

from benchmarks.script import Script
from pipeline.learn.policy import Policy

FILLER = "x"
"""What is said, again and again, behind the end of a script."""


@contextmanager
def scripted(policy: Policy, say: Callable[[int], str]) -> Iterator[list[torch.Tensor]]:
    """Make each row of `generate` say what `say` returns for its number; yields what was generated, (B, T) a call."""
    tokenizer, generate = policy.processor.tokenizer, policy.model.generate
    (filler_id,) = tokenizer(FILLER, add_special_tokens=False)["input_ids"]
    spoken: list[torch.Tensor] = []

    def generate_scripted(**keywords: Any) -> Any:
        num_prompt_tokens = keywords["input_ids"].shape[1]
        rows = [tokenizer(say(row), add_special_tokens=False)["input_ids"] for row in range(len(keywords["input_ids"]))]
        keywords["logits_processor"] = LogitsProcessorList([Script(num_prompt_tokens, rows, filler_id)])
        output = generate(**keywords)
        sequences = output if isinstance(output, torch.Tensor) else output.sequences
        spoken.append(sequences[:, num_prompt_tokens:])
        return output

    policy.model.generate = generate_scripted
    try:
        yield spoken
    finally:
        del policy.model.generate
