"""`.venv/bin/dvc repro` without an activated environment: the stage moves into .venv, or says what to do."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[3]
MODULES = ("pipeline", "pipeline.ablation")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    shutil.copytree(CHECKOUT / "pipeline", tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def _run_bare(checkout: Path, module: str) -> subprocess.CompletedProcess[str]:
    """Run a stage with a Python that sees the standard library only, as the system's would."""
    command = [sys.executable, "-S", "-m", module, "prepare"]
    return subprocess.run(command, cwd=checkout, env={}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("module", MODULES)
def test_another_python_hands_over_to_the_checkouts_own(checkout: Path, module: str) -> None:
    own = checkout / ".venv" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.write_text('#!/bin/sh\necho "$@"\n')
    own.chmod(0o755)
    ended = _run_bare(checkout, module)
    assert (ended.returncode, ended.stdout) == (0, f"-m {module} prepare\n"), ended.stderr


@pytest.mark.parametrize("module", MODULES)
def test_without_a_venv_one_line_says_what_to_do(checkout: Path, module: str) -> None:
    ended = _run_bare(checkout, module)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"error: {sys.executable} lacks mlflow")
    assert "source .venv/bin/activate" in line
