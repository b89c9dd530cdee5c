"""A group on virtual time whose handler runs in modelled child processes: what its tests call and look at.

What lives here: `BridgeGroup`, from start to stop, over a consumer in memory. What never does: an assertion
on what a test is about. Always: what it started has ended when its block ends.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import logging
from collections import defaultdict
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from asyncpar.context import heartbeat
from asyncpar.core.assignment import State
from asyncpar.executors.invoke import invocation
from asyncpar.executors.lane_port import Job, JobFailure
from asyncpar.executors.process_bridge import BridgeRules, ProcessBridge
from asyncpar.middleware import Middleware
from asyncpar.ports import Subscription
from asyncpar.records import TopicPartition
from asyncpar.runtime.group_state import Clock
from asyncpar.runtime.runtime import GroupRuntime
from asyncpar.runtime.workers import HandlerPool
from asyncpar.signatures import plan_call
from asyncpar.testing.modelled_lanes import ModelledLanes
from asyncpar.testing.virtual_time import VirtualLoop
from asyncpar.topics import specs_of, topic
from tests.executors.bridge_world import PlannedFaults
from tests.runtime.fakes import FakeConsumer, FakeProducer, FakeRecord, config, handler
from tests.testing.virtually import loop, now

PARENT = "parent"
T0, T1 = TopicPartition("t", 0), TopicPartition("t", 1)


@dataclass
class VirtualConsumer(FakeConsumer):
    """Its lease and its deadlines are virtual, too. `lease_stops_at`: when heartbeats were last answered."""

    def lease_from(self) -> float:
        """See the port."""
        return now() if self.lease_stops_at is None else self.lease_stops_at

    def drain_deadline(self) -> float:
        """See the port."""
        return now() + self.seconds_to_drain


@dataclass(frozen=True)
class Span:
    """A record in a child, from its start to its end; `end` None: it was cut off."""

    partition: int
    offset: int
    key: bytes | None
    start: float
    end: float | None


@dataclass
class BridgeGroup:
    """The group. Say before the block what shall happen; `seconds`, `failures`, `faults` at any time."""

    logs: dict[TopicPartition, list[FakeRecord]]
    rules: BridgeRules = field(default_factory=lambda: BridgeRules(1, 4, 100, 0))
    values: dict[str, Any] = field(default_factory=dict)
    """Of the handler, see `fakes.handler`; `concurrency` is what the rules give unless it is here."""
    config: dict[str, Any] = field(default_factory=dict)
    middlewares: Sequence[Middleware] = ()
    seconds: dict[int, float] = field(default_factory=lambda: defaultdict(lambda: 0.001))
    """What a record takes, by offset."""
    failures: dict[int, JobFailure] = field(default_factory=dict)
    gates: dict[int, asyncio.Event] = field(default_factory=dict)
    """A record with a gate ends when that is open."""
    beating: dict[int, float] = field(default_factory=dict)
    """Records that call `heartbeat()`, and every how many seconds."""

    def __post_init__(self) -> None:
        self.faults = PlannedFaults()
        self.children = ModelledLanes(self._run, self.faults, timeout_ms=self.rules.timeout_ms)
        self.consumer = VirtualConsumer(self.logs)
        self.producer = FakeProducer()
        self.jobs: list[Job] = []
        """As they started."""
        self.spans: list[Span] = []
        """As they ended."""
        self.task: asyncio.Task[None] | None = None
        log = logging.getLogger("test.bridge")
        clock = loop().time
        self.bridge = ProcessBridge("handle", self.rules, self.children, clock, log)
        self.runtime = GroupRuntime(
            "g",
            [self._handler()],
            Subscription(frozenset({"t"})),
            config(**self.config),
            lambda group: self.consumer,
            clock=Clock(clock, clock, lambda: 0.5),
            producers=lambda: self.producer,
        )

    def _handler(self) -> Any:
        @topic("t", name="handle")
        def handle(body: bytes) -> None:
            raise AssertionError("it runs in a child")

        [spec] = specs_of(handle)
        call = invocation(plan_call(spec, group="g"), None, self.middlewares, self.bridge)
        values = {"concurrency": self.rules.slots, **self.values}
        made = handler(lambda record: None, **values)  # type: ignore[arg-type,return-value]
        return replace(made, executor="process", bridge=self.bridge, invoke=call.invoke, judged=call.judged)

    # -- its life ----------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.as_parent(self.bridge.start())
        self.task = self.as_parent(self.runtime.run())
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self.task is not None
        if not self.task.done():
            self.runtime.stop(now=True)
        await asyncio.wait({self.task}, timeout=60)
        assert self.task.done(), "the group did not end"
        if not self.task.cancelled():
            self.task.exception()
        await self.bridge.close(1.0)
        await asyncio.sleep(0.1)
        assert all(lane.is_dead for lane in self.children.lanes)
        assert loop().errors == []

    async def stop(self) -> None:
        """A full stop; raises what the run raises."""
        assert self.task is not None
        self.runtime.stop()
        async with asyncio.timeout(60):
            await self.task

    @staticmethod
    def as_parent(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task of the process that a test may freeze, without its children."""
        context: contextvars.Context = VirtualLoop.context_of(PARENT)
        return asyncio.get_running_loop().create_task(work, context=context)

    def revoke(self, *partitions: TopicPartition) -> asyncio.Task[Any]:
        """The group takes them (all) back."""
        return self.as_parent(self.consumer.revoke(partitions or None))

    # -- the child's side --------------------------------------------------------------------

    async def _run(self, job: Job) -> JobFailure | None:
        self.jobs.append(job)
        started, ended = now(), False
        try:
            await self._take_time(job)
            ended = True
        finally:
            self.spans.append(Span(job.partition, job.offset, job.key, started, now() if ended else None))
        return self.failures.get(job.offset)

    async def _take_time(self, job: Job) -> None:
        gate = self.gates.get(job.offset)
        if gate is not None:
            await gate.wait()
        left = self.seconds[job.offset]
        pause = self.beating.get(job.offset, left)
        while left > 0:
            await asyncio.sleep(min(pause, left))
            left -= pause
            if job.offset in self.beating:
                heartbeat()

    # -- to look at --------------------------------------------------------------------------

    @property
    def pool(self) -> HandlerPool:
        """The handler's workers."""
        return self.runtime.state.pools[0]

    @property
    def started(self) -> list[int]:
        """Offsets as they started in children."""
        return [job.offset for job in self.jobs]

    @property
    def attempts(self) -> dict[int, list[int]]:
        """The numbers of the attempts that children saw, by offset."""
        found: dict[int, list[int]] = {}
        for job in self.jobs:
            found.setdefault(job.offset, []).append(job.attempt)
        return found

    @property
    def state(self) -> State | None:
        """Of partition 0; None while it is not assigned."""
        partition = self.runtime.state.partitions.get(T0)
        return None if partition is None else partition.state

    def committed(self, tp: TopicPartition = T0) -> int:
        """What is stored; 0 without a commit."""
        return self.consumer.stored[tp].offset if tp in self.consumer.stored else 0

    def check_keys(self) -> None:
        """Records of one key and partition ran in the order of their offsets, one at a time."""
        by_key: dict[tuple[int, bytes | None], list[Span]] = {}
        for span in sorted(self.spans, key=lambda one: one.start):
            by_key.setdefault((span.partition, span.key), []).append(span)
        for spans in by_key.values():
            assert [one.offset for one in spans] == sorted(one.offset for one in spans)
            for one, after in itertools.pairwise(spans):
                assert one.end is not None and one.end <= after.start, (one, after)
