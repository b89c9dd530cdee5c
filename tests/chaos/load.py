"""Records for a round, and the truth about them: what the log holds in the end, read by a plain consumer.

What lives here: an idempotent producer that sends at a steady rate whatever happens to the brokers, and the
reading of topics. What never does: asyncpar. Called by `judging.py`, `round.py`, the rebalances and the soak.
Always: what the producer believes is only compared with the log; the log decides what exists.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer
from confluent_kafka import TopicPartition as Place

from asyncpar.records import TopicPartition

FLUSH_SECONDS = 60.0
READ_SECONDS = 60.0
_TICK_SECONDS = 0.05


class Sent(NamedTuple):
    """A record in the log; `size` is that of its value in bytes."""

    tp: TopicPartition
    offset: int
    key: bytes | None
    size: int


class Load:
    """Sends `per_second` records over `topics`, of `keys` keys each; a share of `keyless` has no key."""

    def __init__(
        self,
        bootstrap: str,
        topics: Sequence[str],
        per_second: int,
        keys: int,
        seed: str,
        *,
        keyless: float = 0.02,
    ) -> None:
        self._topics = topics
        self._per_second = per_second
        self._keys = keys
        self._keyless = keyless
        self._chance = random.Random(f"load {seed}")
        self._enough = asyncio.Event()
        self.acknowledged: set[tuple[TopicPartition, int]] = set()
        """Where the brokers said that records are, as far as they said where."""
        self.refused: list[str] = []
        """Why sends failed for good; their records may be in the log all the same."""
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "partitioner": "murmur2_random",
                "enable.idempotence": True,
                "acks": "all",
                "linger.ms": 5,
                "message.timeout.ms": 120_000,
                "socket.timeout.ms": 5_000,
                "reconnect.backoff.max.ms": 500,
                "log_level": 0,
            }
        )

    async def run(self) -> None:
        """Send until `finish`."""
        began = time.monotonic()
        sent = 0
        while not self._enough.is_set():
            due = int((time.monotonic() - began) * self._per_second)
            while sent < due:
                self._send()
                sent += 1
            self._producer.poll(0)
            await asyncio.sleep(_TICK_SECONDS)

    def _send(self) -> None:
        chance = self._chance
        key = None if chance.random() < self._keyless else b"k%d" % chance.randrange(self._keys)
        value = b"." * chance.randrange(20, 200)
        try:
            self._producer.produce(chance.choice(self._topics), value, key, on_delivery=self.note)
        except (BufferError, KafkaException) as error:
            self.refused.append(str(error))

    def note(self, error: KafkaError | None, message: Message) -> None:
        """Take down what became of a record."""
        if error is not None:
            self.refused.append(str(error))
            return
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        # Sent twice and there already: acknowledged, but nobody says at which offset. The log will show it.
        if topic is not None and partition is not None and offset is not None:
            self.acknowledged.add((TopicPartition(topic, partition), offset))

    async def finish(self) -> None:
        """Send no more, and wait until every outcome is known; TimeoutError when some stay unknown."""
        self._enough.set()
        left = await asyncio.to_thread(self._producer.flush, FLUSH_SECONDS)
        if left:
            self._producer.purge()
            raise TimeoutError(f"the outcome of {left} sends was not known within {FLUSH_SECONDS:.0f} s")


def read_log(bootstrap: str, ends: dict[TopicPartition, int]) -> list[Sent]:
    """All committed records below `ends`, partition by partition. TimeoutError when they do not come."""
    wanted = {tp: end for tp, end in ends.items() if end > 0}
    if not wanted:
        return []
    options: dict[str, Any] = {
        "bootstrap.servers": bootstrap,
        "group.id": "asyncpar-chaos-reader",
        "enable.auto.commit": False,
        "isolation.level": "read_committed",
        "enable.partition.eof": True,
        "log_level": 0,
    }
    reader = Consumer(options)
    found: list[Sent] = []
    try:
        reader.assign([Place(tp.topic, tp.partition, 0) for tp in wanted])
        deadline = time.monotonic() + READ_SECONDS
        while wanted:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the log could not be read within {READ_SECONDS:.0f} s: {sorted(wanted)}")
            for message in reader.consume(1000, timeout=0.2):
                _take(message, wanted, found)
    finally:
        reader.close()
    return sorted(found)


def _take(message: Message, wanted: dict[TopicPartition, int], found: list[Sent]) -> None:
    error = message.error()
    if error is not None and error.code() != KafkaError._PARTITION_EOF:
        return  # a broker that is just coming back; the deadline bounds it
    tp = TopicPartition(str(message.topic()), int(message.partition() or 0))
    offset = int(message.offset() or 0)
    if error is not None:
        if offset >= wanted.get(tp, 0):
            wanted.pop(tp, None)
        return
    key, value = message.key(), message.value()
    found.append(Sent(tp, offset, _bytes(key), len(value or b"")))


def _bytes(key: Any) -> bytes | None:
    return key.encode() if isinstance(key, str) else key
