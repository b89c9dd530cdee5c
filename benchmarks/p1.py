"""Workload P1: what asyncpar's own work costs, measured as its share of a bare loop's rate.

    python benchmarks/p1.py [--bootstrap-servers host:port] [--records N] [--rounds N] [--json FILE]

What lives here: the load, the two contenders, the check of each run, the table. Contenders: a raw aiokafka
loop over `getmany(max_records=500)`, and asyncpar with a no-op async handler and default settings. Both read
the same topic on the same real broker in the same run, in turn, each in a fresh process, both with a commit
every second. The rate is that of records from the first one handled to the last one; the time to join and to
leave is shown beside it. The handler keeps a reference to each value for the check, which costs asyncpar a
little; the raw loop, which cannot reorder, only checks that offsets run on. Exit code 1 when a run lost,
repeated out of order or did not commit anything.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import multiprocessing
import os
import platform
import random
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script
    sys.path.insert(0, str(ROOT))

from aiokafka import AIOKafkaConsumer  # noqa: E402 - after the path
from confluent_kafka import KafkaError, Message, Producer  # noqa: E402 - likewise

from tests import kafka_tools  # noqa: E402 - likewise
from tests.kafka_broker import KafkaBroker  # noqa: E402 - likewise

PARTITIONS = 8
KEYS = 1_000
VALUE_BYTES = 100
MAX_RECORDS = 500
COMMIT_SECONDS = 1.0
TARGET_RATIO = 0.40
RUN_TIMEOUT_SECONDS = 300
_SEED = 20_240_501
_KEY_END, _NUMBER_END = 4, 12


@dataclass(frozen=True)
class Task:
    """What a contender is to read. `per_key` is how many records each key has."""

    bootstrap: str
    topic: str
    group: str
    records: int
    per_key: tuple[int, ...]


@dataclass
class Run:
    """One contender's run. `faults` is empty when it was right; seconds are of the wall."""

    records: int
    seconds: float
    total_seconds: float
    duplicates: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Records per second from the first to the last."""
        return self.records / self.seconds if self.seconds else 0.0


# -- load ----------------------------------------------------------------------------------------


def load(bootstrap: str, topic: str, records: int) -> tuple[int, ...]:
    """Produce the records, values of 100 bytes that hold key and number within the key; records per key."""
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
    counts = [0] * KEYS
    for key in random.Random(_SEED).choices(range(KEYS), k=records):
        value = (b"%04d%08d" % (key, counts[key])).ljust(VALUE_BYTES, b".")
        counts[key] += 1
        _produce(producer, topic, b"key-%04d" % key, value, on_delivery)
    left = producer.flush(120)
    if failed or left:
        raise SystemExit(f"the broker took not all records: {left} unanswered, {failed[:1]}")
    return tuple(counts)


def _produce(
    producer: Producer,
    topic: str,
    key: bytes,
    value: bytes,
    on_delivery: Callable[[KafkaError | None, Message], None],
) -> None:
    for _ in range(6_000):
        try:
            producer.produce(topic, value, key, on_delivery=on_delivery)
            return
        except BufferError:
            producer.poll(0.01)
    raise SystemExit("the broker takes no records: the producer's queue stayed full for a minute")


# -- contenders ----------------------------------------------------------------------------------


def run_raw(task: Task) -> Run:
    """The bare loop: fetch, count, commit each second."""
    _quiet()
    return asyncio.run(_raw(task))


async def _raw(task: Task) -> Run:
    began = time.perf_counter()
    consumer = AIOKafkaConsumer(
        task.topic,
        bootstrap_servers=task.bootstrap,
        group_id=task.group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    await consumer.start()
    run, expected = Run(0, 0.0, 0.0), dict.fromkeys(range(PARTITIONS), 0)
    first, next_commit = 0.0, time.perf_counter() + COMMIT_SECONDS
    while run.records < task.records:
        chunks = await consumer.getmany(max_records=MAX_RECORDS, timeout_ms=200)
        if chunks and not first:
            first = time.perf_counter()
        for partition, records in chunks.items():
            run.records += len(records)
            if records[0].offset != expected[partition.partition]:
                run.faults.append(f"{partition} jumps to offset {records[0].offset}")
            expected[partition.partition] = records[-1].offset + 1
        if time.perf_counter() >= next_commit:
            await consumer.commit()
            next_commit = time.perf_counter() + COMMIT_SECONDS
    run.seconds = time.perf_counter() - first
    await consumer.commit()
    await consumer.stop()
    run.total_seconds = time.perf_counter() - began
    return run


def run_asyncpar(task: Task) -> Run:
    """asyncpar with defaults and a handler that does nothing but keep the value for the check."""
    _quiet()
    began = time.perf_counter()
    seen, stamps = asyncio.run(_asyncpar(task))
    total = time.perf_counter() - began
    run = Run(len(seen), stamps[-1] - stamps[0] if len(stamps) > 1 else 0.0, total)
    run.duplicates, run.faults = check(seen, task.per_key)
    return run


async def _asyncpar(task: Task) -> tuple[list[bytes], list[float]]:
    from asyncpar import App

    app = App(group=task.group, bootstrap_servers=task.bootstrap, http_port=0)
    seen: list[bytes] = []
    stamps: list[float] = []
    # The 1st and the last: with repeats there are more than `records`, and the run is a fault anyway.
    stamped = {1, task.records}
    keep, count, now = seen.append, seen.__len__, time.perf_counter

    @app.topic(task.topic)
    async def handle(value: bytes) -> None:
        keep(value)
        if count() in stamped:
            stamps.append(now())

    await app.run(drain_and_exit=True)
    return seen, stamps


def check(seen: Sequence[bytes], per_key: Sequence[int]) -> tuple[int, list[str]]:
    """`(repeats, faults)`: each key's numbers must come as 0, 1, 2, ... up to the last one produced."""
    following = [0] * len(per_key)
    repeats, overtakes = 0, 0
    for value in seen:
        key, number = int(value[:_KEY_END]), int(value[_KEY_END:_NUMBER_END])
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


