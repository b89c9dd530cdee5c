"""Handlers in child processes, in a simulated life: modelled lanes, and what goes wrong with them.

Lives here: what is drawn of it, and the children of one member. Never here: how a lane works
(`modelled_lanes.py`), which record meets which fate (`handlers.py`). Made by a member before its app runs.
Always: the start of a call goes into the history from inside of its child, so that one that runs when it must
not is seen. Its end says what came of it there, whatever the bridge says, and is noted when the member hears
of it: that is what a commit has to cover.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from asyncpar.context import CALL
from asyncpar.executors.lane_failures import failure_of
from asyncpar.executors.lane_port import Batch, Job, JobFailure
from asyncpar.executors.process_bridge import BridgeRules, ProcessBridge
from asyncpar.records import RawRecord, TopicPartition
from asyncpar.runtime.handlers import Handler, Invoke
from asyncpar.testing.history import Event, Recorder, handling
from asyncpar.testing.modelled_lanes import LaneFaults, ModelledLane, ModelledLanes

if TYPE_CHECKING:
    from asyncpar.testing.simulation.member import Member
    from asyncpar.testing.simulation.plan import Plan
    from asyncpar.testing.simulation.world import World

CHILD_STATES = (
    "child crashed",
    "child killed for its time",
    "child killed with its record",
    "child replied late",
    "child died in its reply",
    "child did not start",
    "child frozen",
    "child replaced after its share",
    "no child could be started",
)
"""What the children of a life can go through, by the name that it is counted under."""

_CLOSE_SECONDS = 3.0
_LATEST_REPLY_SECONDS = 4.0
_CRASH_SECONDS = 0.02
_QUEUE_SIZE = 10_000
_LOG = logging.getLogger("asyncpar.process")


@dataclass(frozen=True, slots=True)
class Window:
    """From when to when, in seconds of the life."""

    begin: float
    end: float


@dataclass(frozen=True, slots=True)
class ChildPlan:
    """The children of each member's handler, and what goes wrong with them."""

    lanes: int = 2
    batch_size: int = 4
    max_batch_wait_ms: int = 5
    timeout_ms: int | None = None
    max_tasks_per_child: int | None = None
    crashing: float = 0.0
    """Share of records of which a child dies, in their first run."""
    crashing_twice: float = 0.0
    """... and in their second one, after which they are given up."""
    late: float = 0.0
    """Share of batches whose reply comes late."""
    torn: float = 0.0
    """Share of batches whose child dies before it has sent its reply."""
    no_starts: tuple[Window, ...] = ()
    """When no child can be started; each begins with the death of all of them."""
    freezes: tuple[Window, ...] = ()
    """When a child of each member does nothing."""


def draw_children(rng: random.Random) -> ChildPlan:
    """Of one life."""
    return ChildPlan(
        lanes=rng.choice((1, 2, 4)),
        batch_size=rng.choice((1, 4, 64)),
        max_batch_wait_ms=rng.choice((0, 5, 50)),
        timeout_ms=rng.choice((None, 3_000, 5_000)),
        max_tasks_per_child=rng.choice((None, None, 50)),
        crashing=rng.choice((0.0, 0.005, 0.03)),
        crashing_twice=rng.choice((0.0, 0.002)),
        late=rng.choice((0.0, 0.02)),
        torn=rng.choice((0.0, 0.01)),
        no_starts=tuple(_windows(rng, (2.0, 12.0), (10.0, 35.0))),
        freezes=tuple(_windows(rng, (1.0, 15.0), (20.0, 45.0))),
    )


def _windows(rng: random.Random, lengths: tuple[float, ...], begins: tuple[float, ...]) -> Iterator[Window]:
    """Some of those that might be."""
    for earliest in begins:
        if rng.random() < 0.5:
            begin = earliest + 5 * rng.random()
            yield Window(begin, begin + rng.choice(lengths))


def with_children(plan: Plan, children: ChildPlan) -> Plan:
    """`plan` with its handlers in `children`.

    A process cannot refuse to be killed, so there are no stubborn records, and none is kept at a revoke; what
    hangs is ended by its time, or nothing hangs. Nothing halts at a last attempt: that this has failed the
    engine hears with the reply, and until then other records of the partition start.
    """
    hanging = min(plan.mix.hanging, 0.001) if children.timeout_ms is not None else 0.0
    return replace(
        plan,
        children=children,
        mix=replace(plan.mix, stubborn=0.0, untidy=0.0, failing=0.0, skipped=0.0, hanging=hanging),
        attempts=None if plan.letters is None else plan.attempts,
        handler={**plan.handler, "task_per_record": False, "on_revoke": "cancel"},
    )


