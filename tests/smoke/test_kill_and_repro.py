"""SIGKILL in the middle of every stage, then `dvc repro`: it completes, and its dvc.lock is an uninterrupted run's."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from flows.environment import child_environment
from pipeline.stages import STAGES
from tests.small_run import write_small_run

pytestmark = [pytest.mark.smoke, pytest.mark.timeout(900)]
CHECKOUT = Path(__file__).resolve().parents[2]
DVC = str(Path(sys.executable).with_name("dvc"))
SEED = 20


class Checkout:
    """A small checkout of its own, and `dvc repro` in it."""

    def __init__(self, root: Path, scorer_dir: Path, policy_dir: Path, hash_seed: str) -> None:
        self.root = root
        root.mkdir()
        for name in ("dvc.yaml", ".dvcignore"):
            shutil.copy(CHECKOUT / name, root / name)
        for name in ("pipeline", "demo"):
            shutil.copytree(CHECKOUT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        write_small_run(root, scorer_dir, policy_dir, train={"max_steps": 12, "save_steps": 2})
        self._env = child_environment(OMP_NUM_THREADS="1", PYTHONHASHSEED=hash_seed)
        for name in ("MLFLOW_TRACKING_URI", "REGION_R1_PARENT_RUN_ID"):
            self._env.pop(name, None)
        for command in (["init", "-q", "--no-scm"], ["add", "-q", "data"]):
            subprocess.run([DVC, *command], cwd=root, env=self._env, check=True)

    def start(self) -> subprocess.Popen[str]:
        """Start `dvc repro` as the leader of a group that can be killed whole; its log lies in repro.log."""
        with (self.root / "repro.log").open("w") as log:
            return subprocess.Popen(
                [DVC, "repro"], cwd=self.root, env=self._env, stdout=log, stderr=log, text=True, start_new_session=True
            )

    def read_log(self) -> str:
        return (self.root / "repro.log").read_text()

    def finish(self) -> str:
        """Run `dvc repro` to its end and return what it said."""
        assert self.start().wait() == 0, self.read_log()
        return self.read_log()

    def kill_in(self, stage: str, delay_s: float) -> None:
        """Start `dvc repro` and kill it, with the stage that it runs, some time after that stage has begun."""
        process = self.start()
        _await(lambda: f"{stage}: starts" in self.read_log(), process, self.read_log)
        if stage == "train":  # so that there is something to go on from
            _await(lambda: bool(list(self.root.glob("artifacts/checkpoints/**/seal.json"))), process, self.read_log)
        time.sleep(delay_s)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def read_hashes(self) -> dict[str, str]:
        """Return the hash of every output that DVC tracks."""
        stages = yaml.safe_load((self.root / "dvc.lock").read_text())["stages"]
        return {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}


def _await(is_so: Callable[[], bool], process: subprocess.Popen[str], explain: Callable[[], str]) -> None:
    while not is_so():
        assert process.poll() is None, explain()
        time.sleep(0.02)


def test_killed_stages_end_as_if_nothing_had_been(tmp_path: Path, tiny_clip_dir: Path, tiny_llava_dir: Path) -> None:
    whole = Checkout(tmp_path / "whole", tiny_clip_dir, tiny_llava_dir, "1")
    log = whole.finish()
    assert [stage for stage in STAGES if f"{stage}: done" not in log] == []

    cut = Checkout(tmp_path / "cut", tiny_clip_dir, tiny_llava_dir, "2")
    delays = random.Random(SEED)
    for stage in STAGES:
        cut.kill_in(stage, delay_s=delays.uniform(0.0, 1.5))
        if stage == "train":
            weights = max(cut.root.glob("artifacts/checkpoints/**/model.safetensors"), key=_step_of)
            if _step_of(weights) > 2:  # cut the newest in half too; the one before it must serve
                weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    log = cut.finish()
    assert "register: done" in log
    assert cut.read_hashes() == whole.read_hashes()
    assert {"artifacts/policy", "artifacts/evaluation", "artifacts/metrics/register.json"} <= cut.read_hashes().keys()
    assert (cut.root / "dvc.lock").read_bytes() == (whole.root / "dvc.lock").read_bytes()
    assert not [path for path in (cut.root / "artifacts").rglob("*") if "partial" in path.name]


def _step_of(weights: Path) -> int:
    return int(weights.parent.name.removeprefix("checkpoint-"))
