"""One seed for everything that draws lots in a stage that trains."""

from __future__ import annotations

from transformers import set_seed


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch; equal seeds give equal runs on the same machine and thread count."""
    set_seed(seed)
