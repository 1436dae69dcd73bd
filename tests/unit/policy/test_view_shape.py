"""The crop's shape around the policy's box: kept beside the weights, the same in training and wherever it is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.config import LoraParams, PolicyParams, RewardParams
from pipeline.core.boxes import Frame
from pipeline.core.completion import FULL_ANSWER, format_decision
from pipeline.core.region_search import RESHAPINGS, Reshaping
from pipeline.errors import ModelError
from pipeline.models.model_folder import compute_model_digest
from pipeline.policy.policy import Policy, load_policy
from pipeline.policy.view_shape import AS_NAMED, load_view_shape, read_decision, save_view_shape
from pipeline.training.grpo.reward import PolicyReward
from pipeline.types import Box, Crop, KeepFull, Malformed
from tests.scripted import encode, scripted
from tests.tiny_models import PlantedScorer, build_outcome

_SHAPE = Reshaping(0.1, is_square=True)
_SIZE_PX = (40, 30)
_FRAME = Frame(28, 28)
_NAMED = Box(7 / 28, 7 / 28, 14 / 28, 21 / 28)


@pytest.mark.parametrize("shape", RESHAPINGS, ids=str)
def test_a_shape_comes_back_from_its_folder(shape: Reshaping, tmp_path: Path) -> None:
    save_view_shape(Reshaping(0.9), tmp_path)
    save_view_shape(shape, tmp_path)
    assert load_view_shape(tmp_path) == shape
    assert (shape == AS_NAMED) == (not any(tmp_path.iterdir()))  # a folder as any other model's has no such file


@pytest.mark.parametrize(
    "content",
    ["", "[]", "3", "{}", '{"margin": 0.1}', '{"margin": "a", "is_square": true}', '{"margin": -1, "is_square": true}',
     '{"margin": NaN, "is_square": true}', '{"margin": 0.1, "is_square": "yes"}'],
)  # fmt: skip
def test_what_is_no_shape_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "view_shape.json").write_text(content)
    with pytest.raises(ModelError, match=r"view_shape\.json"):
        load_view_shape(tmp_path)


corners = st.lists(st.integers(0, 28), min_size=2, max_size=2, unique=True).map(sorted)


@given(corners, corners, st.sampled_from(RESHAPINGS), st.tuples(st.integers(1, 300), st.integers(1, 300)))
def test_the_crop_that_is_read_holds_the_box_that_was_named(xs, ys, shape, size_px):
    named = Box(xs[0] / 28, ys[0] / 28, xs[1] / 28, ys[1] / 28)
    decision = read_decision(format_decision(Crop(named), _FRAME), _FRAME, shape, size_px)
    assert isinstance(decision, Crop)
    assert decision.box == shape.apply(named, *size_px)
    assert decision.box.x0 <= named.x0 < named.x1 <= decision.box.x1
    assert decision.box.y0 <= named.y0 < named.y1 <= decision.box.y1


def test_other_answers_have_no_shape() -> None:
    assert read_decision(FULL_ANSWER, _FRAME, _SHAPE, _SIZE_PX) == KeepFull()
    assert isinstance(read_decision("nonsense", _FRAME, _SHAPE, _SIZE_PX), Malformed)


# ---------------------------------------------------------------------------- the policy's


def _params(**changes: object) -> PolicyParams:
    return PolicyParams.model_validate({"max_new_tokens": 12, "device": "cpu"} | changes)


@pytest.fixture
def policy(tiny_llava_dir: Path) -> Policy:
    policy = load_policy(tiny_llava_dir, _params())
    policy.view_shape = _SHAPE
    return policy


def _say(policy: Policy, box: Box = _NAMED) -> str:
    return format_decision(Crop(box), policy.get_frame(*_SIZE_PX))


def test_asked_and_trained_alike(policy: Policy) -> None:
    """What is cut where the policy answers is what its completion earns by in training."""
    scorer: Any = PlantedScorer({"q": "What?"}, baseline=build_outcome(3), score_box=lambda *_: build_outcome(1))
    text = _say(policy)
    with scripted(policy, lambda _: text):
        (answer,) = policy.decide([Image.new("RGB", _SIZE_PX)], ["What?"])
    reward = PolicyReward(scorer, policy, RewardParams())
    wanted = Crop(_SHAPE.apply(_NAMED, *_SIZE_PX))
    assert answer.decision == policy.read(text, *_SIZE_PX) == wanted
    assert reward.parse("q", encode(policy, text)) == (text, wanted)
    assert answer.completion == text  # the words stay as they were said


@pytest.mark.parametrize("lora", [None, LoraParams(rank=2)], ids=["whole", "adapter"])
def test_the_shape_goes_where_the_weights_go(
    policy: Policy, lora: LoraParams | None, tiny_llava_dir: Path, tmp_path: Path
) -> None:
    policy.params = _params(path=str(tiny_llava_dir), lora=lora)
    policy.prepare_training()
    saved, merged = tmp_path / "saved", tmp_path / "merged"
    policy.save(saved)
    again = load_policy(saved, policy.params)
    assert again.view_shape == _SHAPE
    again.save_merged(merged)
    assert load_policy(merged, _params()).view_shape == _SHAPE
    assert json.loads((merged / "view_shape.json").read_text()) == {"margin": 0.1, "is_square": True}


def test_another_shape_is_another_model(policy: Policy, tmp_path: Path) -> None:
    policy.save(tmp_path)
    digest = compute_model_digest(tmp_path)
    save_view_shape(Reshaping(0.2), tmp_path)
    assert compute_model_digest(tmp_path) != digest


def test_a_model_that_was_not_trained_here_crops_its_boxes_as_named(tiny_llava_dir: Path) -> None:
    assert load_policy(tiny_llava_dir, _params()).view_shape == AS_NAMED
