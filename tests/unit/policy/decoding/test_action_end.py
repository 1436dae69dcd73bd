"""Generation ends with the action, row by row, whatever the tokenizer; nothing behind it counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from pipeline.config import PolicyParams
from pipeline.core.completion import FULL_ANSWER, format_decision
from pipeline.policy.decoding.action_end import ActionEnd, drop_beyond_action
from pipeline.policy.decoding.generation import GenerationSettings
from pipeline.policy.policy import Policy, load_policy
from pipeline.training.group_sampling import sample_rows
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
    with scripted(policy, says.__getitem__) as generated:
        answers = policy.decide([_IMAGE] * 3, ["What?"] * 3)
    assert [answer.completion for answer in answers] == [FULL_ANSWER, _crop(policy), FULL_ANSWER]
    assert answers[0].decision == KeepFull() == answers[2].decision
    assert isinstance(answers[1].decision, Crop)
    lengths = [len(_encode(policy, text)) + 1 for text in (FULL_ANSWER, _crop(policy), FULL_ANSWER)]
    assert generated[0].shape == (3, max(lengths))
    pad_id = policy.processor.tokenizer.pad_token_id
    for row, length in zip(generated[0], lengths, strict=True):
        assert row[length - 1] != pad_id
        assert (row[length:] == pad_id).all()


def test_who_never_completes_an_action_goes_on_to_the_last_token(policy: Policy) -> None:
    with scripted(policy, lambda _: f"I say {FULL_ANSWER}") as generated:
        answer = policy.decide([_IMAGE], ["What?"])[0]
    assert generated[0].shape[1] == _LENGTH
    assert isinstance(answer.decision, Malformed)
    assert answer.completion.endswith(FILLER)


def test_forced_regions_end_too(policy: Policy) -> None:
    rest = _encode(policy, _crop(policy))[len(policy.region_ids) :]
    with scripted(policy, lambda _: _crop(policy)) as generated:
        answer = policy.decide([_IMAGE], ["What?"], force_region=True)[0]
    assert isinstance(answer.decision, Crop)
    assert generated[0].shape[1] == len(policy.region_ids) + len(rest) + 1


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


def test_each_row_is_over_once_its_action_is_whole(policy: Policy) -> None:
    action = _encode(policy, _crop(policy))
    end = ActionEnd(policy.processor.tokenizer, 3, 3)
    rows = torch.full((3, 3 + len(action) + 1), _encode(policy, FILLER)[0])
    rows[0, 3:-1] = torch.tensor(action)
    rows[1, 3 : 3 + len(policy.full_ids)] = torch.tensor(policy.full_ids)
    over = [end(rows[:, :length], None).tolist() for length in range(4, rows.shape[1] + 1)]
    # What is over is told one token late, so that an end token may follow.
    wanted = [[step > len(action), step > len(policy.full_ids), False] for step in range(1, len(action) + 2)]
    assert over == wanted


def test_rows_open_as_they_are_made_to_and_end_with_their_actions(policy: Policy) -> None:
    prompt = policy.conversation.write_prompt("What?")
    inputs = policy.processor(text=[prompt] * 4, images=[[_IMAGE]] * 4, padding=True, return_tensors="pt")
    openings = [policy.region_ids, policy.full_ids, [], policy.region_ids]
    says = [_crop(policy), "", FULL_ANSWER, ""]
    settings = GenerationSettings.sampling(_LENGTH, 1.0, policy.tokens)
    with scripted(policy, says.__getitem__), sample_rows(policy.model, policy.processor.tokenizer, openings):
        rows = policy.model.generate(**inputs, generation_config=settings.build_config())
    generated = rows[:, inputs["input_ids"].shape[1] :]
    pad_id = policy.processor.tokenizer.pad_token_id
    for row, opening in zip(generated.tolist(), openings, strict=True):
        assert row[: len(opening)] == opening
    lengths = [int((row != pad_id).nonzero().max()) + 1 for row in generated]
    assert lengths == [len(_encode(policy, _crop(policy))) + 1, len(policy.full_ids) + 1,
                       len(_encode(policy, FULL_ANSWER)) + 1, _LENGTH]  # fmt: skip


def test_a_generate_that_was_replaced_before_is_restored(tmp_path: Path) -> None:
    folder = build_tiny_policy("llava", tmp_path)
    policy = load_policy(folder, PolicyParams(path=str(folder), device="cpu"))
    with sample_rows(policy.model, policy.processor.tokenizer, []):
        assert "generate" in vars(policy.model)
    assert "generate" not in vars(policy.model)
    with scripted(policy, lambda _: FULL_ANSWER):
        before = policy.model.generate
        with sample_rows(policy.model, policy.processor.tokenizer, []):
            assert policy.model.generate is not before
        assert policy.model.generate is before
