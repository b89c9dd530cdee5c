"""Workload P4: what failures cost. Zipf keys, 10 ms per record, 1 % of the records fail once.

    python benchmarks/p4.py [--bootstrap-servers host:port] [--records N] [--rounds N] [--json FILE]

What lives here: the handler, which records fail, the floors and the target; the course of it is
`harness.py`'s. Contenders: the same handler twice, with defaults and `Retry(base_ms=100)`; in one of them
1 % of the records raise at the end of their first attempt. The target is the ratio of their rates.

What 1 % of failures has to cost: a failing record sleeps 10 ms twice, and its key waits 50 ms on average in
between (full jitter of 100 ms). The repeated sleep takes 1 % of the slots. The wait takes no slot, but of a
key's own time it is 5 %, with the repeated sleep 6 %. So where one key is busy all the time and the others
wait for it, the ratio is 0.943 by arithmetic, whoever does it: order is what costs there, not retrying. Hence
two rows:

- `spread`: the target is for this one. Zipf's exponent is so small that the 100 slots bind and not one key.
  That the busiest key alone could be done in time is not enough for that. Ready keys take turns, so with
  5,000 records of thousands of keys in flight each key gets a few turns a second. A key that has more records
  than that keeps them for the end, where it runs with few others, and slots are idle. With exponent 0.5 over
  10,000 keys (busiest: 0.5 % of the records) that end is a third of the time, with 0.3 it is a tenth.
- `hot`: exponent 1, where one key alone has 13 % of the records. No target; how near both contenders come to
  their floors says what is asyncpar's.

The floor of a row is the longer of two times: all sleeps over the slots, and the sleeps and mean delays of
the slowest key. `share_of_floor` is the floor over the time that was taken. `ratio_of_floors` is the ratio
that a perfect scheduler would have. `sleep_ms` is what a sleep of 10 ms really took: what it is longer (the
loop's timers, and a loop that is busy) is missing in `share_of_floor`. `retry_wait_ms` goes from a failure to
the next attempt, so it is the drawn delay and the turns of the keys that were ready before. Exit code 1 when
a run did not succeed with each record exactly once, in order per key, with all of it committed, after
exactly the failures that were asked for.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script
    sys.path.insert(0, str(ROOT))

from benchmarks.harness import Results, Row, Run, Task, conduct, quiet, run_as_command  # noqa: E402 - after the path
from benchmarks.load import PLACE_BYTES, Load, check, place  # noqa: E402 - likewise

RECORDS = 100_000
HOT_SHARE = 10
"""The hot row has this many times fewer records, as its rate is that much lower."""
SLEEP_SECONDS = 0.010
SLOTS = 100
BASE_MS = 100
MEAN_DELAY_SECONDS = BASE_MS / 2 / 1000
"""Of the first retry: full jitter is uniform from 0 to `BASE_MS`."""
ONE_IN = 100
TARGET_RATIO = 0.95
WITHOUT, WITH = "no failures", "failures"
_SEED = b"20240501"


class Hiccup(Exception):  # noqa: N818 - not a defect: it is what the workload is about
    """Raised by the records that are to fail."""


@dataclass
class RetriedRun(Run):
    """Also: how many attempts failed and ran again, and how long the waits and the sleeps were on average."""

    failures: int = 0
    retry_wait_ms: float = 0.0
    sleep_ms: float = 0.0


# -- which records fail, and what that must cost -------------------------------------------------


def failing_numbers(key: int, count: int) -> list[int]:
    """Which of a key's records fail: one, by a hash, of each hundred in a row; the same ones each time.

    So no key happens to have twice its share: the busiest one decides how long the hot row takes.
    """
    blocks = range(0, count, ONE_IN)
    drawn = (
        first + int.from_bytes(blake2b(place(key, first), key=_SEED).digest()) % ONE_IN for first in blocks
    )
    return [number for number in drawn if number < count]


def failing_places(per_key: Sequence[int]) -> list[bytes]:
    """How the values of the failing records begin."""
    return [place(key, number) for key, count in enumerate(per_key) for number in failing_numbers(key, count)]


def failing_per_key(per_key: Sequence[int]) -> list[int]:
    """How many records of each key fail."""
    return [len(failing_numbers(key, count)) for key, count in enumerate(per_key)]


@dataclass(frozen=True)
class Floor:
    """The least seconds that a load can take: what the slots need, and what the slowest key needs."""

    slots: float
    key: float

    @property
    def seconds(self) -> float:
        """Both have to be done."""
        return max(self.slots, self.key)

    def __str__(self) -> str:
        return f"{self.seconds:.2f} s (slots {self.slots:.2f} s, slowest key {self.key:.2f} s)"


def floor(per_key: Sequence[int], failing: Sequence[int]) -> Floor:
    """Of a load with so many records, and so many of them failing once, per key."""
    attempts = sum(per_key) + sum(failing)
    again = SLEEP_SECONDS + MEAN_DELAY_SECONDS
    chains = (count * SLEEP_SECONDS + bad * again for count, bad in zip(per_key, failing, strict=True))
    return Floor(attempts * SLEEP_SECONDS / SLOTS, max(chains))


# -- contenders ----------------------------------------------------------------------------------


def run_without(task: Task) -> Run:
    """No record fails."""
    return _run(task, ())


def run_with(task: Task) -> Run:
    """The chosen records fail once each."""
    return _run(task, failing_places(task.per_key))


def _run(task: Task, failing: Collection[bytes]) -> Run:
    quiet()
    began = time.perf_counter()
    seen = asyncio.run(_asyncpar(task, failing))
    total = time.perf_counter() - began
    run = RetriedRun(len(seen.values), seen.ended - seen.began, total, failures=len(seen.waits))
    run.retry_wait_ms = 1000 * sum(seen.waits) / max(1, len(seen.waits))
    run.sleep_ms = 1000 * sum(seen.sleeps) / max(1, len(seen.sleeps))
    run.duplicates, run.faults = judge(seen.values, len(seen.waits), task.per_key, len(failing))
    return run


def judge(seen: Sequence[bytes], failed: int, per_key: Sequence[int], to_fail: int) -> tuple[int, list[str]]:
    """`(repeats, faults)`: each record succeeds once, in order, after as many failures as were asked for."""
    repeats, faults = check(seen, per_key)
    if repeats:
        faults.append(f"{repeats} records succeeded more than once")
    if failed != to_fail:
        faults.append(f"{failed} records failed and ran again instead of {to_fail}")
    return repeats, faults


@dataclass
class Seen:
    """What the handler saw: what succeeded; the first begin and the last end; and seconds.

    `waits` are those from a failure to the next attempt, `sleeps` those that each sleep really took.
    """

    values: list[bytes] = field(default_factory=list)
    began: float = 0.0
    ended: float = 0.0
    waits: list[float] = field(default_factory=list)
    sleeps: list[float] = field(default_factory=list)


async def _asyncpar(task: Task, failing: Collection[bytes]) -> Seen:
    from asyncpar import App, Retry

    app = App(group=task.group, bootstrap_servers=task.bootstrap, http_port=0)
    seen, failed_at, now = Seen(), dict.fromkeys(failing, 0.0), time.perf_counter

    @app.topic(task.topic, concurrency=SLOTS, retry=Retry(base_ms=BASE_MS))
    async def handle(value: bytes) -> None:
        began = now()
        failed = failed_at.get(value[:PLACE_BYTES])
        if failed:
            seen.waits.append(began - failed)
        elif not seen.began:
            seen.began = began
        await asyncio.sleep(SLEEP_SECONDS)
        ended = now()
        seen.sleeps.append(ended - began)
        if failed == 0.0:
            failed_at[value[:PLACE_BYTES]] = ended
            raise Hiccup
        seen.values.append(value)
        seen.ended = ended

    await run_as_command(app)
    return seen


# -- rows ----------------------------------------------------------------------------------------


def rows(records: int) -> list[Row]:
    """`spread` with `records` records, `hot` with a tenth of them."""
    return [
        _row("spread", Load(records, keys=10_000, exponent=0.3), TARGET_RATIO),
        _row("hot", Load(max(1, records // HOT_SHARE), keys=1_000, exponent=1.0), None),
    ]


def _row(name: str, load: Load, target: float | None) -> Row:
    failing = failing_per_key(load.per_key)
    floors = {WITHOUT: floor(load.per_key, [0] * load.keys), WITH: floor(load.per_key, failing)}
    busiest = load.per_key.index(max(load.per_key))
    return Row(
        name=name,
        load=load,
        contenders={WITHOUT: run_without, WITH: run_with},
        subject=WITH,
        baseline=WITHOUT,
        target=target,
        settings={
            "delivery": "at least once, asyncpar's defaults",
            "handler": f"asyncio.sleep({SLEEP_SECONDS:.3f}), concurrency {SLOTS} (the default)",
            WITH: f"{sum(failing)} records, {failing[busiest]} of them of the busiest key, raise at the end "
            f"of their first attempt; Retry(base_ms={BASE_MS})",
            "floor": {of: str(found) for of, found in floors.items()},
        },
        figures=_figures(load, floors),
    )


def _figures(load: Load, floors: dict[str, Floor]) -> Callable[[Results], dict[str, object]]:
    def figures(results: Results) -> dict[str, object]:
        rates = {name: statistics.median(run.rate for run in runs) for name, runs in results.items()}
        shares = {name: rate * floors[name].seconds / load.records for name, rate in rates.items()}
        return {
            "ratio_of_floors": round(floors[WITHOUT].seconds / floors[WITH].seconds, 3),
            "share_of_floor": {name: round(share, 3) for name, share in shares.items()},
            "sleep_ms": {name: _median(runs, "sleep_ms") for name, runs in results.items()},
            "retry_wait_ms": _median(results[WITH], "retry_wait_ms"),
        }

    return figures


def _median(runs: Sequence[Run], name: str) -> float:
    return round(float(statistics.median(getattr(run, name) for run in runs)), 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 1 when any run was wrong."""
    return conduct("P4: 1 % failures that are retried, against none.", RECORDS, rows, arguments)


if __name__ == "__main__":
    sys.exit(main())
