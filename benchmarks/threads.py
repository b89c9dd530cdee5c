"""Workload `threads`: `def` handlers in asyncpar's threads, against a bare thread pool fed the same work.

    python benchmarks/threads.py [--bootstrap-servers host:port] [--records N] [--rounds N] [--json FILE]
                                 [--rows NAME,...] [--contenders NAME,...]

What lives here: the work, the contenders, the rows and their targets; the course of it is `harness.py`'s.
All have as many threads as asyncpar has by default for such a handler.

- `asyncpar`: a `def` handler, defaults.
- `thread pool`: raw aiokafka, `getmany(max_records=500)`, and `ThreadPoolExecutor.submit` for each record.
  The next records are read while the last ones run. It keeps no order, commits what it has read, and
  nothing comes back to the event loop but the news that a batch is done: the least that can be done with a
  pool.
- `run_in_executor`: the same, but each call is awaited by the loop, as a service with asyncio would have
  it.

| row | work | target |
|---|---|---|
| `no-op` | none | 0.50 of the thread pool's rate |
| `1-ms` | `time.sleep(0.001)` | 0.80 |
| `10-ms` | `time.sleep(0.010)` | 0.80 |

Exit code 1 when a run did not run each record exactly once, with all of it committed, and asyncpar's in
order per key and one of a key at a time.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import TypeAlias

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script
    sys.path.insert(0, str(ROOT))

from aiokafka import AIOKafkaConsumer  # noqa: E402 - after the path

from benchmarks.harness import Row, Run, Task, conduct, quiet, run_as_command  # noqa: E402 - likewise
from benchmarks.load import Load, judge  # noqa: E402 - likewise
from benchmarks.work import PLACE_BYTES, Entry  # noqa: E402 - likewise

RECORDS = 100_000
KEYS = 1_000
MAX_RECORDS = 500
COMMIT_SECONDS = 1.0
NO_OP_TARGET, TARGET = 0.50, 0.80
OURS, POOL, AWAITED = "asyncpar", "thread pool", "run_in_executor"

Work: TypeAlias = Callable[[bytes], None]
Feed: TypeAlias = Callable[[ThreadPoolExecutor, Work, Sequence[bytes]], Awaitable[None]]
"""Hands values over to a pool at once; what it returns ends when all of them have run."""


def threads() -> int:
    """As many as asyncpar has for a handler that does not say."""
    from asyncpar.settings import default_concurrency

    return default_concurrency("thread")


def judged(read: Callable[[Task, Work], None], seconds: float, task: Task, *, is_ordered: bool) -> Run:
    """Let `read` run the work on all records, and judge it by what the threads have noted."""
    quiet()
    entries: list[Entry] = []
    note, clock, sleep = entries.append, time.monotonic_ns, time.sleep

    def work(value: bytes) -> None:
        began = clock()
        if seconds:
            sleep(seconds)
        note(Entry(value[:PLACE_BYTES], began, clock()))

    began = time.perf_counter()
    read(task, work)
    total = time.perf_counter() - began
    entries.sort(key=lambda one: one.began)
    taken = (max(one.ended for one in entries) - entries[0].began) / 1e9 if entries else 0.0
    run = Run(len(entries), taken, total)
    run.duplicates, run.faults = judge(entries, task.per_key, is_ordered=is_ordered)
    return run


# -- contenders ----------------------------------------------------------------------------------


def run_asyncpar(seconds: float, task: Task) -> Run:
    """A `def` handler."""
    return judged(_asyncpar, seconds, task, is_ordered=True)


def _asyncpar(task: Task, work: Work) -> None:
    from asyncpar import App

    app = App(group=task.group, bootstrap_servers=task.bootstrap, http_port=0)

    @app.topic(task.topic)
    def handle(value: bytes) -> None:
        work(value)

    asyncio.run(run_as_command(app))


def run_pool(seconds: float, task: Task) -> Run:
    """A pool that is told, and asked once per batch."""
    return judged(partial(_with_pool, _submit), seconds, task, is_ordered=False)


def run_awaited(seconds: float, task: Task) -> Run:
    """A pool whose every call is awaited."""
    return judged(partial(_with_pool, _await_each), seconds, task, is_ordered=False)


def _submit(pool: ThreadPoolExecutor, work: Work, values: Sequence[bytes]) -> Awaitable[None]:
    futures: list[Future[None]] = [pool.submit(work, value) for value in values]

    async def all_done() -> None:
        await asyncio.to_thread(wait, futures)

    return asyncio.create_task(all_done())


def _await_each(pool: ThreadPoolExecutor, work: Work, values: Sequence[bytes]) -> Awaitable[None]:
    loop = asyncio.get_running_loop()
    calls = [loop.run_in_executor(pool, work, value) for value in values]

    async def all_done() -> None:
        await asyncio.gather(*calls)

    return asyncio.create_task(all_done())


def _with_pool(feed: Feed, task: Task, work: Work) -> None:
    with ThreadPoolExecutor(threads()) as pool:
        asyncio.run(_read(task, partial(feed, pool, work)))


async def _read(task: Task, feed: Callable[[Sequence[bytes]], Awaitable[None]]) -> None:
    consumer = AIOKafkaConsumer(
        task.topic,
        bootstrap_servers=task.bootstrap,
        group_id=task.group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    await consumer.start()
    left, next_commit = task.records, time.perf_counter() + COMMIT_SECONDS
    running: Awaitable[None] | None = None
    while left > 0:
        chunks = await consumer.getmany(max_records=MAX_RECORDS, timeout_ms=200)
        values = [record.value for records in chunks.values() for record in records]
        left -= len(values)
        before, running = running, feed(values)
        if before is not None:
            await before
        if time.perf_counter() >= next_commit:
            await consumer.commit()
            next_commit = time.perf_counter() + COMMIT_SECONDS
    if running is not None:
        await running
    await consumer.commit()
    await consumer.stop()


# -- rows ----------------------------------------------------------------------------------------


def rows(records: int) -> list[Row]:
    """`records` is the number of `no-op`; the others have as many as take about as long."""
    return [
        _row("no-op", records, 0.0, NO_OP_TARGET),
        _row("1-ms", max(1, records * 4 // 10), 0.001, TARGET),
        _row("10-ms", max(1, records * 4 // 100), 0.010, TARGET),
    ]


def _row(name: str, records: int, seconds: float, target: float) -> Row:
    return Row(
        name=name,
        load=Load(records, KEYS),
        contenders={
            POOL: partial(run_pool, seconds),
            OURS: partial(run_asyncpar, seconds),
            AWAITED: partial(run_awaited, seconds),
        },
        subject=OURS,
        baseline=POOL,
        target=target,
        settings=_settings(seconds),
    )


def _settings(seconds: float) -> Mapping[str, object]:
    return {
        "handler": f"time.sleep({seconds})" if seconds else "no-op",
        "threads": threads(),
        "delivery": f"at least once (the pools: at most), a commit every {COMMIT_SECONDS:.0f} s",
        OURS: "def handler, default settings",
        POOL: f"getmany(max_records={MAX_RECORDS}), submit, one wait for each batch, one batch ahead",
        AWAITED: "the same, with loop.run_in_executor for each record",
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 1 when any run was wrong."""
    return conduct("Plain functions in threads, against a bare thread pool.", RECORDS, rows, arguments)


if __name__ == "__main__":
    sys.exit(main())
