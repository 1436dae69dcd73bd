"""A policy that says what a test tells it to, token by token, through the real `generate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import LogitsProcessorList

from benchmarks.gpu.script import Script
from pipeline.policy.policy import Policy

FILLER = "x"
"""What is said, again and again, behind the end of a script."""


@contextmanager
def scripted(policy: Policy, say: Callable[[int], str | list[int]]) -> Iterator[list[torch.Tensor]]:
    """Make each row of `generate` say what `say` returns for its number, as text or in tokens.

    Yields what was generated, (B, T) a call.
    """
    generate = policy.model.generate
    (filler_id,) = encode(policy, FILLER)
    generated: list[torch.Tensor] = []

    def generate_scripted(**keywords: Any) -> Any:
        num_prompt_tokens = keywords["input_ids"].shape[1]
        texts = [say(row) for row in range(len(keywords["input_ids"]))]
        rows = [encode(policy, words) if isinstance(words, str) else words for words in texts]
        script = Script(num_prompt_tokens, rows, filler_id)
        keywords["logits_processor"] = LogitsProcessorList([*keywords.get("logits_processor", ()), script])
        sequences = generate(**keywords)
        generated.append(sequences[:, num_prompt_tokens:])
        return sequences

    policy.model.generate = generate_scripted
    try:
        yield generated
    finally:
        del policy.model.generate


def encode(policy: Policy, text: str) -> list[int]:
    """Return a text's tokens as the policy's tokenizer writes it."""
    ids: list[int] = policy.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
