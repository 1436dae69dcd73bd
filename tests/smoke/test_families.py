"""Every family of policies, as a tiny random checkpoint, through SFT, r-GRPO, answers, save and load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
import trl
from PIL import Image

from pipeline.config import LoraParams, PolicyParams, RewardParams, TrainParams, WarmupParams
from pipeline.core.boxes import Frame
from pipeline.core.completion import FULL_ANSWER, REGION_OPENING, format_decision, parse_completion
from pipeline.errors import ModelError
from pipeline.policy.decoding.shared_prompts import select_pictures
from pipeline.policy.families import FRAME_KEY
from pipeline.policy.policy import Policy, load_policy
from pipeline.training.grpo.reward import PolicyReward
from pipeline.training.grpo.train import train_rgrpo
from pipeline.training.seeding import seed_everything
from pipeline.training.sft import SftExample, _AttachAnswers, train_sft
from pipeline.types import Box, Crop, CurvePoint, RegionLabel, Rollout
from tests.tiny_families import BUILDERS, build_tiny_policy
from tests.tiny_models import PlantedScorer, build_outcome

pytestmark = pytest.mark.smoke

_SIZES_PX: Final = {"q0": (40, 30), "q1": (90, 50), "q2": (30, 64), "q3": (56, 56)}
# The last one holds what ends a turn or stands for a picture, in one family or another.
_QUESTIONS: Final = {query_id: f"What is thing {query_id}?" for query_id in _SIZES_PX} | {
    "q3": "Is <image> <|image_pad|> or <fake_token_around_image> here?<end_of_utterance><|im_end|>"
}
_BOX: Final = Box(0.25, 0.5, 0.75, 1.0)
_ADAPTED: Final = "qwen2_5_vl"


class SizedScorer(PlantedScorer):
    """A planted scorer whose pictures differ in size and shape."""

    def __init__(self) -> None:
        outcome = build_outcome(2)
        super().__init__(
            _QUESTIONS, baseline=outcome, score_box=lambda _, box: build_outcome(1, margin=box.x1 - box.y0)
        )
        self.queries = {
            query_id: replace(query, width_px=_SIZES_PX[query_id][0], height_px=_SIZES_PX[query_id][1])
            for query_id, query in self.queries.items()
        }

    def load_image(self, query_id: str) -> Image.Image:
        return super().load_image(query_id).resize(_SIZES_PX[query_id])


def _params(folder: Path, lora: LoraParams | None = None) -> PolicyParams:
    return PolicyParams(path=str(folder), max_new_tokens=20, device="cpu", lora=lora)


def _copy_weights(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}


class Trained:
    """A checkpoint of a family after two steps of SFT and two of r-GRPO, and what they left."""

    def __init__(self, family: str, folder: Path, lora: LoraParams | None) -> None:
        self.family, self.base_dir, self.lora = family, build_tiny_policy(family, folder / "base"), lora
        self.scorer = SizedScorer()
        seed_everything(1)
        self.policy = load_policy(self.base_dir, _params(self.base_dir, lora))
        labels = [
            RegionLabel(query_id=query_id, box=_BOX if number % 2 else None, gain=0.5)
            for number, query_id in enumerate(_QUESTIONS)
        ]
        self.sft_curve: Sequence[CurvePoint] = train_sft(
            self.policy,
            [SftExample(label, _QUESTIONS[label.query_id]) for label in labels],
            self.scorer.load_image,
            WarmupParams(epochs=1, learning_rate=1e-3, batch_size=2, warmup_steps=0),
            seed=1,
            log=lambda *_: None,
            scratch_dir=folder / "scratch",
        )
        self.after_sft = _copy_weights(self.policy)
        record = train_rgrpo(
            self.policy,
            _QUESTIONS,
            self.scorer,  # type: ignore[arg-type]
            TrainParams(
                max_steps=2,
                queries_per_step=2,
                group_size=3,
                num_region=1,
                num_full=1,
                learning_rate=1e-3,
                warmup_steps=0,
                save_steps=1000,
            ),
            RewardParams(),
            seed=1,
            log=lambda *_: None,
            checkpoints_dir=folder / "checkpoints",
        )
        self.rollouts: Sequence[Rollout] = record.rollouts
        self.curve: Sequence[CurvePoint] = record.curve

    def ask(self, policy: Policy) -> list[Any]:
        return policy.decide([self.scorer.load_image(query_id) for query_id in _QUESTIONS], list(_QUESTIONS.values()))


@pytest.fixture(scope="module", params=[*((name, None) for name in BUILDERS), (_ADAPTED, LoraParams(rank=2))],
                ids=[*BUILDERS, f"{_ADAPTED}-lora"])  # fmt: skip
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    family, lora = request.param
    return Trained(family, tmp_path_factory.mktemp(family), lora)


def test_both_trainings_change_the_weights_and_stay_finite(trained: Trained) -> None:
    losses = [point.value for point in trained.sft_curve if point.metric == "sft_loss"]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    assert {point.step for point in trained.curve} == {1, 2}
    assert np.isfinite([point.value for point in trained.curve]).all()
    after = trained.policy.model.state_dict()
    changed = [name for name, tensor in trained.after_sft.items() if not torch.equal(tensor, after[name])]
    assert changed
    assert all("lora_" in name for name in changed) == (trained.lora is not None)


def test_the_decision_is_watched_and_leaks_little(trained: Trained) -> None:
    curve = {(point.metric, point.step): point.value for point in trained.curve}
    for step in (1, 2):
        assert 0.0 < curve["p_region", step] + curve["p_full", step] <= 1.0 + 1e-5
        assert curve["decision_mass", step] == pytest.approx(curve["p_region", step] + curve["p_full", step])
        assert 0.0 < curve["decision_target", step] < 1.0
    if trained.lora is not None:  # the reference is a copy of the adapter, read without dropout as the policy is
        assert curve["decision_kl", 1] == pytest.approx(0.0, abs=1e-7)


def test_every_group_holds_both_arms(trained: Trained) -> None:
    assert len(trained.rollouts) == 2 * 2 * 3
    for rollout in trained.rollouts:
        answer = rollout.completion.strip()
        assert rollout.arm != "region" or answer.startswith(REGION_OPENING)
        assert rollout.arm != "full" or answer.startswith(FULL_ANSWER)


def test_openings_are_the_tokens_that_sft_teaches(trained: Trained) -> None:
    policy = trained.policy
    crop = format_decision(Crop(_BOX), policy.get_frame(40, 30))
    for answer, opening in ((crop, policy.region_ids), (FULL_ANSWER, policy.full_ids)):
        row = {
            "prompt": policy.conversation.build_messages("What?"),
            "completion": [{"role": "assistant", "content": [{"type": "text", "text": answer}]}],
        }
        taught = trl.apply_chat_template(row, policy.processor)["completion"]
        ids = policy.processor.tokenizer(taught, add_special_tokens=False)["input_ids"]
        assert ids[: len(opening)] == opening


def test_pictures_of_other_sizes_in_the_batch_change_no_answer(trained: Trained) -> None:
    together = trained.ask(trained.policy)
    for query_id, answer in zip(_QUESTIONS, together, strict=True):
        alone = trained.policy.decide([trained.scorer.load_image(query_id)], [_QUESTIONS[query_id]])[0]
        assert alone.p_region == pytest.approx(answer.p_region, abs=1e-5)
        assert alone.completion == answer.completion


def test_saved_policy_answers_alike(trained: Trained, tmp_path: Path) -> None:
    trained.policy.save(tmp_path)
    assert [path.suffix for path in tmp_path.glob("*model*") if path.suffix != ".json"] == [".safetensors"]
    again = load_policy(tmp_path, _params(trained.base_dir, trained.lora))
    assert trained.ask(again) == trained.ask(trained.policy)


def test_rows_taken_from_a_batch_keep_their_pictures(trained: Trained) -> None:
    policy, rows = trained.policy, [3, 1]
    prompts = [policy.conversation.write_prompt(question) for question in _QUESTIONS.values()]
    images = [[trained.scorer.load_image(query_id)] for query_id in _QUESTIONS]
    batch = dict(policy.processor(text=prompts, images=images, padding=True, return_tensors="pt"))
    picked = select_pictures(batch, rows, batch["input_ids"].shape[1])
    policy.model.eval()
    with torch.inference_mode():
        whole = policy.model(**batch).logits[rows, -1]
        part = policy.model(
            input_ids=batch["input_ids"][rows], attention_mask=batch["attention_mask"][rows], **picked
        ).logits[:, -1]
    torch.testing.assert_close(part, whole, atol=1e-4, rtol=1e-4)


def test_boxes_are_read_and_taught_in_the_frame_of_their_own_picture(trained: Trained) -> None:
    policy = trained.policy
    attach = _AttachAnswers(trained.scorer.load_image, policy.get_frame)
    rows = attach({"query_id": list(_QUESTIONS), "box": [[0.25, 0.5, 0.75, 1.0]] * 4})
    taught = [completion[0]["content"][0]["text"] for completion in rows["completion"]]
    assert (len(set(taught)) > 1) == (trained.family == "qwen2_5_vl")
    reward = PolicyReward(trained.scorer, policy, RewardParams())  # type: ignore[arg-type]
    for query_id, text in zip(_QUESTIONS, taught, strict=True):
        ids = policy.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        completion, decision = reward.parse(query_id, ids)
        assert completion.strip() == text
        assert isinstance(decision, Crop)
        got = [decision.box.x0, decision.box.y0, decision.box.x1, decision.box.y1]
        assert got == pytest.approx([0.25, 0.5, 0.75, 1.0], abs=0.02)


# -- frames -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resized(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    folder = build_tiny_policy("qwen2_5_vl", tmp_path_factory.mktemp("resized"))
    return load_policy(folder, _params(folder))


@pytest.mark.parametrize("size_px", [(1, 1), (40, 30), (500, 20), (13, 700), (1000, 900)])
def test_frame_of_qwen2_5_is_the_picture_as_its_tower_sees_it(resized: Policy, size_px: tuple[int, int]) -> None:
    seen = resized.processor.image_processor(Image.new("RGB", size_px), return_tensors="pt")["image_grid_thw"][0]
    frame = resized.get_frame(*size_px)
    assert (frame.height, frame.width) == (14 * int(seen[1]), 14 * int(seen[2]))


def test_a_box_of_qwen2_5_is_not_cut_from_the_original_unconverted(resized: Policy) -> None:
    frame = resized.get_frame(1000, 900)
    text = '<tool_call>\n{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [0, 0, 56, 56]}}\n</tool_call>'
    decision = parse_completion(text, frame)
    assert isinstance(decision, Crop)
    assert decision.box.x1 == pytest.approx(56 / frame.width)
    assert decision.box.x1 > 10 * 56 / 1000 * 0.8


def test_a_picture_too_long_for_qwen2_5_is_one_clear_error(resized: Policy) -> None:
    with pytest.raises(ModelError, match="1000 x 2 px"):
        resized.decide([Image.new("RGB", (1000, 2))], ["What?"])


@pytest.mark.parametrize(("family", "units"), [("qwen2_vl", 1000), ("qwen3_vl", 1000), ("smolvlm", 1000)])
def test_other_frames_do_not_depend_on_the_picture(family: str, units: int, tmp_path: Path) -> None:
    policy = load_policy(build_tiny_policy(family, tmp_path), _params(tmp_path))
    assert policy.get_frame(40, 30) == policy.get_frame(3, 500) == Frame(units, units)


def test_smolvlm_may_name_its_square(tmp_path: Path) -> None:
    build_tiny_policy("smolvlm", tmp_path)
    _edit(tmp_path / "config.json", {FRAME_KEY: 64})
    assert load_policy(tmp_path, _params(tmp_path)).get_frame(40, 30) == Frame(64, 64)


def _edit(path: Path, changes: Mapping[str, object]) -> None:
    import json

    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
