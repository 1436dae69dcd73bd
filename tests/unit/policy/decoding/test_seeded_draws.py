"""Draws of a row's own stream: they follow the softmax, and nothing beside the row changes them."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.policy.decoding.seeded_draws import SeededDraws

_IDS = torch.zeros(1, 1, dtype=torch.long)
LOGITS = st.lists(st.floats(-30.0, 30.0), min_size=2, max_size=12)


def _draw(seeds: list[int], scores_BV: torch.Tensor, num_samples: int = 1, num_steps: int = 1) -> torch.Tensor:
    draws = SeededDraws(seeds, num_samples)
    return torch.stack([draws(_IDS, scores_BV).argmax(-1) for _ in range(num_steps)], dim=1)


@given(LOGITS, st.integers(0, 2**64 - 1))
def test_one_token_is_left_to_each_row(logits: list[float], seed: int) -> None:
    left_BV = SeededDraws([seed], 2)(_IDS, torch.tensor([logits, logits]))
    assert left_BV.isfinite().sum(-1).tolist() == [1, 1]
    assert left_BV.softmax(-1).max(-1).values.tolist() == [1.0, 1.0]


@given(LOGITS, st.lists(st.integers(0, 2**32), min_size=2, max_size=5, unique=True))
def test_a_row_draws_alone_what_it_draws_among_others(logits: list[float], seeds: list[int]) -> None:
    rows_BV = torch.tensor(logits).expand(len(seeds), -1)
    together = _draw(seeds, rows_BV, num_steps=4)
    alone = torch.cat([_draw([seed], rows_BV[:1], num_steps=4) for seed in seeds])
    assert torch.equal(together, alone)


def test_draws_follow_the_softmax() -> None:
    p_V = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.05])
    num_rows = 4000
    drawn = _draw(list(range(num_rows)), p_V.log().expand(num_rows, -1))[:, 0]
    shares_V = torch.bincount(drawn, minlength=5) / num_rows
    assert shares_V[1] == 0.0  # a token that is ruled out is never drawn
    # Four standard errors of a share; the seeds are fixed, so the test cannot flicker.
    assert torch.all((shares_V - p_V).abs() <= 4 * (p_V * (1 - p_V) / num_rows).sqrt())


def test_steps_and_samples_differ() -> None:
    rows_BV = torch.zeros(3, 1000)
    drawn = _draw([7], rows_BV, num_samples=3, num_steps=5)
    assert len({tuple(row) for row in drawn.tolist()}) == 3
    assert len(set(drawn[0].tolist())) > 1
