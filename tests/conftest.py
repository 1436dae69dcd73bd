from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import PolicyParams, WarmupParams
from pipeline.policy.policy import load_policy
from pipeline.training.seeding import seed_everything
from pipeline.training.sft import SftExample, train_sft
from pipeline.types import Box, RegionLabel
from tests.tiny_models import PlantedScorer, build_outcome, build_tiny_clip, build_tiny_llava


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a trained policy as slow, wherever it stands."""
    for item in items:
        if "spoken_llava" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def tiny_clip_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny CLIP with its processor."""
    return build_tiny_clip(tmp_path_factory.mktemp("tiny_clip"))


@pytest.fixture(scope="session")
def tiny_llava_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained tiny LLaVA with its processor."""
    return build_tiny_llava(tmp_path_factory.mktemp("tiny_llava"))


class TaughtLlava:
    """A tiny LLaVA that has learned eight answers by heart, and what was logged while it learned."""

    def __init__(self, base_dir: Path, folder: Path) -> None:
        self.folder = folder
        self.questions = {f"q{number}": f"What is thing {number}?" for number in range(8)}
        box = Box(2 / 28, 5 / 28, 11 / 28, 20 / 28)
        self.labels = [
            RegionLabel(query_id=query_id, box=box if number % 2 else None, gain=0.5)
            for number, query_id in enumerate(self.questions)
        ]
        outcome = build_outcome(2)
        scorer = PlantedScorer(self.questions, baseline=outcome, score_box=lambda _, __: outcome)
        self.load_image = scorer.load_image
        self.logged: list[tuple[dict[str, float], int]] = []
        seed_everything(1)
        policy = load_policy(base_dir, PolicyParams(device="cpu"))
        self.curve = train_sft(
            policy,
            [SftExample(label, self.questions[label.query_id]) for label in self.labels],
            self.load_image,
            WarmupParams(epochs=120, learning_rate=3e-3, batch_size=8),
            seed=1,
            log=lambda figures, step: self.logged.append((dict(figures), step)),
            scratch_dir=folder / "scratch",
        )
        policy.save(folder)


@pytest.fixture(scope="session")
def spoken_llava(tiny_llava_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> TaughtLlava:
    """A tiny LLaVA after a few steps of SFT: it speaks both forms of the answer."""
    return TaughtLlava(tiny_llava_dir, tmp_path_factory.mktemp("spoken_llava"))
