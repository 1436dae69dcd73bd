"""The environment of every process of a run: this venv's programs first, telemetry off, one Prefect home.

Standard library only: the supervisor, the command line and tests import it before anything heavy.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pipeline.process.environment import TELEMETRY_OFF

ROOT_VARIABLE = "REGION_R1_ROOT"
PARENT_RUN_VARIABLE = "REGION_R1_PARENT_RUN_ID"
MLFLOW_UI_VARIABLE = "REGION_R1_MLFLOW_UI"

_READABLE_LOGS = {
    "PYTHONUNBUFFERED": "1",
    "TQDM_MININTERVAL": "30",  # a progress bar in a log is one line each half minute
    "NO_COLOR": "1",
}
_PREFECT_DEFAULTS = {
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # 20 s is short on two busy cores
    "PREFECT_CLI_PROMPT": "false",
}


def find_root() -> Path:
    """Return $REGION_R1_ROOT, else the nearest folder upwards with a dvc.yaml, else this file's checkout."""
    named = os.environ.get(ROOT_VARIABLE)
    if named:
        return Path(named).resolve()
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file():
            return folder
    return Path(__file__).resolve().parents[1]


def apply_defaults() -> None:
    """Turn telemetry off in this process; keep Prefect's files in the checkout unless PREFECT_HOME is set."""
    os.environ.update(TELEMETRY_OFF)
    for name, value in _PREFECT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("PREFECT_HOME", str(find_root() / ".prefect"))


def child_environment(**extra: str) -> dict[str, str]:
    """Return the environment of a stage, a server or a flow started from here.

    The folder of the running interpreter comes first on PATH, so that `python` in dvc.yaml is this venv's,
    whatever PATH the caller had.
    """
    programs = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", os.defpath)
    return {**os.environ, **TELEMETRY_OFF, **_READABLE_LOGS, "PATH": f"{programs}{os.pathsep}{path}", **extra}
