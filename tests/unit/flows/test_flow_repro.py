"""What DVC's own failures and a stage's end become, asked of DVC itself in a checkout of one-line stages."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.environment import child_environment
from flows.execution import repro
from flows.execution.outcome import Outcome
from pipeline.runs.metrics_files import restore_metrics

pytestmark = pytest.mark.filterwarnings("ignore")  # DVC's own

CHECKOUT = Path(__file__).resolve().parents[3]
METRICS = "artifacts/metrics/train.json"
STAGES: dict[str, dict[str, Any]] = {
    "prepare": {"cmd": "cp data artifacts/tables", "deps": ["data"], "outs": ["artifacts/tables"]},
    "index": {"cmd": "true", "deps": ["artifacts/tables", "${scorer.path}"], "outs": ["artifacts/index"]},
    # Exit code, or the signal that it gives itself, as the file `how` says.
    "train": {
        "cmd": "mkdir -p artifacts/metrics; . ./how; cp data artifacts/policy; cp data artifacts/metrics/train.json",
        "deps": ["data"],
        "outs": ["artifacts/policy"],
        "metrics": [{METRICS: {"cache": False}}],
    },
}


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    from dvc.repo import Repo

    (tmp_path / "artifacts").mkdir()
    (tmp_path / "data").write_text("one")
    (tmp_path / "how").write_text("")
    (tmp_path / "params.yaml").write_text("scorer: {path: models/EVA}\n")
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES}))
    with contextlib.chdir(tmp_path):
        Repo.init(str(tmp_path), no_scm=True).close()
        yield tmp_path


def _say(root: Path, outcome: Outcome) -> str:
    assert outcome.kind == "user_error"
    return outcome.message.replace(str(root), "ROOT")


def test_a_stage_runs_once_is_then_unchanged_and_comes_out_of_the_cache(root: Path) -> None:
    kinds = [repro.reproduce("prepare", root).kind for _ in range(2)]
    (root / "data").write_text("two")
    kinds.append(repro.reproduce("prepare", root).kind)
    (root / "data").write_text("one")
    kinds.append(repro.reproduce("prepare", root).kind)
    assert kinds == ["done", "unchanged", "done", "unchanged"]
    assert (root / "artifacts" / "tables").read_text() == "one"


def test_a_missing_output_names_the_stage_that_writes_it(root: Path) -> None:
    message = _say(root, repro.reproduce("index", root))
    assert message == "artifacts/tables is missing; run prepare first (`region-r1 run`)"


def test_a_missing_model_folder_is_said_to_be_named_by_the_parameters(root: Path) -> None:
    (root / "artifacts" / "tables").write_text("x")
    assert _say(root, repro.reproduce("index", root)).startswith("models/EVA is missing; params.yaml or")


def test_missing_data_names_the_step_that_brings_them(root: Path) -> None:
    (root / "data").unlink()
    assert "python -m flows.execution.data" in _say(root, repro.reproduce("prepare", root))


def test_a_duplicate_key_is_one_line_with_file_and_line(root: Path) -> None:
    (root / "params.yaml").write_text("scorer: {path: a}\nscorer: {path: b}\n")
    message = _say(root, repro.reproduce("index", root))
    assert message.startswith("params.yaml, line 2: found duplicate key")
    assert "\n" not in message


def test_a_broken_dvc_yaml_is_one_line_with_file_and_line(root: Path) -> None:
    (root / "dvc.yaml").write_text("stages: {\nprepare: [}\n")
    assert _say(root, repro.reproduce("prepare", root)).startswith("dvc.yaml, line 2: ")


def test_a_stage_that_is_not_there_is_the_users_to_fix(root: Path) -> None:
    assert "'nope' not found" in _say(root, repro.reproduce("nope", root))


def test_a_full_disk_under_dvc_is_the_users_to_fix(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device", str(root / "cache"))

    monkeypatch.setattr(repro._WatchedCache, "save", fill)
    assert _say(root, repro.reproduce("prepare", root)) == "ROOT/cache: No space left on device"


def test_a_fault_of_ours_in_dvcs_hands_keeps_its_traceback(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dvc.exceptions import ReproductionError

    def fail(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(repro._WatchedCache, "save", fail)
    with pytest.raises(ReproductionError):
        repro.reproduce("prepare", root)


@pytest.mark.parametrize(
    ("how", "kind", "code"),
    [
        ("exit 2", "user_error", 2),
        ("exit 3", "command_failed", 3),
        ("exit 255", "command_failed", 255),
        ("kill -9 $$", "command_failed", -9),
    ],
)
def test_a_stage_keeps_its_own_exit_code(root: Path, how: str, kind: str, code: int) -> None:
    (root / "how").write_text(how)
    outcome = repro.reproduce("train", root)
    assert (outcome.kind, outcome.code) == (kind, code)


def test_a_stage_that_another_process_writes_is_busy(root: Path) -> None:
    written = {str(root / "artifacts" / "policy"): {"pid": os.getppid(), "cmd": "dvc repro"}}
    (root / ".dvc" / "tmp").mkdir(exist_ok=True)
    (root / ".dvc" / "tmp" / "rwlock").write_text(json.dumps({"write": written}))
    assert repro.reproduce("train", root).kind == "busy"


def test_a_failed_stage_keeps_the_metrics_that_dvc_lock_names(root: Path) -> None:
    assert repro.reproduce("train", root).kind == "done"
    (root / "data").write_text("two")
    (root / "how").write_text("kill -9 $$")
    repro.reproduce("train", root)
    assert (root / METRICS).read_text() == "one"
    assert not (root / "artifacts" / "policy").exists()  # so nothing can take it for up to date
    (root / "how").write_text("")
    assert repro.reproduce("train", root).kind == "done"
    assert (root / METRICS).read_text() == "two"


def test_a_stage_puts_its_metrics_back_before_it_looks_at_anything(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dvc.exceptions import ReproductionError
    from dvc.repo import Repo

    assert repro.reproduce("train", root).kind == "done"
    stage = {**STAGES["train"], "cmd": "python3 -m pipeline train"}
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"train": stage}}))
    (root / "params.yaml").write_text("sead: 7\n")
    monkeypatch.setattr(os, "environ", child_environment(PYTHONPATH=str(CHECKOUT)))
    with Repo(str(root)) as repo, pytest.raises(ReproductionError) as failure:  # as `dvc repro` does
        repo.reproduce("train", single_item=True)
    assert "exited with 2" in str(failure.value.__cause__)
    assert not (root / "artifacts" / "policy").exists()
    assert (root / METRICS).read_text() == "one"


def _git(root: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)


def _lock(root: Path, content: str) -> None:
    md5 = hashlib.md5(content.encode()).hexdigest()
    (root / "dvc.lock").write_text(yaml.safe_dump({"stages": {"train": {"outs": [{"path": METRICS, "md5": md5}]}}}))


def test_metrics_come_back_from_git_only_as_dvc_lock_names_them(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    path.parent.mkdir(parents=True)
    path.write_text('{"reward": 1}\n')
    _git(tmp_path, "init", "-q")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-qm", "first")
    path.unlink()
    _lock(tmp_path, '{"reward": 2}\n')
    restore_metrics(tmp_path, "train")
    assert not path.exists()
    _lock(tmp_path, '{"reward": 1}\n')
    restore_metrics(tmp_path, "train")
    assert path.read_text() == '{"reward": 1}\n'


def test_metrics_without_a_lock_are_left_alone(tmp_path: Path) -> None:
    restore_metrics(tmp_path, "train")
    assert not list(tmp_path.iterdir())
