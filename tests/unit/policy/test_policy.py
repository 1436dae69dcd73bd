"""The policy at inference: any picture, any batch; the tokenizer's promises; folders that cannot be opened."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from demo.recipes.tiny_llava import FRAME_UNITS
from pipeline.config import PolicyParams
from pipeline.core.boxes import Frame
from pipeline.core.completion import REGION_OPENING, format_decision
from pipeline.core.seeds import derive_seed
from pipeline.errors import ModelError
from pipeline.policy.conversation import Conversation
from pipeline.policy.families import FRAME_KEY
from pipeline.policy.policy import Policy, PolicyAnswer, load_policy
from pipeline.types import Box, Crop, KeepFull
from tests.conftest import TaughtLlava

_SIZES_PX = [(1, 1), (300, 40), (112, 112), (7, 500), (64, 48)]
_QUESTIONS = ["What is it?", "What is the red thing at the left?", "x", "Which? " * 9, "é?"]


@pytest.fixture(scope="module")
def policy(tiny_llava_dir: Path) -> Policy:
    return load_policy(tiny_llava_dir, _params(), 4)


def _params() -> PolicyParams:
    return PolicyParams(max_new_tokens=12, device="cpu")


def _draw(size_px: tuple[int, int]) -> Image.Image:
    rng = np.random.default_rng(size_px)
    return Image.fromarray(rng.integers(0, 255, size=(*size_px[::-1], 3), dtype=np.uint8))


def test_answers_pictures_of_any_size(policy: Policy) -> None:
    done: list[int] = []
    answers = policy.decide([_draw(size_px) for size_px in _SIZES_PX], _QUESTIONS, advance=done.append)
    assert len(answers) == len(_SIZES_PX)
    assert all(0.0 <= answer.p_region <= 1.0 for answer in answers)
    assert done == [4, 1]
    assert policy.decide([], []) == []


def test_batch_size_does_not_change_answers(spoken_llava: TaughtLlava) -> None:
    images = [_draw(size_px) for size_px in _SIZES_PX]
    one, all_ = (load_policy(spoken_llava.folder, _params(), size).decide(images, _QUESTIONS) for size in (1, 5))
    assert [answer.completion for answer in one] == [answer.completion for answer in all_]
    assert [answer.p_region for answer in one] == pytest.approx([answer.p_region for answer in all_], abs=1e-4)


def test_p_region_is_the_probability_of_the_opening(spoken_llava: TaughtLlava) -> None:
    policy = load_policy(spoken_llava.folder, _params())
    image, question = _draw((64, 48)), "What is thing 3?"
    prompt = policy.conversation.write_prompt(question)
    inputs = policy.processor(text=[prompt], images=[[image]], return_tensors="pt")
    with torch.inference_mode():
        logits = policy.model(**inputs).logits[0, -1]
    wanted = logits.softmax(-1)[policy.region_ids[0]].item()
    assert policy.decide([image], [question])[0].p_region == pytest.approx(wanted, abs=1e-4)


def test_forced_answers_open_a_region_and_leave_p_region_alone(spoken_llava: TaughtLlava) -> None:
    policy = load_policy(spoken_llava.folder, _params())
    images = [spoken_llava.load_image(query_id) for query_id in spoken_llava.questions]
    questions = list(spoken_llava.questions.values())
    free, forced = (policy.decide(images, questions, force_region=force) for force in (False, True))
    assert [answer.p_region for answer in forced] == pytest.approx([answer.p_region for answer in free], abs=1e-6)
    assert all(answer.completion.startswith(REGION_OPENING) for answer in forced)
    kept = [answer.decision == KeepFull() for answer in free]
    assert any(kept)
    assert not all(kept)
    for was_kept, before, after in zip(kept, free, forced, strict=True):
        assert was_kept or after == before  # who crops anyway names the same box


def test_untrained_policy_is_forced_too(policy: Policy) -> None:
    answers = policy.decide([_draw(size_px) for size_px in _SIZES_PX], _QUESTIONS, force_region=True)
    assert all(answer.completion.startswith(REGION_OPENING) for answer in answers)
    assert not all(
        answer.completion.startswith(REGION_OPENING) for answer in policy.decide([_draw((4, 4))], ["What is it?"])
    )


def test_opening_of_several_tokens_is_forced_whole(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    opening = policy.region_ids + policy.processor.tokenizer("3,", add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(policy, "region_ids", opening)
    answer = policy.decide([_draw((4, 4))], ["What is it?"], force_region=True)[0]
    assert answer.completion.startswith(policy.processor.tokenizer.decode(opening))


def test_answers_that_begin_alike_are_refused(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Conversation, "encode_opening", lambda *_: [7])
    with pytest.raises(ModelError, match="same token"):
        Policy(policy.model, policy.processor, policy.params, policy.base_digest, policy.get_frame, batch_size=1)


def test_samples_are_seeded_forced_and_grouped_by_query(policy: Policy) -> None:
    images = [_draw(size_px) for size_px in _SIZES_PX]

    def sample(seed: int) -> list[list[PolicyAnswer]]:
        seeds = [derive_seed(seed, question) for question in _QUESTIONS]
        return policy.sample_regions(images, _QUESTIONS, num_samples=3, seeds=seeds)

    first = sample(1)
    assert [len(answers) for answers in first] == [3] * len(images)
    assert sample(1) == first != sample(2)
    assert all(answer.completion.startswith(REGION_OPENING) for answers in first for answer in answers)
    greedy = policy.decide(images, _QUESTIONS)
    for answers, answer in zip(first, greedy, strict=True):
        assert [drawn.p_region for drawn in answers] == pytest.approx([answer.p_region] * 3, abs=1e-4)


def test_draws_depend_neither_on_the_batch_size_nor_on_the_queries_beside(spoken_llava: TaughtLlava) -> None:
    images = [_draw(size_px) for size_px in _SIZES_PX]
    seeds = list(range(len(images)))
    drawn = []
    for batch_size in (2, 4, 64):
        policy = load_policy(spoken_llava.folder, _params(), batch_size)
        drawn.append(policy.sample_regions(images, _QUESTIONS, num_samples=2, seeds=seeds))
    completions = [[[answer.completion for answer in row] for row in rows] for rows in drawn]
    assert completions[0] == completions[1] == completions[2]
    assert any(row[0] != row[1] for row in completions[0])  # the samples of one query have streams of their own
    (last,) = policy.sample_regions(images[-1:], _QUESTIONS[-1:], num_samples=2, seeds=seeds[-1:])
    assert [answer.completion for answer in last] == completions[0][-1]
    with pytest.raises(ValueError, match="seeds"):
        policy.sample_regions(images, _QUESTIONS, num_samples=2, seeds=seeds[1:])


def test_saved_policy_answers_alike(policy: Policy, tmp_path: Path) -> None:
    policy.save(tmp_path)
    again = load_policy(tmp_path, _params(), policy.batch_size)
    images = [_draw(size_px) for size_px in _SIZES_PX]
    assert again.decide(images, _QUESTIONS) == policy.decide(images, _QUESTIONS)
    assert list(tmp_path.glob("*.safetensors"))


def test_one_question_per_picture(policy: Policy) -> None:
    with pytest.raises(ValueError, match="2 images and 1 questions"):
        policy.decide([_draw((4, 4))] * 2, ["What is it?"])


@pytest.mark.parametrize(
    "decision",
    [
        KeepFull(),
        Crop(Box(0, 0, 1, 1)),
        Crop(Box(3 / 28, 4 / 28, 10 / 28, 1)),
        Crop(Box(0.4, 0.4, 0.401, 0.401)),
    ],
)
def test_a_decision_takes_at_most_eight_tokens(policy: Policy, decision: KeepFull | Crop) -> None:
    text = format_decision(decision, policy.get_frame(64, 48))
    tokenizer = policy.processor.tokenizer
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) + 1 <= 8  # and the end token
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    opening = policy.full_ids if isinstance(decision, KeepFull) else policy.region_ids
    assert ids[: len(opening)] == opening
    assert len(opening) == 1


@pytest.mark.parametrize("text", ["héllo  wörld\n\t 12, 3,4", " leading ", "日本 🎉", "12,345 ,  7, ", "]}}", ""])
def test_any_text_survives_the_tokenizer(policy: Policy, text: str) -> None:
    tokenizer = policy.processor.tokenizer
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_question_precedes_the_picture(policy: Policy) -> None:
    prompt = policy.conversation.write_prompt("What is it?")
    assert prompt.index("What is it?") < prompt.index("<image>")
    assert prompt.count("<image>") == 1


def test_frame_is_the_checkpoints(policy: Policy) -> None:
    assert policy.get_frame(640, 48) == Frame(FRAME_UNITS, FRAME_UNITS)


@pytest.fixture
def copy_dir(tiny_llava_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llava_dir, tmp_path / "copy"))


def _edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


def _refuse(folder: Path | str, match: str) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        load_policy(folder, _params())
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_unknown_family_is_refused(copy_dir: Path) -> None:
    _edit_config(copy_dir, model_type="bert")
    _refuse(copy_dir, "family 'bert' is not supported; known: idefics3, llava")


def test_family_that_nobody_knows_is_refused(copy_dir: Path) -> None:
    _edit_config(copy_dir, model_type="no-such-family")
    _refuse(copy_dir, "no-such-family")


@pytest.mark.parametrize("units", [None, 0, "28", 2.5])
def test_checkpoint_must_say_its_frame(copy_dir: Path, units: object) -> None:
    _edit_config(copy_dir, **{FRAME_KEY: units})
    _refuse(copy_dir, FRAME_KEY)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    _refuse(tmp_path / "nowhere", "no such model folder")


def test_pickled_weights_are_refused(copy_dir: Path) -> None:
    (copy_dir / "model.safetensors").rename(copy_dir / "pytorch_model.bin")
    _refuse(copy_dir, "safetensors")


def test_cut_off_weights_are_refused(copy_dir: Path) -> None:
    weights = copy_dir / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    _refuse(copy_dir, "cannot be loaded")


def test_missing_tensors_are_refused(copy_dir: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy_dir / "model.safetensors")
    del tensors[next(name for name in tensors if "projector" in name)]
    save_file(tensors, copy_dir / "model.safetensors", metadata={"format": "pt"})
    _refuse(copy_dir, "lack")