def _quiet() -> None:
    logging.basicConfig(level=logging.ERROR)


CONTENDERS: dict[str, Callable[[Task], Run]] = {"raw aiokafka": run_raw, "asyncpar": run_asyncpar}


# -- the course of the benchmark -----------------------------------------------------------------


@contextmanager
def broker_at(address: str | None) -> Iterator[str]:
    """The broker's address: the one given, or that of a node of our own for as long as this lasts."""
    if address:
        yield address
        return
    node = KafkaBroker()
    try:
        node.start()
        yield node.bootstrap
    finally:
        node.remove()


def measure(bootstrap: str, records: int, rounds: int) -> dict[str, list[Run]]:
    """All contenders in each round, one after the other, the first one in turn."""
    topic = f"p1-{uuid.uuid4().hex[:8]}"
    kafka_tools.create_topic_now(bootstrap, topic, PARTITIONS)
    try:
        per_key = load(bootstrap, topic, records)
        results: dict[str, list[Run]] = {name: [] for name in CONTENDERS}
        for number in range(rounds):
            names = list(CONTENDERS) if number % 2 == 0 else list(reversed(CONTENDERS))
            for name in names:
                group = f"{topic}-{name.replace(' ', '-')}-{number}"
                run = one_run(name, Task(bootstrap, topic, group, records, per_key))
                results[name].append(run)
                print(f"round {number + 1} {name:<14} {told(run)}", flush=True)
        return results
    finally:
        kafka_tools.delete_topics_now(bootstrap, [topic])


