"""What a benchmark reads: records whose values say their key and their number within the key, and a check.

What lives here: which key each record has (all alike, or by Zipf's law), producing them, and judging what a
contender has seen of them. What never does: consumers, time, rates. Called by the workloads (`p*.py`) and by
`harness.py`. Always: the same load is the same records, as its keys come from a fixed seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from confluent_kafka import KafkaError, Message, Producer

PARTITIONS = 8
VALUE_BYTES = 100
PLACE_BYTES = 14
"""The first bytes of a value say where its record belongs: its key and its number within the key."""

_SEED = 20_240_501
_KEY_END = 6
_FLUSH_SECONDS = 120
_FULL_QUEUE_TRIES = 6_000


@dataclass(frozen=True)
class Load:
    """So many records over so many keys.

    `exponent` is that of Zipf's law: the key of rank r gets a share in proportion to r ** -exponent. 0 draws
    each key with the same chance.
    """

    records: int
    keys: int
    exponent: float = 0.0
    partitions: int = PARTITIONS

    @cached_property
    def sequence(self) -> Sequence[int]:
        """The key of each record, in the order in which they are produced."""
        weights = accumulate((1 + key) ** -self.exponent for key in range(self.keys))
        return random.Random(_SEED).choices(range(self.keys), cum_weights=list(weights), k=self.records)

    @cached_property
    def per_key(self) -> tuple[int, ...]:
        """How many records each key has."""
        counts = [0] * self.keys
        for key in self.sequence:
            counts[key] += 1
        return tuple(counts)


def place(key: int, number: int) -> bytes:
    """How the value of the record begins that is number `number`, from 0, of `key`."""
    return b"%06d%08d" % (key, number)


def produce(bootstrap: str, topic: str, load: Load) -> None:
    """Write all records; SystemExit when the broker does not take them."""
    failed: list[KafkaError] = []

    def on_delivery(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            failed.append(error)

    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "partitioner": "murmur2_random",
            "enable.idempotence": True,
            "linger.ms": 20,
            "batch.size": 65_536,
            "queue.buffering.max.messages": 200_000,
            "delivery.report.only.error": True,
            "log_level": 0,
        }
    )
    counts = [0] * load.keys
    for key in load.sequence:
        value = place(key, counts[key]).ljust(VALUE_BYTES, b".")
        counts[key] += 1
        _produce(producer, topic, b"key-%04d" % key, value, on_delivery)
    left = producer.flush(_FLUSH_SECONDS)
    if failed or left:
        raise SystemExit(f"the broker took not all records: {left} unanswered, {failed[:1]}")


def _produce(
    producer: Producer,
    topic: str,
    key: bytes,
    value: bytes,
    on_delivery: Callable[[KafkaError | None, Message], None],
) -> None:
    for _ in range(_FULL_QUEUE_TRIES):
        try:
            producer.produce(topic, value, key, on_delivery=on_delivery)
            return
        except BufferError:
            producer.poll(0.01)
    raise SystemExit("the broker takes no records: the producer's queue stayed full for a minute")


def check(seen: Sequence[bytes], per_key: Sequence[int]) -> tuple[int, list[str]]:
    """`(repeats, faults)`: each key's numbers must come as 0, 1, 2, ... up to the last one produced."""
    following = [0] * len(per_key)
    repeats, overtakes = 0, 0
    for value in seen:
        key, number = int(value[:_KEY_END]), int(value[_KEY_END:PLACE_BYTES])
        if number < following[key]:
            repeats += 1
        else:
            overtakes += number > following[key]
            following[key] = number + 1
    faults = [f"{overtakes} records overtook an earlier one of their key"] if overtakes else []
    short = sum(reached != wanted for reached, wanted in zip(following, per_key, strict=True))
    if short or len(seen) - repeats != sum(per_key):
        faults.append(f"{sum(per_key) - (len(seen) - repeats)} records are missing, {short} keys end early")
    return repeats, faults
