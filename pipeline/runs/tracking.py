"""The one ordinary user of MLflow: a run per stage, nested under the flow's parent run when there is one.

The store is `mlruns/mlflow.db` (SQLite) with artifacts in `mlruns/artifacts`; the environment variable
MLFLOW_TRACKING_URI names another one. MLflow is imported on first use, without telemetry and without its
notices.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.config import Params
from pipeline.errors import DataError, write_on_one_line
from pipeline.files.atomic import replace_file, writing
from pipeline.process.processes import ProcessStamp
from pipeline.workspace import read_data_md5

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from PIL.Image import Image

logger = logging.getLogger(__name__)

EXPERIMENT = "region-r1"
PARENT_RUN_VARIABLE = "REGION_R1_PARENT_RUN_ID"
MAX_DIGEST_CHARS = 36
_PROCESS_TAG = "region_r1.process"
_INHERITED_TAGS = frozenset({"stage", "git_commit", "mlflow.source.git.commit", "data_md5"})
_WRITTEN_BY_RUNS = (":(exclude)dvc.lock", ":(exclude)ablation/dvc.lock", ":(exclude)artifacts")
_QUIET_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


class StageRun(Protocol):
    """What a stage may tell the tracking store."""

    @property
    def run_id(self) -> str | None:
        """The run's id in the store; None when nothing is recorded."""

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record parameters; a name may be set once per run."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record figures; names use letters, digits and `_-./: ` only."""

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file, or a folder with all it holds, into the run."""

    def log_image(self, image: Image, name: str) -> None:
        """Store a picture under `name`, such as `crops/q1.jpg`."""

    def log_dict(self, content: Mapping[str, object], name: str) -> None:
        """Store a mapping as JSON or YAML, by the ending of `name`."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Label the run."""

    def note(self, facts: Mapping[str, object]) -> None:
        """Record what is true of this run alone: times, rates, versions, verdicts that hang on local state.

        Numbers are logged as figures too. None of it may reach an output that DVC tracks: a second run of the same
        code on the same data would have other bytes.
        """

    @property
    def facts(self) -> Mapping[str, object]:
        """What has been noted so far; `artifacts/provenance/STAGE.json` keeps it."""

    def open_child(self, name: str, params: Params) -> AbstractContextManager[StageRun]:
        """Open a run below this one, with parameters of its own, and close it with its status."""


class _NullRun:
    """Records nothing."""

    run_id: str | None = None

    def log_params(self, params: Mapping[str, object]) -> None:
        """Drop them."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Drop them."""

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Drop it."""

    def log_image(self, image: Image, name: str) -> None:
        """Drop it."""

    def log_dict(self, content: Mapping[str, object], name: str) -> None:
        """Drop it."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Drop them."""

    def note(self, facts: Mapping[str, object]) -> None:
        """Drop them."""

    @property
    def facts(self) -> Mapping[str, object]:
        """Nothing."""
        return {}

    def open_child(self, name: str, params: Params) -> AbstractContextManager[StageRun]:
        """Return this run: a child would record nothing either."""
        return nullcontext(self)


