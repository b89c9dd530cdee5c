"""Lanes without processes, on the running loop: the lane port as a simulation and its tests need it.

Lives here: a model of a child process that runs a coroutine per record, and what may go wrong with it.
Never here: which faults come when (the caller's `LaneFaults`). Meant for virtual time: a child is a member of
its own there (`<parent>/child-<n>`), so that it runs on while its parent is frozen, and can be frozen itself.

As a real child does: it writes which record it is at, then looks at the stop word and the lease, then runs
it. When all of a batch ran it stands behind the last one until its reply is sent.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any, Literal, TypeAlias

from asyncpar.context import CALL
from asyncpar.executors.lane_port import (
    Batch,
    Death,
    Job,
    JobFailure,
    LaneStartError,
    Progress,
    Reply,
)
from asyncpar.testing.virtual_time import MEMBER, VirtualLoop

RunJob: TypeAlias = Callable[[Job], Coroutine[Any, Any, JobFailure | None]]
"""Runs one job, in as much time as that takes; None: it succeeded. Cancelled where its child is killed."""

JobFault: TypeAlias = Literal["crash_before", "crash_after", "hang"]
"""The child dies before or after the job has run, both while it stands at it; or the job never ends."""

_FOR_EVER = 1 << 63
_FIRST_PID = 1000


class LaneFaults:
    """What goes wrong with lanes, asked as they go along. As it is: nothing."""

    def of_start(self) -> str | None:
        """Why a child that was asked for does not start; None: it does."""
        return None

    def of_job(self, _job: Job) -> JobFault | None:
        """What happens at a job."""
        return None

    def of_reply(self, _batch: Batch) -> float | Literal["torn"]:
        """Seconds that the reply to a batch comes late; torn: the child dies before it was sent whole."""
        return 0.0


class ModelledLanes:
    """A lane factory. `run` is the handler; `timeout_ms` is what its `heartbeat()` asks for anew.

    A child is ready after `start_seconds`; its death is known `death_seconds` after it.
    """

    def __init__(
        self,
        run: RunJob,
        faults: LaneFaults | None = None,
        *,
        timeout_ms: int | None = None,
        start_seconds: float = 0.02,
        death_seconds: float = 0.002,
    ) -> None:
        self.run = run
        self.faults = faults or LaneFaults()
        self.timeout_ms = timeout_ms
        self.start_seconds = start_seconds
        self.death_seconds = death_seconds
        self.lanes: list[ModelledLane] = []
        """All that were ever made."""

    def __call__(self, on_reply: Callable[[Reply], None], on_death: Callable[[Death], None]) -> ModelledLane:
        """A new lane."""
        lane = ModelledLane(self, len(self.lanes) + 1, on_reply, on_death)
        self.lanes.append(lane)
        return lane

    def orphan(self) -> None:
        """The parent was killed: every child ends by itself, and nobody is told."""
        for lane in self.lanes:
            lane.orphan()


class ModelledLane:
    """One of them. Made by `ModelledLanes`."""

    def __init__(
        self,
        world: ModelledLanes,
        number: int,
        on_reply: Callable[[Reply], None],
        on_death: Callable[[Death], None],
    ) -> None:
        self.pid: int | None = None
        self.is_dead = False
        """Nothing of it runs any more."""
        self._world = world
        self._number = number
        self._on_reply, self._on_death = on_reply, on_death
        self._loop = asyncio.get_running_loop()
        self._parent = contextvars.copy_context()
        self.member = f"{MEMBER.get()}/child-{number}"
        """What its loop knows the child by."""
        self.job: Job | None = None
        """What the child is at."""
        self._inbox: asyncio.Queue[Batch | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._progress: Progress | None = None
        self._failures: dict[int, JobFailure] = {}
        """Of the batch that runs; told as they happen."""
        self._stop_before = 0
        self._lease_ns = 0
        self._is_heard = True

    # -- the port ----------------------------------------------------------------------------

    async def start(self) -> None:
        """See `Lane`."""
        await asyncio.sleep(self._world.start_seconds)
        why = self._world.faults.of_start()
        if why is not None:
            self.is_dead = True
            raise LaneStartError(why)
        if self.is_dead:
            raise LaneStartError("it was closed before it was ready")
        self.pid = _FIRST_PID + self._number
        context = contextvars.copy_context()
        context.run(MEMBER.set, self.member)
        self._task = self._loop.create_task(self._serve(), name=self.member, context=context)

    def send(self, batch: Batch) -> None:
        """See `Lane`."""
        self._inbox.put_nowait(batch)

    def stop_before(self, number: int) -> None:
        """See `Lane`."""
        self._stop_before = max(self._stop_before, number)

    def renew_lease(self, until_ns: int) -> None:
        """See `Lane`."""
        self._lease_ns = until_ns

    def progress(self) -> Progress | None:
        """See `Lane`."""
        return self._progress

    def told(self, number: int) -> dict[int, JobFailure]:
        """See `Lane`."""
        return dict(self._failures) if self._progress and self._progress.number == number else {}

    def kill(self) -> None:
        """See `Lane`."""
        self.die("killed by SIGKILL")

    async def close(self, timeout_s: float) -> None:
        """See `Lane`."""
        self._is_heard = False
        self._stop_before = _FOR_EVER
        self._inbox.put_nowait(None)
        if self._task is not None:
            await asyncio.wait([self._task], timeout=timeout_s)
            self.die("closed")
            await asyncio.wait([self._task])
        self.is_dead = True

    # -- faults ------------------------------------------------------------------------------

    def die(self, how: str) -> None:
        """The child ends now, wherever it is; the parent is told a little later."""
        if self.is_dead or self._task is None:
            return
        self.is_dead = True
        number, index = (0, 0) if self._progress is None else self._progress[:2]
        death = Death(how, number, index, dict(self._failures) if number else {})
        self._task.cancel()
        if isinstance(self._loop, VirtualLoop):
            self._loop.thaw(self.member)  # SIGKILL ends what is stopped, too
        self._loop.call_later(self._world.death_seconds, self._tell_death, death, context=self._parent)

    def orphan(self) -> None:
        """Its parent was killed: it ends, and nobody is told."""
        self._is_heard = False
        self.die("its parent has ended")

    def freeze(self) -> None:
        """The child does nothing until `thaw`, as under SIGSTOP; on a virtual loop."""
        assert isinstance(self._loop, VirtualLoop)
        self._loop.freeze(self.member)

    def thaw(self) -> None:
        """It goes on."""
        assert isinstance(self._loop, VirtualLoop)
        self._loop.thaw(self.member)

    # -- the child ---------------------------------------------------------------------------

    def extend(self, milliseconds: int | None) -> None:
        """What `heartbeat()` and `extend()` in the handler call."""
        given = self._world.timeout_ms if milliseconds is None else milliseconds
        if self._progress is not None and given is not None:
            until = self._now_ns() + given * 1_000_000
            self._progress = self._progress._replace(extended_ns=max(until, self._progress.extended_ns))

    async def _serve(self) -> None:
        CALL.set(self)
        while (batch := await self._inbox.get()) is not None:
            await self._run_batch(batch)

    async def _run_batch(self, batch: Batch) -> None:
        run, seconds = 0, 0.0
        self._failures = {}
        for index, fields in enumerate(batch.jobs):
            job = Job._make(fields)
            began = self._now_ns()
            self._progress, self.job = Progress(batch.number, index, began, 0), job
            await asyncio.sleep(0)  # others may run between the two, as they may beside a real child
            if batch.number < self._stop_before or self._now_ns() > self._lease_ns:
                self._progress = self.job = None
                break
            failure = await self._run_job(job)
            if failure is not None:
                self._failures[index] = failure
            run += 1
            seconds += (self._now_ns() - began) / 1e9
        else:
            self._progress, self.job = Progress(batch.number, run, self._now_ns(), 0), None
            late = self._world.faults.of_reply(batch)
            if late == "torn":
                await self._end("killed by SIGKILL")
            else:
                await asyncio.sleep(late)
        reply = Reply(batch.number, run, dict(self._failures), seconds)
        self._loop.call_soon(self._tell_reply, reply, context=self._parent)
        self._progress = None

    async def _run_job(self, job: Job) -> JobFailure | None:
        fault = self._world.faults.of_job(job)
        if fault == "crash_before":
            await self._end("killed by SIGSEGV")
        if fault == "hang":
            await asyncio.Event().wait()
        failure = await self._world.run(job)
        if fault == "crash_after":
            await self._end("killed by SIGSEGV")
        return failure

    async def _end(self, how: str) -> None:
        self.die(how)
        await asyncio.Event().wait()  # where it is cancelled

    def _tell_reply(self, reply: Reply) -> None:
        if self._is_heard:
            self._on_reply(reply)

    def _tell_death(self, death: Death) -> None:
        if self._is_heard:
            self._on_death(death)

    def _now_ns(self) -> int:
        return int(self._loop.time() * 1e9)
