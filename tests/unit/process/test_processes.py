"""A process is told from another one that has its pid."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

from pipeline.process.processes import ProcessStamp


def test_a_stamp_survives_as_text() -> None:
    own = ProcessStamp.of_this_process()
    read = ProcessStamp.parse(str(own))
    assert read is not None
    assert (read.host, read.pid) == (own.host, own.pid)
    assert not read.has_ended()
    assert ProcessStamp.parse("") is None
    assert ProcessStamp.parse("1 two three") is None


def test_a_pid_given_to_another_process_has_ended() -> None:
    own = ProcessStamp.of_this_process()
    assert replace(own, started=own.started - 3600).has_ended()


def test_a_process_that_ended_has_ended_whether_or_not_its_parent_has_looked() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    stamp = replace(ProcessStamp.of_this_process(), pid=process.pid)
    process.kill()
    while not stamp.has_ended():
        pass
    process.communicate()
    assert stamp.has_ended()


def test_nothing_is_certain_of_another_machine() -> None:
    assert not ProcessStamp("elsewhere", 2**30, 0.0).has_ended()
