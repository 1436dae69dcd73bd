"""What a child process of a flow made of its step, as JSON in a file: its prose and its exit code are for people."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pipeline.files.store import write_json

Kind = Literal["done", "unchanged", "user_error", "busy", "unavailable", "command_failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a step ended.

    Attributes:
        kind: `done`; `unchanged`, nothing had to be done; `user_error`, the user's to fix; `busy`, another process
            holds what it needs; `unavailable`, a remote could not be read; `command_failed`, what the step ran did.
        message: one line on it; empty where the command has said it on standard error.
        code: exit code of that command, minus the signal's number where one ended it.
    """

    kind: Kind
    message: str = ""
    code: int | None = None

    def write(self, path: Path) -> None:
        """Write it in one step."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Outcome | None:
        """Return what a child wrote, or None for one that died before it could."""
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None
