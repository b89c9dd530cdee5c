"""A bridge on virtual time with modelled lanes: what its tests call, make fail and look at."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

from asyncpar.executors.lane_port import Batch, Death, Job, JobFailure, Lane, Reply
from asyncpar.executors.process_bridge import BridgeRules, ProcessBridge
from asyncpar.testing.modelled_lanes import JobFault, LaneFaults, ModelledLane, ModelledLanes
from tests.testing.virtually import loop, now

TOPIC = "t"


@dataclass
class Raw:
    offset: int
    key: bytes | None = None
    value: bytes | None = b"v"
    headers: Any = ()
    timestamp: int = 5
    timestamp_type: int = 1


class PlannedFaults(LaneFaults):
    """What goes wrong, by offset; each entry once."""

    def __init__(self) -> None:
        self.jobs: dict[int, deque[JobFault]] = defaultdict(deque)
        self.replies: dict[int, float | Literal["torn"]] = {}
        """By the first offset of the batch."""
        self.starts: deque[str | None] = deque()
        self.no_start: str | None = None

    def of_start(self) -> str | None:
        return self.starts.popleft() if self.starts else self.no_start

    def of_job(self, job: Job) -> JobFault | None:
        planned = self.jobs.get(job.offset)
        return planned.popleft() if planned else None

    def of_reply(self, batch: Batch) -> float | Literal["torn"]:
        return self.replies.pop(Job._make(batch.jobs[0]).offset, 0.0)


class World:
    """One bridge. `async with`: it is closed at the end, and has left nothing behind."""

    def __init__(
        self,
        *,
        lanes: int = 1,
        batch_size: int = 4,
        queue_size: int = 100,
        max_batch_wait_ms: int = 5,
        timeout_ms: int | None = None,
        max_tasks_per_child: int | None = None,
        seconds: float = 0.01,
    ) -> None:
        self.faults = PlannedFaults()
        self.children = ModelledLanes(self._handle, self.faults, timeout_ms=timeout_ms)
        self.make: Callable[..., ModelledLane] = self.children
        rules = BridgeRules(lanes, batch_size, queue_size, max_batch_wait_ms, timeout_ms, max_tasks_per_child)
        log = logging.getLogger("test.processes")
        self.bridge = ProcessBridge("h", rules, self._new_lane, loop().time, log)
        self.doom_seconds: float | None = None
        """Every child dies so long after it was asked for."""
        self.seconds: dict[int, float] = defaultdict(lambda: seconds)
        """What a record takes, by offset."""
        self.failures: dict[int, JobFailure] = {}
        self.actions: dict[int, Any] = {}
        """Called in the child at the start of a record."""
        self.started: list[int] = []
        self.ended: list[int] = []
        """Offsets that ran to their end."""
        self.jobs: list[Job] = []

    async def __aenter__(self) -> Self:
        await self.bridge.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            return
        await self.bridge.close(1.0)
        await asyncio.sleep(0.1)
        self.check_clean()

    def check_clean(self) -> None:
        """Nothing of the bridge is left on the loop, and no child lives."""
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert [timer for _, _, timer in loop()._timers if not timer.cancelled()] == []
        assert all(lane.is_dead for lane in self.children.lanes)
        assert loop().errors == []

    def _new_lane(self, on_reply: Callable[[Reply], None], on_death: Callable[[Death], None]) -> Lane:
        lane = self.make(on_reply, on_death)
        if self.doom_seconds is not None:
            loop().call_later(self.doom_seconds, lane.die, "exited with code 1")
        return lane

    async def _handle(self, job: Job) -> JobFailure | None:
        self.jobs.append(job)
        self.started.append(job.offset)
        if job.offset in self.actions:
            self.actions[job.offset]()
        await asyncio.sleep(self.seconds[job.offset])
        self.ended.append(job.offset)
        return self.failures.get(job.offset)

    def run(self, *offsets: int, partition: int = 0) -> list[asyncio.Task[None]]:
        """A worker's call for each."""
        run = self.bridge.run
        return [asyncio.create_task(run(TOPIC, partition, Raw(one), 1, 7)) for one in offsets]

    async def warm(self) -> None:
        """A record has run: the bridge knows the pace."""
        await asyncio.gather(*self.run(-1))
        self.started.clear()
        self.ended.clear()

    @property
    def lane(self) -> ModelledLane:
        """The one that was made last."""
        return self.children.lanes[-1]


async def ends(*calls: asyncio.Task[None]) -> list[str]:
    """How calls ended: "ok" or the name of what they raised."""
    answers = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 300)
    return ["ok" if answer is None else type(answer).__name__ for answer in answers]


async def wait_to(moment: float) -> None:
    """Until this moment of virtual time."""
    await asyncio.sleep(moment - now())


def failed(message: str = "no", *ancestors: str) -> JobFailure:
    names = ancestors or ("builtins.ValueError", "builtins.Exception", "builtins.BaseException")
    return JobFailure("failed", names, message, "Traceback: there")
