"""Workload P11: does our own cost per record grow with partitions, keys, or the size of a gap?

    python benchmarks/p11.py [--records N] [--rounds N] [--json FILE]

What lives here: the points, the measuring of one, the ratios and the target. No broker and no client take
part (`clientless.py`), so what is measured is asyncpar's core and runtime, and a no-op `async def` handler
that counts: CPU time of the process per record, without that of making the records. The client's own cost
does grow with partitions, and is not asyncpar's to mend.

Three rows of points, each in a fresh process, with one partition, 1,000 keys and no gap unless the row says
otherwise:

- `partitions`: 1 to 256, with the 1,000 keys spread over them.
- `keys`: 1 to 1,000,000. A key is new bytes in each record, as from a client, drawn at random. Of those
  below 1,000 there is no target: with one key, say, nothing is ever ready but its next record.
- `gap`: one record is stuck until all others are done, and so many are done above it when the measured ones
  begin (they add to the gap). `none`, without one, is shown and has no target: a handler that waits has more
  workers woken for what comes, which is no matter of the gap's size.

In each of them the first record waits for a while, so that all slots are made, as in any app that waits for
something. Before the `--records` that are measured come as many as there are keys (each of them once), as the
gap is large, or 5,000 at least. `growth` of a point is its cost divided by that of the row's first point with
a target, round by round, and then the median; the target is 1.20 at most, at each point. Exit code 1 when a
record was not handled exactly once, or not all was committed.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script
    sys.path.insert(0, str(ROOT))

from asyncpar.records import RawRecord, TopicPartition  # noqa: E402 - after the path
from benchmarks.clientless import MadeConsumer, MadeRecord  # noqa: E402 - likewise
from benchmarks.course import (  # noqa: E402 - likewise
    Course,
    Measured,
    Measurements,
    at_most,
    conduct,
    in_own_process,
    in_turn,
    middle,
    parsed,
    parser,
    say,
    spread,
)
from benchmarks.harness import quiet  # noqa: E402 - likewise
from benchmarks.report import ratios_of  # noqa: E402 - likewise

RECORDS = 200_000
WARM_UP = 5_000
TARGET_GROWTH = 1.20
JUDGED_KEYS = 1_000
"""With fewer keys no target holds."""
TOPIC = "p11"
_SEED = 20_240_501
_VALUE, _WAITS, _STUCK = b"." * 100, b"waits", b"stuck"
_RUN_SECONDS = 300.0


Offsets = Mapping[TopicPartition, int]


@dataclass(frozen=True)
class Point:
    """What is there while the cost is measured."""

    partitions: int = 1
    keys: int = 1_000
    gap: int | None = None
    """So many records are done above a stuck one when the measured ones begin; None: none is stuck."""

    @property
    def before(self) -> int:
        """How many records come first."""
        return max(WARM_UP, self.keys, self.gap or 0)


@dataclass
class Cost(Measured):
    """CPU time per record at one point."""

    cpu_us: float = 0.0
    handled: int = 0


ROWS: dict[str, dict[str, Point]] = {
    "partitions": {str(count): Point(partitions=count) for count in (1, 2, 4, 8, 16, 32, 64, 128, 256)},
    "keys": {f"{count:,}": Point(keys=count) for count in (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000)},
    "gap": {
        "none": Point(),
        **{f"{size:,}": Point(gap=size) for size in (0, 1_000, 10_000, 100_000, 1_000_000)},
    },
}


def judged_points(row: str) -> list[str]:
    """The names of a row's points that have the target; the others are compared with the first one."""
    return [
        name
        for name, point in ROWS[row].items()
        if point.keys >= JUDGED_KEYS and (row != "gap" or point.gap is not None)
    ]


# -- one point -----------------------------------------------------------------------------------


