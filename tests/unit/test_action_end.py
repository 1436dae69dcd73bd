"""Generation ends with the action, row by row, whatever the tokenizer; nothing behind it counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from pipeline.config import PolicyParams
from pipeline.core.completion import FULL_ANSWER, format_decision
from pipeline.learn.action_end import ActionEnd, drop_beyond_action, stop_at_action
from pipeline.learn.policy import Policy, load_policy
from pipeline.types import Box, Crop, KeepFull, Malformed
from tests.scripted import FILLER, scripted
from tests.tiny_families import BUILDERS, build_tiny_policy

_IMAGE = Image.new("RGB", (56, 56), "teal")
_LENGTH = 120


@pytest.fixture(scope="module", params=list(BUILDERS))
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    folder = build_tiny_policy(request.param, tmp_path_factory.mktemp(request.param))
    return load_policy(folder, PolicyParams(path=str(folder), max_new_tokens=_LENGTH, device="cpu"), 4)


def _crop(policy: Policy) -> str:
    return format_decision(Crop(Box(0.25, 0.5, 0.75, 1.0)), policy.get_frame(*_IMAGE.size))


def _encode(policy: Policy, text: str) -> list[int]:
    ids: list[int] = policy.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def test_rows_end_by_themselves_one_token_after_their_action(policy: Policy) -> None:
    end = policy.processor.tokenizer.eos_token
    says = [f"{FULL_ANSWER}. Or not?", f"{_crop(policy)} and more", f"{FULL_ANSWER}{end}"]
    with scripted(policy, says.__getitem__) as spoken:
        answers = policy.decide([_IMAGE] * 3, ["What?"] * 3)
    assert [answer.completion for answer in answers] == [FULL_ANSWER, _crop(policy), FULL_ANSWER]
    assert answers[0].decision == KeepFull() == answers[2].decision
    assert isinstance(answers[1].decision, Crop)
    lengths = [len(_encode(policy, text)) + 1 for text in (FULL_ANSWER, _crop(policy), FULL_ANSWER)]
    assert spoken[0].shape == (3, max(lengths))
    pad_id = policy.processor.tokenizer.pad_token_id
    for row, length in zip(spoken[0], lengths, strict=True):
        assert row[length - 1] != pad_id
        assert (row[length:] == pad_id).all()


def test_who_never_completes_an_action_goes_on_to_the_last_token(policy: Policy) -> None:
    with scripted(policy, lambda _: f"I say {FULL_ANSWER}") as spoken:
        answer = policy.decide([_IMAGE], ["What?"])[0]
    assert spoken[0].shape[1] == _LENGTH
    assert isinstance(answer.decision, Malformed)
    assert answer.completion.endswith(FILLER)


def test_forced_regions_end_too(policy: Policy) -> None:
    rest = _encode(policy, _crop(policy))[len(policy.region_ids) :]
    with scripted(policy, lambda _: _crop(policy)) as spoken:
        answer = policy.decide([_IMAGE], ["What?"], force_region=True)[0]
    assert isinstance(answer.decision, Crop)
    assert spoken[0].shape[1] == len(policy.region_ids) + len(rest) + 1


def test_only_an_end_token_right_behind_the_action_is_kept(policy: Policy) -> None:
    tokenizer = policy.processor.tokenizer
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    for text in (FULL_ANSWER, _crop(policy)):
        action = _encode(policy, text)
        beyond = _encode(policy, FILLER)
        assert drop_beyond_action(tokenizer, [*action, end, pad, pad], [end]) == [*action, end]
        assert drop_beyond_action(tokenizer, [*action, *beyond, pad], [end]) == action
        assert drop_beyond_action(tokenizer, action, [end]) == action
        assert drop_beyond_action(tokenizer, [*action, end, pad], [end, pad]) == [*action, end]
        assert drop_beyond_action(tokenizer, [*action[:-1], *beyond], [end]) == [*action[:-1], *beyond]


def test_an_opening_in_the_prompt_belongs_to_the_answer(policy: Policy) -> None:
    tokenizer = policy.processor.tokenizer
    rest = _encode(policy, _crop(policy))[len(policy.region_ids) :]
    end = ActionEnd(tokenizer, 3, [policy.region_ids, policy.full_ids, []])
    filler = _encode(policy, FILLER)[0]
    rows = torch.full((3, 3 + len(rest) + 1), filler)
    rows[0, 3:-1] = torch.tensor(rest)
    over = [end(rows[:, :length], None).tolist() for length in range(4, rows.shape[1] + 1)]
    assert over == [[False, True, False]] * len(rest) + [[True, True, False]]


def test_a_generate_that_was_replaced_before_is_restored(tmp_path: Path) -> None:
    folder = build_tiny_policy("llava", tmp_path)
    policy = load_policy(folder, PolicyParams(path=str(folder), device="cpu"))
    with stop_at_action(policy.model, policy.processor.tokenizer, []):
        assert "generate" in vars(policy.model)
    assert "generate" not in vars(policy.model)
    with scripted(policy, lambda _: FULL_ANSWER):
        before = policy.model.generate
        with stop_at_action(policy.model, policy.processor.tokenizer, []):
            assert policy.model.generate is not before
        assert policy.model.generate is before
