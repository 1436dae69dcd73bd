"""`region-r1 ui`: both pages are served until Ctrl-C, and no server is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flows import launch, ui

pytestmark = pytest.mark.slow  # imports MLflow's and Prefect's servers
SERVER = """
import http.server, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


class Servers:
    """Small servers in place of MLflow's and Prefect's, and what was said while they ran."""

    def __init__(self) -> None:
        self.processes: list[psutil.Process] = []
        self.lines: list[str] = []

    @contextlib.contextmanager
    def serve(self, root: Path, url: str, code: str = SERVER) -> Iterator[subprocess.Popen[str]]:
        with ui._supervised([sys.executable, "-c", code, url.rpartition(":")[2]], root) as process:
            self.processes.append(psutil.Process(process.pid))
            yield process


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Servers]:
    servers = Servers()
    monkeypatch.setattr(ui, "_serve_mlflow", servers.serve)
    monkeypatch.setattr(ui, "_serve_prefect", servers.serve)
    handler = signal.getsignal(signal.SIGTERM)
    yield servers
    signal.signal(signal.SIGTERM, handler)
    assert not any(process.is_running() for process in servers.processes)


def test_both_addresses_are_said_and_ctrl_c_ends_both(servers: Servers, tmp_path: Path) -> None:
    def say(line: str) -> None:
        servers.lines.append(line)
        if line == "Ctrl-C ends both.":
            raise KeyboardInterrupt

    assert ui.serve_uis(root=tmp_path, say=say) == 0
    assert [line.split()[0] for line in servers.lines] == ["MLflow", "Prefect", "Ctrl-C"]
    assert len(servers.processes) == 2


def test_a_server_that_ends_by_itself_ends_the_other_too(servers: Servers, tmp_path: Path) -> None:
    def say(line: str) -> None:
        servers.lines.append(line)
        if line == "Ctrl-C ends both.":
            servers.processes[0].terminate()

    assert ui.serve_uis(root=tmp_path, say=say) == 1
    assert servers.lines[-1] == "A server ended by itself; its last lines are above."


def test_a_server_that_does_not_start_is_named(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ui, "_serve_prefect", lambda root, url: servers.serve(root, url, "raise SystemExit(1)"))
    assert ui.serve_uis(root=tmp_path, say=servers.lines.append) == 1
    assert servers.lines[-1].startswith("Prefect  http://127.0.0.1:")
    assert servers.lines[-1].endswith(" did not start")


def test_a_taken_port_is_passed_over() -> None:
    with socket.socket() as taken:
        taken.bind((ui.HOST, 0))
        taken.listen()
        number = taken.getsockname()[1]
        assert ui._choose_port(number) not in {0, number}
    assert ui._choose_port(number) == number


def test_mlflows_server_says_nothing_of_its_libraries(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONWARNINGS": ui._QUIET, "MLFLOW_TRACKING_URI": "sqlite://"}
    command = [sys.executable, "-c", "import mlflow.server.fastapi_app"]
    ended = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert "Warning" not in ended.stderr


@pytest.mark.parametrize(("code", "returned", "num_closed"), [(0, 0, 0), (2, 2, 0), (1, 1, 0), (137, 1, 1)])
def test_the_exit_code_of_a_flow_is_handed_on_unless_it_was_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, returned: int, num_closed: int
) -> None:
    closed: list[Path] = []
    monkeypatch.setattr("pipeline.runs.tracking.close_dead_runs", closed.append)
    monkeypatch.setattr(
        launch, "supervised_command", lambda *_, **__: [sys.executable, "-c", f"raise SystemExit({code})"]
    )
    assert launch.main(root=tmp_path) == returned
    assert closed == [tmp_path] * num_closed
