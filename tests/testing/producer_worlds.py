"""The clusters that the producer's contract is tested on: the in-memory one, and a real one."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from confluent_kafka import Consumer
from confluent_kafka import TopicPartition as At

from asyncpar.adapters.aiokafka_config import ClientConfig
from asyncpar.adapters.aiokafka_producer import AiokafkaProducer
from asyncpar.errors import PublishError
from asyncpar.ports import Producer
from asyncpar.records import OutgoingRecord, TopicPartition
from tests.testing.contract_worlds import KafkaWorld, MemoryWorld, World

READ_SECONDS = 30.0


class Found(NamedTuple):
    """A record as it lies in the log."""

    offset: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    timestamp: int


class ProducerWorld(World):
    """A cluster that a producer writes to."""

    @abstractmethod
    def producer(self, **settings: Any) -> Producer:
        """One that was not started."""

    @abstractmethod
    async def make_small_topic(self, max_message_bytes: int) -> str:
        """A fresh topic that takes batches of so many bytes."""

    @abstractmethod
    async def read(self, topic: str, partition: int = 0) -> list[Found]:
        """All records of a partition."""

    async def values(self, topic: str, partition: int = 0) -> list[bytes | None]:
        """Their values."""
        return [found.value for found in await self.read(topic, partition)]

    @asynccontextmanager
    async def started(self, **settings: Any) -> AsyncIterator[Producer]:
        """A started producer, stopped at the end."""
        one = self.producer(**settings)
        try:
            await one.start()
            yield one
        finally:
            await one.stop(3.0)


class MemoryProducerWorld(MemoryWorld, ProducerWorld):
    """The in-memory broker."""

    def producer(self, **settings: Any) -> Producer:
        return self.broker.producer("p", ClientConfig(**settings))

    async def make_small_topic(self, max_message_bytes: int) -> str:
        self.broker.create_topic("small", max_message_bytes=max_message_bytes)
        return "small"

    async def read(self, topic: str, partition: int = 0) -> list[Found]:
        records = self.broker.log(TopicPartition(topic, partition)).records
        return [Found(r.offset, r.key, r.value, list(r.headers), r.timestamp) for r in records]


class KafkaProducerWorld(KafkaWorld, ProducerWorld):
    """A real broker through the adapter."""

    def producer(self, **settings: Any) -> Producer:
        return AiokafkaProducer(ClientConfig(**{**self.address(), **settings}))

    async def make_small_topic(self, max_message_bytes: int) -> str:
        return self._make(1, {"max.message.bytes": str(max_message_bytes)})

    async def read(self, topic: str, partition: int = 0) -> list[Found]:
        return await asyncio.to_thread(read_all, self._bootstrap, topic, partition)


def read_all(bootstrap: str, topic: str, partition: int = 0, **settings: Any) -> list[Found]:
    """All records of a partition, by an independent client. Blocks, bounded."""
    consumer = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": "nobody", "enable.auto.commit": False, "log_level": 0}
        | settings
    )
    try:
        start, end = consumer.get_watermark_offsets(At(topic, partition), timeout=READ_SECONDS)
        consumer.assign([At(topic, partition, start)])
        found: list[Found] = []
        deadline = time.monotonic() + READ_SECONDS
        while not found or found[-1].offset < end - 1:
            if start == end:
                return []
            assert time.monotonic() < deadline, f"only {len(found)} of {end - start} records came"
            message = consumer.poll(0.5)
            if message is not None and message.error() is None:
                found.append(
                    Found(
                        message.offset() or 0,
                        message.key(),
                        message.value(),
                        message.headers() or [],  # type: ignore[arg-type]
                        message.timestamp()[1],
                    )
                )
        return found
    finally:
        consumer.close()


async def insist(producer: Producer, record: OutgoingRecord, timeout_s: float = 1.0, tries: int = 300) -> int:
    """Send until it is acknowledged; how many attempts before that may have written it all the same."""
    in_doubt = 0
    for _ in range(tries):
        try:
            await producer.send(record, timeout_s)
            return in_doubt
        except PublishError as error:
            in_doubt += "may be there" in str(error)
    raise AssertionError(f"not acknowledged in {tries} attempts")
