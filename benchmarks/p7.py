"""Workload P7: CPU-bound handlers in child processes, against a plain loop on one core, and other pools.

    python benchmarks/p7.py [--bootstrap-servers host:port] [--records N] [--rounds N] [--json FILE]
                            [--rows NAME,...] [--contenders NAME,...]

What lives here: the contenders, the check of what ran in all of their processes, the rows and their targets;
the course of it is `harness.py`'s, the handler `p7_work.py`'s. Every contender runs the same function: a
number of sha256, and a line in a journal. The rate is that from the first call that began to the last one
that ended, wherever they ran.

- `asyncpar`: `executor="process"` with 2 children, else defaults.
- `plain loop`: raw aiokafka, `getmany(max_records=500)`, one record after the other, a commit each second.
- `2 plain loops`: two processes of it, each with half of the partitions. It says what two cores of this
  machine give while the broker runs on them too.
- `submit`: the plain loop, but each record goes to a `ProcessPoolExecutor(2)` by itself, and a chunk is
  waited for. It keeps no order, and is not asked to.
- `pyrallel`: pyrallel-consumer's process mode with 2 processes and 2,000 in flight, in an environment of its
  own (it needs Python 3.12 and is left out where there is none).
- `async`: P1's contender, a no-op on asyncpar's event loop.

| row | load | measured against | target |
|---|---|---|---|
| `cpu` | 20,000 records, 1,000 keys, 500 x sha256 | plain loop | 1.80: 0.90 of two cores |
| `s2` | 2,000 records, 100 keys, 4 partitions, 500 x sha256 | plain loop | 1.80 |
| `small` | 100,000 records, 1,000 keys, 20 x sha256 | plain loop | none |
| `no-op` | 400,000 records, 1,000 keys, no sha256 | async | 0.30, or 100,000 records a second |

`--records` is the number of `cpu`; the others follow. Exit code 1 when a run did not run each record exactly
once, in order per key and one of a key at a time (`submit`: exactly once), with all of it committed.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeAlias

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script
    sys.path.insert(0, str(ROOT))

from aiokafka import AIOKafkaConsumer, TopicPartition  # noqa: E402 - after the path

from benchmarks import p1, p7_work  # noqa: E402 - likewise
from benchmarks.course import at_least  # noqa: E402 - likewise
from benchmarks.harness import (  # noqa: E402 - likewise
    RUN_TIMEOUT_SECONDS,
    Contender,
    Results,
    Row,
    Run,
    Task,
    conduct,
    quiet,
    run_as_command,
)
from benchmarks.load import Load, judge  # noqa: E402 - likewise
from benchmarks.rivals_run import PYRALLEL_CONSUMER  # noqa: E402 - likewise

RECORDS = 20_000
WORKERS = 2
HASHES, FEW_HASHES = 500, 20
TARGET_RATIO = 0.90 * WORKERS
NO_OP_RATIO, NO_OP_RATE = 0.30, 100_000
COMMIT_SECONDS = 1.0
MAX_RECORDS = 500
OURS, LOOP, LOOPS, SUBMIT, PYRALLEL, ASYNC = (
    "asyncpar",
    "plain loop",
    f"{WORKERS} plain loops",
    "submit",
    "pyrallel",
    "async",
)

Read: TypeAlias = Callable[[Task], None]
"""Reads all records of a task, and has the handler run for each."""


# -- judging -------------------------------------------------------------------------------------


def judged(read: Read, hashes: int, task: Task, *, is_ordered: bool = True) -> Run:
    """Let `read` read, and judge it by the journal of all processes that worked for it."""
    quiet()
    with p7_work.journal(hashes, task.records) as folder:
        began = time.perf_counter()
        read(task)
        total = time.perf_counter() - began
        entries = p7_work.entries(folder)
    seconds = (max(one.ended for one in entries) - entries[0].began) / 1e9 if entries else 0.0
    run = Run(len(entries), seconds, total)
    run.duplicates, run.faults = judge(entries, task.per_key, is_ordered=is_ordered)
    return run


# -- asyncpar ------------------------------------------------------------------------------------


def run_asyncpar(hashes: int, task: Task) -> Run:
    """Child processes."""
    return judged(_asyncpar, hashes, task)


def _asyncpar(task: Task) -> None:
    from asyncpar import App

    app = App(group=task.group, bootstrap_servers=task.bootstrap, http_port=0, worker_pool_size=WORKERS)
    app.topic(task.topic, name="p7", executor="process")(p7_work.handle)
    asyncio.run(run_as_command(app))


# -- plain loops ---------------------------------------------------------------------------------


def run_loop(hashes: int, task: Task) -> Run:
    """One record after the other."""
    return judged(_loop, hashes, task)


def _loop(task: Task, numbers: Sequence[int] = ()) -> None:
    asyncio.run(read_all(task, _here, numbers))


async def _here(values: Sequence[bytes]) -> None:
    for value in values:
        p7_work.handle(value)


def run_loops(hashes: int, task: Task) -> Run:
    """The same, as often as there are workers."""
    return judged(_loops, hashes, task)


def _loops(task: Task) -> None:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(WORKERS, spawn) as loops:
        shares = [range(first, task.partitions, WORKERS) for first in range(WORKERS)]
        for share in [loops.submit(_loop, task, share) for share in shares]:
            share.result(RUN_TIMEOUT_SECONDS)


def run_submit(hashes: int, task: Task) -> Run:
    """Each record by itself to a pool of the standard library."""
    return judged(_submit, hashes, task, is_ordered=False)


def _submit(task: Task) -> None:
    with ProcessPoolExecutor(WORKERS, multiprocessing.get_context("forkserver")) as pool:

        async def there(values: Sequence[bytes]) -> None:
            loop = asyncio.get_running_loop()
            await asyncio.gather(*(loop.run_in_executor(pool, p7_work.handle, value) for value in values))

        asyncio.run(read_all(task, there))


async def read_all(
    task: Task, run: Callable[[Sequence[bytes]], Awaitable[None]], numbers: Sequence[int] = ()
) -> None:
    """To the end of partitions `numbers`; without any: of all."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=task.bootstrap, group_id=task.group, enable_auto_commit=False
    )
    await consumer.start()
    try:
        mine = [TopicPartition(task.topic, number) for number in numbers or range(task.partitions)]
        consumer.assign(mine)
        ends = {partition: end for partition, end in (await consumer.end_offsets(mine)).items() if end}
        for partition in mine:
            consumer.seek(partition, 0)
        next_commit = time.perf_counter() + COMMIT_SECONDS
        while ends:
            chunks = await consumer.getmany(max_records=MAX_RECORDS, timeout_ms=200)
            await run([record.value for records in chunks.values() for record in records])
            for partition, records in chunks.items():
                if records[-1].offset + 1 == ends[partition]:
                    del ends[partition]
            if time.perf_counter() >= next_commit:
                await consumer.commit()
                next_commit = time.perf_counter() + COMMIT_SECONDS
        await consumer.commit()
    finally:
        await consumer.stop()


