"""Stopping a process as a debugger or a suspended machine does.

What lives here: `freeze`, which ends when the process really stands still. Called by the servers and members
of tests. Always: the wait is bounded.
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
    while not all(map(_stands_still, Path(f"/proc/{pid}/task").iterdir())):
        assert time.monotonic() < ends, f"process {pid} does not stop"
        time.sleep(0.001)


def _stands_still(thread: Path) -> bool:
    """It is stopped, or has ended."""
    try:
        state = (thread / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "TtXZ"
