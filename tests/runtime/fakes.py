"""A consumer in memory for the runtime's tests: a log per partition, a group of one, faults on request.

It keeps the port's promises and nothing more; what it was told is recorded for the tests to read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from asyncpar.core.backpressure import Limits
from asyncpar.core.failures import FailureRules
from asyncpar.errors import BrokerError, PublishError
from asyncpar.ports import AssignmentListener, Late, Subscription
from asyncpar.records import (
    Chunk,
    CommitAnswer,
    Committed,
    GroupToken,
    OutgoingRecord,
    RawRecord,
    TopicPartition,
)
from asyncpar.runtime.config import RuntimeConfig
from asyncpar.runtime.handlers import Handler
from asyncpar.runtime.runtime import GroupRuntime

WAIT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class FakeRecord:
    """A raw record."""

    offset: int
    key: bytes | None = None
    value: bytes | None = b""
    headers: Sequence[tuple[str, bytes]] = ()
    timestamp: int = 0
    timestamp_type: int = 0


@dataclass
class FakeConsumer:
    """One member; the group is what the test makes of it."""

    logs: dict[TopicPartition, list[FakeRecord]]
    stored: dict[TopicPartition, Committed] = field(default_factory=dict)
    positions: dict[TopicPartition, int] = field(default_factory=dict)
    commits: list[dict[TopicPartition, Committed]] = field(default_factory=list)
    answers: list[CommitAnswer] = field(default_factory=list)
    fetch_errors: list[BaseException] = field(default_factory=list)
    committed_errors: list[BaseException] = field(default_factory=list)
    begins: dict[TopicPartition, int] = field(default_factory=dict)
    ends: dict[TopicPartition, int] = field(default_factory=dict)
    end_reasons: dict[TopicPartition, str] = field(default_factory=dict)
    start_error: BaseException | None = None
    dead: BaseException | None = None
    lease_stops_at: float | None = None
    seconds_to_drain: float = 5.0
    group_has_commits: bool = False
    stopped: bool = False
    generation: int = 0
    before_fetch_returns: Callable[[], Awaitable[None]] | None = None
    hold_commits: asyncio.Event | None = None
    listener: AssignmentListener | None = None
    asked: list[frozenset[TopicPartition]] = field(default_factory=list)

    async def start(self, subscription: Subscription, listener: AssignmentListener) -> None:
        """Join and get every partition."""
        if self.start_error is not None:
            raise self.start_error
        self.listener = listener
        self.assign(self.logs)

    def assign(self, partitions: Iterable[TopicPartition]) -> None:
        """The group gives `partitions`."""
        assert self.listener is not None
        self.generation += 1
        self.positions.clear()
        self.listener.assigned(frozenset(partitions), GroupToken(self.generation, "member"))

    async def revoke(self, partitions: Iterable[TopicPartition] | None = None) -> None:
        """The group takes `partitions` (all) back."""
        assert self.listener is not None
        await self.listener.revoked(frozenset(self.logs if partitions is None else partitions))

    def lose(self) -> None:
        """The group gave everything to others."""
        assert self.listener is not None
        self.listener.lost(frozenset(self.logs))

    async def fetch(
        self,
        wanted: Sequence[TopicPartition],
        max_records: int,
        timeout_ms: int,
        max_per_partition: int | None = None,
    ) -> list[Chunk]:
        """See the port."""
        self.asked.append(frozenset(wanted))
        if self.fetch_errors:
            raise self.fetch_errors.pop(0)
        chunks: list[Chunk] = []
        left = max_records
        for tp in wanted:
            position = self.positions.get(tp)
            if position is None or left <= 0:
                continue
            room = min(left, max_per_partition or left)
            records: list[RawRecord] = [r for r in self.logs[tp] if r.offset >= position][:room]
            if records:
                self.positions[tp] = records[-1].offset + 1
                left -= len(records)
                chunks.append(Chunk(tp.topic, tp.partition, records))
        if self.before_fetch_returns is not None and chunks:
            await self.before_fetch_returns()
        if not chunks:
            for tp in wanted:
                if tp in self.ends and tp in self.positions:
                    self.positions[tp] = max(self.positions[tp], self.ends[tp])
            await asyncio.sleep(min(timeout_ms, 5) / 1000)
        return chunks

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """See the port."""
        self.positions[partition] = offset

    def position(self, partition: TopicPartition) -> int | None:
        """See the port."""
        return self.positions.get(partition)

    async def committed(
        self, partitions: Collection[TopicPartition]
    ) -> dict[TopicPartition, Committed | None]:
        """See the port."""
        if self.committed_errors:
            raise self.committed_errors.pop(0)
        return {tp: self.stored.get(tp) for tp in partitions}

    async def commit(
        self, token: GroupToken, offsets: Mapping[TopicPartition, Committed], timeout_s: float
    ) -> dict[TopicPartition, CommitAnswer]:
        """See the port; stores what is acknowledged."""
        if self.hold_commits is not None:
            await self.hold_commits.wait()
        self.commits.append(dict(offsets))
        answer = self.answers.pop(0) if self.answers else CommitAnswer.ACKNOWLEDGED
        if token.generation != self.generation:
            answer = CommitAnswer.STALE
        if answer is CommitAnswer.ACKNOWLEDGED:
            self.stored.update(offsets)
        return dict.fromkeys(offsets, answer)

    async def has_commits(self) -> bool:
        """See the port."""
        return self.group_has_commits or bool(self.stored)

    async def beginning(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """See the port."""
        return {tp: self.begins.get(tp, 0) for tp in partitions}

    async def end(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """See the port; `end_reasons` says for which partitions it fails."""
        failed = {tp: self.end_reasons[tp] for tp in partitions if tp in self.end_reasons}
        if failed:
            raise BrokerError("; ".join(failed.values()), failed)
        return {tp: self.end_of(tp) for tp in partitions}

    def end_of(self, tp: TopicPartition) -> int:
        """One past the last record, or further where the test says that markers follow."""
        records = self.logs.get(tp, [])
        last = records[-1].offset + 1 if records else 0
        return max(last, self.ends.get(tp, 0))

    def end_seen(self, partition: TopicPartition) -> tuple[int | None, int | None]:
        """See the port."""
        return self.end_of(partition), self.end_of(partition)

    def lease_from(self) -> float:
        """Always fresh, until the test stops it."""
        return time.monotonic() if self.lease_stops_at is None else self.lease_stops_at

    def drain_deadline(self) -> float:
        """See the port."""
        return time.monotonic() + self.seconds_to_drain

    def failure(self) -> BaseException | None:
        """See the port."""
        return self.dead

    async def stop(self, timeout_s: float) -> None:
        """See the port."""
        self.stopped = True


@dataclass
class FakeProducer:
    """Takes what is sent, unless the test says otherwise."""

    topics: dict[str, int] = field(default_factory=lambda: {"t.dlq": 1})
    sent: list[OutgoingRecord] = field(default_factory=list)
    refusals: list[PublishError] = field(default_factory=list)
    """One for each of the next tries."""
    down: PublishError | None = None
    hold: asyncio.Event | None = None
    """No try is answered before it is set."""
    is_started: bool = False
    is_stopped: bool = False

    async def start(self) -> None:
        """See the port."""
        self.is_started = True

    async def send(
        self, record: OutgoingRecord, timeout_s: float, late: Late | None = None
    ) -> tuple[TopicPartition, int]:
        """See the port."""
        if self.hold is not None:
            await self.hold.wait()
        await asyncio.sleep(0)
        if self.refusals:
            raise self.refusals.pop(0)
        if self.down is not None:
            raise self.down
        self.sent.append(record)
        return TopicPartition(record.topic, 0), len(self.sent) - 1

    async def partition_count(self, topic: str, timeout_s: float) -> int | None:
        """See the port."""
        return self.topics.get(topic)

    async def stop(self, timeout_s: float) -> None:
        """See the port."""
        self.is_stopped = True


def log(topic: str, *keys: str, partition: int = 0, start: int = 0) -> dict[TopicPartition, list[FakeRecord]]:
    """One partition whose records have `keys`, in order; the value is the key and the offset."""
    records = [
        FakeRecord(start + at, key.encode(), f"{key}:{start + at}".encode()) for at, key in enumerate(keys)
    ]
    return {TopicPartition(topic, partition): records}


def handler(
    function: Callable[[RawRecord], Awaitable[object]],
    *topics: str,
    attempts: int | None = None,
    **values: Any,
) -> Handler:
    """A handler that gets the raw record."""
    rules = FailureRules(
        attempts,
        1,
        5,
        skip_undecodable=values.pop("skip_undecodable", False),
        dead_letter=values.get("dead_letter") is not None,
    )
    settings: dict[str, Any] = {
        "name": "handle",
        "topics": topics or ("t",),
        "pattern": None,
        "executor": "async",
        "concurrency": 10,
        "judged": False,
        "key_of": None,
        "rules": rules,
        **values,
    }
    return Handler(invoke=lambda topic, partition, record, attempt, generation: function(record), **settings)


def config(**values: Any) -> RuntimeConfig:
    """Small and quick."""
    quick: dict[str, Any] = {
        "commit_interval_ms": 50,
        "max_revoke_grace_ms": 200,
        "shutdown_drain_timeout_ms": 2000,
    }
    return RuntimeConfig(**{**quick, **values})


def limits(**values: Any) -> Limits:
    """The defaults, with `values` in their place."""
    return Limits(
        values.get("max_in_flight", 5000),
        values.get("per_partition"),
        values.get("max_bytes", 64 * 1024 * 1024),
        values.get("batch", 500),
    )


class Running:
    """A group runtime in a task of its own, over a fake consumer."""

    def __init__(
        self,
        consumer: FakeConsumer,
        *handlers: Handler,
        more: Sequence[FakeConsumer] = (),
        producer: FakeProducer | None = None,
        **values: Any,
    ) -> None:
        self.consumer = consumer
        spare = [consumer, *more]
        self.runtime = GroupRuntime(
            "g",
            handlers,
            Subscription(frozenset({"t"})),
            config(**values),
            lambda group: spare.pop(0),
            producers=lambda: producer or FakeProducer(),
        )
        self.task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self.task = asyncio.create_task(self.runtime.run())
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self.task is not None
        if not self.task.done():
            self.runtime.stop(now=True)
            await asyncio.wait({self.task}, timeout=WAIT_SECONDS)
        if self.task.done() and not self.task.cancelled():
            self.task.exception()

    async def stop(self) -> None:
        """A full stop; raises what the run raises."""
        assert self.task is not None
        self.runtime.stop()
        async with asyncio.timeout(WAIT_SECONDS):
            await self.task


async def until(condition: Callable[[], bool], what: str = "the condition") -> None:
    """Let the loop run until `condition` holds; fails after a bound."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true in {WAIT_SECONDS} s"
        await asyncio.sleep(0.002)
