"""Workload S2, the half that waits: pyrallel-consumer's own benchmark, 2,000 records of 5 ms.

    python benchmarks/s2.py [--bootstrap-servers host:port] [--records N] [--rounds N] [--json FILE]
                            [--contenders NAME,...]

What lives here: the row and its target; the course of it is `harness.py`'s, asyncpar and the floor are
`sleepers.py`'s, the rivals' runs `rivals_run.py`'s. 2,000 records, 100 random keys, 4 partitions, a handler
that is `asyncio.sleep(0.005)`. Its README has 160 records a second for a plain loop and 2,206 to 2,797 for
itself. The half that computes is the row `s2` of `p7.py`.

- `floor`: one plain coroutine per key over the topic's own counts, without Kafka.
- `plain loop`: raw aiokafka, `getmany(max_records=500)`, one record after the other.
- `asyncpar`: all settings at their defaults; `asyncpar uvloop`: on uvloop.
- FastStream in three modes, pyrallel-consumer, and the Java Parallel Consumer with 100 threads and with
  1,000, each for 20 s at most.

Judged as P2.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script
    sys.path.insert(0, str(ROOT))

from benchmarks import p2, rivals_run, sleepers  # noqa: E402 - after the path
from benchmarks.harness import Results, Row, Run, Task, conduct  # noqa: E402 - likewise
from benchmarks.load import Load  # noqa: E402 - likewise
from benchmarks.p7 import MAX_RECORDS, read_all  # noqa: E402 - likewise
from benchmarks.sleepers import OURS, STOCK  # noqa: E402 - likewise
from benchmarks.work import Handler  # noqa: E402 - likewise

RECORDS = 2_000
KEYS = 100
PARTITIONS = 4
SLEEP_US = 5_000
CONCURRENCY = 100
TARGET_RATIO = 0.90
LOOP = "plain loop"
RIVALS = tuple(p2.RIVALS)


def run_loop(task: Task) -> Run:
    """One record after the other."""

    async def read(run: Handler) -> None:
        async def each(values: Sequence[bytes]) -> None:
            for value in values:
                await run(value)

        await read_all(task, each)

    return sleepers.measured(STOCK, read, task)


def rows(records: int) -> list[Row]:
    """The one row, with `records` records."""
    load = Load(records, KEYS, partitions=PARTITIONS, sleep_us=(SLEEP_US, SLEEP_US))
    row = sleepers.row(
        "s2",
        load,
        CONCURRENCY,
        RIVALS,
        lambda loop: sleepers.asyncpar(loop, {}, None),
        {LOOP: run_loop},
    )
    settings = {
        "handler": f"asyncio.sleep({SLEEP_US / 1e6:.3f})",
        OURS: f"defaults: concurrency={CONCURRENCY}",
        LOOP: f"raw aiokafka, getmany(max_records={MAX_RECORDS}), a commit every second",
    }
    figures = partial(_figures, load)
    return [replace(row, target=TARGET_RATIO, settings={**settings, **row.settings}, figures=figures)]


def _figures(load: Load, results: Results) -> dict[str, object]:
    possible = sleepers.possible(load, CONCURRENCY)
    return {
        "share_of_floor": sleepers.shares_of_floors(results),
        "possible_per_second": round(possible),
        "times_rivals": rivals_run.times(OURS, dict.fromkeys(RIVALS), results, possible),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 1 when any run of ours was wrong."""
    return conduct("S2: pyrallel-consumer's own I/O benchmark.", RECORDS, rows, arguments)


if __name__ == "__main__":
    sys.exit(main())
