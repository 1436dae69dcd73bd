"""Shipped profiles: each is valid, and taking one never loses what somebody has written."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from pipeline.config import load_params
from pipeline.errors import ConfigError
from pipeline.runs.profiles import list_profiles, use_profile

_ROOT = Path(__file__).parents[3]
_NAMES = ["evqa-qwen2.5-vl-3b", "groceries", "infoseek-qwen2.5-vl-3b", "smoke", "smolvlm-500m"]


def _git(root: Path, *arguments: str) -> None:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    subprocess.run(["git", "-C", str(root), *who, *arguments], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "params").mkdir()
    shutil.copy(_ROOT / "params" / "smoke.yaml", tmp_path / "params" / "small.yaml")
    (tmp_path / "params" / "broken.yaml").write_text("sead: 1\n")
    (tmp_path / "params" / "short.yaml").write_text("seed: 1\n")
    (tmp_path / "params" / "twice.yaml").write_text("seed: 1\ntrain:\n  beta: 1\n  beta: 2\n")
    (tmp_path / "params.yaml").write_text("seed: 7\n")
    _git(tmp_path, "init", "-q")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-qm", "start")
    return tmp_path


def test_these_profiles_ship() -> None:
    assert list_profiles(_ROOT) == _NAMES


@pytest.mark.parametrize("name", _NAMES)
def test_every_shipped_profile_is_valid(name: str) -> None:
    load_params(_ROOT / "params" / f"{name}.yaml")


@pytest.mark.parametrize("name", _NAMES)
def test_dvc_finds_every_section_in_every_profile(name: str) -> None:
    """DVC refuses a stage whose section is not there, though the section's defaults would do."""
    stages = [
        stage.get("do", stage)
        for file in ("dvc.yaml", "ablation/dvc.yaml")
        for stage in yaml.safe_load((_ROOT / file).read_text())["stages"].values()
    ]
    wanted = {section for stage in stages for section in stage.get("params", [])}
    assert "reward" in wanted
    assert wanted <= yaml.safe_load((_ROOT / "params" / f"{name}.yaml").read_text()).keys()


@pytest.mark.parametrize("name", ["evqa-qwen2.5-vl-3b", "infoseek-qwen2.5-vl-3b"])
def test_the_papers_profiles_hold_the_papers_recipe(name: str) -> None:
    params = load_params(_ROOT / "params" / f"{name}.yaml")
    lora = params.policy.lora
    assert lora is not None
    assert (lora.rank, lora.alpha, lora.dropout) == (8, 32, 0.1)
    assert (params.train.learning_rate, params.train.warmup_steps, params.train.beta) == (5e-5, 50, 0.1)
    assert (params.train.group_size, params.policy.max_new_tokens, params.retrieve.pool_size) == (8, 256, 20)
    weights = params.reward
    assert (weights.weight_mrr, weights.weight_ndcg, weights.weight_rank, weights.weight_margin) == (0.2, 0.2, 0.2, 0.4)
    assert params.scorer.dtype == "float16"


def test_profile_becomes_the_current_parameters(checkout: Path) -> None:
    use_profile(checkout, "small")
    assert (checkout / "params.yaml").read_text() == (checkout / "params" / "small.yaml").read_text()
    use_profile(checkout, "small")  # nothing would be lost: it is the same content


def test_uncommitted_parameters_are_not_overwritten(checkout: Path) -> None:
    (checkout / "params.yaml").write_text("seed: 8\n")
    with pytest.raises(ConfigError, match="in no commit"):
        use_profile(checkout, "small")
    assert (checkout / "params.yaml").read_text() == "seed: 8\n"
    _git(checkout, "commit", "-qam", "mine")
    use_profile(checkout, "small")


def test_parameters_that_git_does_not_know_are_not_overwritten(checkout: Path) -> None:
    _git(checkout, "rm", "-q", "--cached", "params.yaml")
    _git(checkout, "commit", "-qm", "gone")
    with pytest.raises(ConfigError, match="in no commit"):
        use_profile(checkout, "small")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("../params", "no such profile; there are"),
        ("broken", "sead"),
        ("short", "write out: threads, data"),
        ("twice", r"twice\.yaml: line 4: `beta` stands there again, first in line 3"),
    ],
)
def test_a_profile_that_cannot_be_used_changes_nothing(checkout: Path, name: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        use_profile(checkout, name)
    assert (checkout / "params.yaml").read_text() == "seed: 7\n"
