"""Stopping a process as a debugger or a suspended machine does.

What lives here: `freeze`, which ends when the process really stands still, and how that is seen. Called by
the servers and members of tests. Always: the wait is bounded.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

_SECONDS = 10.0


def freeze(pid: int) -> None:
    """SIGSTOP, and until every thread has stopped: on a busy machine one may answer a request before that."""
    os.kill(pid, signal.SIGSTOP)
    if sys.platform != "linux":
        return
    ends = time.monotonic() + _SECONDS
    while not all(state_in(thread) in "TtZX" for thread in Path(f"/proc/{pid}/task").iterdir()):
        assert time.monotonic() < ends, f"process {pid} does not stop"
        time.sleep(0.001)


def state_in(folder: Path) -> str:
    """The letter of a process or thread, by its folder in /proc; X, which is "dead", where it has gone."""
    try:
        return (folder / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"
