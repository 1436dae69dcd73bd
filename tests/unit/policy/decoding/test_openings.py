"""An answer opens the arm that its text opens, whatever tokens spell it; forced rows open as they are told to."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import PolicyParams
from pipeline.core.advantage import FULL, MALFORMED, REGION
from pipeline.core.completion import FULL_ANSWER, REGION_OPENING, format_decision
from pipeline.policy.decoding.openings import FirstTokenProbability, ForcedOpenings, read_opening
from pipeline.policy.policy import Policy, load_policy
from pipeline.types import Box, Crop
from tests.tiny_families import BUILDERS, build_tiny_policy

_SPLITS = ["<tool_call>", "<|tool_call>", "<tool|_call|>", "|".join(REGION_OPENING)]
"""Ways to spell REGION's opening in pieces, each encoded by itself."""


@pytest.fixture(scope="module", params=list(BUILDERS))
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    folder = build_tiny_policy(request.param, tmp_path_factory.mktemp(request.param))
    return load_policy(folder, PolicyParams(path=str(folder), device="cpu"))


def _spell(policy: Policy, pieces: str) -> list[int]:
    tokenizer = policy.processor.tokenizer
    return [token for piece in pieces.split("|") for token in tokenizer(piece, add_special_tokens=False)["input_ids"]]


def _encode(policy: Policy, text: str) -> list[int]:
    return _spell(policy, text)


def test_canonical_openings_are_read_as_they_are_forced(policy: Policy) -> None:
    crop = _encode(policy, format_decision(Crop(Box(0.25, 0.5, 0.75, 1.0)), policy.get_frame(56, 56)))
    rest = crop[len(policy.region_ids) :]
    tokenizer = policy.processor.tokenizer
    assert read_opening(tokenizer, [*policy.region_ids, *rest]) == (REGION, len(policy.region_ids))
    assert read_opening(tokenizer, policy.region_ids) == (REGION, len(policy.region_ids))
    assert read_opening(tokenizer, policy.full_ids) == (FULL, len(policy.full_ids))
    padding = [tokenizer.eos_token_id, *[tokenizer.pad_token_id] * 3]
    assert read_opening(tokenizer, [*policy.full_ids, *padding]) == (FULL, len(policy.full_ids))


@pytest.mark.parametrize("pieces", _SPLITS)
def test_an_opening_in_other_tokens_counts_as_its_arm(policy: Policy, pieces: str) -> None:
    spelled = _spell(policy, pieces)
    assert policy.processor.tokenizer.decode(spelled) == REGION_OPENING
    assert read_opening(policy.processor.tokenizer, [*spelled, *_encode(policy, "{")]) == (REGION, len(spelled))


def test_full_in_other_tokens_counts_as_full(policy: Policy) -> None:
    spelled = _spell(policy, "|".join(FULL_ANSWER))
    assert policy.processor.tokenizer.decode(spelled) == FULL_ANSWER
    assert read_opening(policy.processor.tokenizer, spelled) == (FULL, len(spelled))


def test_blanks_before_an_opening_are_no_fault(policy: Policy) -> None:
    blanks = _encode(policy, "\n| ")
    code, num_tokens = read_opening(policy.processor.tokenizer, [*blanks, *_spell(policy, _SPLITS[-1])])
    assert (code, num_tokens) == (REGION, len(blanks) + len(REGION_OPENING))


def test_malformed_is_said_by_the_token_that_leaves_both_openings(policy: Policy) -> None:
    tokenizer = policy.processor.tokenizer
    other = _encode(policy, "x")
    assert read_opening(tokenizer, [*other, *policy.full_ids]) == (MALFORMED, len(other))
    almost = _spell(policy, "|".join("<too"))
    assert read_opening(tokenizer, [*almost, *other, *other]) == (MALFORMED, 5)


def test_a_row_that_ends_early_is_malformed(policy: Policy) -> None:
    tokenizer = policy.processor.tokenizer
    padding = [tokenizer.eos_token_id, *[tokenizer.pad_token_id] * 3]
    assert read_opening(tokenizer, padding) == (MALFORMED, 1)
    almost = _spell(policy, "|".join("NO_C"))
    assert read_opening(tokenizer, [*almost, *padding]) == (MALFORMED, 4)
    assert read_opening(tokenizer, []) == (MALFORMED, 1)


@settings(max_examples=150, deadline=None)
@given(
    opening=st.sampled_from([REGION_OPENING, FULL_ANSWER, "<tool_cal", "NO_CROP", ""]),
    cuts=st.sets(st.integers(1, 13)),
    behind=st.text("<>NOx_ {é", max_size=4),
)
def test_any_cutting_of_a_text_opens_what_the_text_opens(
    spelled_policy: Policy, opening: str, cuts: set[int], behind: str
) -> None:
    text = opening + behind
    edges = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    tokenizer = spelled_policy.processor.tokenizer
    ids = [
        token
        for start, end in pairwise(edges)
        for token in tokenizer(text[start:end], add_special_tokens=False)["input_ids"]
    ]
    stripped = text.lstrip()
    wanted = REGION if stripped.startswith(REGION_OPENING) else FULL if stripped.startswith(FULL_ANSWER) else MALFORMED
    code, num_tokens = read_opening(tokenizer, ids)
    assert code == wanted
    assert 1 <= num_tokens <= max(1, len(ids))


_OPENING = st.lists(st.integers(0, 6), max_size=4)


@given(openings=st.lists(_OPENING, min_size=1, max_size=5), step=st.integers(0, 5), num_prompt_tokens=st.integers(1, 3))
def test_each_row_is_left_the_token_that_its_opening_wants(
    openings: list[list[int]], step: int, num_prompt_tokens: int
) -> None:
    scores = torch.randn(len(openings), 7, generator=torch.Generator().manual_seed(1))
    before = scores.clone()
    ids = torch.zeros(len(openings), num_prompt_tokens + step, dtype=torch.long)
    forced = ForcedOpenings(openings, num_prompt_tokens)(ids, scores)
    assert torch.equal(scores, before)
    for row, opening in enumerate(openings):
        if step < len(opening):
            assert forced[row].isfinite().nonzero().flatten().tolist() == [opening[step]]
        else:
            assert torch.equal(forced[row], before[row])


def test_p_region_is_read_at_the_first_step_alone() -> None:
    reader = FirstTokenProbability(token_id=2, num_prompt_tokens=3)
    first = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -torch.inf]])
    assert reader(torch.zeros(2, 3), first) is first
    reader(torch.zeros(2, 4), torch.zeros(2, 3))
    assert reader.p_B.tolist() == pytest.approx([math.e / (2 + math.e), 0.0])


@pytest.fixture(scope="module")
def spelled_policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    folder = build_tiny_policy("smolvlm", tmp_path_factory.mktemp("spelled"))
    return load_policy(folder, PolicyParams(path=str(folder), device="cpu"))
