"""One member under test and a listener that notes what it is told, for the tests of the aiokafka adapter."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any

from asyncpar.adapters.aiokafka_config import ClientConfig
from asyncpar.adapters.aiokafka_consumer import AiokafkaConsumer
from asyncpar.ports import Subscription
from asyncpar.records import GroupToken, RawRecord, TopicPartition

WAIT_SECONDS = 15.0


class Member:
    """A consumer with its listener. `on_revoked`, when set, runs inside revoked()."""

    def __init__(self, bootstrap: str, group: str, **settings: Any) -> None:
        fast: dict[str, Any] = {"heartbeat_interval_ms": 200, "max_revoke_grace_ms": 3_000, **settings}
        self.config = ClientConfig(bootstrap_servers=bootstrap, **fast)
        self.consumer = AiokafkaConsumer(self.config, group)
        self.partitions: frozenset[TopicPartition] = frozenset()
        self.token = GroupToken(-1, "")
        self.said: list[str] = []
        self.on_revoked: Callable[[frozenset[TopicPartition]], Awaitable[None]] | None = None
        self._news = asyncio.Event()

    def _note(self, what: str) -> None:
        self.said.append(what)
        self._news.set()

    def assigned(self, partitions: frozenset[TopicPartition], token: GroupToken) -> None:
        self.partitions, self.token = partitions, token
        self._note("assigned")

    async def revoked(self, partitions: frozenset[TopicPartition]) -> None:
        assert partitions == self.partitions
        self._note("revoked")
        if self.on_revoked is not None:
            await self.on_revoked(partitions)
        self.partitions = frozenset()

    def lost(self, partitions: frozenset[TopicPartition]) -> None:
        assert partitions == self.partitions
        self.partitions = frozenset()
        self._note("lost")

    async def start(self, *topics: str, pattern: str | None = None) -> None:
        compiled = re.compile(pattern) if pattern is not None else None
        await self.consumer.start(Subscription(frozenset(topics), compiled), self)

    async def until(self, condition: Callable[[], Any], timeout_seconds: float = WAIT_SECONDS) -> None:
        """Wait until `condition` holds; it is looked at whenever the listener is told something."""
        async with asyncio.timeout(timeout_seconds):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def joined(
        self, count: int | None = None, timeout_seconds: float = WAIT_SECONDS
    ) -> list[TopicPartition]:
        """Wait until this member has `count` partitions (None: any assignment)."""
        await self.until(
            lambda: "assigned" in self.said[-1:] and (count is None or len(self.partitions) == count),
            timeout_seconds,
        )
        return sorted(self.partitions)

    async def read(
        self,
        wanted: Collection[TopicPartition],
        count: int,
        max_records: int = 500,
        timeout_seconds: float = WAIT_SECONDS,
    ) -> dict[TopicPartition, list[RawRecord]]:
        """Fetch until `count` records came."""
        got: dict[TopicPartition, list[RawRecord]] = {}
        async with asyncio.timeout(timeout_seconds):
            while sum(map(len, got.values())) < count:
                for chunk in await self.consumer.fetch(list(wanted), max_records, 100):
                    got.setdefault(TopicPartition(chunk.topic, chunk.partition), []).extend(chunk.records)
                await asyncio.sleep(0)
        return got


async def eventually(condition: Callable[[], Any], timeout_seconds: float = WAIT_SECONDS) -> None:
    """Wait until `condition` holds, for what nobody announces."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def member(
    bootstrap: str, group: str, *topics: str, pattern: str | None = None, **settings: Any
) -> AsyncIterator[Member]:
    """A started member, stopped at the end."""
    made = Member(bootstrap, group, **settings)
    try:
        await made.start(*topics, pattern=pattern)
        yield made
    finally:
        await made.consumer.stop(6.0)
