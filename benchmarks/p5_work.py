"""What takes part in workload P5: a producer that keeps to its timetable, and the contenders that it feeds.

What lives here: how a value says when it was to be sent, the sending, the contenders, latencies. What
never does: which rates, percentiles over rounds, targets (`p5.py`). The functions named `send` and `run_*`
are called in processes of their own. Always: times are nanoseconds of the monotonic clock, which all
processes of a machine share, and a latency goes from the moment when a record was *to be* sent to the end
of its handler, so that a producer, a broker or a consumer that stands still is in the figure.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from aiokafka import AIOKafkaConsumer
from confluent_kafka import KafkaError, Message, Producer

from benchmarks.harness import Run, Task, quiet, run_as_command
from benchmarks.load import VALUE_BYTES, Load, check, place
from benchmarks.work import PLACE_BYTES
from tests import kafka_tools

HANDLER_SECONDS = 0.005
SLOTS = 1_000
WARM_UP = 1_000
"""So many records are sent first and at once; the timetable begins when all of them are committed."""
COMMIT_SECONDS = 1.0
MAX_RECORDS = 500
PERMILLES = (500, 900, 990, 999)
_STAMP_BYTES = 20
_HEAD_START_NS = 20_000_000
_LONGEST_NAP_SECONDS = 0.0005
_WARM_UP_SECONDS = 60.0
_LOOK_SECONDS = 0.1
_FLUSH_SECONDS = 60.0


@dataclass
class OpenRun(Run):
    """Also: latencies in ms by percentile, such as "p99.9", and of the whole run the longest."""

    latency_ms: dict[str, float] = field(default_factory=dict)
    timed: int = 0
    """How many records they are of: all but the warm-up."""


@dataclass(frozen=True)
class Sent:
    """How the producer kept to its timetable: ms by which records were late, by percentile."""

    late_ms: dict[str, float]


# -- sending -------------------------------------------------------------------------------------


def value_of(key: int, number: int, intended_ns: int) -> bytes:
    """A value of `VALUE_BYTES` that says where its record belongs and when it is to be sent; 0: warm-up."""
    return (place(key, number) + b"%0*d" % (_STAMP_BYTES, intended_ns)).ljust(VALUE_BYTES, b".")


def intended_ns(value: bytes) -> int:
    """When the record of `value` was to be sent; 0 for one of the warm-up."""
    return int(value[PLACE_BYTES : PLACE_BYTES + _STAMP_BYTES])


def send(task: Task, load: Load, per_second: float) -> Sent:
    """All records of `load`: the warm-up, then one each 1 / `per_second`. SystemExit when that fails."""
    failed: list[KafkaError] = []

    def on_delivery(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            failed.append(error)

    producer = Producer(
        {
            "bootstrap.servers": task.bootstrap,
            "partitioner": "murmur2_random",
            "enable.idempotence": True,
            "linger.ms": 1,
            "delivery.report.only.error": True,
            "log_level": 0,
        }
    )
    numbers = [0] * load.keys
    sequence = load.sequence

    def produce(key: int, stamp: int) -> None:
        value = value_of(key, numbers[key], stamp)
        numbers[key] += 1
        producer.produce(task.topic, value, b"key-%04d" % key, on_delivery=on_delivery)

    for key in sequence[:WARM_UP]:
        produce(key, 0)
    producer.flush(_FLUSH_SECONDS)
    asyncio.run(_until_committed(task, min(WARM_UP, load.records)))
    late = _keep_timetable(sequence[WARM_UP:], per_second, produce, producer)
    left = producer.flush(_FLUSH_SECONDS)
    if failed or left:
        raise SystemExit(f"the broker took not all records: {left} unanswered, {failed[:1]}")
    return Sent(percentiles(late))


def _keep_timetable(
    keys: Sequence[int], per_second: float, produce: Callable[[int, int], None], producer: Producer
) -> list[float]:
    """Send each record as soon as its time has come; ms by which each was late."""
    now, period = time.monotonic_ns, 1e9 / per_second
    begin = now() + _HEAD_START_NS
    late: list[float] = []
    for index, key in enumerate(keys):
        due = begin + int(index * period)
        while (early := due - now()) > 0:
            producer.poll(0)
            time.sleep(min(early / 1e9, _LONGEST_NAP_SECONDS))
        produce(key, due)
        late.append((now() - due) / 1e6)
    return late


async def _until_committed(task: Task, records: int) -> None:
    """The consumer has joined, and has done the warm-up: it costs nobody's timed records anything."""
    deadline = time.monotonic() + _WARM_UP_SECONDS
    while True:
        found = await kafka_tools.committed(task.bootstrap, task.group, task.topic)
        if sum(one.offset for one in found.values()) >= records:
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"{task.group} had not done the warm-up after {_WARM_UP_SECONDS:.0f} s")
        await asyncio.sleep(_LOOK_SECONDS)


# -- contenders ----------------------------------------------------------------------------------


