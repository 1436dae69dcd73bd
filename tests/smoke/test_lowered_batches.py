"""Memory ran out: the batches are lowered, and the run goes on as if they had been so from the start."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.__main__ import run_stage
from pipeline.ablation.basis import compute_basis
from pipeline.config import load_params
from pipeline.files.store import load_pools
from pipeline.models.model_folder import compute_model_digest, note_base
from pipeline.training.checkpoints import seal_checkpoint
from pipeline.training.grpo import resume
from pipeline.workspace import Workspace
from tests.small_run import write_small_run

pytestmark = [pytest.mark.smoke, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, tiny_clip_dir: Path, tiny_llava_dir: Path) -> Path:
    """A checkout after retrieve, with the base model in the place of the SFT policy."""
    root = tmp_path_factory.mktemp("checkout")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        write_small_run(root, tiny_clip_dir, tiny_llava_dir)
        _run(root, "prepare", "index", "retrieve")
    sft_dir = Workspace.at(root).sft_dir
    shutil.copytree(tiny_llava_dir, sft_dir)
    note_base(sft_dir, compute_model_digest(tiny_llava_dir))
    return root


def _run(root: Path, *stages: str) -> None:
    for stage in stages:
        run_stage(stage, root / "params.yaml", root)


def _lower(root: Path) -> None:
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["batches"] = {"policy": 2, "scorer": 3}
    (root / "params.yaml").write_text(yaml.safe_dump(params))


def test_training_goes_on_from_its_checkpoint(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    checkout = shutil.copytree(root, tmp_path / "checkout")
    workspace = Workspace.at(checkout)
    basis = compute_basis(load_params(checkout / "params.yaml"), workspace)

    def seal_and_die(folder: Path) -> None:
        seal_checkpoint(folder)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(resume, "seal_checkpoint", seal_and_die)
        _run(checkout, "train")
    (first,) = (workspace.checkpoints_dir / "train").iterdir()
    _lower(checkout)
    assert compute_basis(load_params(checkout / "params.yaml"), workspace) == basis
    with caplog.at_level(logging.INFO, logger="pipeline"):
        _run(checkout, "train")
    assert "train: goes on from checkpoint-1" in caplog.messages
    assert not first.exists()  # the finished run has removed its own

    whole = shutil.copytree(root, tmp_path / "whole")
    _run(whole, "train")
    kept = ("rollouts/rollouts.parquet", "curves/train.parquet", "metrics/train.json")
    for name in kept:
        assert (checkout / "artifacts" / name).read_bytes() == (whole / "artifacts" / name).read_bytes(), name


def test_pools_are_the_same_up_to_the_last_digits(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    checkout = shutil.copytree(root, tmp_path / "checkout")
    _lower(checkout)
    _run(checkout, "index", "retrieve")
    before, after = (load_pools(Workspace.at(top).pools_dir / "pools.parquet") for top in (root, checkout))
    assert [pool.doc_ids for pool in before] == [pool.doc_ids for pool in after]
    for old, new in zip(before, after, strict=True):
        np.testing.assert_allclose(old.scores, new.scores, atol=1e-6)
