"""Workload P1: what asyncpar's own work costs, measured as its share of a bare loop's rate; rivals beside it.

    python benchmarks/p1.py [--bootstrap-servers host:port] [--records N] [--rounds N] [--json FILE]
                            [--contenders NAME,...]

What lives here: the contenders and the targets; the course of it is `harness.py`'s, the rivals' runs are
`rivals_run.py`'s. Contenders:

- `raw aiokafka`: a loop over `getmany(max_records=500)`; `raw tuned`: the same with the garbage collector
  tuned as `asyncpar run` does; `raw async for`: another over single records.
- `asyncpar`: a no-op async handler, default settings, in a process as `asyncpar run` makes it.
- `asyncpar embedded`: the same in a program that leaves its garbage collector alone.
- `asyncpar client records`: as the first, with `client_records`.
- FastStream in three modes, pyrallel-consumer and the Java Parallel Consumer, each for 20 s at most.

All read the same topic on the same real broker in the same run, in turn, each in a fresh process; asyncpar
and the raw loops commit every second. The rate is that of records from the first one handled to the last
one; the time to join and to leave is shown beside it. The handlers keep each value, or write a line in a
journal, for the check, which costs a little; the raw loops, which cannot reorder, only check that offsets run
on. Exit code 1 when a run of ours lost, repeated out of order or did not commit anything.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script
    sys.path.insert(0, str(ROOT))

from aiokafka import AIOKafkaConsumer  # noqa: E402 - after the path

from asyncpar import App  # noqa: E402 - likewise
from asyncpar.cli.collection import tuned_collection  # noqa: E402 - likewise
from benchmarks import rivals_run  # noqa: E402 - likewise
from benchmarks.course import at_least  # noqa: E402 - likewise
from benchmarks.harness import Results, Row, Run, Task, conduct, quiet, run_as_command  # noqa: E402 - likewise
from benchmarks.load import PARTITIONS, Load, check  # noqa: E402 - likewise
from benchmarks.sleepers import shares  # noqa: E402 - likewise
from benchmarks.work import NO_OP  # noqa: E402 - likewise

RECORDS = 1_000_000
KEYS = 1_000
PASSES = 3
"""Runs take two seconds, and a second of somebody else's is much of that."""
MAX_RECORDS = 500
COMMIT_SECONDS = 1.0
TARGET_RATIO, CLIENT_RECORDS_RATIO = 0.50, 0.40
RAW, RAW_TUNED, FOR = "raw aiokafka", "raw tuned", "raw async for"
OURS, EMBEDDED, CLIENT_RECORDS = "asyncpar", "asyncpar embedded", "asyncpar client records"
RIVALS = {
    rivals_run.ACK_FIRST: 30,
    rivals_run.ACK_AFTER: 1_000,
    rivals_run.ACK_FIRST_WORKERS: 30,
    rivals_run.PYRALLEL: 100,
    rivals_run.PARALLEL_100: 8,
}
"""And how many times faster asyncpar is to be."""


def run_raw(task: Task) -> Run:
    """The bare loop: fetch, count, commit each second."""
    quiet()
    return asyncio.run(_raw(task, lambda: None))


def run_raw_tuned(task: Task) -> Run:
    """The same, with the garbage collector as `asyncpar run` has it."""
    quiet()
    with tuned_collection() as tune:
        return asyncio.run(_raw(task, tune))


async def _raw(task: Task, on_started: Callable[[], None]) -> Run:
    began = time.perf_counter()
    consumer = _consumer(task)
    await consumer.start()
    on_started()
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


def run_for(task: Task) -> Run:
    """The loop that most people write: `async for`, a commit each second."""
    quiet()
    return asyncio.run(_for(task))