@dataclass
class _Seen:
    """What ended, in that order, and when, in monotonic ns."""

    values: list[bytes] = field(default_factory=list)
    ended_ns: list[int] = field(default_factory=list)

    def note(self, value: bytes) -> None:
        self.values.append(value)
        self.ended_ns.append(time.monotonic_ns())


def run_asyncpar(task: Task) -> Run:
    """asyncpar with defaults."""
    return _run_asyncpar(task, {})


def run_asyncpar_with_slots(task: Task) -> Run:
    """asyncpar with more slots than are ever needed."""
    return _run_asyncpar(task, {"concurrency": SLOTS})


def _run_asyncpar(task: Task, options: Mapping[str, int]) -> Run:
    quiet()
    began = time.perf_counter()
    seen = asyncio.run(_asyncpar(task, options))
    return _judged(task, seen, time.perf_counter() - began, is_ordered=True)


async def _asyncpar(task: Task, options: Mapping[str, int]) -> _Seen:
    from asyncpar import App

    app = App(group=task.group, bootstrap_servers=task.bootstrap, http_port=0)
    seen = _Seen()

    @app.topic(task.topic, **options)
    async def handle(value: bytes) -> None:
        await asyncio.sleep(HANDLER_SECONDS)
        seen.note(value)
        if len(seen.values) == task.records:
            app.stop()

    await run_as_command(app, drain_and_exit=False)
    return seen


def run_bare(task: Task) -> Run:
    """A raw aiokafka loop that starts a task per record: no order, no limit, commits what it has read."""
    return _run_bare(task, is_ordered=False)


def run_bare_in_order(task: Task) -> Run:
    """The same, but a record's task waits for that of the record before it of its key."""
    return _run_bare(task, is_ordered=True)


def _run_bare(task: Task, *, is_ordered: bool) -> Run:
    quiet()
    began = time.perf_counter()
    seen = asyncio.run(_bare(task, is_ordered=is_ordered))
    return _judged(task, seen, time.perf_counter() - began, is_ordered=is_ordered)


async def _bare(task: Task, *, is_ordered: bool) -> _Seen:
    consumer = AIOKafkaConsumer(
        task.topic,
        bootstrap_servers=task.bootstrap,
        group_id=task.group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    await consumer.start()
    seen, running = _Seen(), set[asyncio.Task[None]]()
    last: dict[bytes, asyncio.Task[None]] = {}

    async def work(value: bytes, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await before
        await asyncio.sleep(HANDLER_SECONDS)
        seen.note(value)

    next_commit, left = time.perf_counter() + COMMIT_SECONDS, task.records
    while left > 0:
        chunks = await consumer.getmany(max_records=MAX_RECORDS, timeout_ms=200)
        for record in (record for records in chunks.values() for record in records):
            left -= 1
            one = asyncio.create_task(work(record.value, last.get(record.key) if is_ordered else None))
            running.add(one)
            one.add_done_callback(running.discard)
            if is_ordered:
                last[record.key] = one
        if time.perf_counter() >= next_commit:
            await consumer.commit()
            next_commit = time.perf_counter() + COMMIT_SECONDS
    await asyncio.gather(*running)
    await consumer.commit()
    await consumer.stop()
    return seen


def run_closed(task: Task) -> Run:
    """asyncpar with defaults over records that are all there: how many a second this setup does."""
    quiet()
    began = time.perf_counter()
    seen = asyncio.run(_asyncpar(task, {}))
    total = time.perf_counter() - began
    # Throughout: without the first handler's five milliseconds.
    run = Run(len(seen.values), (seen.ended_ns[-1] - seen.ended_ns[0]) / 1e9, total)
    run.duplicates, run.faults = check(seen.values, task.per_key)
    return run


# -- judging -------------------------------------------------------------------------------------


def _judged(task: Task, seen: _Seen, total: float, *, is_ordered: bool) -> OpenRun:
    run = OpenRun(len(seen.values), (seen.ended_ns[-1] - seen.ended_ns[0]) / 1e9, total)
    run.duplicates, run.faults = check(seen.values if is_ordered else sorted(seen.values), task.per_key)
    found = latencies_ms(seen.values, seen.ended_ns)
    run.timed, run.latency_ms = len(found), percentiles(found)
    return run


def latencies_ms(values: Sequence[bytes], ended_ns: Sequence[int]) -> list[float]:
    """From the intended sending to the end of the handler, of every record but those of the warm-up."""
    pairs = ((intended_ns(value), ended) for value, ended in zip(values, ended_ns, strict=True))
    return [(ended - intended) / 1e6 for intended, ended in pairs if intended]


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """By nearest rank, as "p50", "p99.9" and so on; and "max". Empty without values."""
    if not values:
        return {}
    ordered = sorted(values)
    # In whole numbers: 99.9 % of 1,000 is a little more than 999 in floats.
    found = {f"p{share / 10:g}": ordered[-(-share * len(ordered) // 1000) - 1] for share in PERMILLES}
    return {name: round(value, 2) for name, value in {**found, "max": ordered[-1]}.items()}