def one_run(name: str, task: Task) -> Run:
    """One contender in a process of its own, and what it left committed."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        run = process.submit(CONTENDERS[name], task).result(RUN_TIMEOUT_SECONDS)
    committed, ends = asyncio.run(_positions(task))
    if committed != ends:
        run.faults.append(f"committed {committed} instead of {ends}")
    return run


async def _positions(task: Task) -> tuple[dict[int, int], dict[int, int]]:
    committed = await kafka_tools.committed(task.bootstrap, task.group, task.topic)
    ends = await kafka_tools.end_offsets(task.bootstrap, task.topic)
    await kafka_tools.delete_group(task.bootstrap, task.group)
    # A partition that no key fell into (few records) has nothing to commit.
    return (
        {number: found.offset for number, found in committed.items() if ends.get(number)},
        {number: end for number, end in ends.items() if end},
    )


def told(run: Run) -> str:
    """One run on one line."""
    verdict = "; ".join(run.faults) or f"right, {run.duplicates} duplicates"
    return f"{run.rate:>10,.0f} records/s   {run.total_seconds:6.2f} s in all   {verdict}"


def environment() -> dict[str, object]:
    """What the figures were measured with."""
    import aiokafka
    import confluent_kafka

    import asyncpar

    return {
        "python": platform.python_version(),
        "asyncpar": asyncpar.__version__,
        "aiokafka": aiokafka.__version__,
        "confluent_kafka": confluent_kafka.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {_cpu()}, {platform.system()}",
        "load_average": round(os.getloadavg()[0], 2),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown processor"


def settings(records: int, rounds: int) -> dict[str, object]:
    """The workload."""
    return {
        "records": records,
        "rounds": rounds,
        "partitions": PARTITIONS,
        "keys": f"{KEYS} at random",
        "value_bytes": VALUE_BYTES,
        "delivery": f"at least once, a commit every {COMMIT_SECONDS:.0f} s (asyncpar: its defaults)",
        "raw aiokafka": f"getmany(max_records={MAX_RECORDS})",
        "asyncpar": "no-op async handler, default settings, event loop of the standard library",
    }


def summary(results: dict[str, list[Run]]) -> dict[str, object]:
    """Medians, spread and the ratio."""
    rates = {name: [run.rate for run in runs] for name, runs in results.items()}
    medians = {name: statistics.median(found) for name, found in rates.items()}
    pairs = zip(rates["asyncpar"], rates["raw aiokafka"], strict=True)
    ratios = [ours / raw if raw else 0.0 for ours, raw in pairs]
    return {
        "median_records_per_second": {name: round(rate) for name, rate in medians.items()},
        "spread": {name: [round(min(found)), round(max(found))] for name, found in rates.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratio_spread": [round(min(ratios), 3), round(max(ratios), 3)],
        "target_ratio": TARGET_RATIO,
        "faults": {name: sum(len(run.faults) for run in runs) for name, runs in results.items()},
    }


def show(found: dict[str, dict[str, object]]) -> None:
    """The table for people."""
    for title, fields in found.items():
        print(f"\n{title}")
        for name, value in fields.items():
            print(f"  {name:<26} {value}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 1 when asyncpar (or the loop it is measured against) was wrong in any run."""
    parser = argparse.ArgumentParser(description="P1: no-op handler against a raw aiokafka loop.")
    parser.add_argument("--bootstrap-servers", help="a real broker; default: start one (Java and Maven)")
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3, help="at least 3 for a figure worth quoting")
    parser.add_argument("--json", type=Path, help="write everything there, too")
    options = parser.parse_args(arguments)
    if options.records < 1 or options.rounds < 1:
        parser.error("--records and --rounds must be at least 1")
    described = {"environment": environment(), "settings": settings(options.records, options.rounds)}
    show(described)
    print()
    with broker_at(options.bootstrap_servers) as bootstrap:
        results = measure(bootstrap, options.records, options.rounds)
    summed = summary(results)
    show({"result": summed})
    if options.json:
        runs = {name: [asdict(run) | {"rate": run.rate} for run in found] for name, found in results.items()}
        options.json.write_text(json.dumps({**described, "runs": runs, "result": summed}, indent=2) + "\n")
    wrong = [name for name, runs in results.items() if any(run.faults for run in runs)]
    if wrong:
        print(f"\nFAILED: {' and '.join(wrong)} lost, reordered or did not commit records; see above")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
