"""Workload P8: memory. What a record in flight takes, and whether a million keys in a row leave something.

    python benchmarks/p8.py [--bootstrap-servers host:port] [--records N] [--in-flight N] [--rounds N]
                            [--json FILE]

What lives here: the states that a record can be in flight in, the two ways of measuring, the targets.

In flight: `tracemalloc` in a fresh process, without a broker (`clientless.py`). The records are made before
it starts, so it sees what asyncpar holds for them and not the records: what is traced when all
`--in-flight` of them are in flight, less what was traced when the app had joined, per record.

- `queued`: each of its own key, waiting for one of the 100 slots (the default).
- `queued behind its key`: the same, 100 records to a key.
- `running`: as many slots as records, each in a handler that waits for an `asyncio.Event`, after as many
  others. That includes the handler's own coroutine and the future that it waits with.
- `running in a new slot`: the same from the start, which includes the slots themselves. They are made when
  they are needed, and stay: there are as many as calls ran at the same time, `concurrency` at most.
- `bare task`: a plain `asyncio` task per record around the same handler, for comparison.
- `waiting for a retry`: each has failed once, and waits up to an hour.

A million keys: `--records` records, each of a key of its own, through a no-op handler on a real broker,
client included, and beside it as many records of 1,000 keys. The resident memory of the process is looked
at 50 times; `grown_mb` is the median of the last fifth less that of the second one. It goes up and down by
some MB in both, as the client's buffers come and go, so flat means that it is no more than 32 bytes for each
key in between: what is kept of a key is at least an object of bytes, which takes more than that. Exit code 1
when a record was lost, or ran twice or out of order.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time
import tracemalloc
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script
    sys.path.insert(0, str(ROOT))

from asyncpar import App, Retry  # noqa: E402 - after the path
from asyncpar.errors import DrainIncompleteError  # noqa: E402 - likewise
from asyncpar.records import RawRecord, TopicPartition  # noqa: E402 - likewise
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
    topic_for,
)
from benchmarks.harness import Run, Task, one_run, quiet  # noqa: E402 - likewise
from benchmarks.load import PARTITIONS, VALUE_BYTES, Load, produce  # noqa: E402 - likewise
from benchmarks.work import PLACE_BYTES  # noqa: E402 - likewise

RECORDS = 1_000_000
IN_FLIGHT = 20_000
TARGET_BYTES = 1_200
TARGET_BYTES_PER_KEY = 32
SAMPLES = 50
TOPIC = "p8"
KEY_END = 6
"""A value begins with so many digits of its key; its number within the key follows."""
DISTINCT, FEW = "all keys distinct", "few keys"
FEW_KEYS = 1_000
NEW_SLOT, BARE = "running in a new slot", "bare task"
"""Both are shown and have no target."""
_FIFTHS_APART = 3 / 5
_WAIT_SECONDS = 60.0
_LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Flight:
    """A state to be in flight in. `slots`: 0 for as many as there are records.

    `has_run`: as many records were in flight before, and are done.
    """

    records_per_key: int = 1
    slots: int = 100
    fails: bool = False
    has_run: bool = False


FLIGHTS = {
    "queued": Flight(),
    "queued behind its key": Flight(records_per_key=100),
    "running": Flight(slots=0, has_run=True),
    NEW_SLOT: Flight(slots=0),
    "waiting for a retry": Flight(fails=True),
}


@dataclass
class Held(Measured):
    """Bytes per record in flight, over the record."""

    in_flight: int = 0
    bytes_per_record: float = 0.0


@dataclass
class Resident(Measured):
    """Resident memory in MB (10^6 bytes) while keys came and went."""

    records: int = 0
    rss_mb: list[float] = field(default_factory=list)
    grown_mb: float = 0.0

    @property
    def bytes_per_key(self) -> float:
        """What it has grown for each record between the middles of the two fifths."""
        return 1e6 * self.grown_mb / (_FIFTHS_APART * self.records) if self.records else 0.0


# -- in flight -----------------------------------------------------------------------------------


def held_in_flight(flight: Flight, count: int) -> Held:
    """What asyncpar holds for `count` records in flight. To be called in a process of its own."""
    quiet()
    return asyncio.run(_held_in_flight(flight, count))


async def _held_in_flight(flight: Flight, count: int) -> Held:
    made = _records(2 * count, flight.records_per_key)
    consumer = MadeConsumer(
        {TopicPartition(TOPIC, 0): len(made)},
        lambda _, offset, many: made[offset : offset + many],
        up_to=0,
    )
    # Twice as much as is held: the intake stops one fetch short of a limit.
    app = App(group=TOPIC, consumers=lambda _: consumer, http_port=0, max_in_flight=2 * count)
    gate, hour_ms = asyncio.Event(), 3_600_000

    @app.topic(TOPIC, concurrency=flight.slots or count, retry=Retry(base_ms=hour_ms, max_ms=hour_ms))
    async def handle(_: bytes) -> None:
        if flight.fails:
            raise ConnectionError
        await gate.wait()

    def has_begun() -> bool:
        found = app.status().groups[0]
        running, parked = (
            sum(getattr(one, name) for one in found.handlers) for name in ("running", "parked")
        )
        # Of those that fail some drew a delay that is over by now, and run again.
        most = min(flight.slots or count, -(-count // flight.records_per_key))
        busy = parked >= 0.99 * count if flight.fails else running == most
        return found.in_flight == count and busy

    def is_idle() -> bool:
        """Also true of its partition: it is open."""
        found = app.status().groups
        return any(one.state == "open" for group in found for one in group.partitions) and not any(
            group.in_flight for group in found
        )

    held = 0
    with suppress(DrainIncompleteError):  # what waits for a retry is left behind
        async with app:
            await _until(is_idle, "the partition is open")
            if flight.has_run:
                consumer.up_to = count
                await _until(has_begun, f"the first {count} records are in flight")
                gate.set()
                await _until(is_idle, f"the first {count} records are done")
                gate.clear()
            before = _traced_now()
            consumer.up_to += count
            await _until(has_begun, f"{count} records are in flight")
            held = _traced_now() - before
            tracemalloc.stop()
            gate.set()
    return Held(in_flight=count, bytes_per_record=held / count)


def _records(count: int, per_key: int) -> list[RawRecord]:
    return [MadeRecord(at, b"key-%d" % (at // per_key), b"." * VALUE_BYTES) for at in range(count)]


def held_by_tasks(count: int) -> Held:
    """The same of bare tasks. To be called in a process of its own."""
    return asyncio.run(_held_by_tasks(count))


async def _held_by_tasks(count: int) -> Held:
    made, gate = _records(count, 1), asyncio.Event()

    async def handle(value: bytes | None) -> None:  # noqa: ARG001 - as the other handler
        await gate.wait()

    before = _traced_now()
    tasks = [asyncio.create_task(handle(record.value)) for record in made]
    await asyncio.sleep(0)
    held = _traced_now() - before
    tracemalloc.stop()
    gate.set()
    await asyncio.gather(*tasks)
    return Held(in_flight=count, bytes_per_record=held / count)


def _traced_now() -> int:
    """Bytes that were allocated since the first call, and still are."""
    gc.collect()
    if not tracemalloc.is_tracing():
        tracemalloc.start()
    return tracemalloc.get_traced_memory()[0]


async def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {_WAIT_SECONDS:.0f} s: {what}")
        await asyncio.sleep(_LOOK_SECONDS)


# -- keys in a row -------------------------------------------------------------------------------


class DistinctKeys(Load):
    """As many keys as records."""

    @cached_property
    def sequence(self) -> Sequence[int]:
        """Each key once."""
        return range(self.records)


@dataclass
class RssRun(Run):
    """Also: resident memory in MB at regular counts of records."""

    rss_mb: list[float] = field(default_factory=list)


def run_resident(keys: int, task: Task) -> Run:
    """A no-op handler that counts, and looks at the memory now and then."""
    quiet()
    began = time.perf_counter()
    run = asyncio.run(_resident(keys, task))
    run.total_seconds = time.perf_counter() - began
    return run


async def _resident(keys: int, task: Task) -> RssRun:
    app = App(group=task.group, bootstrap_servers=task.bootstrap, http_port=0)
    run, following = RssRun(0, 0.0, 0.0), array("i", bytes(4 * keys))
    every, page = max(1, task.records // SAMPLES), os.sysconf("SC_PAGE_SIZE")
    began, overtakes = 0.0, 0

    def resident_mb() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * page / 1e6

    @app.topic(task.topic)
    async def handle(value: bytes) -> None:
        nonlocal began, overtakes
        key, number = int(value[:KEY_END]), int(value[KEY_END:PLACE_BYTES])
        run.duplicates += number < following[key]
        overtakes += number > following[key]
        following[key] = number + 1
        run.records += 1
        if run.records % every == 0:
            run.rss_mb.append(resident_mb())
        began = began or time.perf_counter()
        run.seconds = time.perf_counter() - began

    await app.run(drain_and_exit=True)
    if sum(following) != task.records or run.duplicates or overtakes:
        counts = f"{sum(following)} of {task.records} records, {run.duplicates} repeats"
        run.faults.append(f"{counts}, {overtakes} overtook an earlier one of their key")
    return run


def grown(samples: Sequence[float]) -> float:
    """By how much the median of the last fifth is above that of the second one; 0.0 of too few samples."""
    fifth = len(samples) // 5
    if not fifth:
        return 0.0
    return round(median(samples[-fifth:]) - median(samples[fifth : 2 * fifth]), 3)


# -- all rounds ----------------------------------------------------------------------------------


def measure(rounds: int, records: int, count: int, bootstrap: str) -> Measurements:
    """All of it in each round."""
    names = [*FLIGHTS, BARE]
    runs: dict[str, list[Measured]] = {name: [] for name in names}
    for number in range(rounds):
        for name in in_turn(names, number):
            if name == BARE:
                held = in_own_process(_WAIT_SECONDS, held_by_tasks, count)
            else:
                held = in_own_process(_WAIT_SECONDS, held_in_flight, FLIGHTS[name], count)
            runs[name].append(held)
            say(number, name, f"{held.bytes_per_record:7.0f} bytes per record", held.faults)
    for name, load in _loads(records).items():
        runs[name] = [*_resident_runs(bootstrap, name, load, rounds)]
    return runs


def _loads(records: int) -> dict[str, Load]:
    return {DISTINCT: DistinctKeys(records, records), FEW: Load(records, min(records, FEW_KEYS))}


def _resident_runs(bootstrap: str, name: str, load: Load, rounds: int) -> Iterator[Resident]:
    with topic_for(bootstrap, "p8-keys", load.partitions) as topic:
        produce(bootstrap, topic, load)
        for number in range(rounds):
            # The handler judges by itself, so that nothing has to be kept for it.
            task = Task(bootstrap, topic, f"{topic}-{number}", load.records, ())
            run = one_run(partial(run_resident, load.keys), task)
            assert isinstance(run, RssRun)
            one = Resident(run.faults, run.records, run.rss_mb, grown(run.rss_mb))
            ends = " to ".join(f"{mb:.1f}" for mb in run.rss_mb[:: max(1, len(run.rss_mb) - 1)])
            say(number, name, f"{ends} MB, grown by {one.grown_mb:.1f} MB", run.faults)
            yield one


def result(runs: Measurements) -> dict[str, object]:
    """Medians and targets."""
    held = {
        name: [one.bytes_per_record for one in runs[name] if isinstance(one, Held)]
        for name in [*FLIGHTS, BARE]
    }
    bytes_each = {name: middle(found, 0) for name, found in held.items()}
    resident = {name: [one for one in runs[name] if isinstance(one, Resident)] for name in (DISTINCT, FEW)}
    per_key = {name: [one.bytes_per_key for one in found] for name, found in resident.items()}
    return {
        "bytes_per_record": bytes_each,
        "bytes_per_record_spread": {name: spread(found, 0) for name, found in held.items()},
        "rss_mb_at_the_end": {
            name: middle([one.rss_mb[-1] for one in found], 1) for name, found in resident.items()
        },
        "grown_mb": {name: middle([one.grown_mb for one in found], 1) for name, found in resident.items()},
        "bytes_per_key": {name: middle(found, 1) for name, found in per_key.items()},
        "bytes_per_key_spread": {name: spread(found, 1) for name, found in per_key.items()},
        "targets": {
            **{
                f"bytes, {name}": at_most(TARGET_BYTES, bytes_each[name])
                for name in FLIGHTS
                if name != NEW_SLOT
            },
            "bytes per key": at_most(TARGET_BYTES_PER_KEY, middle(per_key[DISTINCT], 1)),
        },
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 1 when any run was wrong."""
    made = parser("P8: bytes per record in flight, and resident memory over many keys.")
    made.add_argument("--records", type=int, default=RECORDS, help="each of a key of its own")
    made.add_argument("--in-flight", type=int, default=IN_FLIGHT, help="records held at once")
    options = parsed(made, arguments)
    settings = {
        "records": options.records,
        "in_flight": options.in_flight,
        "partitions": f"{PARTITIONS}; in flight: 1",
        "value_bytes": VALUE_BYTES,
        "bytes per record": "tracemalloc, without the records and without a client",
        "resident memory": "of the whole process, with the client, defaults, no-op async handler",
    }
    return conduct(
        options,
        Course(settings, partial(measure, options.rounds, options.records, options.in_flight), result),
    )


if __name__ == "__main__":
    sys.exit(main())
