"""An in-memory broker with members that note what they are told, and a link that can be cut or slowed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from contextvars import Context
from typing import Any, TypeVar

from asyncpar.adapters.aiokafka_config import ClientConfig
from asyncpar.ports import Subscription
from asyncpar.records import CommitAnswer, Committed, TopicPartition
from asyncpar.testing.memory_broker import MemoryBroker
from asyncpar.testing.memory_consumer import MemoryConsumer
from tests.testing.contract_member import Listener

T = TypeVar("T")

GROUP = "g"


class Troubles:
    """A link: requests in `mute` are never heard, those in `slow` take so many seconds each way."""

    def __init__(self) -> None:
        self.mute: set[str] = set()
        self.slow: dict[str, float] = {}
        self.log: list[tuple[str, str]] = []

    async def __call__(self, request: str, member: str, serve: Callable[[], T]) -> T:
        self.log.append((member, request))
        if request in self.mute:
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(self.slow.get(request, 0.0))
        answer = serve()
        await asyncio.sleep(self.slow.get(request, 0.0))
        return answer


class MemoryListener(Listener):
    """A member of a `MemoryWorld`."""

    consumer: MemoryConsumer

    async def commit(self, offset: int, metadata: str = "", timeout_s: float = 5.0) -> set[CommitAnswer]:
        """Commit `offset` for all it holds, with its token; the answers."""
        offsets = dict.fromkeys(self.partitions, Committed(offset, metadata))
        return set((await self.consumer.commit(self.token, offsets, timeout_s)).values())


class MemoryWorld:
    """A broker with topic `t` of `partitions` partitions, each with `records` records."""

    def __init__(self, partitions: int = 2, records: int = 0, **settings: Any) -> None:
        self.link = Troubles()
        self.broker = MemoryBroker(link=self.link, wall=lambda: 0.0)
        self.broker.create_topic("t", partitions)
        self.settings = settings
        for at in range(partitions * records):
            self.broker.send("t", b"v", partition=at % partitions)

    def member(self, name: str = "", *, cooperative: bool = False, **settings: Any) -> MemoryListener:
        """A member that was not started."""
        config = ClientConfig(**{**self.settings, **settings})
        return MemoryListener(self.broker.consumer(GROUP, name, config, cooperative=cooperative))

    async def start(
        self,
        name: str = "",
        *topics: str,
        pattern: str | None = None,
        cooperative: bool = False,
        within: Context | None = None,
        **settings: Any,
    ) -> MemoryListener:
        """A member that was started, `within` the context of a simulated process if one is given."""
        one = self.member(name, cooperative=cooperative, **settings)
        wish = Subscription(frozenset(topics or (() if pattern else ("t",))), pattern and re.compile(pattern))
        await asyncio.create_task(one.consumer.start(wish, one), context=within)
        return one

    def tp(self, partition: int) -> TopicPartition:
        """A partition of `t`."""
        return TopicPartition("t", partition)


async def stop(*members: MemoryListener) -> None:
    """Stop them all."""
    await asyncio.gather(*(member.consumer.stop(3) for member in members))
