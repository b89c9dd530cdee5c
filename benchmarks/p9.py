"""Workload P9: what an idle member costs, with 100 partitions assigned.

    python benchmarks/p9.py [--bootstrap-servers host:port] [--seconds S] [--rounds N] [--json FILE]

What lives here: two idle members, the target. A topic of 100 partitions with one record in each. A member
reads them, is left alone for five seconds, and then the CPU time of its process is taken over `--seconds`:
`share_of_a_core`. The broker's work is in none of it. After that one more record goes into each partition,
and must be handled: whoever sleeps too well is not idle but dead.

- `asyncpar`: defaults, a no-op handler.
- `raw aiokafka`: `getmany(timeout_ms=1000)` in a loop, a commit each second, and all of the client's
  defaults: it lets the broker hold a fetch for half a second.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script
    sys.path.insert(0, str(ROOT))

from aiokafka import AIOKafkaConsumer  # noqa: E402 - after the path

from asyncpar import App, Record  # noqa: E402 - likewise
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
from benchmarks.harness import quiet  # noqa: E402 - likewise
from tests import kafka_tools  # noqa: E402 - likewise

PARTITIONS = 100
SECONDS = 30
SETTLE_SECONDS = 5.0
TARGET_SHARE = 0.02
OURS, RAW = "asyncpar", "raw aiokafka"
_WAIT_SECONDS = 60.0
_LOOK_SECONDS = 0.05


@dataclass
class Idle(Measured):
    """CPU time of an idle member, in seconds, over so many seconds."""

    cpu_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def share(self) -> float:
        """Of one core."""
        return self.cpu_seconds / self.seconds if self.seconds else 0.0


def idle(name: str, bootstrap: str, topic: str, group: str, seconds: float) -> Idle:
    """One member's idleness. To be called in a process of its own."""
    quiet()
    return asyncio.run(MEMBERS[name](bootstrap, topic, group, seconds))


async def _asyncpar(bootstrap: str, topic: str, group: str, seconds: float) -> Idle:
    app = App(group=group, bootstrap_servers=bootstrap, http_port=0)
    seen: list[int] = []

    @app.topic(topic)
    async def handle(record: Record) -> None:
        seen.append(record.partition)

    async with app:
        return await _observed(bootstrap, topic, seconds, seen)


async def _raw(bootstrap: str, topic: str, group: str, seconds: float) -> Idle:
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=bootstrap,
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    await consumer.start()
    seen: list[int] = []

    async def read() -> None:
        while True:
            chunks = await consumer.getmany(timeout_ms=1000)
            seen.extend(partition.partition for partition, records in chunks.items() for _ in records)
            if chunks:
                await consumer.commit()

    reading = asyncio.create_task(read())
    try:
        return await _observed(bootstrap, topic, seconds, seen)
    finally:
        reading.cancel()
        await asyncio.wait({reading})
        await consumer.stop()


async def _observed(bootstrap: str, topic: str, seconds: float, seen: Sequence[int]) -> Idle:
    """Once the first records were handled: the CPU time of this process, and whether the next ones are."""
    found = Idle()
    await _send(bootstrap, topic)
    if not await _until_seen(seen, 1):
        found.faults.append(f"{len(seen)} of the first {PARTITIONS} records were handled")
        return found
    await asyncio.sleep(SETTLE_SECONDS)
    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.sleep(seconds)
    found.cpu_seconds, found.seconds = time.process_time() - cpu, time.perf_counter() - began
    await _send(bootstrap, topic)
    if not await _until_seen(seen, 2):
        found.faults.append("it was not idle but dead: not every partition's second record was handled once")
    return found


async def _send(bootstrap: str, topic: str) -> None:
    """A record into each partition."""
    records = [kafka_tools.Record(partition=number) for number in range(PARTITIONS)]
    await kafka_tools.produce(bootstrap, topic, records)


async def _until_seen(seen: Sequence[int], times: int) -> bool:
    """Whether each partition's records, so many of them, come in time, and no more."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while len(seen) < times * PARTITIONS:
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(_LOOK_SECONDS)
    return sorted(seen) == sorted([*range(PARTITIONS)] * times)


Member = Callable[[str, str, str, float], Awaitable[Idle]]
MEMBERS: dict[str, Member] = {OURS: _asyncpar, RAW: _raw}


def measure(rounds: int, seconds: float, bootstrap: str) -> Measurements:
    """Both in each round, each with a topic and a group of its own."""
    runs: dict[str, list[Measured]] = {name: [] for name in MEMBERS}
    for number in range(rounds):
        for name in in_turn(list(MEMBERS), number):
            with topic_for(bootstrap, "p9", PARTITIONS) as topic:
                bound = seconds + SETTLE_SECONDS + 3 * _WAIT_SECONDS
                group = f"{topic}-group"
                one = in_own_process(bound, idle, name, bootstrap, topic, group, seconds)
                asyncio.run(kafka_tools.delete_group(bootstrap, group))
            runs[name].append(one)
            say(number, name, f"{one.share:.2%} of a core", one.faults)
    return runs


def result(runs: Measurements) -> dict[str, object]:
    """Medians and the target."""
    shares = {name: [one.share for one in found if isinstance(one, Idle)] for name, found in runs.items()}
    return {
        "share_of_a_core": {name: middle(found, 4) for name, found in shares.items()},
        "share_of_a_core_spread": {name: spread(found, 4) for name, found in shares.items()},
        "targets": {"share of a core": at_most(TARGET_SHARE, middle(shares[OURS], 4))},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 1 when a member was not idle but dead."""
    made = parser(f"P9: CPU of an idle member with {PARTITIONS} partitions.")
    made.add_argument("--seconds", type=float, default=SECONDS, help="how long it is looked at")
    options = parsed(made, arguments)
    settings = {
        "partitions": PARTITIONS,
        "seconds": options.seconds,
        "settled for": f"{SETTLE_SECONDS} s before",
        OURS: "default settings, event loop of the standard library",
        RAW: "getmany(timeout_ms=1000), the client's defaults",
    }
    return conduct(options, Course(settings, partial(measure, options.rounds, options.seconds), result))


if __name__ == "__main__":
    sys.exit(main())
