"""Checkpoints that are whole or do not count.

A kill may come while a checkpoint is written. Its last file is a seal: size and hash of every other file. A folder
without a seal, or with a file that differs from it, was cut off; the one before it is used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Final

logger = logging.getLogger(__name__)

_SEAL: Final = "seal.json"
_NAME: Final = re.compile(r"checkpoint-(\d+)")


def seal_checkpoint(folder: Path) -> None:
    """Write the seal, after every file of the checkpoint has reached the disk."""
    content = _describe_files(folder, sync=True)
    partial = folder / f"{_SEAL}.partial"
    partial.write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")
    _sync(partial)
    partial.replace(folder / _SEAL)


def find_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint, or None; delete those that were cut off, each with one line in the log."""
    found = {
        int(match[1]): entry
        for entry in (folder.iterdir() if folder.is_dir() else ())
        if (match := _NAME.fullmatch(entry.name))
    }
    for step in sorted(found, reverse=True):
        if is_whole(found[step]):
            return found[step]
        logger.warning("%s was cut off while it was written; the one before it is used", found[step])
        shutil.rmtree(found[step])
    return None


def is_whole(folder: Path) -> bool:
    """Return whether the seal is there and names exactly the files that are."""
    try:
        sealed = json.loads((folder / _SEAL).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(sealed == _describe_files(folder, sync=False))


def _describe_files(folder: Path, *, sync: bool) -> dict[str, list[int | str]]:
    described: dict[str, list[int | str]] = {}
    for file in sorted(entry for entry in folder.rglob("*") if entry.is_file() and entry.name != _SEAL):
        if sync:
            _sync(file)
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        described[file.relative_to(folder).as_posix()] = [file.stat().st_size, digest]
    return described


def _sync(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
