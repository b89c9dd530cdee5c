"""Dead letters for tests, made by the runtime's own function, and a topic of them in memory.

Used by the tests of `asyncpar.admin` and of `asyncpar dlq`. Never here: Kafka.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Any

from asyncpar.admin.dead_letters import DeadLetter
from asyncpar.admin.replay import Replay, ReplayReport, ReplayRequest
from asyncpar.errors import OffsetOutOfRangeError
from asyncpar.ports import Producer
from asyncpar.records import Committed, OutgoingRecord, RawRecord, TopicPartition
from asyncpar.runtime.letters import Failure, Source, dead_letter
from asyncpar.testing.memory_broker import MemoryBroker
from asyncpar.testing.memory_log import MemoryRecord

DLQ = "orders.dlq"
SOURCE = "orders"


def letter(
    number: int = 0,
    *,
    key: bytes | None = b"k",
    value: bytes | None = None,
    headers: tuple[tuple[str, bytes], ...] = (("trace", b"t1"),),
    source: str = SOURCE,
    handler: str = "bill",
    group: str = "billing",
    reason: str = "exhausted",
    error: BaseException | None = ValueError("no such customer"),  # noqa: B008 - it is only looked at
    attempts: int = 5,
    failed_ms: int = 2_000_000,
    metadata_only: bool = False,
    topic: str = DLQ,
) -> OutgoingRecord:
    """What the runtime writes for record `number` of `source` when a handler gave it up."""
    text = b"value-%d" % number if value is None else value
    record = MemoryRecord(number, key, text, headers, 1_000_000 + number)
    failure = Failure(group, handler, attempts, reason, error, 1_500_000, failed_ms)
    return dead_letter(
        topic, Source(TopicPartition(source, 0), number, record), failure, metadata_only=metadata_only
    )


def stray(key: bytes | None = b"k", value: bytes = b"foreign") -> OutgoingRecord:
    """A record of some other program in the dead-letter topic."""
    return OutgoingRecord(DLQ, key, value)


def read_back(
    record: OutgoingRecord, offset: int = 0, partition: int = 0, timestamp: int = 3_000_000
) -> DeadLetter:
    """`record` as it is found in the dead-letter topic."""
    found = MemoryRecord(offset, record.key, record.value, record.headers, timestamp)
    return DeadLetter(TopicPartition(record.topic, partition), found)


class MemoryLetterLog:
    """`LetterLog` on a `MemoryBroker`, at most `most` records in a read. `commits` counts them."""

    def __init__(self, broker: MemoryBroker, most: int = 3) -> None:
        self.broker = broker
        self.most = most
        self.commits = 0
        self.fails_at_commit: int | None = None

    async def partitions(self, topic: str) -> tuple[TopicPartition, ...]:
        return tuple(self.broker.partitions(topic))

    async def bounds(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, tuple[int, int]]:
        return {tp: self.broker.bounds(tp, committed=True) for tp in partitions}

    async def offsets_at(
        self, partitions: Collection[TopicPartition], time_ms: int
    ) -> dict[TopicPartition, int | None]:
        def first(tp: TopicPartition) -> int | None:
            later = (one.offset for one in self.broker.log(tp).records if one.timestamp >= time_ms)
            return next(later, None)

        return {tp: first(tp) for tp in partitions}

    async def read(self, tp: TopicPartition, offset: int) -> tuple[list[RawRecord], int]:
        log = self.broker.log(tp)
        if not log.has(offset):
            raise OffsetOutOfRangeError({tp: offset})
        found = log.read(offset, self.most, True)
        assert found.next_offset > offset, "read at the end"
        return found.records, found.next_offset

    async def delete_before(self, offsets: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        for tp, offset in offsets.items():
            self.broker.log(tp).delete_before(offset)
        return dict(offsets)

    async def committed(
        self, group: str, partitions: Collection[TopicPartition]
    ) -> dict[TopicPartition, Committed | None]:
        found = self.broker.committed(group)
        return {tp: found.get(tp) for tp in partitions}

    async def commit(self, group: str, offsets: Mapping[TopicPartition, Committed]) -> None:
        self.commits += 1
        if self.commits == self.fails_at_commit:
            raise KilledError
        self.broker.store_offsets(group, offsets)


class KilledError(BaseException):
    """Stands for a kill -9: nothing that comes after it is done."""


class Cluster:
    """A dead-letter topic and its source in memory, and replays of it."""

    def __init__(self, partitions: int = 1) -> None:
        self.broker = MemoryBroker()
        self.broker.create_topic(SOURCE)
        self.broker.create_topic(DLQ, partitions)
        self.log = MemoryLetterLog(self.broker)
        self.stop = asyncio.Event()
        self.announced: list[tuple[str, str]] = []
        self.advanced = 0

    def put(
        self, *records: OutgoingRecord, partition: int | None = None, timestamp_ms: int = 3_000_000
    ) -> None:
        """Append to the dead-letter topic."""
        for one in records:
            self.broker.send(
                DLQ, one.value, one.key, one.headers, partition=partition, timestamp_ms=timestamp_ms
            )

    def values(self, topic: str = SOURCE) -> list[bytes | None]:
        """What lies in partition 0 of `topic`."""
        return [one.value for one in self.broker.log(TopicPartition(topic, 0)).records]

    @asynccontextmanager
    async def producer(self) -> AsyncIterator[Producer]:
        """A producer that has started."""
        one = self.broker.producer()
        await one.start()
        try:
            yield one
        finally:
            await one.stop(1.0)

    async def replay(self, *, dry_run: bool = False, **options: Any) -> ReplayReport:
        """One replay from start to end."""
        request = ReplayRequest(**{"topic": DLQ, "group": "replays", **options})
        async with self.producer() as producer:
            replay = Replay(
                request, self.log, None if dry_run else producer, self.stop, self._advance, self._announce
            )
            return await replay.run(await replay.plan())

    def _advance(self, offsets: int) -> None:
        self.advanced += offsets

    def _announce(self, found: DeadLetter, topic: str) -> None:
        self.announced.append((found.place, topic))
