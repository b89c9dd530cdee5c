"""The clusters that the contract is tested on: the in-memory one, and a real one behind the adapter."""

from __future__ import annotations

import asyncio
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from confluent_kafka import Producer

from asyncpar.adapters.aiokafka_config import ClientConfig
from asyncpar.adapters.aiokafka_consumer import AiokafkaConsumer
from asyncpar.ports import Consumer
from asyncpar.records import TopicPartition
from asyncpar.testing.memory_broker import MemoryBroker
from tests import kafka_tools
from tests.conftest import TopicFactory
from tests.kafka_broker import KafkaBroker
from tests.kafka_tools import Record, produce
from tests.testing.contract_member import Listener

QUICK: dict[str, Any] = {"heartbeat_interval_ms": 200, "max_revoke_grace_ms": 3_000}


class World(ABC):
    """A cluster that a test can write to."""

    group: str

    @abstractmethod
    def consumer(self, config: ClientConfig) -> Consumer:
        """A consumer of this world's group."""

    @abstractmethod
    async def make_topic(self, partitions: int = 1) -> str:
        """A fresh topic."""

    @abstractmethod
    async def send(self, topic: str, count: int, partition: int = 0) -> None:
        """Append records without keys, whose values number them."""

    @abstractmethod
    async def send_keyed(self, topic: str, keys: list[bytes]) -> list[int]:
        """Append one record per key, where the key says; returns the partitions."""

    @abstractmethod
    async def send_aborted(self, topic: str, count: int) -> None:
        """Append records of an aborted transaction to partition 0."""

    @abstractmethod
    async def open_transaction(self, topic: str, count: int) -> Callable[[], Awaitable[None]]:
        """Append records of a transaction to partition 0; what it returns commits it."""

    @abstractmethod
    async def down(self) -> None:
        """The whole cluster dies."""

    @abstractmethod
    async def up(self) -> None:
        """It comes back, with all it had."""

    @abstractmethod
    async def delete_before(self, topic: str, offset: int) -> None:
        """Delete the records of partition 0 below `offset`."""

    @abstractmethod
    async def add_partitions(self, topic: str, total: int) -> None:
        """Let the topic grow."""

    def member(self, **settings: Any) -> Listener:
        """A member that was not started."""
        return Listener(self.consumer(ClientConfig(**{**self.address(), **QUICK, **settings})))

    def address(self) -> dict[str, Any]:
        """What a configuration needs to find the cluster."""
        return {}

    @asynccontextmanager
    async def joined(self, topic: str, count: int, **settings: Any) -> AsyncIterator[Listener]:
        """A started member with `count` partitions, stopped at the end."""
        one = self.member(**settings)
        try:
            await one.start(topic)
            await one.joined(count)
            yield one
        finally:
            await one.consumer.stop(6.0)


class MemoryWorld(World):
    """The in-memory broker."""

    def __init__(self) -> None:
        self.group = "group"
        self.broker = MemoryBroker()
        self._made = 0

    def consumer(self, config: ClientConfig) -> Consumer:
        return self.broker.consumer(self.group, config=config)

    async def make_topic(self, partitions: int = 1) -> str:
        self._made += 1
        self.broker.create_topic(f"topic-{self._made}", partitions)
        return f"topic-{self._made}"

    async def send(self, topic: str, count: int, partition: int = 0) -> None:
        for i in range(count):
            self.broker.send(topic, b"%d" % i, partition=partition)

    async def send_keyed(self, topic: str, keys: list[bytes]) -> list[int]:
        return [self.broker.send(topic, b"x", key=key).partition for key in keys]

    async def send_aborted(self, topic: str, count: int) -> None:
        self.broker.append_aborted(TopicPartition(topic, 0), count)

    async def open_transaction(self, topic: str, count: int) -> Callable[[], Awaitable[None]]:
        transaction = self.broker.transaction()
        for _ in range(count):
            transaction.send(topic, b"x", partition=0)

        async def commit() -> None:
            transaction.commit()

        return commit

    async def down(self) -> None:
        self.broker.down()

    async def up(self) -> None:
        self.broker.up()

    async def delete_before(self, topic: str, offset: int) -> None:
        self.broker.delete_records(TopicPartition(topic, 0), offset)

    async def add_partitions(self, topic: str, total: int) -> None:
        self.broker.add_partitions(topic, total)


class KafkaWorld(World):
    """A real broker through the adapter."""

    def __init__(
        self, bootstrap: str, make: TopicFactory, group: str, own_broker: KafkaBroker | None = None
    ) -> None:
        self.group = group
        self._bootstrap = bootstrap
        self._own_broker = own_broker
        self._make = make

    def address(self) -> dict[str, Any]:
        return {"bootstrap_servers": self._bootstrap}

    def consumer(self, config: ClientConfig) -> Consumer:
        return AiokafkaConsumer(config, self.group)

    async def make_topic(self, partitions: int = 1) -> str:
        return self._make(partitions)

    async def send(self, topic: str, count: int, partition: int = 0) -> None:
        await produce(
            self._bootstrap, topic, [Record(None, b"%d" % i, partition=partition) for i in range(count)]
        )

    async def send_keyed(self, topic: str, keys: list[bytes]) -> list[int]:
        sent = await produce(self._bootstrap, topic, [Record(key, b"x") for key in keys])
        return [one.partition for one in sent]

    async def send_aborted(self, topic: str, count: int) -> None:
        records = [Record(None, b"x", partition=0) for _ in range(count)]
        tx = f"tx-{uuid.uuid4().hex[:12]}"
        await kafka_tools.produce_transaction(self._bootstrap, topic, records, tx, commit=False)

    async def open_transaction(self, topic: str, count: int) -> Callable[[], Awaitable[None]]:
        tx = Producer(
            {"bootstrap.servers": self._bootstrap, "transactional.id": f"tx-{uuid.uuid4().hex[:12]}"}
        )

        def begin() -> None:
            tx.init_transactions(20)
            tx.begin_transaction()
            for _ in range(count):
                tx.produce(topic, b"x", partition=0)
            tx.flush(20)

        await asyncio.to_thread(begin)
        return lambda: asyncio.to_thread(tx.commit_transaction, 20)

    async def down(self) -> None:
        assert self._own_broker is not None
        self._own_broker.kill()

    async def up(self) -> None:
        assert self._own_broker is not None
        await asyncio.to_thread(self._own_broker.start)

    async def delete_before(self, topic: str, offset: int) -> None:
        await kafka_tools.delete_records(self._bootstrap, topic, {0: offset})

    async def add_partitions(self, topic: str, total: int) -> None:
        await kafka_tools.add_partitions(self._bootstrap, topic, total)