async def _for(task: Task) -> Run:
    began = time.perf_counter()
    consumer = _consumer(task)
    await consumer.start()
    run, expected, now = Run(0, 0.0, 0.0), dict.fromkeys(range(PARTITIONS), 0), time.perf_counter
    first = next_commit = 0.0
    async for record in consumer:
        if not first:
            first, next_commit = now(), now() + COMMIT_SECONDS
        run.records += 1
        if record.offset != expected[record.partition]:
            run.faults.append(f"partition {record.partition} jumps to offset {record.offset}")
        expected[record.partition] = record.offset + 1
        if run.records == task.records:
            break
        if now() >= next_commit:
            await consumer.commit()
            next_commit = now() + COMMIT_SECONDS
    run.seconds = now() - first
    await consumer.commit()
    await consumer.stop()
    run.total_seconds = now() - began
    return run


def _consumer(task: Task) -> AIOKafkaConsumer:
    return AIOKafkaConsumer(
        task.topic,
        bootstrap_servers=task.bootstrap,
        group_id=task.group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )


def run_asyncpar(task: Task, *, is_tuned: bool = True, client_records: bool = False) -> Run:
    """asyncpar with its defaults, and a handler that does nothing but keep the value for the check."""
    quiet()
    began = time.perf_counter()
    seen, stamps = asyncio.run(_asyncpar(task, is_tuned, client_records))
    total = time.perf_counter() - began
    run = Run(len(seen), stamps[-1] - stamps[0] if len(stamps) > 1 else 0.0, total)
    run.duplicates, run.faults = check(seen, task.per_key)
    return run


async def _asyncpar(task: Task, is_tuned: bool, client_records: bool) -> tuple[list[bytes], list[float]]:
    app = App(group=task.group, bootstrap_servers=task.bootstrap, http_port=0, client_records=client_records)
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

    await (run_as_command(app) if is_tuned else app.run(drain_and_exit=True))
    return seen, stamps


def rows(records: int) -> list[Row]:
    """The one row: `records` records of keys at random."""
    return [
        Row(
            name="p1",
            load=Load(records, KEYS),
            contenders={
                RAW: run_raw,
                RAW_TUNED: run_raw_tuned,
                FOR: run_for,
                OURS: run_asyncpar,
                EMBEDDED: partial(run_asyncpar, is_tuned=False),
                CLIENT_RECORDS: partial(run_asyncpar, client_records=True),
                **rivals_run.contenders(RIVALS, NO_OP),
            },
            subject=OURS,
            baseline=RAW,
            target=TARGET_RATIO,
            settings={
                "delivery": f"at least once, a commit every {COMMIT_SECONDS:.0f} s (asyncpar: its defaults)",
                RAW: f"getmany(max_records={MAX_RECORDS})",
                RAW_TUNED: "the same, with its garbage collector tuned as asyncpar run does",
                FOR: "async for, one record at a time",
                OURS: "no-op async handler, defaults, as asyncpar run; event loop of the standard library",
                EMBEDDED: "the same with the garbage collector as Python has it",
                CLIENT_RECORDS: "client_records=True, else as the first",
                **rivals_run.told(RIVALS),
            },
            figures=_figures,
            rivals=rivals_run.names(RIVALS),
            passes=PASSES,
            preparations=rivals_run.preparations(RIVALS),
        )
    ]


def _figures(results: Results) -> dict[str, object]:
    of_raw = shares(dict.fromkeys((RAW_TUNED, FOR, OURS, EMBEDDED, CLIENT_RECORDS), RAW), results)
    reached = of_raw.get(CLIENT_RECORDS)
    is_right = not any(run.faults for run in results.get(CLIENT_RECORDS, ()))
    return {
        "share_of_raw": of_raw,
        "targets": (
            {f"{CLIENT_RECORDS} of {RAW}": at_least(CLIENT_RECORDS_RATIO, reached)}
            if reached is not None and is_right
            else {}
        ),
        "times_rivals": rivals_run.times(OURS, RIVALS, results),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 1 when asyncpar (or a loop it is measured against) was wrong in any run."""
    return conduct("P1: no-op handler against raw aiokafka loops and rivals.", RECORDS, rows, arguments)


if __name__ == "__main__":
    sys.exit(main())
