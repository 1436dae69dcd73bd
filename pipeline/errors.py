"""The one exception tree.

RegionR1Error
├── ConfigError    params.yaml: unknown name, value out of range, missing file
├── DataError      raw data or a table: names the file and, where there is one, the row
├── ModelError     a model folder: missing, of another family, unsafe format
├── WriteError     a file or folder cannot be written: no room, no right, too many open files
├── StageError     a stage cannot do its work: an input stage has not run, nothing is left to train on
└── BusyError      another run works in the checkout

Every one of them is the user's to fix: the command line prints the message as one line on stderr and exits
with code 2. Anything else is a fault of ours and keeps its traceback.
"""

from __future__ import annotations

from pathlib import Path


class RegionR1Error(Exception):
    """Base of all errors that a user can fix; its text is one line."""


class ConfigError(RegionR1Error):
    """A parameter is unknown, out of range or contradicts another one."""


class ModelError(RegionR1Error):
    """A model folder is missing, incomplete, of another family or in an unsafe format."""


class StageError(RegionR1Error):
    """A stage cannot do its work with the inputs that it finds."""


class BusyError(RegionR1Error):
    """Another run works in the checkout; the text says which."""


class DataError(RegionR1Error):
    """Raw data or a table is not as specified.

    Args:
        reason: what is wrong, in one line.
        path: the file at fault.
        row: 1-based row in that file, where there is one.
    """

    def __init__(self, reason: str, *, path: Path | str | None = None, row: int | None = None) -> None:
        self.reason = reason
        self.path = path
        self.row = row
        where = "" if path is None else f"{path}: " if row is None else f"{path}, row {row}: "
        super().__init__(f"{where}{reason}")


class WriteError(RegionR1Error):
    """The disk refuses a file or folder; what lay in its place lies there still.

    Args:
        path: what was to be written.
        reason: why not, in the system's words.
    """

    def __init__(self, path: Path | str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path}: cannot be written: {reason}")


def write_on_one_line(text: object) -> str:
    r"""Return a text as one line that a terminal can show: what cannot be printed is escaped.

    >>> write_on_one_line("two\nlines,\x00 and \x1b[31m")
    'two lines,\\x00 and \\x1b[31m'
    """
    line = " ".join(str(text).split())
    return line if line.isprintable() else "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in line)
