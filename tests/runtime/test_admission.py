"""What keeps records from starting: breaker, rate limits, poison keys, delays; all of it in order."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections import defaultdict

import pytest

from asyncpar import headers
from asyncpar.core.breaker import BreakerRules, BreakerState
from asyncpar.core.poison import PoisonRules
from asyncpar.core.rate_limit import RateRules
from asyncpar.errors import DecodeError, Permanent
from asyncpar.records import Committed, RawRecord, TopicPartition
from asyncpar.runtime import health, snapshots, watchdog
from asyncpar.runtime.admission import Gate
from asyncpar.runtime.handlers import Admissions
from tests.runtime.fakes import FakeConsumer, FakeProducer, FakeRecord, Running, handler, log, until

T0 = TopicPartition("t", 0)


def gate_of(run: Running) -> Gate:
    gate = run.runtime.state.pools[0].gate
    assert gate is not None
    return gate


def breaker(**values: int) -> Admissions:
    rules = {"min_calls": 5, "open_ms": 60, "max_open_ms": 60, **values}
    return Admissions(breaker=BreakerRules(failure_share=0.5, **rules))


async def test_an_outage_opens_the_breaker_and_nothing_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    """While the downstream is out: few calls, and no attempt is used up; then all is done in order."""
    keys = [f"k{at % 5}" for at in range(100)]
    consumer = FakeConsumer(log("t", *keys))
    is_out, calls = True, 0
    seen: dict[bytes, list[int]] = defaultdict(list)

    async def handle(record: RawRecord) -> None:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)
        if is_out:
            raise ConnectionError
        assert record.key is not None
        seen[record.key].append(record.offset)

    with caplog.at_level(logging.INFO, "asyncpar"):
        async with Running(consumer, handler(handle, attempts=3, admissions=breaker())) as run:
            gate = gate_of(run)
            assert gate.breaker is not None
            await until(lambda: gate.openings >= 4)
            assert calls < 20
            assert run.runtime.state.partitions[T0].halt_reason is None
            is_out = False
            await until(lambda: consumer.stored.get(T0) == Committed(100, ""))
            assert gate.breaker.state is BreakerState.CLOSED
            assert not run.runtime.state.holds
            await run.stop()
    assert all(offsets == sorted(offsets) for offsets in seen.values())
    assert sum(map(len, seen.values())) == 100
    opened = [one for one in caplog.messages if "its breaker opened" in one]
    assert len(opened) == gate.openings
    assert sum("its breaker closed" in one for one in caplog.messages) == 1


async def test_an_open_breaker_holds_fetching() -> None:
    """Of the partitions that only its handler reads, those assigned meanwhile too."""
    consumer = FakeConsumer({**log("t", *("k" for _ in range(5))), **log("u", "x")})

    async def handle(_: RawRecord) -> None:
        raise ConnectionError("no route")

    async def fine(_: RawRecord) -> None:
        """Nothing fails here."""

    rules = breaker(min_calls=1, open_ms=60_000, max_open_ms=60_000)
    async with Running(consumer, handler(handle, admissions=rules), handler(fine, "u", name="fine")) as run:
        await until(lambda: gate_of(run).openings == 1)
        assert list(run.runtime.state.holds) == [T0]
        consumer.logs[TopicPartition("t", 1)] = [FakeRecord(0, b"k")]
        await consumer.revoke([T0])
        consumer.assign([T0, TopicPartition("t", 1), TopicPartition("u", 0)])
        await until(lambda: set(run.runtime.state.holds) == {T0, TopicPartition("t", 1)})
        (held, _, _) = snapshots.group_status(run.runtime).partitions
        why = "1 of 1 calls failed, the last with ConnectionError: no route; it tries again by itself"
        assert held.hold_reason == f"the breaker of handler handle is open: {why}"
        stopped, runs = snapshots.group_status(run.runtime).handlers
        assert (stopped.hold_reason, runs.hold_reason) == (f"its breaker is open: {why}", None)
        assert stopped.hold_duration_seconds > 0
        await until(lambda: consumer.stored.get(TopicPartition("u", 0)) == Committed(1, ""))
        await run.stop()


async def test_records_that_say_nothing_of_the_downstream_neither_open_nor_close_it() -> None:
    """Undecodable ones: the probe's place is given back, and the next record probes."""
    consumer = FakeConsumer(log("t", "a", "broken", "b"))
    runs: list[int] = []

    async def handle(record: RawRecord) -> None:
        runs.append(record.offset)
        if record.key == b"broken":
            raise DecodeError("no JSON")
        if record.key == b"a" and runs.count(0) == 1:
            raise ConnectionError

    one = handler(handle, admissions=breaker(min_calls=1), concurrency=1, skip_undecodable=True)
    async with Running(consumer, one) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(3, ""))
        assert gate_of(run).openings == 1
        await run.stop()


