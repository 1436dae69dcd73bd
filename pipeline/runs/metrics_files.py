"""Metrics that DVC removed and nothing has replaced yet: put back as dvc.lock names them.

DVC deletes what a stage writes before it runs the stage, and it does not cache metrics as it does other outputs: after
a cancelled run they would be in git alone. So a stage puts its old file back as its first deed; the new one replaces
it at the end, and without an end dvc.lock still names the old one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pipeline.files.atomic import replace_file
from pipeline.runs.tracking import ask_git
from pipeline.workspace import Workspace


def restore_metrics(root: Path, stage: str) -> None:
    """Write a stage's missing metrics file again, if git or DVC's cache has the one that dvc.lock names.

    Another file than that one is never written, so old figures cannot pass for those of a later run.

    Args:
        root: the checkout.
        stage: whose file.
    """
    path = Workspace.at(root).metrics_path(stage)
    if path.exists():
        return
    relative = path.relative_to(root).as_posix()
    md5 = _find_md5(root / "dvc.lock", stage, relative)
    if md5 is None:
        return
    for content in _list_candidates(root, relative, md5):
        if hashlib.md5(content, usedforsecurity=False).hexdigest() == md5:
            with replace_file(path) as partial:
                partial.write_bytes(content)
            return


def _find_md5(lock: Path, stage: str, relative: str) -> str | None:
    """Return the hash of an output in dvc.lock; None where it names none, or cannot be read, which DVC itself says."""
    try:
        tree: Any = yaml.safe_load(lock.read_text(encoding="utf-8"))
        outs = tree["stages"][stage]["outs"]
        return next((str(out["md5"]) for out in outs if out["path"] == relative), None)
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return None


def _list_candidates(root: Path, relative: str, md5: str) -> Iterator[bytes]:
    """Yield what may be the file: the last commit's, then what DVC's run cache keeps under the hash."""
    committed = ask_git(root, "show", f"HEAD:./{relative}")
    if committed is not None:
        yield committed.encode("utf-8")
        yield f"{committed}\n".encode()  # ask_git strips the end of the last line
    if not (root / ".dvc").is_dir():
        return
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        cached = Path(repo.cache.local.oid_to_path(md5))
    if cached.is_file():
        yield cached.read_bytes()
