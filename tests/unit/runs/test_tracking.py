"""The tracking store: runs, parents, provenance, and processes that start together."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config import Params
from pipeline.errors import DataError, WriteError
from pipeline.runs import tracking
from pipeline.workspace import read_data_md5

# MLflow's own warnings; and every test makes a store.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
MD5 = "0123456789abcdef0123456789abcdef.dir"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv(tracking.PARENT_RUN_VARIABLE, raising=False)
    (tmp_path / "data.dvc").write_text(f"outs:\n- md5: {MD5}\n  path: data\n")
    return tmp_path


def test_stage_run_records_provenance_and_nests(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = Params()
    with tracking.parent_run("flow", root) as parent_id:
        monkeypatch.setenv(tracking.PARENT_RUN_VARIABLE, parent_id)
        with tracking.stage_run("train", params, root) as run:
            run.log_metrics({"reward": 1.5}, step=3)
            run.log_dict({"a": 1}, "notes.json")
            run.note({"step_seconds": 2.5, "gate": {"bar": "full image"}})
    client = tracking.open_store(root)
    found = client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.tags["mlflow.parentRunId"] == parent_id
    assert found.data.tags["params_sha256"] == params.sha256()
    assert found.data.params["train.beta"] == str(params.train.beta)
    assert found.data.params["register.model_name"] == "region-r1"
    assert found.data.metrics == {"reward": 1.5, "step_seconds": 2.5}
    facts = {"run_id": run.run_id, "git_commit": None, "step_seconds": 2.5, "gate": {"bar": "full image"}}
    assert dict(run.facts) == facts
    assert found.inputs.dataset_inputs[0].dataset.digest == MD5
    assert (root / "mlruns" / "artifacts" / run.run_id / "artifacts" / "notes.json").is_file()
    assert client.get_run(parent_id).info.status == "FINISHED"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkout whose store is made once; tests tell their runs by id."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv(tracking.PARENT_RUN_VARIABLE, raising=False)
        yield tmp_path_factory.mktemp("checkout")


class _Cancelled(BaseException):
    """Stands in for the signals by which Prefect ends a flow."""


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED"), (_Cancelled, "KILLED"), (OSError, "FAILED")],
)
def test_run_ends_with_the_stages_status(store: Path, error: type[BaseException], status: str) -> None:
    with pytest.raises(error), tracking.stage_run("index", Params(), store) as run:
        raise error
    assert tracking.open_store(store).get_run(run.run_id).info.status == status


@pytest.mark.parametrize(("error", "status"), [(_Cancelled, "KILLED"), (OSError, "FAILED")])
def test_a_parent_run_ends_with_the_flows_status(store: Path, error: type[BaseException], status: str) -> None:
    with pytest.raises(error), tracking.parent_run("flow", store) as run_id:
        raise error
    assert tracking.open_store(store).get_run(run_id).info.status == status


def test_runs_of_dead_processes_are_closed_as_killed_and_those_of_live_ones_go_on(store: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path\n"
        "from pipeline.runs import tracking; from pipeline.config import Params\n"
        "with tracking.parent_run('flow', Path(sys.argv[1])), "
        "tracking.stage_run('train', Params(), Path(sys.argv[1])) as run, run.open_child('seed', Params()):\n"
        "    os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(store)], check=False)
    assert ended.returncode == -9
    client = tracking.open_store(store)
    (experiment,) = client.search_experiments(filter_string=f"name = '{tracking.EXPERIMENT}'")

    def read_statuses() -> dict[str, str]:
        runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
        return {run.info.run_name: run.info.status for run in runs}  # the latest of each name

    ours = dict.fromkeys(("flow", "train", "seed"), "RUNNING")
    assert read_statuses().items() >= ours.items()
    with tracking.stage_run("retrieve", Params(), store):
        tracking.close_dead_runs(store)
        wanted = {**dict.fromkeys(ours, "KILLED"), "retrieve": "RUNNING"}
        assert read_statuses().items() >= wanted.items()


def test_two_processes_create_the_store_together(root: Path) -> None:
    code = (
        "from pathlib import Path; import sys\n"
        "from pipeline.runs import tracking; from pipeline.config import Params\n"
        "with tracking.stage_run('index', Params(), Path(sys.argv[1])) as run: pass"
    )
    command = [sys.executable, "-c", code, str(root)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs == [(b"", b"")] * 2


def test_data_hash_comes_from_the_file_beside_the_folder(root: Path) -> None:
    assert read_data_md5(root / "data") == MD5
    assert read_data_md5(root / "other") is None
    (root / "data.dvc").write_text("outs: []\n")
    with pytest.raises(DataError, match="dvc add"):
        read_data_md5(root / "data")


def test_commit_is_none_outside_a_repository(tmp_path: Path) -> None:
    assert tracking.read_commit(tmp_path) is None


def test_a_commit_is_dirty_by_what_runs_read_not_by_what_they_write(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    written = ("dvc.lock", "ablation/dvc.lock", "artifacts/metrics/index.json")
    for name in ("params.yaml", *written):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("old")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    commit = tracking.read_commit(tmp_path)
    assert commit is not None
    (tmp_path / "dvc.lock").write_text("new")
    (tmp_path / "ablation" / "dvc.lock").unlink()
    (tmp_path / "artifacts" / "metrics" / "index.json").unlink()  # as DVC does before it runs the stage
    assert tracking.read_commit(tmp_path) == commit
    (tmp_path / "params.yaml").write_text("new")
    assert tracking.read_commit(tmp_path) == f"{commit}-dirty"


def test_null_run_records_nothing(tmp_path: Path) -> None:
    run = tracking.null_run()
    run.log_metrics({"a": 1.0})
    run.set_tags({"a": "b"})
    assert run.run_id is None


def test_a_store_that_cannot_be_closed_does_not_hide_why_the_stage_failed(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(status: str) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(ValueError, match="the stage's own"), tracking._closing_with_status(refuse):
        raise ValueError("the stage's own")
    assert "could not be closed as FAILED" in caplog.text


def test_a_store_on_a_full_disk_is_one_line_with_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(database: Path) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(tracking, "_enable_wal", refuse)
    with pytest.raises(WriteError, match=r"mlruns: cannot be written: No space left on device"):
        tracking.open_store(tmp_path)


def test_a_kill_while_the_store_is_made_leaves_none_and_the_next_run_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    dying = """
import os, sys
from pathlib import Path
from sqlalchemy import event
from sqlalchemy.engine import Engine
from pipeline.runs import tracking

@event.listens_for(Engine, "after_cursor_execute")
def die_in_the_middle(connection, cursor, statement, *rest):
    if statement.startswith("ALTER TABLE"):  # MLflow's migrations commit each by itself
        os._exit(137)

tracking.open_store(Path(sys.argv[1]))
"""
    killed = subprocess.run([sys.executable, "-W", "ignore", "-c", dying, str(tmp_path)], check=False)
    assert killed.returncode == 137
    assert not (tmp_path / "mlruns" / "mlflow.db").exists()
    assert tracking.open_store(tmp_path).get_experiment_by_name(tracking.EXPERIMENT) is not None
    assert not list((tmp_path / "mlruns").glob(".*.partial"))
