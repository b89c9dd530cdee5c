"""Workload P2: handlers that wait, against the floor that nobody can beat, and against rivals.

    python benchmarks/p2.py [--bootstrap-servers host:port] [--records N] [--rounds N] [--json FILE]
                            [--rows NAME,...] [--contenders NAME,...]

What lives here: the rows and their targets; the course of it is `harness.py`'s, asyncpar and the floor are
`sleepers.py`'s, the rivals' runs `rivals_run.py`'s. 25,000 records over 8 partitions and 1,000 random keys; a
record's handler is `asyncio.sleep` of 10, 35, 50 or 100 ms (a row each; in Java the thread is parked).

- `floor`: one plain coroutine per key over the topic's own counts, on the same kind of loop, without Kafka.
- `asyncpar`: `concurrency=1000, max_in_flight=25000`, else defaults.
- `asyncpar defaults`: all settings at their defaults, 100 slots among them.
- `floor uvloop`, `asyncpar uvloop`: both on uvloop, where it is installed.
- FastStream in three modes, pyrallel-consumer, and the Java Parallel Consumer with 100 threads and with
  1,000, each for 20 s at most.

Every call leaves its record and its times in a journal, and by that a run is judged: each record once, in
order per key, one of a key at a time, and everything committed. The rate goes from the first call that began
to the last one that ended. Exit code 1 when a run of ours was wrong.
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

from benchmarks import rivals_run, sleepers  # noqa: E402 - after the path
from benchmarks.harness import Results, Row, conduct  # noqa: E402 - likewise
from benchmarks.load import Load  # noqa: E402 - likewise
from benchmarks.sleepers import OURS, STOCK  # noqa: E402 - likewise

RECORDS = 25_000
KEYS = 1_000
CONCURRENCY = 1_000
DEFAULT_CONCURRENCY = 100
SLEEPS_MS = {10: 0.90, 35: 0.97, 50: 0.97, 100: 0.97}
"""And which share of the floor asyncpar is to reach."""
DEFAULTS = "asyncpar defaults"
RIVALS = dict.fromkeys(
    (
        rivals_run.ACK_FIRST,
        rivals_run.ACK_AFTER,
        rivals_run.ACK_FIRST_WORKERS,
        rivals_run.PYRALLEL,
        rivals_run.PARALLEL_100,
        rivals_run.PARALLEL_1000,
    ),
    4,
)
"""And how many times faster asyncpar is to be."""


def rows(records: int) -> list[Row]:
    """One for each sleep, with `records` records."""
    return [_row(sleep_ms, target, records) for sleep_ms, target in SLEEPS_MS.items()]


def _row(sleep_ms: int, target: float, records: int) -> Row:
    load = Load(records, KEYS, sleep_us=(1000 * sleep_ms, 1000 * sleep_ms))
    row = sleepers.row(
        f"{sleep_ms}ms",
        load,
        CONCURRENCY,
        RIVALS,
        lambda loop: sleepers.asyncpar(loop, {"max_in_flight": RECORDS}, CONCURRENCY),
        {DEFAULTS: sleepers.asyncpar(STOCK, {}, None)},
    )
    settings = {
        "handler": f"asyncio.sleep({sleep_ms / 1000:.3f})",
        OURS: f"concurrency={CONCURRENCY}, max_in_flight={RECORDS}, else defaults",
        DEFAULTS: f"defaults: concurrency={DEFAULT_CONCURRENCY}",
    }
    return replace(row, target=target, settings={**settings, **row.settings}, figures=partial(_figures, load))


def _figures(load: Load, results: Results) -> dict[str, object]:
    possible = sleepers.possible(load, CONCURRENCY)
    return {
        "share_of_floor": sleepers.shares_of_floors(results),
        "possible_per_second": {
            name: round(sleepers.possible(load, slots))
            for name, slots in ((OURS, CONCURRENCY), (DEFAULTS, DEFAULT_CONCURRENCY))
            if name in results
        },
        "times_rivals": rivals_run.times(OURS, RIVALS, results, possible),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 1 when any run of ours was wrong."""
    return conduct("P2: handlers that wait, against a floor and rivals.", RECORDS, rows, arguments)


if __name__ == "__main__":
    sys.exit(main())
