"""Whether this Python has the packages; if not, the stage goes on in the checkout's own .venv, or says so.

`.venv/bin/dvc repro` runs its stages with the `python3` that the shell finds, and without an activated environment
that is the system's. Standard library only, and nothing that an older Python could not read.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

# What every stage imports sooner or later.
_NEEDED = ("mlflow", "pyarrow", "pydantic", "torch")


def ensure_packages(module: str) -> None:
    """Return where the packages are there; else run `module` again with .venv's Python, or exit with code 2.

    Args:
        module: what `python -m` was told to run.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if not missing:
        return
    own = Path(__file__).resolve().parents[2] / ".venv" / "bin" / "python"
    if own.is_file() and sys.prefix != str(own.parents[1]):
        os.execv(str(own), [str(own), "-m", module, *sys.argv[1:]])
    sys.stderr.write(
        f"error: {sys.executable} lacks {', '.join(missing)}; `make run` installs into .venv, "
        "`source .venv/bin/activate` makes its Python the one that `dvc repro` finds\n"
    )
    raise SystemExit(2)
