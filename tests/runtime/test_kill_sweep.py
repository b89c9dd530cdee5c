"""A member is killed at every turn of its loop, from the first failure of a record to the commit above it.

Whatever the turn: nothing is lost, the record is a dead letter once, or twice and recognisable as the same.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Iterator

import pytest

from asyncpar import App, Record, Retry
from asyncpar.headers import origin
from asyncpar.records import TopicPartition
from asyncpar.runtime.group_state import Clock
from asyncpar.testing.memory_broker import MemoryBroker
from asyncpar.testing.virtual_time import VirtualLoop

GROUP = "g"
SOURCE, DEAD = TopicPartition("t", 0), TopicPartition("t.dlq", 0)
RECORDS = 6
BAD = 2
MOST_SECONDS = 120.0


class KillingLoop(VirtualLoop):
    """Kills member m1 at turn `turn` after something of it failed."""

    def __init__(self, turn: int | None) -> None:
        super().__init__(random.Random(1), max_steps=2_000_000)
        self.turn = turn
        self.turns = 0
        self.has_failed = False
        self.killed = asyncio.Event()

    def _run_once(self) -> None:
        self.turns += self.has_failed
        if self.turn is not None and self.turns == self.turn and not self.killed.is_set():
            self.kill("m1")
            self.killed.set()
        super()._run_once()


def start(
    loop: KillingLoop, broker: MemoryBroker, name: str, runs: Counter[int]
) -> tuple[App, asyncio.Task[None]]:
    """A member that fails for record BAD, every time."""
    app = App(
        group=GROUP,
        http_port=0,
        consumers=broker.consumers(name),
        producers=broker.producers(name),
        session_timeout_ms=6_000,
        heartbeat_interval_ms=1_000,
        commit_interval_ms=200,
    )
    app._clock = Clock(loop.time, loop.time, random.Random(2).random)

    @app.topic("t", dead_letter=".dlq", retry=Retry(attempts=2, base_ms=20, max_ms=20))
    async def handle(record: Record) -> None:
        runs[record.offset] += 1
        await asyncio.sleep(0.001)
        if record.offset == BAD:
            loop.has_failed = True
            raise ValueError("never")

    return app, loop.create_task(app.run(), context=VirtualLoop.context_of(name))


async def live(loop: KillingLoop) -> tuple[MemoryBroker, Counter[int]]:
    """Until everything is committed; a second member takes over from one that was killed."""
    broker = MemoryBroker(wall=loop.time)
    broker.create_topic("t", 1)
    broker.create_topic("t.dlq", 1)
    for at in range(RECORDS):
        broker.send("t", b"v", b"k%d" % (at % 2))
    runs: Counter[int] = Counter()
    app, task = start(loop, broker, "m1", runs)
    deadline = loop.time() + MOST_SECONDS
    is_second = False
    while True:
        stored = broker.committed(GROUP).get(SOURCE)
        if stored is not None and stored.offset == RECORDS:
            break
        assert loop.time() < deadline, f"not committed in {MOST_SECONDS} s, killed at turn {loop.turn}"
        if loop.killed.is_set() and not is_second:
            is_second = True
            app, task = start(loop, broker, "m2", runs)
        await asyncio.sleep(0.05)
    if is_second or not loop.killed.is_set():
        app.stop()
        ends = {task} if is_second else {task, loop.create_task(loop.killed.wait())}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    return broker, runs


def run(turn: int | None) -> tuple[KillingLoop, MemoryBroker, Counter[int]]:
    loop = KillingLoop(turn)
    try:
        broker, runs = loop.run_until_complete(live(loop))
    finally:
        loop.abandon()
    return loop, broker, runs


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The engine's log of thousands of failures says nothing here."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.timeout(300)
def test_a_kill_at_any_turn_loses_nothing_and_doubles_at_most_one_letter() -> None:
    """Between failure, second attempt, publish, acknowledgement and commit there is no turn that does."""
    undisturbed, _, _ = run(None)
    assert undisturbed.turns > 30
    doubled = 0
    for turn in range(1, undisturbed.turns + 1):
        _, broker, runs = run(turn)
        letters = [origin(record.headers) for record in broker.log(DEAD).records if record.headers]
        assert letters, f"lost, when killed at turn {turn}"
        assert set(letters) == {(SOURCE, BAD)}
        assert len(letters) <= 2, f"{len(letters)} letters, when killed at turn {turn}"
        assert set(runs) == set(range(RECORDS))
        doubled += len(letters) == 2
    assert doubled, "a kill between acknowledgement and commit was never met"