async def test_a_rate_limit_spaces_calls_and_keeps_order() -> None:
    """All of them run, none sooner than its token; nobody waits in a slot."""
    consumer = FakeConsumer(log("t", *("k" for _ in range(12))))
    at: list[float] = []
    order: list[int] = []

    async def handle(record: RawRecord) -> None:
        at.append(time.monotonic())
        order.append(record.offset)

    rules = Admissions(rate=RateRules(per_second=50, burst=2))
    async with Running(consumer, handler(handle, admissions=rules)) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(12, ""))
        assert gate_of(run).held_back["rate_limit"] >= 5
        await run.stop()
    assert order == list(range(12))
    assert at[-1] - at[0] >= (12 - 2) / 50 - 0.005


async def test_a_limit_by_key_holds_that_key_only() -> None:
    """Another key overtakes; the limited one stays in order."""
    consumer = FakeConsumer(log("t", "a", "a", "a", "b"))
    order: list[int] = []

    async def handle(record: RawRecord) -> None:
        order.append(record.offset)

    rules = Admissions(key_rate=RateRules(per_second=20, burst=1))
    async with Running(consumer, handler(handle, admissions=rules, concurrency=1)) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(4, ""))
        await run.stop()
    assert order == [0, 3, 1, 2]


async def test_a_poison_key_is_diverted_in_order_and_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    """Its records become dead letters without a run, until the cool-down is over; other keys run."""
    consumer, producer = FakeConsumer(log("t", *("bad" for _ in range(5)), "good")), FakeProducer()
    runs: list[int] = []

    async def handle(record: RawRecord) -> None:
        runs.append(record.offset)
        if record.key == b"bad" and record.offset < 5:
            raise ValueError

    rules = Admissions(poison=PoisonRules(failures=2, cool_down_ms=150))
    one = handler(handle, attempts=1, dead_letter=".dlq", admissions=rules)
    with caplog.at_level(logging.INFO, "asyncpar"):
        async with Running(consumer, one, producer=producer) as run:
            await until(lambda: consumer.stored.get(T0) == Committed(6, ""))
            assert sorted(runs) == [0, 1, 5]
            over = time.monotonic() + 0.2
            await until(lambda: time.monotonic() > over)
            consumer.logs[T0].append(FakeRecord(6, b"bad"))
            await until(lambda: consumer.stored.get(T0) == Committed(7, ""))
            await run.stop()
    assert runs[-1] == 6
    left = [
        (headers.number(one.headers, headers.OFFSET), headers.text(one.headers, headers.REASON))
        for one in producer.sent
    ]
    assert left == [
        (0, "exhausted"),
        (1, "exhausted"),
        (2, "poison_key"),
        (3, "poison_key"),
        (4, "poison_key"),
    ]
    assert sum("failed 2 times in a row" in one for one in caplog.messages) == 1
    assert sum("cool-down of key b'bad' of t is over" in one for one in caplog.messages) == 1


