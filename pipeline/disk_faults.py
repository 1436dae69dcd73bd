"""What a disk refuses, told from what is a fault of ours, in whichever library's words it comes.

A full disk is an `OSError` from Python, but a `SafetensorError`, a `RuntimeError` of FAISS or torch, or an
`MlflowException` around SQLite's from those who write by themselves; several say no path, some not even a reason.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pipeline.errors import RegionR1Error, WriteError, write_on_one_line

# No room, no right, no more handles, a broken disk: of these the words alone are proof, whoever repeats them.
_KNOWN_BY_WORDS: Final = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EMFILE, errno.ENFILE, errno.EIO,
)  # fmt: skip
_USERS: Final = frozenset({
    *_KNOWN_BY_WORDS, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.ESTALE,
    errno.EBUSY, errno.EXDEV,
})  # fmt: skip
_WORDS: Final = {
    **{os.strerror(number): os.strerror(number) for number in _KNOWN_BY_WORDS},
    # SQLite
    "database or disk is full": os.strerror(errno.ENOSPC),
    "attempt to write a readonly database": os.strerror(errno.EROFS),
    "unable to open database file": "unable to open database file",
    "disk I/O error": os.strerror(errno.EIO),
}
# torch and numpy keep the reason to themselves.
_CUT_SHORT: Final = re.compile(
    r"PytorchStreamWriter failed|inline_container\.cc.*unexpected pos|\d+ requested and \d+ written"
)


@dataclass(frozen=True, slots=True)
class DiskFault:
    """What the disk refused.

    Attributes:
        path: the file or folder, where the error says it.
        reason: in the system's words.
    """

    path: str | None
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.path else f"a file cannot be opened or written: {self.reason}"


def find_disk_fault(error: BaseException) -> DiskFault | None:
    """Return what the disk refused, or None where the error is about something else.

    An error that says no path takes it from one that was raised before it: a store on a full disk cannot even write
    down that a run has failed.
    """
    if isinstance(error, RegionR1Error) and not isinstance(error, WriteError):
        return None
    caused = [fault for cause in _follow(error, contexts=False) if (fault := _read(cause)) is not None]
    if not caused:
        return None
    faults = [*caused, *(fault for cause in _follow(error, contexts=True) if (fault := _read(cause)) is not None)]
    return next((fault for fault in faults if fault.path), caused[0])


def explain(error: BaseException) -> str | None:
    """Return the one line for what the user can fix, or None for a fault of ours."""
    if isinstance(error, RegionR1Error):
        return write_on_one_line(error)
    fault = find_disk_fault(error)
    return None if fault is None else write_on_one_line(fault)


def _follow(error: BaseException | None, *, contexts: bool) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (error.__context__ if contexts else None)


def _read(error: BaseException) -> DiskFault | None:
    if isinstance(error, WriteError):
        return DiskFault(str(error.path), error.reason)
    if isinstance(error, shutil.Error):  # copytree's: a list of (from, to, why)
        for _, target, why in error.args[0] if isinstance(error.args[0], list) else ():
            if reason := _find_words(str(why)):
                return DiskFault(str(target), reason)
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno not in _USERS:
            return None
        path = error.filename2 or error.filename
        return DiskFault(os.fsdecode(path) if isinstance(path, str | bytes) else None, os.strerror(error.errno))
    reason = _find_words(str(error))
    return None if reason is None else DiskFault(None, reason)


def _find_words(text: str) -> str | None:
    if _CUT_SHORT.search(text):
        return "only a part could be written; is the disk full?"
    return next((reason for words, reason in _WORDS.items() if words in text), None)
