"""Workload P3: few keys and many, in one partition, against the floor and against rivals that keep order.

    python benchmarks/p3.py [--bootstrap-servers host:port] [--records N] [--rounds N] [--json FILE]
                            [--rows NAME,...] [--contenders NAME,...]

What lives here: the rows and their targets; the course of it is `harness.py`'s, asyncpar and the floor are
`sleepers.py`'s, the rivals' runs `rivals_run.py`'s. The case of the Java Parallel Consumer's README: 10,000
records in one partition, each sleeps 0 to 5 ms (drawn once, the same for all), `concurrency=100`, keys from 1
to 10,000 (a row each). That README has 2.06 s for 1,000 keys.

- `floor`: one plain coroutine per key, 100 at a time, the busiest keys first, without Kafka.
- `asyncpar`: all settings at their defaults, 100 slots among them; `asyncpar uvloop`: on uvloop.
- pyrallel-consumer and the Java Parallel Consumer with 100 threads, each for 20 s at most. FastStream is not
  here: it has one record at a time, or no order.

Judged as P2. The targets are for 100 keys and more, where there is something to run side by side.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script
    sys.path.insert(0, str(ROOT))

from benchmarks import rivals_run, sleepers  # noqa: E402 - after the path
from benchmarks.harness import Results, Row, conduct  # noqa: E402 - likewise
from benchmarks.load import Load  # noqa: E402 - likewise
from benchmarks.sleepers import OURS  # noqa: E402 - likewise

RECORDS = 10_000
KEYS = (1, 10, 100, 1_000, 10_000)
CONCURRENCY = 100
LONGEST_US = 5_000
TIMES_THE_FLOOR = 1.10
FEWEST_KEYS = 100
"""Of a row that has a target."""
RIVALS = (rivals_run.PYRALLEL, rivals_run.PARALLEL_100)


def rows(records: int) -> list[Row]:
    """One for each number of keys, with `records` records."""
    return [_row(keys, records) for keys in KEYS]


def _row(keys: int, records: int) -> Row:
    load = Load(records, keys, partitions=1, sleep_us=(0, LONGEST_US))
    row = sleepers.row(
        f"{keys}keys", load, CONCURRENCY, RIVALS, lambda loop: sleepers.asyncpar(loop, {}, CONCURRENCY)
    )
    settings = {
        "handler": f"asyncio.sleep of 0 to {LONGEST_US / 1000:.0f} ms, drawn for each record",
        OURS: f"concurrency={CONCURRENCY} (the default), else defaults",
    }
    return replace(
        row,
        target=round(1 / TIMES_THE_FLOOR, 3) if keys >= FEWEST_KEYS else None,
        settings={**settings, **row.settings},
        figures=partial(_figures, load),
    )


def _figures(load: Load, results: Results) -> dict[str, object]:
    possible = sleepers.possible(load, CONCURRENCY)
    seconds = {name: statistics.median(run.seconds for run in runs) for name, runs in results.items()}
    return {
        "seconds": {name: round(one, 3) for name, one in seconds.items()},
        "times_the_floor": {
            name: round(1 / share, 3) for name, share in sleepers.shares_of_floors(results).items() if share
        },
        "possible_seconds": round(load.records / possible, 3),
        "times_rivals": rivals_run.times(OURS, dict.fromkeys(RIVALS), results, possible),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 1 when any run of ours was wrong."""
    return conduct("P3: few keys and many, against a floor and rivals.", RECORDS, rows, arguments)


if __name__ == "__main__":
    sys.exit(main())