class _MlflowRun:
    """Writes to one run of the store through the client, so that no global run is needed to log."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client = client
        self._run_id = run_id
        self._facts: dict[str, object] = {}

    @property
    def run_id(self) -> str | None:
        return self._run_id

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record parameters."""
        from mlflow.entities import Param

        self._client.log_batch(self._run_id, params=[Param(name, str(value)) for name, value in params.items()])

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record figures."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        entries = [Metric(name, float(value), now_ms, step or 0) for name, value in metrics.items()]
        self._client.log_batch(self._run_id, metrics=entries)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file or folder into the run."""
        if path.is_dir():
            self._client.log_artifacts(self._run_id, str(path), artifact_path=folder)
        else:
            self._client.log_artifact(self._run_id, str(path), artifact_path=folder)

    def log_image(self, image: Image, name: str) -> None:
        """Store a picture."""
        self._client.log_image(self._run_id, image, artifact_file=name)

    def log_dict(self, content: Mapping[str, object], name: str) -> None:
        """Store a mapping."""
        self._client.log_dict(self._run_id, dict(content), name)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Label the run."""
        for name, value in tags.items():
            self._client.set_tag(self._run_id, name, value)

    def note(self, facts: Mapping[str, object]) -> None:
        """Record what is true of this run alone."""
        self._facts |= facts
        if numbers := {name: float(value) for name, value in facts.items() if isinstance(value, int | float)}:
            self.log_metrics(numbers)

    @property
    def facts(self) -> Mapping[str, object]:
        """What has been noted so far."""
        return self._facts

    @contextmanager
    def open_child(self, name: str, params: Params) -> Iterator[StageRun]:
        """Open a run below this one; it inherits the tags that say what code and data made it."""
        own = self._client.get_run(self._run_id)
        tags = {key: value for key, value in own.data.tags.items() if key in _INHERITED_TAGS}
        tags |= {"params_sha256": params.sha256(), "seed": str(params.seed), "mlflow.parentRunId": self._run_id}
        tags |= _describe_process()
        child = self._client.create_run(own.info.experiment_id, run_name=name, tags=tags)
        child_id = child.info.run_id
        with _closing_with_status(lambda status: self._client.set_terminated(child_id, status)):
            run = _MlflowRun(self._client, child_id)
            run.log_params(flatten(params.model_dump(mode="json", by_alias=True)))
            yield run


def null_run() -> StageRun:
    """Return a run that records nothing, for tests and for evaluations of other worlds."""
    return _NullRun()


@contextmanager
def stage_run(stage: str, params: Params, root: Path) -> Iterator[StageRun]:
    """Open the run of one stage and close it with the stage's status.

    The run is also MLflow's active run meanwhile, so that a trainer that reports to MLflow writes into it.
    It is a child of the run that REGION_R1_PARENT_RUN_ID names, or stands alone.

    Args:
        stage: name of the stage, also the run's name.
        params: logged whole, as `section.name`.
        root: the checkout, where mlruns/, data.dvc and the commit are looked up.
    """
    client = open_store(root)
    _close_dead_runs(client)
    import mlflow

    parent_id = os.environ.get(PARENT_RUN_VARIABLE)
    tags = {"stage": stage, "params_sha256": params.sha256(), "seed": str(params.seed)} | _describe_code(root)
    tags |= _describe_process()
    if parent_id:
        tags["mlflow.parentRunId"] = parent_id
    with writing(root / "mlruns"):
        active = mlflow.start_run(run_name=stage, nested=True, tags=tags)
    run = _MlflowRun(client, active.info.run_id)
    with _closing_with_status(lambda status: mlflow.end_run(status)):
        run.note({"run_id": active.info.run_id, "git_commit": tags.get("git_commit")})
        run.log_params(flatten(params.model_dump(mode="json", by_alias=True)))
        _log_data_input(client, active.info.run_id, root, stage)
        yield run


@contextmanager
def parent_run(name: str, root: Path | None = None) -> Iterator[str]:
    """Open a run that stages of other processes nest under; yields its id for REGION_R1_PARENT_RUN_ID.

    Args:
        name: the run's name, such as the flow run's.
        root: the checkout; the current folder unless told.
    """
    root = root or Path.cwd()
    client = open_store(root)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:  # open_store made it; only somebody deleting it meanwhile gets here
        raise DataError(f"MLflow experiment {EXPERIMENT!r} is gone")
    _close_dead_runs(client)
    tags = {"stage": "flow"} | _describe_code(root) | _describe_process()
    run = client.create_run(experiment.experiment_id, run_name=name, tags=tags)
    run_id = run.info.run_id
    with _closing_with_status(lambda status: client.set_terminated(run_id, status)):
        yield run_id


def close_dead_runs(root: Path) -> None:
    """Close the runs of processes of this machine that ended without doing so, as KILLED.

    A process that SIGKILL ends closes nothing: its run would count as running for ever. Every run that is opened does
    the same first; this is for who has just seen one die.
    """
    _close_dead_runs(open_store(root))


def _close_dead_runs(client: MlflowClient) -> None:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return
    for run in client.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'"):
        stamp = ProcessStamp.parse(run.data.tags.get(_PROCESS_TAG, ""))
        if stamp is not None and stamp.has_ended():
            client.set_terminated(run.info.run_id, "KILLED")


