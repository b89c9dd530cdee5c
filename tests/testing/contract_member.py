"""A listener that notes what it is told, around any consumer: for the tests of the port's contract."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from asyncpar.ports import Consumer, Subscription
from asyncpar.records import GroupToken, RawRecord, TopicPartition

WAIT_SECONDS = 15.0


class Listener:
    """Takes whole and partial revokes; `on_revoked`, when set, runs inside revoked()."""

    def __init__(self, consumer: Consumer) -> None:
        self.consumer = consumer
        self.partitions: frozenset[TopicPartition] = frozenset()
        self.token = GroupToken(-1, "")
        self.said: list[str] = []
        self.taken: list[frozenset[TopicPartition]] = []
        self.on_revoked: Callable[[frozenset[TopicPartition]], Awaitable[None]] | None = None
        self._news = asyncio.Event()

    def _note(self, what: str) -> None:
        self.said.append(what)
        self._news.set()

    def assigned(self, partitions: frozenset[TopicPartition], token: GroupToken) -> None:
        self.partitions, self.token = self.partitions | partitions, token
        self._note("assigned")

    async def revoked(self, partitions: frozenset[TopicPartition]) -> None:
        assert partitions
        assert partitions <= self.partitions
        self.taken.append(partitions)
        self._note("revoked")
        if self.on_revoked is not None:
            await self.on_revoked(partitions)
        self.partitions -= partitions

    def lost(self, partitions: frozenset[TopicPartition]) -> None:
        assert partitions <= self.partitions
        self.partitions -= partitions
        self._note("lost")

    async def start(self, *topics: str) -> None:
        await self.consumer.start(Subscription(frozenset(topics)), self)

    async def until(self, condition: Callable[[], Any], timeout_seconds: float = WAIT_SECONDS) -> None:
        """Wait until `condition` holds; it is looked at whenever the listener is told something."""
        async with asyncio.timeout(timeout_seconds):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def joined(self, count: int) -> list[TopicPartition]:
        """Wait until it was last told of an assignment and holds `count` partitions."""
        await self.until(lambda: self.said[-1:] == ["assigned"] and len(self.partitions) == count)
        return sorted(self.partitions)

    async def read(
        self, wanted: Collection[TopicPartition], count: int, max_records: int = 500
    ) -> dict[TopicPartition, list[RawRecord]]:
        """Fetch until `count` records came."""
        got: dict[TopicPartition, list[RawRecord]] = {}
        async with asyncio.timeout(WAIT_SECONDS):
            while sum(map(len, got.values())) < count:
                for chunk in await self.consumer.fetch(list(wanted), max_records, 100):
                    got.setdefault(TopicPartition(chunk.topic, chunk.partition), []).extend(chunk.records)
                await asyncio.sleep(0)
        return got


def offsets(read: dict[TopicPartition, list[RawRecord]]) -> dict[TopicPartition, list[int]]:
    """The offsets alone."""
    return {tp: [record.offset for record in records] for tp, records in read.items()}


async def eventually(condition: Callable[[], Any]) -> None:
    """Wait until `condition` holds, for what nobody announces."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.01)


def moved_on(lease: Callable[[], float], before: float) -> Callable[[], bool]:
    """Whether the lease has moved on from `before`."""
    return lambda: lease() > before