async def test_a_record_that_is_not_due_waits_without_a_slot() -> None:
    """Its key waits with it, others go on; a header that is no number is no delay."""
    due = round(time.time() * 1000) + 150
    records = [
        FakeRecord(0, b"late", headers=((headers.NOT_BEFORE, str(due).encode()),)),
        FakeRecord(1, b"late"),
        FakeRecord(2, b"now", headers=((headers.NOT_BEFORE, b"soon"),)),
    ]
    consumer = FakeConsumer({T0: records})
    order: list[int] = []
    started: dict[int, float] = {}

    async def handle(record: RawRecord) -> None:
        order.append(record.offset)
        started[record.offset] = time.time() * 1000

    one = handler(handle, admissions=Admissions(honours_delays=True), concurrency=1)
    async with Running(consumer, one) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(3, ""))
        await run.stop()
    assert order == [2, 0, 1]
    assert started[0] >= due - 1


async def test_a_closed_gate_is_no_lost_wake_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for a rate limit is not reported as neglected, and readiness stays green."""
    monkeypatch.setattr(watchdog, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(watchdog, "_TICK_SECONDS", 0.005)
    consumer = FakeConsumer(log("t", "a", "b"))

    async def handle(record: RawRecord) -> None:
        """Quick."""

    rules = Admissions(rate=RateRules(per_second=0.1, burst=1))
    async with Running(consumer, handler(handle, admissions=rules)) as run:
        await until(lambda: run.runtime.session is not None and T0 in run.runtime.state.partitions)
        session = run.runtime.session
        assert session is not None
        looks = time.monotonic() + 0.4
        await until(lambda: time.monotonic() > looks)
        assert not session.watchdog.idle_blocks
        assert not health.not_ready(run.runtime)
        run.runtime.stop(now=True)


async def test_the_first_of_two_wake_ups_counts() -> None:
    """A timer that is armed for later does not hide one that is due earlier."""
    consumer = FakeConsumer(log("t"))

    async def handle(_: RawRecord) -> None:
        """Never called."""

    async with Running(consumer, handler(handle, admissions=Admissions())) as run:
        gate, woken = gate_of(run), asyncio.Event()
        run.runtime.state.pools[0].wake = woken.set  # type: ignore[method-assign]
        gate._wake_in(60.0)
        gate._wake_in(0.02)
        gate._wake_in(60.0)
        await asyncio.wait_for(woken.wait(), 5)
        await run.stop()


async def test_an_outage_poisons_no_key() -> None:
    """Its failures are the breaker's: with few keys and a low limit none is diverted."""
    consumer, producer = FakeConsumer(log("t", *(f"k{at % 3}" for at in range(60)))), FakeProducer()
    is_out = True

    async def handle(_: RawRecord) -> None:
        if is_out:
            raise ConnectionError

    rules = Admissions(
        breaker=BreakerRules(min_calls=5, open_ms=20, max_open_ms=20), poison=PoisonRules(failures=3)
    )
    one = handler(handle, attempts=50, dead_letter=".dlq", admissions=rules)
    async with Running(consumer, one, producer=producer) as run:
        await until(lambda: gate_of(run).openings >= 20)
        is_out = False
        await until(lambda: consumer.stored.get(T0) == Committed(60, ""))
        await run.stop()
    assert not producer.sent


@pytest.mark.parametrize("how", ["on_error", "not_on", "permanent"])
async def test_failures_that_are_the_records_own_do_not_open_the_breaker(how: str) -> None:
    """What a rule or its class calls permanent says nothing of the downstream."""
    consumer, producer = FakeConsumer(log("t", *(f"k{at}" for at in range(30)))), FakeProducer()

    async def handle(_: RawRecord) -> None:
        raise Permanent if how == "permanent" else ValueError

    one = handler(handle, attempts=3, dead_letter=".dlq", admissions=breaker())
    rules = {
        "on_error": {"on_error": {ValueError: "dead_letter"}},
        "not_on": {"not_on": (ValueError,)},
        "permanent": {},
    }[how]
    one = dataclasses.replace(one, rules=dataclasses.replace(one.rules, **rules))  # type: ignore[arg-type]
    async with Running(consumer, one, producer=producer) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(30, ""))
        assert gate_of(run).openings == 0
        await run.stop()
    assert len(producer.sent) == 30
