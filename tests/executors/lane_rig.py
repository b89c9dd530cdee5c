"""What the lane tests work with: a lane whose words are kept, and waits with a bound."""

from __future__ import annotations

import asyncio
import multiprocessing.forkserver
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from asyncpar.executors.lane import ChildWork, ProcessLane, lanes
from asyncpar.executors.lane_port import Batch, Death, Fields, Job, Reply
from tests.freezing import state_in

MODULE = "tests.executors.child_handlers"
SECONDS = 30.0
"""No wait takes longer; none should come near."""


def work(handler: str = "obey", **given: Any) -> ChildWork:
    """Of a handler in `child_handlers`, whose functions have their handler's names."""
    return ChildWork(**{"module": MODULE, "qualname": handler, "handler": handler, "group": "g", **given})


def job(value: str | bytes | None, offset: int = 0, **given: Any) -> Fields:
    """One attempt on a record with `value`."""
    value = value.encode() if isinstance(value, str) else value
    fields: dict[str, Any] = {
        "topic": "t",
        "partition": 0,
        "offset": offset,
        "key": None,
        "value": value,
        "headers": (),
        "timestamp": 0,
        "timestamp_type": 0,
        "attempt": 1,
        "generation": 1,
    }
    return tuple(Job(**{**fields, **given}))


def batch(number: int, *values: str | bytes | None) -> Batch:
    """Records with these values."""
    return Batch(number, [job(value, offset) for offset, value in enumerate(values)])


async def until(condition: Callable[[], object], what: str) -> None:
    """Look often until `condition` holds; fails when it takes too long."""
    ends = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < ends, f"waited too long: {what}"
        await asyncio.sleep(0.002)


def wait_on_the_loop(condition: Callable[[], object], what: str) -> None:
    """As `until`, with the loop held up meanwhile: nothing that comes is read."""
    ends = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < ends, f"waited too long: {what}"
        time.sleep(0.001)


def let_go(name: str) -> None:
    """A `gated` handler with this value may end."""
    Path(f"{name}.go").touch()


def has_started(name: str) -> bool:
    """A `gated` handler with this value runs, or has."""
    return Path(f"{name}.started").exists()


class Rig:
    """A lane, and what it told."""

    def __init__(self, child: ChildWork, start_method: str) -> None:
        self.replies: list[Reply] = []
        self.deaths: list[Death] = []
        self.told: list[Reply | Death] = []
        """Both, in order."""
        lane = lanes(child, start_method)(self._replied, self._died)
        assert isinstance(lane, ProcessLane)
        self.lane = lane

    def _replied(self, reply: Reply) -> None:
        self.replies.append(reply)
        self.told.append(reply)

    def _died(self, death: Death) -> None:
        self.deaths.append(death)
        self.told.append(death)

    async def start(self, lease_seconds: float = 600) -> None:
        """Until it is ready, with a lease."""
        await asyncio.wait_for(self.lane.start(), SECONDS)
        self.lane.renew_lease(time.monotonic_ns() + int(lease_seconds * 1e9))

    async def reply(self) -> Reply:
        """The next one that was not taken yet."""
        await until(lambda: self.replies or self.deaths, "a reply")
        assert self.replies, f"no reply, but {self.deaths}"
        return self.replies.pop(0)

    async def death(self) -> Death:
        """Its end."""
        await until(lambda: self.deaths, "the death")
        return self.deaths[0]

    async def at_rest(self) -> None:
        """Until nothing runs: the child says so shortly after its reply."""
        await until(lambda: self.lane.progress() is None, "the rest after a reply")

    async def running(self, number: int = 1, index: int = 0) -> None:
        """Until that job runs."""
        await until(
            lambda: (at := self.lane.progress()) and (at.number, at.index) == (number, index), "a start"
        )


@asynccontextmanager
async def rig(
    child: ChildWork | None = None, start_method: str = "forkserver", **lease: float
) -> AsyncIterator[Rig]:
    """A lane that is ready; closed after the test."""
    one = Rig(child or work(), start_method)
    await one.start(**lease)
    try:
        yield one
    finally:
        await one.lane.close(0.5)


def kill_fork_server() -> None:
    """With -9, if there is one."""
    pid = multiprocessing.forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    if pid is not None and is_running(pid):
        os.kill(pid, signal.SIGKILL)
        wait_on_the_loop(lambda: not is_running(pid), "the fork server's end")


def is_running(pid: int) -> bool:
    """A process of this number is there, and is no zombie."""
    return state_in(Path(f"/proc/{pid}")) not in "ZX"
