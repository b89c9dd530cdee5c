"""What sending in batches asks of whatever carries them: `Wire`, its answers and its errors.

Called by `aiokafka_producer_batching`; `aiokafka_producer_wire` carries batches to Kafka, `memory_producer`
to the in-memory broker. Never here: anything that happens.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple, Protocol

from asyncpar.adapters.aiokafka_producer_lane import Batch
from asyncpar.adapters.aiokafka_producer_topics import Described
from asyncpar.records import OutgoingRecord, TopicPartition


class Answer(NamedTuple):
    """What the broker said to one batch: an error code, and the offset of its first record (-1: none)."""

    code: int
    offset: int


class NotSentError(ConnectionError):
    """The request never left."""


class Wire(Protocol):
    """What carries batches. Where no error is named, a method that gets no answer raises ConnectionError."""

    async def connect(self) -> None:
        """Raises as `Producer.start` does."""

    async def producer_id(self) -> int:
        """A producer id that nobody else has."""

    async def describe(self, topics: Collection[str]) -> Mapping[str, Described]:
        """An answer for each of `topics`. Creates none."""

    async def produce(
        self, node: int, batches: Mapping[TopicPartition, Batch]
    ) -> Mapping[TopicPartition, Answer]:
        """Send all in one request. Raises NotSentError, else ConnectionError: they may have arrived."""

    def size_bytes(self, record: OutgoingRecord) -> int:
        """How long it is in a batch, within a few bytes. Raises whatever encoding it raises."""

    async def close(self) -> None:
        """Hang up; the caller bounds it."""

    def abort(self) -> None:
        """Cut what is left. Does not raise."""
