"""`region-r1 ui`: MLflow and Prefect side by side on this machine, until Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from flows.environment import child_environment, find_root
from flows.execution.supervise import end_supervised, supervised_command

HOST = "127.0.0.1"
START_LIMIT_S = 180.0
# Of MLflow's server about a library of its own.
_QUIET = "ignore:starlette.middleware.wsgi is deprecated:UserWarning"


def serve_uis(
    *,
    root: Path | None = None,
    mlflow_port: int | None = None,
    prefect_port: int | None = None,
    say: Callable[[str], object] | None = None,
) -> int:
    """Serve both until Ctrl-C or SIGTERM, then end both; no process is left.

    Args:
        root: the checkout; found from the current folder unless told.
        mlflow_port: 5000 where it is free, any free port otherwise.
        prefect_port: likewise 4200.
        say: gets each line for the user; standard output unless told.

    Returns:
        0, or 1 when a server ended by itself or did not start.
    """
    root = root or find_root()
    say = say or (lambda line: sys.stdout.write(line + "\n") and sys.stdout.flush())
    mlflow_url = f"http://{HOST}:{mlflow_port or _choose_port(5000)}"
    prefect_url = f"http://{HOST}:{prefect_port or _choose_port(4200)}"
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.ExitStack() as servers:
        try:
            running = {
                f"MLflow   {mlflow_url}": (
                    servers.enter_context(_serve_mlflow(root, mlflow_url)),
                    f"{mlflow_url}/health",
                ),
                f"Prefect  {prefect_url}": (
                    servers.enter_context(_serve_prefect(root, prefect_url)),
                    f"{prefect_url}/api/health",
                ),
            }
            for line, (process, health_url) in running.items():
                if not _await_health(process, health_url):
                    say(f"{line} did not start")
                    return 1
                say(line)
            say("Ctrl-C ends both.")
            while all(process.poll() is None for process, _ in running.values()):
                time.sleep(0.5)
        except KeyboardInterrupt:
            return 0
    say("A server ended by itself; its last lines are above.")
    return 1


@contextlib.contextmanager
def _serve_mlflow(root: Path, url: str) -> Iterator[subprocess.Popen[str]]:
    from pipeline.runs.tracking import open_store

    open_store(root)  # makes the store where it is new
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", "sqlite:///mlruns/mlflow.db"]
    command += ["--host", HOST, "--port", url.rpartition(":")[2], "--workers", "1"]
    # Job execution would start eight more processes of 245 MB each.
    env = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONWARNINGS": _QUIET}
    with _supervised(command, root, **env) as process:
        yield process


@contextlib.contextmanager
def _serve_prefect(root: Path, url: str) -> Iterator[subprocess.Popen[str]]:
    command = [
        sys.executable,
        "-m",
        "prefect",
        "server",
        "start",
        "--host",
        HOST,
        "--port",
        url.rpartition(":")[2],
    ]
    api = f"{url}/api"
    with _supervised(
        command, root, PREFECT_API_URL=api, PREFECT_UI_API_URL=api, PREFECT_SERVER_LOGGING_LEVEL="WARNING"
    ) as process:
        yield process


@contextlib.contextmanager
def _supervised(command: list[str], root: Path, **env: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        supervised_command(command),
        cwd=root,
        env=child_environment(**env),
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process
    finally:
        end_supervised(process)


def _await_health(process: subprocess.Popen[str], url: str) -> bool:
    end = time.monotonic() + START_LIMIT_S
    while process.poll() is None and time.monotonic() < end:
        with (
            contextlib.suppress(urllib.error.URLError, OSError),
            urllib.request.urlopen(url, timeout=5) as reply,
        ):
            if reply.status == 200:
                return True
        time.sleep(0.3)
    return False


def _choose_port(preferred: int) -> int:
    for port in (preferred, 0):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            chosen: int = probe.getsockname()[1]
            return chosen
    raise OSError("no free port on the loopback interface")