# -- pyrallel-consumer ---------------------------------------------------------------------------


def run_pyrallel(hashes: int, task: Task) -> Run:
    """Its process mode, by the interpreter that has it."""

    def read(task: Task) -> None:
        known = {"bootstrap": task.bootstrap, "group": task.group, "topic": task.topic}
        given = json.dumps({**known, "records": task.records, "workers": WORKERS})
        script = Path(__file__).with_name("p7_pyrallel.py")
        python = PYRALLEL_CONSUMER.python
        subprocess.run([python, str(script), given], check=True, timeout=RUN_TIMEOUT_SECONDS)

    return judged(read, hashes, task)


# -- rows ----------------------------------------------------------------------------------------


def rows(records: int) -> list[Row]:
    """`records` is the number of `cpu`."""
    rivals: dict[str, Contender] = {PYRALLEL: partial(run_pyrallel, HASHES)}
    return [
        _row("cpu", Load(records, 1_000), HASHES, TARGET_RATIO, rivals),
        _row("s2", Load(max(1, records // 10), 100, partitions=4), HASHES, TARGET_RATIO, rivals),
        _row("small", Load(records * 5, 1_000), FEW_HASHES, None, {}),
        Row(
            name="no-op",
            load=Load(records * 20, 1_000),
            contenders={ASYNC: p1.run_asyncpar, OURS: partial(run_asyncpar, 0)},
            subject=OURS,
            baseline=ASYNC,
            target=None,
            settings=_settings(0) | {ASYNC: "a no-op on the event loop, defaults (P1)"},
            figures=_no_op_figures,
        ),
    ]


def _row(name: str, load: Load, hashes: int, target: float | None, rivals: Mapping[str, Contender]) -> Row:
    return Row(
        name=name,
        load=load,
        contenders={
            LOOP: partial(run_loop, hashes),
            OURS: partial(run_asyncpar, hashes),
            LOOPS: partial(run_loops, hashes),
            SUBMIT: partial(run_submit, hashes),
            **rivals,
        },
        subject=OURS,
        baseline=LOOP,
        target=target,
        settings=_settings(hashes),
        figures=_ratios,
        rivals=frozenset(rivals),
        preparations=dict.fromkeys(rivals, PYRALLEL_CONSUMER.prepare),
    )


def _settings(hashes: int) -> dict[str, object]:
    return {
        "delivery": "at least once, a commit every second",
        "handler": f"{hashes} x sha256, and a line in a journal",
        OURS: f'executor="process", worker_pool_size={WORKERS}, else defaults',
    }


def _ratios(results: Results) -> dict[str, object]:
    """Every contender beside the plain loop."""
    rates = _medians(results)
    return {"times_plain_loop": {name: round(rate / rates[LOOP], 2) for name, rate in rates.items()}}


def _no_op_figures(results: Results) -> dict[str, object]:
    """The target is a rate or a ratio, whichever is less."""
    medians = _medians(results)
    wanted = min(NO_OP_RATE, NO_OP_RATIO * medians[ASYNC])
    return {
        "wanted_per_second": round(wanted),
        "share_of_wanted": round(medians[OURS] / wanted, 2),
        "targets": {"no-op records per second": at_least(round(wanted), round(medians[OURS]))},
    }


def _medians(results: Results) -> dict[str, float]:
    return {name: statistics.median(run.rate for run in runs) for name, runs in results.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 1 when any run was wrong."""
    return conduct(
        "P7: CPU-bound handlers in child processes, against a plain loop and other pools.",
        RECORDS,
        rows,
        arguments,
    )


if __name__ == "__main__":
    sys.exit(main())
