"""Records in and out: a load that numbers its records, and all that a topic holds, headers included.

What lives here: what both runs need of Kafka itself. What never does: asyncpar, or a verdict. Called by
`kills.py` and `outage.py`. Always: the log decides what exists.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from confluent_kafka import Consumer, KafkaException, Message
from confluent_kafka import TopicPartition as Place

from asyncpar.records import TopicPartition
from tests.chaos.load import READ_SECONDS, Load


class Written(NamedTuple):
    """A record in the log. `timestamp_ms`: when it was sent, since the epoch."""

    tp: TopicPartition
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    timestamp_ms: int = 0


class NumberedLoad(Load):
    """Each value is a number of its own, so that a record can be told without its place; all have keys."""

    def __init__(self, bootstrap: str, topic: str, per_second: int, keys: int, seed: str) -> None:
        super().__init__(bootstrap, [topic], per_second, keys, seed, keyless=0.0)
        self._topic = topic
        self._key_count = keys
        self._sent = 0

    def _send(self) -> None:
        key = b"k%d" % self._chance.randrange(self._key_count)
        try:
            self._producer.produce(self._topic, b"%d" % self._sent, key, on_delivery=self.note)
        except (BufferError, KafkaException) as error:
            self.refused.append(str(error))
        self._sent += 1


def read_topic(bootstrap: str, topic: str, ends: dict[int, int]) -> list[Written]:
    """All records of `topic` below its `ends`, in the order of each partition. Blocks.

    TimeoutError when they do not come. For topics without transactions: every offset is a record.
    """
    wanted = {number: end for number, end in ends.items() if end > 0}
    reader = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "asyncpar-letters-reader",
            "enable.auto.commit": False,
            "log_level": 0,
        }
    )
    found: list[Written] = []
    deadline = time.monotonic() + READ_SECONDS
    try:
        if wanted:
            reader.assign([Place(topic, number, 0) for number in wanted])
        while wanted:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{topic} could not be read within {READ_SECONDS:.0f} s: {wanted}")
            for message in reader.consume(1000, timeout=0.2):
                if message.error() is None:
                    found.append(_written(message))
                    if found[-1].offset >= wanted.get(found[-1].tp.partition, 0) - 1:
                        wanted.pop(found[-1].tp.partition, None)
    finally:
        reader.close()
    return sorted((one for one in found if one.offset < ends[one.tp.partition]), key=lambda one: one[:2])


def _written(message: Message) -> Written:
    tp = TopicPartition(str(message.topic()), int(message.partition() or 0))
    given: Any = message.headers()
    headers = tuple((name, _bytes(value) or b"") for name, value in given or ())
    return Written(
        tp,
        int(message.offset() or 0),
        _bytes(message.key()),
        _bytes(message.value()),
        headers,
        int(message.timestamp()[1]),
    )


def _bytes(found: object) -> bytes | None:
    return found.encode() if isinstance(found, str) else found  # type: ignore[return-value]
