"""A consumer that now and then takes its time between taking records out and handing them over, and a
producer that takes it between a record's acknowledgement and telling of it.

As the real clients do, which may be woken late: an assignment may end and begin meanwhile.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

from asyncpar.ports import Consumer, ConsumerFactory, Late, Producer
from asyncpar.records import Chunk, OutgoingRecord, TopicPartition

_SHARE = 0.004
_SECONDS = (0.1, 2.0)


def dawdling(factory: ConsumerFactory, rng: random.Random) -> ConsumerFactory:
    """A factory of consumers whose fetches dawdle."""

    def make(group: str) -> Consumer:
        consumer = factory(group)
        fetch = consumer.fetch

        async def fetch_late(
            wanted: Sequence[TopicPartition], room: int, timeout_ms: int, share: int | None = None
        ) -> list[Chunk]:
            chunks = await fetch(wanted, room, timeout_ms, share)
            if chunks and rng.random() < _SHARE:
                await asyncio.sleep(rng.uniform(*_SECONDS))
            return chunks

        consumer.fetch = fetch_late  # type: ignore[method-assign, assignment]
        return consumer

    return make


def answering_late(
    producer: Producer, share: float, rng: random.Random, happened: Callable[[], None]
) -> Producer:
    """`producer`; `share` of its sends return long after their acknowledgement, and `happened` is called."""
    send = producer.send

    async def send_slowly(
        record: OutgoingRecord, timeout_s: float, late: Late | None = None
    ) -> tuple[TopicPartition, int]:
        place = await send(record, timeout_s, late)
        if rng.random() < share:
            happened()
            await asyncio.sleep(rng.uniform(*_SECONDS))
        return place

    producer.send = send_slowly  # type: ignore[method-assign]
    return producer
