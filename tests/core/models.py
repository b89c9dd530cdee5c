"""Builders and small drivers that the tests of the pure core share.

What lives here: records, opened partitions, a worker's way of taking and finishing without asyncio, and how
much Hypothesis may try. What never does: asyncio, clocks, Kafka, assertions about one module. Imported by
tests/core/test_*.py only.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from hypothesis import HealthCheck, settings

from asyncpar.core.assignment import Event, Partition
from asyncpar.core.commits import Consequence, MetadataBudget, draft, settle
from asyncpar.core.offset_codec import decode
from asyncpar.core.offsets import OffsetTracker, Run
from asyncpar.core.virtual_partitions import Queues, ReadyQueue, VirtualPartition
from asyncpar.records import CommitAnswer, Committed, RawRecord, TopicPartition

TP = TopicPartition("orders", 3)


def bounded(examples: int, steps: int = 30) -> settings:
    """The same examples in every run, and no more of them than the suite has time for."""
    return settings(
        derandomize=True,
        database=None,
        deadline=None,
        max_examples=examples,
        stateful_step_count=steps,
        suppress_health_check=[HealthCheck.too_slow],
    )


@dataclass(frozen=True, slots=True)
class FakeRecord:
    """A raw record with what the core looks at."""

    offset: int
    key: bytes | None = None
    value: bytes | None = b""
    headers: Sequence[tuple[str, bytes]] = ()
    timestamp: int = -1
    timestamp_type: int = 0


def records(*offsets: int, key: bytes | None = None) -> list[RawRecord]:
    """A chunk with these offsets, all of one key."""
    return [FakeRecord(offset, key) for offset in offsets]


def key_of(topic: str, record: RawRecord) -> Hashable:
    """The record's own key orders it."""
    return record.key


def opened(
    start: int = 0,
    done: Iterable[Run] = (),
    route: ReadyQueue | None = None,
    tp: TopicPartition = TP,
) -> Partition:
    """A partition that was assigned and opened at `start` with `done` above it."""
    partition = Partition(tp, 1)
    partition.tracker = OffsetTracker(start, done)
    partition.queues = Queues(tp, 1, partition.tracker, route)
    partition.apply(Event.OPENED)
    return partition


def tracker_of(partition: Partition) -> OffsetTracker:
    """The tracker of an opened partition."""
    assert partition.tracker is not None
    return partition.tracker


def queues_of(partition: Partition) -> Queues:
    """The queues of an opened partition."""
    assert partition.queues is not None
    return partition.queues


def deliver(partition: Partition, chunk: Sequence[RawRecord]) -> Sequence[RawRecord]:
    """Admit and queue a fetched chunk; returns what was let in."""
    fresh = tracker_of(partition).admit(chunk)
    assert queues_of(partition).enqueue(iter(fresh), key_of) is None
    return fresh


def offset_of(vp: VirtualPartition) -> int:
    """The offset of the record that runs or runs next."""
    assert vp.head is not None
    return vp.head.offset


def take(handler: ReadyQueue) -> VirtualPartition | None:
    """What a worker of `handler` would run next; what the gate forbids is held on the way."""
    while handler.ready:
        vp = handler.ready.popleft()
        if offset_of(vp) >= vp.queues.start_below:
            vp.queues.hold(vp)
            continue
        return vp
    return None


def take_all(handler: ReadyQueue) -> list[VirtualPartition]:
    """Everything that endless workers would run at once."""
    taken: list[VirtualPartition] = []
    while (vp := take(handler)) is not None:
        taken.append(vp)
    return taken


def settle_success(vp: VirtualPartition, inlined: bool = True) -> bool:
    """The running head succeeded: what a worker does then. False when its tracker does not hold it.

    `inlined`: the worker's own copy of the plain case of `Queues.finish`.
    """
    queues, offset, rest = vp.queues, offset_of(vp), vp.rest
    if queues.unfinished.pop(offset, None) is None:
        return False
    if not inlined or queues.route is None or queues.attempts:
        queues.finish(vp)
    elif rest:
        vp.head = rest.popleft()
        queues.route.ready.append(vp)
    elif vp.key is not None:
        del queues.by_key[vp.key]
    return True


def runs_of(committed: Committed) -> list[Run]:
    """The runs that a commit of `TP` lists as done."""
    runs = decode(TP, committed.offset, committed.metadata)
    assert isinstance(runs, list)
    return runs


def commit_until_stored(partition: Partition, budget: MetadataBudget, broker_limit: int) -> Committed | None:
    """Commit as the committer does, with a broker that refuses long metadata; None when nothing was new."""
    for _ in range(16):
        made = draft(partition, budget)
        if made is None:
            return None
        fits = len(made.committed.metadata) <= broker_limit
        answer = CommitAnswer.ACKNOWLEDGED if fits else CommitAnswer.METADATA_TOO_LARGE
        if settle(made, answer, budget) is Consequence.STORED:
            return made.committed
    raise AssertionError("the broker's limit was not found in 16 refusals")


def may_fetch(partition: Partition) -> bool:
    """What backpressure says while the metadata is near the cap."""
    return queues_of(partition).start_below > tracker_of(partition).position
