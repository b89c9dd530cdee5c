"""Failure rules in each other's company: breaker, commits, poison keys, dead letters, stops."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from contextvars import copy_context
from typing import Any

import pytest

from asyncpar import headers
from asyncpar.core.assignment import State
from asyncpar.core.breaker import BreakerRules
from asyncpar.core.dead_letter_budget import BudgetRules
from asyncpar.core.offset_codec import decode_attempts
from asyncpar.core.offsets import OffsetTracker
from asyncpar.core.poison import PoisonRules
from asyncpar.core.virtual_partitions import Queues, VirtualPartition
from asyncpar.errors import DrainIncompleteError, Permanent, PublishError, RetryAfter
from asyncpar.ports import Late
from asyncpar.records import Committed, OutgoingRecord, RawRecord, TopicPartition
from asyncpar.runtime import snapshots
from asyncpar.runtime.admission import Gate
from asyncpar.runtime.group_state import Clock, GroupState
from asyncpar.runtime.handlers import Admissions
from asyncpar.runtime.worker import Worker
from asyncpar.runtime.workers import HandlerPool
from tests.runtime.fakes import FakeConsumer, FakeProducer, FakeRecord, Running, config, handler, log, until

T0 = TopicPartition("t", 0)


def breaker(**values: int) -> BreakerRules:
    """It opens at the fifth failure, and stays open."""
    return BreakerRules(1.0, **{"min_calls": 5, "open_ms": 60_000, "max_open_ms": 60_000, **values})


def gate_of(run: Running) -> Gate:
    gate = run.runtime.state.pools[0].gate
    assert gate is not None
    return gate


async def down(record: RawRecord) -> None:
    """A handler whose downstream is out."""
    raise ConnectionError


# -- failures that are given back ------------------------------------------------------------


async def test_failures_that_a_breaker_gave_back_are_given_back_at_the_broker_too() -> None:
    """Else a process that is killed in the outage leaves them to the next one as used up."""
    records = [FakeRecord(0, b"x"), *(FakeRecord(at, b"good%d" % at) for at in range(1, 10))]
    consumer = FakeConsumer({T0: records})
    go, fails, is_out = asyncio.Event(), 0, False

    async def handle(record: RawRecord) -> None:
        nonlocal fails
        await asyncio.sleep(0)
        if record.key == b"x":
            fails += 1
            if fails > 3:
                await go.wait()
            raise ConnectionError
        if is_out:
            raise ConnectionError

    def stored() -> dict[int, int]:
        at = consumer.stored.get(T0)
        return {} if at is None else decode_attempts(T0, at.offset, at.metadata)

    async with Running(consumer, handler(handle, attempts=50, admissions=Admissions(breaker()))) as run:
        await until(lambda: fails == 4)
        records.append(FakeRecord(20, b"good"))
        await until(lambda: stored() == {0: 3})
        is_out = True
        records.extend(FakeRecord(at, b"late%d" % at) for at in range(21, 27))
        go.set()
        await until(lambda: T0 in run.runtime.state.holds)
        await until(lambda: stored() == {})


async def test_a_row_of_failures_is_given_back_however_long_it_lasted() -> None:
    """It opens the breaker by itself, also where its first failures have left the window."""
    now = 100.0
    state = GroupState("g", config(), Clock(monotonic=lambda: now), lambda: 0.0)
    pool = HandlerPool(handler(down, admissions=Admissions(breaker(window_ms=60))), state)
    queues = Queues(T0, 1, OffsetTracker(0), pool.queue)
    vp, gate = VirtualPartition(queues, b"x", FakeRecord(0, b"x")), pool.gate
    worker = Worker(time.monotonic, copy_context())
    assert gate is not None
    assert gate.breaker is not None
    for made in range(1, 6):
        worker.ticket = gate.breaker.started(now)
        is_free = gate.ended(worker, vp, 0, ConnectionError(), ok=False)
        assert is_free is (made == 5)
        queues.attempts[0] = queues.attempts.get(0, 0) + (not is_free)
        now += 0.04
    assert gate.openings == 1
    assert queues.attempts == {0: 0}
    gate.close()


async def test_keys_that_were_poisoned_before_an_outage_stay_poisoned() -> None:
    """Their failures did not lead to it."""
    consumer, producer = FakeConsumer(log("t", *["bad"] * 3)), FakeProducer()
    outage = asyncio.Event()

    async def handle(record: RawRecord) -> None:
        if record.key == b"bad":
            raise ValueError
        await outage.wait()
        raise ConnectionError

    poison = PoisonRules(failures=2, cool_down_ms=3_600_000)
    rules = Admissions(breaker(window_ms=30), poison=poison)
    one = handler(handle, attempts=1, dead_letter=".dlq", admissions=rules)
    async with Running(consumer, one, producer=producer) as run:
        gate = gate_of(run)
        await until(lambda: len(producer.sent) == 3)
        over = time.monotonic() + 0.1
        await until(lambda: time.monotonic() > over)
        consumer.logs[T0].extend(FakeRecord(at, b"k%d" % at) for at in range(3, 12))
        await until(lambda: len(run.runtime.state.pools[0].busy()) == 9)
        outage.set()
        await until(lambda: gate.openings == 1)
        assert gate.count_poisoned() == 1


async def test_a_key_whose_cool_down_is_over_is_not_shown_as_poisoned() -> None:
    """Also where nothing of its handler runs any more."""
    consumer, producer = FakeConsumer(log("t", "bad")), FakeProducer()
    rules = Admissions(poison=PoisonRules(failures=1, cool_down_ms=20))
    one = handler(down, attempts=1, dead_letter=".dlq", admissions=rules)
    async with Running(consumer, one, producer=producer) as run:
        await until(lambda: len(producer.sent) == 1)
        pool = run.runtime.state.pools[0]
        await until(lambda: snapshots.handler_status(pool).poisoned_keys == 0)


async def test_a_record_that_waits_for_somebody_elses_turn_does_not_grow_old() -> None:
    """`max_age_ms` counts from the first failure of its own."""
    consumer, runs = FakeConsumer(log("t", "a")), 0

    class Held(RetryAfter):
        is_free = True

    async def handle(_: RawRecord) -> None:
        nonlocal runs
        runs += 1
        if runs <= 5:
            raise Held(delay_ms=20)
        if runs == 6:
            raise ValueError

    one = handler(handle, attempts=2)
    one = dataclasses.replace(one, rules=dataclasses.replace(one.rules, max_age_ms=60))
    async with Running(consumer, one) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(1, ""))
        await run.stop()
    assert runs == 7


async def test_an_attempt_that_fails_in_a_drain_counts_for_the_next_owner() -> None:
    """It was made; the last commit says so."""
    consumer = FakeConsumer(log("t", "bad"))
    started, go = asyncio.Event(), asyncio.Event()

    async def handle(_: RawRecord) -> None:
        started.set()
        await go.wait()
        raise ValueError

    async with Running(consumer, handler(handle, attempts=5), max_revoke_grace_ms=5_000) as run:
        await started.wait()
        revoking = asyncio.create_task(consumer.revoke())
        await until(lambda: run.runtime.state.partitions[T0].state is State.DRAINING)
        go.set()
        await revoking
    stored = consumer.stored[T0]
    assert decode_attempts(T0, stored.offset, stored.metadata) == {0: 1}


# -- dead letters that cannot leave, and an end ----------------------------------------------


USED_UP = Admissions(budget=BudgetRules(share=0.0, at_least=1, window_ms=600_000))
"""It lets one dead letter go in ten minutes."""


@pytest.mark.parametrize("how", ["revoke", "stop"])
async def test_nobody_waits_for_what_a_budget_holds_for_longer(how: str) -> None:
    """Nothing would come of it: all other members wait for the one whose partitions are revoked."""
    consumer, producer = FakeConsumer(log("t", "a", "b")), FakeProducer()
    one = handler(down, attempts=1, dead_letter=".dlq", admissions=USED_UP)
    bounds: dict[str, Any] = {"max_revoke_grace_ms": 60_000, "shutdown_drain_timeout_ms": 60_000}
    consumer.seconds_to_drain = 60.0
    async with Running(consumer, one, producer=producer, **bounds) as run:
        await until(lambda: T0 in run.runtime.state.holds and len(producer.sent) == 1)
        if how == "revoke":
            await asyncio.wait_for(consumer.revoke(), 5)
        else:
            with pytest.raises(DrainIncompleteError, match="not yet acknowledged by their dead-letter"):
                await run.stop()
    assert len(producer.sent) == 1


async def test_a_second_stop_waits_for_no_letter() -> None:
    """Their topic takes none, and somebody is in a hurry."""
    consumer, producer = FakeConsumer(log("t", "bad")), FakeProducer(down=PublishError("no", "unreachable"))
    one = handler(down, attempts=1, dead_letter=".dlq")
    async with Running(consumer, one, producer=producer, shutdown_drain_timeout_ms=60_000) as run:
        assert run.task is not None
        await until(lambda: T0 in run.runtime.state.holds)
        run.runtime.stop()
        await until(lambda: run.runtime.state.stopping)
        await asyncio.wait({run.task}, timeout=0.05)
        assert not run.task.done()
        run.runtime.stop(now=True)
        with pytest.raises(DrainIncompleteError, match="retry topic: 1"):
            await asyncio.wait_for(run.task, 5)


class Wire(FakeProducer):
    """What was given to it is written, whoever has gone meanwhile: as with the real one."""

    go: asyncio.Event
    written: list[int | None]

    async def send(
        self, record: OutgoingRecord, timeout_s: float, late: Late | None = None
    ) -> tuple[TopicPartition, int]:
        """See the port."""

        async def write() -> None:
            await self.go.wait()
            self.written.append(headers.number(record.headers, headers.OFFSET))

        await asyncio.shield(asyncio.ensure_future(write()))
        return TopicPartition(record.topic, 0), len(self.written) - 1


async def test_a_halted_partition_that_goes_on_doubles_no_letter() -> None:
    """One was on its way when somebody asked: it leaves first."""
    consumer, wire, runs = FakeConsumer(log("t", "letter", "halts", "fine")), Wire(), list[int]()
    wire.go, wire.written = asyncio.Event(), []
    halt = asyncio.Event()

    async def handle(record: RawRecord) -> None:
        runs.append(record.offset)
        if record.key == b"letter":
            raise Permanent
        await halt.wait()
        if runs.count(1) == 1:
            raise ValueError

    one = handler(handle, attempts=1, dead_letter=".dlq")
    one = dataclasses.replace(one, rules=dataclasses.replace(one.rules, on_error={ValueError: "halt"}))
    async with Running(consumer, one, producer=wire) as run:
        state = run.runtime.state
        outbox = state.outbox
        assert outbox is not None
        await until(lambda: outbox.count_waiting() == 1)
        halt.set()
        await until(lambda: state.partitions[T0].halt_reason is not None)
        run.runtime.retry_halted(T0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert not state.partitions[T0].is_open
        wire.go.set()
        await until(lambda: consumer.stored.get(T0) == Committed(3, ""))
        await run.stop()
    assert wire.written == [0]
    assert runs.count(0) == 1
