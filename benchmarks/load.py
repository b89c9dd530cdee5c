"""What a benchmark reads: records whose values say their key and their number within the key, and a check.

What lives here: which key each record has (all alike, or by Zipf's law) and how long its handler sleeps,
producing them, and judging what a contender has seen of them. What never does: consumers, rates. Called by
the workloads (`p*.py`) and by `harness.py`. Always: the same load is the same records, as its keys and sleeps
come from fixed seeds.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from confluent_kafka import KafkaError, Message, Producer

from benchmarks.work import PLACE_BYTES, Entry

PARTITIONS = 8
VALUE_BYTES = 100

_SEED = 20_240_501
_KEY_END = 6
_FLUSH_SECONDS = 120
_FULL_QUEUE_TRIES = 6_000


@dataclass(frozen=True)
class Load:
    """So many records over so many keys.

    `exponent` is that of Zipf's law: the key of rank r gets a share in proportion to r ** -exponent. 0 draws
    each key with the same chance. `sleep_us` are the shortest and the longest microseconds that a record's
    handler sleeps, where it does: drawn for each record by itself.
    """

    records: int
    keys: int
    exponent: float = 0.0
    partitions: int = PARTITIONS
    sleep_us: tuple[int, int] = (0, 0)

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

    def values(self) -> Iterator[tuple[int, bytes]]:
        """Key and value of each record, in the order in which they are produced."""
        counts, draw = [0] * self.keys, random.Random(_SEED + 1).randint
        for key in self.sequence:
            head = place(key, counts[key]) + b"%06d" % draw(*self.sleep_us)
            counts[key] += 1
            yield key, head.ljust(VALUE_BYTES, b".")


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
    for key, value in load.values():
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


def judge(
    entries: Sequence[Entry], per_key: Sequence[int], *, is_ordered: bool = True
) -> tuple[int, list[str]]:
    """`(repeats, faults)` of calls by the time when they began: each record once, a key's one at a time."""
    places = [one.place for one in entries]
    repeats, faults = check(places if is_ordered else sorted(places), per_key)
    if repeats:
        faults.append(f"{repeats} records ran more than once")
    ends: dict[bytes, int] = {}
    overlaps = 0
    for where, began, ended in entries:
        key = where[:_KEY_END]
        overlaps += began < ends.get(key, 0)
        ends[key] = max(ended, ends.get(key, 0))
    if overlaps and is_ordered:
        faults.append(f"{overlaps} records began before another one of their key had ended")
    return repeats, faults


def reached(entries: Sequence[Entry], keys: int) -> list[int]:
    """How far each key came: by that a run is judged that was stopped before its end."""
    found = [0] * keys
    for where, _, _ in entries:
        key = int(where[:_KEY_END])
        found[key] = max(found[key], int(where[_KEY_END:]) + 1)
    return found
