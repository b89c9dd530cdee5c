"""A consumer without a client: it makes records as they are asked for, and takes every commit.

What lives here: all of `asyncpar.ports.Consumer` over records that a function makes, and how long that
took. What never does: what is measured. Called by the workloads that look at asyncpar's own cost and memory
(P8, P11). Always: it is a member alone in its group, and hands out one partition after the other in turn,
each for as many records as a fetch may bring, as a client with full buffers does.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeAlias

from asyncpar.ports import AssignmentListener, Subscription
from asyncpar.records import Chunk, CommitAnswer, Committed, GroupToken, RawRecord, TopicPartition


class MadeRecord:
    """A raw record, with no more than it needs."""

    __slots__ = ("key", "offset", "timestamp", "value")
    headers: Sequence[tuple[str, bytes]] = ()
    timestamp_type = 0

    def __init__(self, offset: int, key: bytes | None, value: bytes) -> None:
        self.offset = offset
        self.key = key
        self.value = value
        self.timestamp = 0


Make: TypeAlias = Callable[[int, int, int], list[RawRecord]]
"""`(partition, offset, count)`: that many records of the partition from that offset on."""


class MadeConsumer:
    """`ends`: one past the last offset of each partition. Nothing is handed out from offset `up_to` on."""

    def __init__(self, ends: Mapping[TopicPartition, int], make: Make, *, up_to: int = sys.maxsize) -> None:
        self._ends = dict(ends)
        self._make = make
        self._positions: dict[TopicPartition, int] = {}
        self._turns = deque(ends)
        self.up_to = up_to
        self.stored: dict[TopicPartition, Committed] = {}
        """What was committed."""
        self.cpu_ns = 0
        """CPU time that making the records took, of which no consumer is guilty."""

    async def start(self, subscription: Subscription, listener: AssignmentListener) -> None:  # noqa: ARG002
        """Be given every partition."""
        listener.assigned(frozenset(self._ends), GroupToken(1, "alone"))

    async def fetch(
        self,
        wanted: Sequence[TopicPartition],
        max_records: int,
        timeout_ms: int,
        max_per_partition: int | None = None,
    ) -> list[Chunk]:
        """See the port. Waits when there is nothing, and does not suspend otherwise, as a client does."""
        began = time.process_time_ns()
        chunks = self._take(set(wanted), max_records, max_per_partition or max_records)
        self.cpu_ns += time.process_time_ns() - began
        if not chunks:
            await asyncio.sleep(timeout_ms / 1000)
        return chunks

    def _take(self, wanted: Collection[TopicPartition], budget: int, share: int) -> list[Chunk]:
        chunks: list[Chunk] = []
        for _ in range(len(self._turns)):
            if budget <= 0:
                break
            tp = self._turns[0]
            self._turns.rotate(-1)
            position = self._positions.get(tp)
            if tp not in wanted or position is None:
                continue
            count = min(budget, share, min(self._ends[tp], self.up_to) - position)
            if count > 0:
                chunks.append(Chunk(tp.topic, tp.partition, self._make(tp.partition, position, count)))
                self._positions[tp] = position + count
                budget -= count
        return chunks

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """See the port."""
        self._positions[partition] = offset

    def position(self, partition: TopicPartition) -> int | None:
        """See the port."""
        return self._positions.get(partition)

    async def committed(
        self, partitions: Collection[TopicPartition]
    ) -> dict[TopicPartition, Committed | None]:
        """See the port."""
        return {tp: self.stored.get(tp) for tp in partitions}

    async def commit(
        self,
        token: GroupToken,  # noqa: ARG002 - there is but one
        offsets: Mapping[TopicPartition, Committed],
        timeout_s: float,  # noqa: ARG002 - it is done at once
    ) -> dict[TopicPartition, CommitAnswer]:
        """See the port."""
        self.stored.update(offsets)
        return dict.fromkeys(offsets, CommitAnswer.ACKNOWLEDGED)

    async def has_commits(self) -> bool:
        """See the port."""
        return bool(self.stored)

    async def beginning(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """See the port."""
        return dict.fromkeys(partitions, 0)

    async def end(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """See the port."""
        return {tp: self._ends[tp] for tp in partitions}

    def end_seen(self, partition: TopicPartition) -> tuple[int | None, int | None]:
        """See the port."""
        return self._ends[partition], self._ends[partition]

    def lease_from(self) -> float:
        """Always fresh."""
        return time.monotonic()

    def drain_deadline(self) -> float:
        """See the port."""
        return time.monotonic() + 5.0

    def failure(self) -> BaseException | None:
        """It does not die."""
        return None

    async def stop(self, timeout_s: float) -> None:
        """Nothing is left to close."""
