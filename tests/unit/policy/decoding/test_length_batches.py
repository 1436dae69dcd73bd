"""Batches of questions: bounded with their padding, whatever the data, without changing an answer or a draw."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.config import PolicyParams
from pipeline.policy import policy as policy_module
from pipeline.policy.decoding.length_batches import cut_by_length
from pipeline.policy.policy import Policy, load_policy
from tests.conftest import TaughtLlava

_LENGTHS = st.lists(st.integers(1, 200), max_size=20)
_WORDS = [1, 60, 2, 30, 1, 3, 50, 2]


@given(_LENGTHS, st.integers(0, 1000))
def test_every_row_is_in_one_batch_and_no_batch_is_above_the_bound(lengths: list[int], max_tokens: int) -> None:
    batches = cut_by_length(lengths, max_tokens)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(
        len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= max_tokens for batch in batches if batch
    )
    assert all(batches)


@given(_LENGTHS.filter(bool))
def test_rows_that_fit_stay_together_and_in_order(lengths: list[int]) -> None:
    whole = len(lengths) * max(lengths)
    assert cut_by_length(lengths, whole) == [list(range(len(lengths)))]
    assert len(lengths) == 1 or len(cut_by_length(lengths, whole - 1)) > 1


def test_rows_of_like_length_share_a_batch() -> None:
    assert cut_by_length([90, 10, 12, 88, 11], 180) == [[1, 4, 2], [3, 0]]


@pytest.fixture
def policy(spoken_llava: TaughtLlava) -> Policy:
    return load_policy(spoken_llava.folder, PolicyParams(max_new_tokens=12, device="cpu"), 8)


def _ask() -> tuple[list[Image.Image], list[str]]:
    rng = np.random.default_rng(4)
    images = [Image.fromarray(rng.integers(0, 255, size=(30, 40, 3), dtype=np.uint8)) for _ in _WORDS]
    return images, [f"What is {'red ' * count}thing {row}?" for row, count in enumerate(_WORDS)]


def test_long_questions_change_neither_answers_nor_draws(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    images, questions = _ask()
    seeds = list(range(len(images)))
    shapes: list[tuple[int, int]] = []
    generate = policy.model.generate

    def watch(**inputs: object) -> object:
        ids = inputs["input_ids"]
        shapes.append((ids.shape[0], ids.shape[1]))  # type: ignore[attr-defined]
        return generate(**inputs)

    monkeypatch.setattr(policy.model, "generate", watch)
    together = policy.decide(images, questions)
    drawn = policy.sample_regions(images, questions, num_samples=2, seeds=seeds)
    assert [rows for rows, _ in shapes] == [8, 8, 8]  # all at once; two draws of four queries at a time

    longest = max(tokens for _, tokens in shapes)
    per_row = longest // 3
    monkeypatch.setattr(policy_module, "TOKENS_PER_ROW", per_row)
    shapes.clear()
    apart = policy.decide(images, questions)
    assert len(shapes) > 2
    drawn_apart = policy.sample_regions(images, questions, num_samples=2, seeds=seeds)
    assert all(rows * tokens <= policy.batch_size * per_row for rows, tokens in shapes)

    assert [answer.completion for answer in apart] == [answer.completion for answer in together]
    assert [answer.p_region for answer in apart] == pytest.approx([answer.p_region for answer in together], abs=1e-4)
    completions, completions_apart = (
        [[one.completion for one in row] for row in rows] for rows in (drawn, drawn_apart)
    )
    assert completions == completions_apart
    assert any(first != second for first, second in completions)