def open_store(root: Path) -> MlflowClient:
    """Point MLflow at the store, made where it is new; safe for processes that start together."""
    _silence_mlflow()
    import mlflow

    given = os.environ.get("MLFLOW_TRACKING_URI")
    folder = (root / "mlruns").resolve()
    with writing(folder), _store_lock(folder):
        if not given:
            _create_database(folder / "mlflow.db")
            _enable_wal(folder / "mlflow.db")
        uri = given or f"sqlite:///{folder / 'mlflow.db'}"
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
        if client.get_experiment_by_name(EXPERIMENT) is None:
            location = None if given else (folder / "artifacts").as_uri()
            client.create_experiment(EXPERIMENT, artifact_location=location)
        mlflow.set_experiment(EXPERIMENT)
    return client


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, names joined by dots.

    >>> flatten({"train": {"beta": 0.1}, "seed": 7})
    {'train.beta': 0.1, 'seed': 7}
    """
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def read_commit(root: Path) -> str | None:
    """Return the git commit, with `-dirty` when tracked files differ that a run reads; None outside a repository.

    What runs write is left out: DVC removes a stage's metrics file before it runs the stage, and on another processor
    dvc.lock changes with the first stage. Neither makes the code or the parameters others than the commit's.
    """
    commit = ask_git(root, "rev-parse", "HEAD")
    if commit is None:
        return None
    changed = ask_git(root, "status", "--porcelain", "--untracked-files=no", "--", ":/", *_WRITTEN_BY_RUNS)
    return f"{commit}-dirty" if changed else commit


def ask_git(root: Path, *arguments: str) -> str | None:
    """Return what git says, or None where it fails or is not there."""
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _describe_code(root: Path) -> dict[str, str]:
    commit = read_commit(root)
    return {} if commit is None else {"git_commit": commit, "mlflow.source.git.commit": commit.removesuffix("-dirty")}


def _describe_process() -> dict[str, str]:
    return {_PROCESS_TAG: str(ProcessStamp.of_this_process())}


def _log_data_input(client: MlflowClient, run_id: str, root: Path, stage: str) -> None:
    md5 = read_data_md5(root / "data")
    if md5 is None:
        return
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(name="data", digest=md5[:MAX_DIGEST_CHARS], source_type="dvc", source='{"uri": "data.dvc"}')
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", stage)])])
    client.set_tag(run_id, "data_md5", md5)


def _silence_mlflow() -> None:
    for name, value in _QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "mlflow" not in sys.modules:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import mlflow  # noqa: F401  (imported here so that its import-time warnings stay quiet)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _create_database(database: Path) -> None:
    """Make the store's tables, where there are none, elsewhere and then move them into place.

    MLflow makes them by dozens of migrations that are no transaction: a kill between two of them would leave a
    database that no later run can open.
    """
    if database.is_file():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with replace_file(database) as partial:
        store = SqlAlchemyStore(f"sqlite:///{partial}", (database.parent / "artifacts").as_uri())
        store.engine.dispose()  # no connection may go on to the old name


def _enable_wal(database: Path) -> None:
    """Let readers and one writer share the SQLite file, and keep it so: the mode is stored in the file."""
    connection = sqlite3.connect(database, timeout=60)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
    finally:
        connection.close()


@contextmanager
def _store_lock(folder: Path) -> Iterator[None]:
    """Hold the lock under which the store is created and migrated."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class _End(Protocol):
    def __call__(self, status: str, /) -> object: ...


@contextmanager
def _closing_with_status(end: _End) -> Iterator[None]:
    try:
        yield
    except Exception:
        _end_after_error(end, "FAILED")
        raise
    except BaseException:  # Ctrl-C, SIGTERM, Prefect's signal of a cancelled flow
        _end_after_error(end, "KILLED")
        raise
    end("FINISHED")


def _end_after_error(end: _End, status: str) -> None:
    try:
        end(status)
    except Exception as error:  # noqa: BLE001 - on a full disk it fails too; the first error is the one to tell
        logger.warning("the MLflow run could not be closed as %s: %s", status, write_on_one_line(error))
