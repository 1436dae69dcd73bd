"""Which process it is: a pid alone may be given to another process later."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

import psutil

# The kernel counts from its start; the clock by which we say when that was may be set meanwhile.
_CLOCK_TOLERANCE_S = 5.0


@dataclass(frozen=True, slots=True)
class ProcessStamp:
    """A process of some machine, told from all that had or will have its pid.

    Attributes:
        host: the machine's name.
        pid: its number there.
        started: when it began, in seconds since 1970.
    """

    host: str
    pid: int
    started: float

    @classmethod
    def of_this_process(cls) -> ProcessStamp:
        """Return the stamp of the process that asks."""
        return cls(socket.gethostname(), os.getpid(), float(psutil.Process().create_time()))

    @classmethod
    def parse(cls, text: str) -> ProcessStamp | None:
        """Return the stamp that `str` made this text of, or None for any other text."""
        try:
            pid, started, host = text.split(" ", 2)
            return cls(host, int(pid), float(started))
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"{self.pid} {self.started:.2f} {self.host}"

    def has_ended(self) -> bool:
        """Return whether it is certain that it ended; of another machine's process nothing is certain."""
        if self.host != socket.gethostname():
            return False
        try:
            process = psutil.Process(self.pid)
            is_same = abs(float(process.create_time()) - self.started) <= _CLOCK_TOLERANCE_S
            return not is_same or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True
