"""A consumer that now and then takes its time between taking records out and handing them over.

As the real client does, whose fetch may be woken late: an assignment may end and begin meanwhile.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from asyncpar.ports import Consumer, ConsumerFactory
from asyncpar.records import Chunk, TopicPartition

_SHARE = 0.004
_SECONDS = (0.1, 2.0)


def dawdling(factory: ConsumerFactory, rng: random.Random) -> ConsumerFactory:
    """A factory of consumers whose fetches dawdle."""

    def make(group: str) -> Consumer:
        consumer = factory(group)
        fetch = consumer.fetch

        async def fetch_late(
            wanted: Sequence[TopicPartition], max_records: int, timeout_ms: int
        ) -> list[Chunk]:
            chunks = await fetch(wanted, max_records, timeout_ms)
            if chunks and rng.random() < _SHARE:
                await asyncio.sleep(rng.uniform(*_SECONDS))
            return chunks

        consumer.fetch = fetch_late  # type: ignore[method-assign]
        return consumer

    return make
