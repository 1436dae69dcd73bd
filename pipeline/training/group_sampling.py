"""Rows of balanced groups are drawn by the trainer's own call of `generate`, which offers no way to say how.

TRL builds that call; for as long as a context lasts, the model's `generate` forces each row's opening, ends each row
with its action, and runs every prompt once, not once for each row of its group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from transformers import LogitsProcessorList, StoppingCriteriaList

from pipeline.policy.decoding.action_end import ActionEnd
from pipeline.policy.decoding.openings import ForcedOpenings
from pipeline.policy.decoding.shared_prompts import start_from_prompts

Untyped = Any
"""A model of transformers, or what it takes and returns."""


@contextmanager
def sample_rows(model: Untyped, tokenizer: Untyped, openings: Sequence[Sequence[int]]) -> Iterator[None]:
    """Make `model.generate` draw one answer a row, each beginning with its opening and ending with its action.

    Args:
        model: whose `generate` gets `input_ids` by name.
        tokenizer: of the policy.
        openings: for each row the tokens that it begins with; none leaves the row free.
    """
    generate = model.generate

    def generate_rows(**keywords: Untyped) -> Untyped:
        num_prompt_tokens = keywords["input_ids"].shape[1]
        return generate(
            **start_from_prompts(model, keywords),
            logits_processor=LogitsProcessorList([ForcedOpenings(openings, num_prompt_tokens)]),
            stopping_criteria=StoppingCriteriaList([ActionEnd(tokenizer, num_prompt_tokens, len(openings))]),
        )

    shadowed = vars(model).get("generate")
    model.generate = generate_rows
    try:
        yield
    finally:
        del model.generate
        if shadowed is not None:
            model.generate = shadowed