@dataclass
class Tallies:
    """What has happened to a life's records in children so far, by topic, partition and offset."""

    failures: Counter[tuple[str, int, int]] = field(default_factory=Counter)
    """Runs that may have cost an attempt."""
    crashes: Counter[tuple[str, int, int]] = field(default_factory=Counter)


class Children(LaneFaults):
    """Those of one member: its bridge, from `start` to `close`."""

    def __init__(self, member: Member, world: World, plan: ChildPlan) -> None:
        self._member = member
        self._world = world
        self._plan = plan
        self._rng = world.plan.rng(f"children of {member.name}")
        self.history = _ChildHistory(world.history)
        """For the handler to note its calls in."""
        self._invoke: Invoke | None = None
        self._has_started = False
        self._lanes = ModelledLanes(self._run, self, timeout_ms=plan.timeout_ms)
        rules = BridgeRules(
            lanes=plan.lanes,
            batch_size=plan.batch_size,
            queue_size=_QUEUE_SIZE,
            max_batch_wait_ms=plan.max_batch_wait_ms,
            timeout_ms=plan.timeout_ms,
            max_tasks_per_child=plan.max_tasks_per_child,
        )
        self.bridge = ProcessBridge("handle", rules, self._lanes, world.loop.time, _LOG)

    # -- the member's side -------------------------------------------------------------------

    async def start(self) -> None:
        """Start them; the first ones always can be."""
        await self.bridge.start()
        self._has_started = True
        for window in self._plan.no_starts:
            self._at(window.begin, self._kill_all)
        for window in self._plan.freezes:
            self._at(window.begin, lambda seconds=window.end - window.begin: self._freeze_one(seconds))

    async def close(self) -> None:
        """End them, as an app does at its end."""
        await self.bridge.close(_CLOSE_SECONDS)
        found = self.bridge.statistics
        met = self._world.states
        met["child killed for its time"] += found.kills["timeout"]
        met["child killed with its record"] += found.kills["cancelled"]
        met["child replaced after its share"] += found.recycled

    def watched(self, _group: str, handler: Handler) -> Handler:
        """`handler`, run in the children."""
        self._invoke = handler.invoke
        return replace(
            handler, executor="process", bridge=self.bridge, invoke=self._call, timeout_seconds=None
        )

    async def _call(self, topic: str, partition: int, raw: RawRecord, attempt: int, generation: int) -> None:
        try:
            await self.bridge.run(topic, partition, raw, attempt, generation)
        finally:
            self.history.heard(self._member.name, TopicPartition(topic, partition), raw)

    def processes(self) -> list[str]:
        """Those that live, by the names that the loop knows them by."""
        return [lane.member for lane in self._alive()]

    def _alive(self) -> list[ModelledLane]:
        return [lane for lane in self._lanes.lanes if not lane.is_dead and lane.pid is not None]

    def _at(self, age: float, act: object) -> None:
        """Do something when the life is that old, unless it is older, or has healed by then."""

        def do() -> None:
            if not self._world.healed.is_set() and not self._member.ended.is_set():
                act()  # type: ignore[operator]

        if age > self._world.age:
            self._world.later(age - self._world.age, do)

    def _kill_all(self) -> None:
        """Somebody kills them, whatever they run."""
        for lane in self._alive():
            self._note_failure(lane)
            lane.die("killed by SIGKILL")

    def _freeze_one(self, seconds: float) -> None:
        """SIGSTOP to one of them, and SIGCONT later."""
        alive = self._alive()
        if alive:
            lane = alive[int(self._rng.random() * len(alive))]
            self._world.states["child frozen"] += 1
            self._note_failure(lane)
            lane.freeze()
            self._world.later(seconds, lane.thaw)

    def _note_failure(self, lane: ModelledLane) -> None:
        """What it is at fails, or will when its time is over."""
        if lane.job is not None:
            self._tallies.failures[_place(lane.job)] += 1

    # -- what goes wrong ---------------------------------------------------------------------

    def of_start(self) -> str | None:
        """See `LaneFaults`."""
        age = self._world.age
        is_time = any(window.begin <= age < window.end for window in self._plan.no_starts)
        if not self._has_started or not is_time or self._world.healed.is_set():
            return None
        self._world.states["child did not start"] += 1
        self._world.states["no child could be started"] += self.bridge.refusal is not None
        return "no child starts, by plan"

    def of_reply(self, _batch: Batch) -> float | Literal["torn"]:
        """See `LaneFaults`."""
        draw = self._rng.random()
        if self._world.healed.is_set() or draw >= self._plan.late + self._plan.torn:
            return 0.0
        if draw < self._plan.torn:
            self._world.states["child died in its reply"] += 1
            return "torn"
        self._world.states["child replied late"] += 1
        return _LATEST_REPLY_SECONDS * self._rng.random()

    # -- in a child --------------------------------------------------------------------------

    @property
    def _tallies(self) -> Tallies:
        return self._world.tallies

    async def _run(self, job: Job) -> JobFailure | None:
        """One call; the handler itself notes it."""
        assert self._invoke is not None
        self._judge_attempt(job)
        if self._is_deadly(job):
            await self._crash(job)
        progress = _own_lane().progress()
        assert progress is not None, "this is what it runs"
        try:
            await self._invoke(job.topic, job.partition, job, job.attempt, job.generation)
        except asyncio.CancelledError:
            timeout_ms = self._plan.timeout_ms
            # As the bridge counts: the handler itself began a moment later.
            if timeout_ms is not None and self._world.loop.time() > (
                progress.started_ns / 1e9 + timeout_ms / 1000
            ):
                self._tallies.failures[_place(job)] += 1
            raise
        except Exception as error:  # noqa: BLE001 - as a child does
            self._tallies.failures[_place(job)] += 1
            return failure_of(error)
        return None

    def _judge_attempt(self, job: Job) -> None:
        """An attempt is counted for nothing but a run that failed."""
        failed = self._tallies.failures[_place(job)]
        if job.attempt > failed + 1:
            self._world.problems.append(
                f"{self._member.name}: {job.topic}[{job.partition}] offset {job.offset} runs as attempt "
                f"{job.attempt}, and {failed} of its runs had failed"
            )

    def _is_deadly(self, job: Job) -> bool:
        """By the record alone, so that a repetition of this life meets it again."""
        if self._world.healed.is_set():
            return False
        draw = self._world.plan.rng(f"crash {job.topic}/{job.partition}/{job.offset}").random()
        deaths = 2 if draw < self._plan.crashing_twice else int(draw < self._plan.crashing)
        return self._tallies.crashes[_place(job)] < deaths

    async def _crash(self, job: Job) -> None:
        """The child dies of `job`, in the middle of it."""
        tp, member = TopicPartition(job.topic, job.partition), self._member
        with (
            suppress(_DeadlyError),
            handling(self.history, member.name, tp, job.offset, job.key, member.lease_from),
        ):
            await asyncio.sleep(_CRASH_SECONDS)
            raise _DeadlyError
        self._tallies.failures[_place(job)] += 1
        self._tallies.crashes[_place(job)] += 1
        self._world.states["child crashed"] += 1
        _own_lane().die("killed by SIGSEGV")
        await asyncio.Event().wait()  # where it is cancelled


class _ChildHistory(Recorder):
    """Of one member's children: starts as they come, ends when the member hears of them."""

    def __init__(self, history: Recorder) -> None:
        super().__init__(history.clock)
        self._history = history
        self._ends: dict[tuple[TopicPartition, int], str] = {}
        """What has started and was not heard of yet, and how it ended."""

    def append(self, event: Event) -> None:
        """See `Recorder`."""
        self._ends[event.tp, event.offset] = "cancelled" if event.kind == "start" else event.detail
        if event.kind == "start":
            self._history.append(event)

    def heard(self, member: str, tp: TopicPartition, raw: RawRecord) -> None:
        """The member knows what became of a record; where that was run, its end is noted."""
        detail = self._ends.pop((tp, raw.offset), None)
        if detail is not None:
            self._history.note("end", member, tp, raw.offset, raw.key, detail)


class _DeadlyError(Exception):
    """What a child dies of."""


def _own_lane() -> ModelledLane:
    """Of the child that this runs in."""
    lane = CALL.get()
    assert isinstance(lane, ModelledLane)
    return lane


def _place(job: Job) -> tuple[str, int, int]:
    return job.topic, job.partition, job.offset
