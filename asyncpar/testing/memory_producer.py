"""A producer on the in-memory broker: all of `asyncpar.ports.Producer`, as the one on aiokafka behaves.

Lives here: carrying batches over the broker's link. What is sent when, what is repeated and what fails is the
very code that speaks to Kafka (`aiokafka_producer_batching`), so that a simulation runs it as well. Made by
`MemoryBroker.producer`, called by the runtime, on the event loop. Always: times are the running loop's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from asyncpar.adapters.aiokafka_config import ClientConfig
from asyncpar.adapters.aiokafka_producer_batching import BatchingProducer
from asyncpar.adapters.aiokafka_producer_lane import Batch
from asyncpar.adapters.aiokafka_producer_port import Answer
from asyncpar.adapters.aiokafka_producer_topics import FOUND, UNKNOWN, Described
from asyncpar.adapters.aiokafka_producer_wire import record_bytes
from asyncpar.records import OutgoingRecord, TopicPartition
from asyncpar.testing.memory_connection import dial, unreachable
from asyncpar.testing.memory_link import LinkError, RefusedError

if TYPE_CHECKING:
    from asyncpar.testing.memory_broker import MemoryBroker

_NODE = 0


class MemoryProducer(BatchingProducer):
    """`asyncpar.ports.Producer` over a `MemoryBroker`. Single-use: start once, stop once.

    `name` is what the broker's link and faults know it by.
    """

    def __init__(self, broker: MemoryBroker, name: str, config: ClientConfig) -> None:
        super().__init__(_MemoryWire(broker, name, config), config.metadata_max_age_ms / 1000)
        self.name = name


class _MemoryWire:
    """A `Wire` over the broker's link."""

    def __init__(self, broker: MemoryBroker, name: str, config: ClientConfig) -> None:
        self._broker = broker
        self._name = name
        self._startup_timeout_ms = config.startup_timeout_ms
        self._timeout_s = config.request_timeout_ms / 1000

    async def connect(self) -> None:
        """Dial until somebody answers, for `startup_timeout_ms`."""
        try:
            async with asyncio.timeout(self._startup_timeout_ms / 1000):
                await dial(self._broker, self._name, self._timeout_s)
        except TimeoutError:
            raise unreachable(self._startup_timeout_ms) from None

    async def producer_id(self) -> int:
        """A producer id that nobody else has; costs no request here."""
        return self._broker.new_producer_id()

    async def describe(self, topics: Collection[str]) -> Mapping[str, Described]:
        """What the broker says of each of `topics`; it leads all partitions itself."""
        try:
            async with asyncio.timeout(self._timeout_s):
                counts = await self._broker.ask("Metadata", self._name, self._broker.partition_counts)
        except RefusedError as refused:
            return dict.fromkeys(topics, Described(refused.code, {}))
        except (LinkError, TimeoutError) as error:
            raise ConnectionError(str(error) or "no answer in time") from error
        return {
            topic: Described(FOUND, dict.fromkeys(range(counts[topic]), _NODE))
            if topic in counts
            else Described(UNKNOWN, {})
            for topic in topics
        }

    async def produce(
        self,
        node: int,  # noqa: ARG002 - there is one
        batches: Mapping[TopicPartition, Batch],
    ) -> Mapping[TopicPartition, Answer]:
        """All in one request; the broker judges each batch by itself."""
        write = self._broker.write
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._broker.ask(
                    "Produce",
                    self._name,
                    lambda: {tp: Answer(*write(tp, batch)) for tp, batch in batches.items()},
                )
        except RefusedError as refused:
            return dict.fromkeys(batches, Answer(refused.code, -1))
        except (LinkError, TimeoutError) as error:
            raise ConnectionError(str(error) or "no answer in time") from error

    def size_bytes(self, record: OutgoingRecord) -> int:
        """How long it is in a batch of Kafka's; see the port."""
        return record_bytes(record)

    async def close(self) -> None:
        """There is nothing to hang up."""

    def abort(self) -> None:
        """Nor to cut."""