class Records:
    """Makes the records of a point. Those that wait have keys of their own."""

    def __init__(self, point: Point) -> None:
        self._keys = max(1, point.keys // point.partitions)
        self._chance = random.Random(_SEED)
        self.before = -(-point.before // point.partitions)
        """Of each partition: they come before those that are measured."""
        self.specials = {0: _WAITS}
        """Values, and keys, of records of partition 0 by offset."""
        if point.gap is not None:
            self.specials[self.before - point.gap] = _STUCK

    def make(self, partition: int, offset: int, count: int) -> list[RawRecord]:
        """See `clientless.Make`: each key of the partition in turn at first, then at random."""
        keys, before = self._keys, self.before
        drawn = self._chance.choices(range(keys), k=count)
        found: list[RawRecord] = [
            MadeRecord(at, b"key-%d-%d" % (partition, at % keys if at < before else key), _VALUE)
            for at, key in enumerate(drawn, offset)
        ]
        for special, value in self.specials.items() if partition == 0 else ():
            if offset <= special < offset + count:
                found[special - offset] = MadeRecord(special, value, value)
        return found


def cost_of(point: Point, records: int) -> Cost:
    """The CPU time per record of about `records` records. To be called in a process of its own."""
    quiet()
    return asyncio.run(_cost_of(point, records))


async def _cost_of(point: Point, records: int) -> Cost:
    from asyncpar import App

    source = Records(point)
    each = source.before + -(-records // point.partitions)
    ends = {TopicPartition(TOPIC, number): each for number in range(point.partitions)}
    total, first = each * point.partitions, source.before * point.partitions
    last = total - 1 if point.gap is None else total - 2  # the stuck one is counted when it ends
    consumer = MadeConsumer(ends, source.make)
    app = App(group=TOPIC, consumers=lambda _: consumer, http_port=0)
    number, stamps = itertools.count().__next__, list[int]()
    handled, stuck_until = 0, -1
    waits = {_WAITS: asyncio.Event(), _STUCK: asyncio.Event()}

    def mark() -> None:
        if handled == first // 2:
            waits[_WAITS].set()
            return
        stamps.append(time.process_time_ns() - consumer.cpu_ns)
        if handled == last:
            waits[_STUCK].set()

    marked = {first // 2, first, last}

    @app.topic(TOPIC)
    async def handle(value: bytes) -> None:
        nonlocal handled, stuck_until
        if value in waits:
            await waits[value].wait()
            stuck_until = handled
        handled = number()
        if handled in marked:
            mark()

    await app.run(drain_and_exit=True)
    cost = Cost(handled=handled + 1)
    if point.gap is not None and stuck_until != last:
        cost.faults.append(f"the stuck record was stuck until {stuck_until} others were done, not {last}")
    cost.faults += _losses(cost.handled, total, {tp: one.offset for tp, one in consumer.stored.items()}, ends)
    if len(stamps) == 2:
        cost.cpu_us = (stamps[1] - stamps[0]) / 1000 / (last - first)
    return cost


def _losses(handled: int, total: int, committed: Offsets, ends: Offsets) -> list[str]:
    """What is missing or too much."""
    counted = [] if handled == total else [f"{handled} records were handled instead of {total}"]
    return counted if committed == ends else [*counted, "not all was committed"]


# -- all of them ---------------------------------------------------------------------------------


def measure(rounds: int, records: int, _: str) -> Measurements:
    """All points in each round, one way and then the other."""
    points = {f"{row} {name}": point for row, found in ROWS.items() for name, point in found.items()}
    runs: dict[str, list[Measured]] = {name: [] for name in points}
    for number in range(rounds):
        for name in in_turn(list(points), number):
            cost = in_own_process(_RUN_SECONDS, cost_of, points[name], records)
            runs[name].append(cost)
            say(number, name, f"{cost.cpu_us:8.2f} us", cost.faults)
    return runs


def result(runs: Measurements) -> dict[str, object]:
    """Cost and growth of each point, and whether the rows are flat."""
    rows: dict[str, object] = {}
    targets: dict[str, object] = {}
    for row, points in ROWS.items():
        costs = {name: _costs(runs, row, name) for name in points}
        judged = judged_points(row)
        growth = {name: ratios_of(found, costs[judged[0]]) for name, found in costs.items()}
        rows[row] = {
            "cpu_us": {name: middle(found, 2) for name, found in costs.items()},
            "cpu_us_spread": {name: spread(found, 2) for name, found in costs.items()},
            "growth": {name: middle(found) for name, found in growth.items()},
        }
        worst = max(judged, key=lambda name: middle(growth[name]))
        targets[f"growth of {row}, worst at {worst}"] = at_most(TARGET_GROWTH, middle(growth[worst]))
    return {"rows": rows, "targets": targets}


def _costs(runs: Measurements, row: str, name: str) -> list[float]:
    return [one.cpu_us for one in runs[f"{row} {name}"] if isinstance(one, Cost)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 1 when any run was wrong."""
    made = parser("P11: growth of asyncpar's own cost per record.", needs_broker=False)
    made.add_argument("--records", type=int, default=RECORDS, help="measured at each point")
    options = parsed(made, arguments)
    settings = {
        "records": options.records,
        "value_bytes": len(_VALUE),
        "without a broker": "records are made in the process, and their making is not counted",
        "asyncpar": "no-op async handler, default settings, event loop of the standard library",
        "figure": "CPU time of the process per record, in microseconds",
    }
    return conduct(options, Course(settings, partial(measure, options.rounds, options.records), result))


if __name__ == "__main__":
    sys.exit(main())
