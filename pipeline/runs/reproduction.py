"""Whether the outputs that lie here are those that the committed dvc.lock names.

What DVC tracks holds no times, commits or versions, so on the same kind of machine a second run ends with the same
bytes, and the lock that somebody committed proves it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.runs.tracking import ask_git


@dataclass(frozen=True, slots=True)
class Reproduction:
    """The comparison.

    Attributes:
        reproduced: whether all outputs equal the lock; None where no lock is committed.
        differs: stage and path of every output that does not, in the lock's order.
    """

    reproduced: bool | None
    differs: tuple[tuple[str, str], ...]

    def as_json(self) -> dict[str, Any]:
        """Return it for scripts."""
        return {"reproduced": self.reproduced, "differs": [f"{stage}: {path}" for stage, path in self.differs]}

    def describe(self) -> str:
        """Return it in one line."""
        if self.reproduced is None:
            return "reproduced: not known, no dvc.lock is committed here"
        if self.reproduced:
            return "reproduced: all outputs equal dvc.lock"
        by_stage: dict[str, list[str]] = {}
        for stage, path in self.differs:
            by_stage.setdefault(stage, []).append(path)
        named = "; ".join(f"{stage}: {', '.join(paths)}" for stage, paths in by_stage.items())
        return f"differs from the committed dvc.lock: {named}"


def check_reproduction(root: Path) -> Reproduction:
    """Compare a checkout's outputs with the dvc.lock of its last commit.

    DVC keeps the hashes of files that have not changed since it saw them, so after a run this reads next to nothing.
    """
    lock = ask_git(root, "show", "HEAD:./dvc.lock")
    if lock is None:
        return Reproduction(None, ())
    stages: Mapping[str, Any] = (yaml.safe_load(lock) or {}).get("stages", {})
    found = dict(_hash_outputs(root))
    differs = tuple(
        (name, out["path"])
        for name, stage in stages.items()
        for out in stage.get("outs", [])
        if found.get(out["path"]) != out["md5"]
    )
    return Reproduction(not differs, differs)


def _hash_outputs(root: Path) -> Iterator[tuple[str, str]]:
    """Yield path and MD5 of every output of dvc.yaml that is there, as DVC computes it."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        for stage in repo.stage.load_all(str(root / "dvc.yaml")):
            for out in stage.outs:
                if out.exists:
                    yield out.def_path, out.get_hash().value
