"""A member of workload P6's group: a process that is killed with -9, or that goes on where one was killed.

    python -m benchmarks.p6_member PLAN

What lives here: the app, and the journal of its calls. What never does: when it is killed, and what that
means (`p6.py`, which starts it). Always: a call's beginning and end are written by one unbuffered write
each, so that the journal of a killed process is whole, and the process dies with the one that started it.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.harness import quiet
from benchmarks.work import PLACE_BYTES

BEGAN, ENDED = b"b", b"e"


@dataclass(frozen=True)
class Plan:
    """What a member does. The record whose value begins with `stuck` never ends; "": none is stuck.

    Ordinary records take `work_seconds`. `until_end`: stop at the end of the topic.
    """

    bootstrap: str
    topic: str
    group: str
    journal: str
    stuck: str
    work_seconds: float
    session_timeout_ms: int
    until_end: bool

    def to_argument(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))


def journal_of(path: Path) -> tuple[list[bytes], list[bytes]]:
    """`(began, ended)`: the places of records, in the order of the calls."""
    written = path.read_bytes() if path.exists() else b""
    width = 1 + PLACE_BYTES
    lines = [written[at : at + width] for at in range(0, len(written) - width + 1, width)]
    return [line[1:] for line in lines if line[:1] == BEGAN], [
        line[1:] for line in lines if line[:1] == ENDED
    ]


def ends_in(path: Path) -> int:
    """About how many calls have ended so far: half of the lines; one stuck call is half a line too many."""
    return path.stat().st_size // (2 * (1 + PLACE_BYTES)) if path.exists() else 0


def _writer(path: str) -> Callable[[bytes, bytes], None]:
    journal = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def write(what: bytes, value: bytes) -> None:
        os.write(journal, what + value[:PLACE_BYTES])

    return write


async def _run(plan: Plan) -> None:
    from asyncpar import App

    app = App(
        group=plan.group,
        bootstrap_servers=plan.bootstrap,
        http_port=0,
        session_timeout_ms=plan.session_timeout_ms,
        heartbeat_interval_ms=plan.session_timeout_ms // 3,
    )
    write, stuck = _writer(plan.journal), plan.stuck.encode()

    @app.topic(plan.topic)
    async def handle(value: bytes) -> None:
        write(BEGAN, value)
        if value[:PLACE_BYTES] == stuck:
            await asyncio.Event().wait()
        if plan.work_seconds:
            await asyncio.sleep(plan.work_seconds)
        write(ENDED, value)

    await app.run(drain_and_exit=plan.until_end)


if __name__ == "__main__":
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    quiet()
    asyncio.run(_run(Plan(**json.loads(sys.argv[1]))))
