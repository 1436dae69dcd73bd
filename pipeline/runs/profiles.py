"""Shipped parameter files: which there are, and taking one as the current run's."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

from pipeline.config import load_params_for_dvc
from pipeline.errors import ConfigError
from pipeline.files.store import write_text

_FOLDER: Final = "params"
_CURRENT: Final = "params.yaml"


def list_profiles(root: Path) -> list[str]:
    """Return the names of a checkout's profiles."""
    return sorted(path.stem for path in (root / _FOLDER).glob("*.yaml"))


def use_profile(root: Path, name: str) -> Path:
    """Write a profile as the checkout's params.yaml, in one step, and return its path.

    Args:
        root: the checkout.
        name: file in params/, without its ending.

    Raises:
        ConfigError: no such profile, it is not valid, or the present params.yaml is in no commit and would be lost.
    """
    if name not in list_profiles(root):
        raise ConfigError(f"{name}: no such profile; there are: {', '.join(list_profiles(root)) or 'none'}")
    source, target = root / _FOLDER / f"{name}.yaml", root / _CURRENT
    load_params_for_dvc(source)
    content = source.read_text(encoding="utf-8")
    if target.is_file() and target.read_text(encoding="utf-8") != content and not _is_committed(root):
        raise ConfigError(
            f"{target}: has changes that are in no commit and would be lost; commit them, or `git checkout {_CURRENT}`"
        )
    write_text(target, content)
    return target


def _is_committed(root: Path) -> bool:
    """Return whether git holds params.yaml as it is; a file that git does not know, or no git, is no."""
    known = ["git", "-C", str(root), "ls-files", "--error-unmatch", _CURRENT]
    unchanged = ["git", "-C", str(root), "diff", "--quiet", "HEAD", "--", _CURRENT]
    try:
        return all(
            subprocess.run(line, capture_output=True, check=False).returncode == 0 for line in (known, unchanged)
        )
    except FileNotFoundError:
        return False
