"""The committed lock against the outputs that lie here."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import pytest

from pipeline.runs.reproduction import Reproduction, check_reproduction

pytestmark = pytest.mark.filterwarnings("ignore")  # DVC's own
STAGES = """\
stages:
  first:
    cmd: none
    outs: [artifacts/table]
    metrics:
      - artifacts/metrics/first.json:
          cache: false
  second:
    cmd: none
    deps: [artifacts/table]
    outs: [artifacts/policy.bin]
"""
REPRODUCED = "reproduced: all outputs equal dvc.lock"


def _git(root: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout whose lock is committed and whose outputs are the lock's."""
    from dvc.repo import Repo

    for name in ("artifacts/table/a.txt", "artifacts/metrics/first.json", "artifacts/policy.bin"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "dvc.yaml").write_text(STAGES)
    with contextlib.chdir(tmp_path), Repo.init(str(tmp_path), no_scm=True) as repo:
        repo.commit(force=True)
    _git(tmp_path, "init", "-q")
    _git(tmp_path, "add", "dvc.yaml", "dvc.lock")
    _git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def test_equal_outputs_are_reproduced(root: Path) -> None:
    found = check_reproduction(root)
    assert found.describe() == REPRODUCED
    assert found.as_json() == {"reproduced": True, "differs": []}


def test_other_bytes_and_missing_outputs_are_named_by_stage(root: Path) -> None:
    (root / "artifacts/table/a.txt").write_text("other")
    (root / "artifacts/metrics/first.json").unlink()
    (root / "artifacts/policy.bin").write_text("other")
    found = check_reproduction(root)
    assert found.reproduced is False
    assert set(found.differs) == {
        ("first", "artifacts/table"),
        ("first", "artifacts/metrics/first.json"),
        ("second", "artifacts/policy.bin"),
    }
    line = found.describe()
    assert line.startswith("differs from the committed dvc.lock: first: artifacts/")
    assert line.endswith("; second: artifacts/policy.bin")
    assert "first: artifacts/table" in found.as_json()["differs"]


def test_the_committed_lock_counts_not_the_one_that_a_run_has_written(root: Path) -> None:
    from dvc.repo import Repo

    (root / "artifacts/policy.bin").write_text("other")
    with contextlib.chdir(root), Repo(str(root)) as repo:
        repo.commit(force=True)
    assert check_reproduction(root).differs == (("second", "artifacts/policy.bin"),)
    _git(root, "commit", "-qam", "second")
    assert check_reproduction(root).describe() == REPRODUCED


def test_without_a_committed_lock_nothing_is_said(tmp_path: Path) -> None:
    assert check_reproduction(tmp_path) == Reproduction(None, ())
    assert "not known" in check_reproduction(tmp_path).describe()
