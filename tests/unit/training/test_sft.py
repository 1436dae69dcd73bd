"""SFT: the loss falls, and the policy speaks the labels in the format."""

from __future__ import annotations

from pipeline.config import PolicyParams
from pipeline.core.boxes import box_to_frame
from pipeline.policy.policy import load_policy
from pipeline.types import Crop, KeepFull
from tests.conftest import TaughtLlava


def test_loss_falls(spoken_llava: TaughtLlava) -> None:
    losses = [figures["sft_loss"] for figures, _ in spoken_llava.logged if "sft_loss" in figures]
    assert len(losses) == 120
    assert [step for figures, step in spoken_llava.logged if "sft_loss" in figures] == list(range(1, 121))
    assert losses[-1] < 0.1 * losses[0]


def test_curve_holds_what_was_logged(spoken_llava: TaughtLlava) -> None:
    logged = [(step, name, value) for figures, step in spoken_llava.logged for name, value in figures.items()]
    assert [(point.step, point.metric, point.value) for point in spoken_llava.curve] == sorted(logged)


def test_policy_speaks_the_labels(spoken_llava: TaughtLlava) -> None:
    policy = load_policy(spoken_llava.folder, PolicyParams(device="cpu"))
    images = [spoken_llava.load_image(query_id) for query_id in spoken_llava.questions]
    answers = policy.decide(images, list(spoken_llava.questions.values()))
    for answer in answers:
        if isinstance(answer.decision, Crop):
            assert box_to_frame(answer.decision.box, policy.get_frame(40, 30)) == (2, 5, 11, 20)
        else:
            assert isinstance(answer.decision, KeepFull), answer.completion
        assert 0.0 < answer.p_region < 1.0
    assert {type(answer.decision) for answer in answers} == {Crop, KeepFull}


def test_nothing_is_left_in_the_scratch_folder(spoken_llava: TaughtLlava) -> None:
    scratch = spoken_llava.folder / "scratch"
    assert not list(scratch.glob("checkpoint-*"))
