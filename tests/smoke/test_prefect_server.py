"""A real Prefect server on the loopback interface: fastapi's and sqlalchemy's pins hold, workers work."""

from __future__ import annotations

import json
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.environment import child_environment
from flows.execution.supervise import end_supervised, supervised_command
from pipeline.config import Params
from pipeline.stages import STAGES

pytestmark = [pytest.mark.server, pytest.mark.timeout(300)]
CHECKOUT = Path(__file__).resolve().parents[2]
PREFECT = [sys.executable, "-m", "prefect"]
DVC = str(Path(sys.executable).with_name("dvc"))
FAKE_STAGE = """
import json, os, pathlib, signal, sys
print("hello from", sys.argv[1], flush=True)
pathlib.Path("artifacts/metrics").mkdir(parents=True, exist_ok=True)
how = pathlib.Path(f"{sys.argv[1]}.how")
if how.is_file():
    text = how.read_text()
    how.unlink()
    if text == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    print("error:", text, file=sys.stderr)
    sys.exit(2)
pathlib.Path(f"artifacts/{sys.argv[1]}.txt").write_text(os.environ["REGION_R1_PARENT_RUN_ID"])
"""


@pytest.fixture(scope="module")
def server_env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    api = f"http://127.0.0.1:{port}/api"
    env = child_environment(
        PREFECT_HOME=str(home),
        PREFECT_API_URL=api,
        PREFECT_SERVER_LOGGING_LEVEL="WARNING",
        # The scheduler looks once a minute by default.
        PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS="2",
        PREFECT_WORKER_QUERY_SECONDS="2",
        PYTHONPATH=str(CHECKOUT),
    )
    command = [*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with _supervised(command, home, env, home / "server.log"):
        _await(lambda: _is_healthy(api), 120, lambda: (home / "server.log").read_text())
        for pool in ("cpu", "gpu"):
            _check([*PREFECT, "work-pool", "create", pool, "--type", "process"], CHECKOUT, env)
        _check(
            [*PREFECT, "--no-prompt", "deploy", "--all", "--prefect-file", "infra/prefect.yaml"],
            CHECKOUT,
            env,
        )
        yield env


class _supervised:
    def __init__(self, command: list[str], cwd: Path, env: dict[str, str], log_path: Path) -> None:
        self._log = log_path.open("w")
        self._process = subprocess.Popen(
            supervised_command(command), cwd=cwd, env=env, stdout=self._log, stderr=self._log, text=True
        )

    def __enter__(self) -> None:
        return None

    def __exit__(self, *args: object) -> None:
        end_supervised(self._process)
        self._log.close()


def _check(command: list[str], cwd: Path, env: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _is_healthy(api: str) -> bool:
    try:
        with urllib.request.urlopen(f"{api}/health", timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def _ask(env: dict[str, str], path: str, body: dict[str, Any] | None = None) -> Any:
    request = urllib.request.Request(
        f"{env['PREFECT_API_URL']}{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
        return json.loads(reply.read() or "null")


def _await(is_so: Any, within_s: float, explain: Any) -> None:
    end = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < end, explain()
        time.sleep(0.5)


def _scheduled_runs(env: dict[str, str], deployment_id: str) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = _ask(
        env,
        "/flow_runs/filter",
        {
            "deployments": {"id": {"any_": [deployment_id]}},
            "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
        },
    )
    return [run for run in runs if run["auto_scheduled"]]


def test_the_nightly_cron_schedule_sleeps_until_switched_on_and_then_makes_runs(
    server_env: dict[str, str],
) -> None:
    deployment = _ask(server_env, "/deployments/name/region-r1/nightly")
    (schedule,) = deployment["schedules"]
    assert schedule["active"] is False
    time.sleep(6)  # three rounds of the scheduler
    assert _scheduled_runs(server_env, deployment["id"]) == []
    command = [*PREFECT, "deployment", "schedule", "resume", "region-r1/nightly", schedule["id"]]
    _check(command, CHECKOUT, server_env)
    _await(lambda: _scheduled_runs(server_env, deployment["id"]), 60, lambda: "no scheduled run: sqlalchemy pin?")
    command[command.index("resume")] = "pause"
    _check(command, CHECKOUT, server_env)


@pytest.fixture
def fake_checkout(tmp_path: Path) -> Path:
    """A checkout whose stages are done at once."""
    root = tmp_path / "checkout"
    (root / "data").mkdir(parents=True)
    (root / "data" / "a.txt").write_text("a")
    (root / "fake.py").write_text(FAKE_STAGE)
    params = Params().model_dump(mode="json", by_alias=True)
    params["flow"] = {"placement": "pools", "stage_timeout_s": 120}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    stages: dict[str, Any] = {}
    dep = "data"
    for name in STAGES:
        out = f"artifacts/{name}.txt"
        stages[name] = {"cmd": f"python fake.py {name}", "deps": [dep], "outs": [out]}
        dep = out
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    env = child_environment()
    _check([DVC, "init", "-q", "--no-scm"], root, env)
    _check([DVC, "add", "-q", "data"], root, env)
    return root


def test_pools_send_what_loads_policies_to_a_gpu_worker(server_env: dict[str, str], fake_checkout: Path) -> None:
    env = {**server_env, "REGION_R1_ROOT": str(fake_checkout)}
    env.pop("MLFLOW_TRACKING_URI", None)
    logs = {pool: fake_checkout / f"{pool}.log" for pool in ("cpu", "gpu")}
    workers = [
        _supervised([*PREFECT, "worker", "start", "--pool", pool, "--name", pool], fake_checkout, env, log)
        for pool, log in logs.items()
    ]
    with workers[0], workers[1]:
        deployment = _ask(env, "/deployments/name/region-r1/nightly")
        run_id = _ask(env, f"/deployments/{deployment['id']}/create_flow_run", {})["id"]

        def explain() -> str:
            return "\n".join(f"{pool}:\n{log.read_text()}" for pool, log in logs.items())

        def is_final() -> bool:
            state = _ask(env, f"/flow_runs/{run_id}")["state"]["type"]
            return state in {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}

        _await(is_final, 200, explain)
        assert _ask(env, f"/flow_runs/{run_id}")["state"]["message"] == "9 stages: 0 unchanged, 9 ran", explain()
    assert all(f"hello from {stage}" in logs["gpu"].read_text() for stage in ("warmup", "train", "answer"))
    assert "hello from prepare" in logs["cpu"].read_text()
    assert not any(f"hello from {stage}" in logs["gpu"].read_text() for stage in ("prepare", "evaluate", "report"))
    assert len((fake_checkout / "artifacts" / "register.txt").read_text()) == 32  # MLflow's parent run
    (artifact,) = _ask(env, "/artifacts/latest/filter", {"artifacts": {"key": {"any_": ["region-r1-result"]}}})
    assert "| train | Completed |" in artifact["data"]


def _run_flow(env: dict[str, str], root: Path) -> subprocess.CompletedProcess[str]:
    own = {**env, "REGION_R1_ROOT": str(root)}
    own.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-m", "flows.region_r1"]
    return subprocess.run(command, cwd=root, env=own, capture_output=True, text=True, check=False)


def _list_mlflow_statuses(root: Path) -> list[str]:
    with sqlite3.connect(root / "mlruns" / "mlflow.db") as store:
        return [status for (status,) in store.execute("select status from runs order by start_time")]


def test_a_run_ends_as_what_it_was(server_env: dict[str, str], fake_checkout: Path) -> None:
    params = yaml.safe_load((fake_checkout / "params.yaml").read_text())
    params["flow"]["placement"] = "local"
    (fake_checkout / "params.yaml").write_text(yaml.safe_dump(params))

    (fake_checkout / "index.how").write_text("no vectors")
    ended = _run_flow(server_env, fake_checkout)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1] == "error: index: no vectors"
    assert "Traceback" not in ended.stderr

    (fake_checkout / "train.how").write_text("killed")
    ended = _run_flow(server_env, fake_checkout)
    assert ended.returncode == 0, ended.stderr
    assert "train: ended by signal 9 (Killed)" in ended.stderr
    assert "9 stages: 1 unchanged, 8 ran" in ended.stderr

    named = (fake_checkout / "data.dvc").read_bytes()
    (fake_checkout / "data" / "a.txt").write_text("b")
    ended = _run_flow(server_env, fake_checkout)
    assert ended.returncode == 2
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("error: data: data/ is not what data.dvc names: md5 ")
    assert last.endswith("run `dvc add data` to accept it, or move data/ away to get the named version back")
    assert (fake_checkout / "data.dvc").read_bytes() == named
    assert _list_mlflow_statuses(fake_checkout) == ["FAILED", "FINISHED", "FAILED"]
