"""A pass without dropout in the midst of a training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and every module of it back into its own mode afterwards.

    A LoRA adapter drops a share of its inputs in training. What is drawn and read of the policy is to be that of the
    whole policy: with dropout, two reads of one p(opening) differ, and both miss the probability that it answers with.
    (`model.train()` would not do for the way back: a frozen module may stand in evaluation mode for good.)
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training
