"""The poller: what it asks for, what it does with errors, and chunks of another life."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asyncpar import headers
from asyncpar.core.breaker import BreakerRules
from asyncpar.core.rate_limit import RateRules
from asyncpar.errors import AuthorizationError, FetchError
from asyncpar.records import Committed, RawRecord, TopicPartition
from asyncpar.runtime import health, unreadable
from asyncpar.runtime.handlers import Admissions
from tests.runtime.fakes import FakeConsumer, FakeProducer, FakeRecord, Running, handler, limits, log, until

T0 = TopicPartition("t", 0)
T1 = TopicPartition("t", 1)
U0 = TopicPartition("u", 0)


async def nothing(record: RawRecord) -> None:
    """A handler that succeeds."""


async def test_a_fetch_that_raises_loses_nothing_that_it_had_taken() -> None:
    """The client drained a partition and then raised: its position is put back, all records are handled."""
    consumer = FakeConsumer(log("t", *(f"k{at}" for at in range(50))))
    seen: set[int] = set()
    original = consumer.fetch
    failed = False

    async def fetch(wanted: list[TopicPartition], room: int, timeout_ms: int, share: int) -> list[object]:
        nonlocal failed
        chunks = await original(wanted, room, timeout_ms, share)
        if chunks and not failed:
            failed = True
            raise FetchError("the next partition is corrupt")
        return chunks  # type: ignore[return-value]

    consumer.fetch = fetch  # type: ignore[method-assign, assignment]

    async def handle(record: RawRecord) -> None:
        seen.add(record.offset)

    async with Running(consumer, handler(handle)) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(50, ""))
        await run.stop()
    assert failed and seen == set(range(50))


async def test_a_missing_right_on_a_topic_ends_the_run() -> None:
    """AuthorizationError out of a fetch is final."""
    consumer = FakeConsumer(log("t", "a"), fetch_errors=[AuthorizationError("no READ on topic t")])
    async with Running(consumer, handler(nothing)) as run:
        assert run.task is not None
        with pytest.raises(AuthorizationError, match="topic t"):
            await asyncio.wait_for(run.task, 5)


async def test_a_chunk_that_was_read_in_an_older_life_is_not_let_in() -> None:
    """A partition given back and assigned again during a fetch: its records come from the new position."""
    consumer = FakeConsumer(log("t", *(f"k{at}" for at in range(10))))
    seen: list[int] = []
    once = True

    async def reassign() -> None:
        nonlocal once
        if once:
            once = False
            await consumer.revoke()
            consumer.stored[T0] = Committed(2, "")
            consumer.assign(consumer.logs)
            await until(lambda: run.runtime.state.partitions[T0].is_open)

    consumer.before_fetch_returns = reassign

    async def handle(record: RawRecord) -> None:
        seen.append(record.offset)

    async with Running(consumer, handler(handle), limits=limits(batch=4)) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(10, ""))
        await run.stop()
    assert sorted(seen) == list(range(2, 10))


async def test_a_full_partition_is_not_asked_for_and_the_other_one_is() -> None:
    """One stuck key fills partition 0's budget; partition 1 is worked off meanwhile."""
    consumer = FakeConsumer(
        {**log("t", *(["stuck"] * 100)), **log("t", *(f"k{at}" for at in range(200)), partition=1)}
    )
    release = asyncio.Event()

    async def handle(record: RawRecord) -> None:
        if record.key == b"stuck":
            await release.wait()

    tight = limits(max_in_flight=100, per_partition=20, batch=10)
    async with Running(consumer, handler(handle), limits=tight) as run:
        await until(lambda: consumer.stored.get(T1) == Committed(200, ""))
        assert run.runtime.state.partitions[T0].backpressure
        assert run.runtime.state.partitions[T0].in_flight <= 20
        assert T0 not in consumer.asked[-1]
        release.set()
        await until(lambda: consumer.stored.get(T0) == Committed(100, ""))
        await run.stop()


async def test_a_partition_that_is_opening_is_not_asked_for() -> None:
    """Until its committed offset is read, nothing is fetched of it."""
    consumer = FakeConsumer(log("t", "a"))
    gate = asyncio.Event()
    original = consumer.committed

    async def committed(partitions: list[TopicPartition]) -> dict[TopicPartition, Committed | None]:
        await gate.wait()
        return await original(partitions)

    consumer.committed = committed  # type: ignore[method-assign, assignment]
    async with Running(consumer, handler(nothing)) as run:
        await until(lambda: bool(run.runtime.state.partitions))
        before = len(consumer.asked)
        gate.set()
        await until(lambda: consumer.stored.get(T0) == Committed(1, ""))
        assert all(T0 not in asked for asked in consumer.asked[:before])
        await run.stop()


@pytest.mark.parametrize(("is_full", "timeout_ms"), [(False, 200), (True, 50)])
async def test_a_fetch_waits_for_long_unless_it_could_soon_ask_for_more(
    is_full: bool, timeout_ms: int
) -> None:
    """What is asked for wakes it; a partition at its limit is asked for again when its records end."""
    logs = log("t", *(["slow"] * 20 if is_full else ["slow"])) | log("t", partition=1)
    consumer = FakeConsumer(logs)
    waits: list[int] = []
    original = consumer.fetch
    release = asyncio.Event()

    async def fetch(wanted: list[TopicPartition], room: int, timeout_ms: int, share: int) -> object:
        waits.append(timeout_ms)
        return await original(wanted, room, timeout_ms, share)

    consumer.fetch = fetch  # type: ignore[method-assign, assignment]

    async def handle(record: RawRecord) -> None:
        await release.wait()

    tight = limits(max_in_flight=100, per_partition=20, batch=10)
    async with Running(consumer, handler(handle), limits=tight) as run:
        partitions = run.runtime.state.partitions
        await until(lambda: T0 in partitions and bool(partitions[T0].in_flight))
        await until(lambda: partitions[T0].backpressure is is_full)
        waits.clear()
        await until(lambda: len(waits) > 10)
        assert set(waits[1:]) == {timeout_ms}
        release.set()
        await run.stop()


async def test_intake_that_is_held_back_is_looked_at_less_often_while_nothing_ends() -> None:
    """A record that hangs at the limit costs few wake-ups; the first one that ends makes them quick again."""
    consumer = FakeConsumer(log("t", *(f"k{at}" for at in range(10))))
    release = asyncio.Event()

    async def handle(record: RawRecord) -> None:
        if record.offset < 2:
            await release.wait()

    async with Running(consumer, handler(handle), limits=limits(max_in_flight=2, batch=1)) as run:
        partitions = run.runtime.state.partitions
        await until(lambda: T0 in partitions and partitions[T0].in_flight == 2)
        assert run.runtime.session is not None
        poller = run.runtime.session.poller
        await until(lambda: poller.backpressure.records_active)
        pauses = [poller._pause_while_held() for _ in range(6)]
        assert pauses == sorted(pauses)
        assert pauses[-1] == 0.08
        release.set()
        await until(lambda: consumer.stored.get(T0) == Committed(10, ""))
        await run.stop()


def stumbles(consumer: FakeConsumer, tp: TopicPartition, offset: int, *, is_unreadable: bool = True) -> None:
    """From now on a fetch that reaches `offset` of `tp` raises, and what stands before it comes out."""
    original = consumer.fetch

    async def fetch(wanted: list[TopicPartition], room: int, timeout_ms: int, share: int) -> object:
        if tp in wanted and consumer.positions.get(tp) == offset:
            consumer.asked.append(frozenset(wanted))
            error = FetchError("fetch failed", partition=tp, offset=offset, unreadable=is_unreadable)
            raise error from UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
        kept = consumer.logs[tp]
        consumer.logs[tp] = [record for record in kept if record.offset < offset]
        try:
            return await original(wanted, room, timeout_ms, share)
        finally:
            consumer.logs[tp] = kept

    consumer.fetch = fetch  # type: ignore[method-assign, assignment]


async def test_a_record_that_cannot_be_read_halts_its_partition_and_costs_the_others_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Five tries, each later than the one before, while the neighbour is asked for all the time."""
    monkeypatch.setattr(unreadable, "_FIRST_PAUSE_SECONDS", 0.02)
    consumer = FakeConsumer({**log("t", "a", "b", "c"), **log("t", partition=1)})
    stumbles(consumer, T0, 2)
    async with Running(consumer, handler(nothing)) as run:
        partitions = run.runtime.state.partitions
        await until(lambda: T0 in partitions and partitions[T0].halt_reason is not None)
        reason = partitions[T0].halt_reason
        assert reason is not None
        assert reason.startswith(
            "offset 2: it cannot be read (UnicodeDecodeError: 'utf-8' codec can't decode"
        )
        (why,) = health.not_ready(run.runtime)
        assert why.startswith(f"t[0] is halted: {reason} (for ")
        failed = [at for at, asked in enumerate(consumer.asked) if T0 in asked]
        between = consumer.asked[failed[-5] : failed[-1]]
        assert len([asked for asked in between if asked == {T1}]) > 5
        assert consumer.stored[T0] == Committed(2, "")
        consumer.logs[T1] += [FakeRecord(at) for at in range(20)]
        await until(lambda: consumer.stored.get(T1) == Committed(20, ""))
        await run.stop()
    assert len([r for r in caplog.records if "trying again" in r.getMessage()]) == 1


async def test_a_halt_for_an_unreadable_record_can_be_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    """After retry_halted() the offset has its tries again, and is read when it can be."""
    monkeypatch.setattr(unreadable, "_FIRST_PAUSE_SECONDS", 0.001)
    consumer = FakeConsumer(log("t", "a", "b", "c"))
    plain = consumer.fetch
    stumbles(consumer, T0, 1)
    async with Running(consumer, handler(nothing)) as run:
        partitions = run.runtime.state.partitions
        for _ in range(2):
            await until(lambda: T0 in partitions and partitions[T0].halt_reason is not None)
            tries = len(consumer.asked)
            run.runtime.retry_halted(T0)
            await until(lambda: partitions[T0].halt_reason is None)
        await until(lambda: partitions[T0].halt_reason is not None)
        assert len(consumer.asked) >= tries + 5
        consumer.fetch = plain  # type: ignore[method-assign]
        run.runtime.retry_halted(T0)
        await until(lambda: consumer.stored.get(T0) == Committed(3, ""))
        assert health.not_ready(run.runtime) == []
        await run.stop()


async def test_what_stands_before_an_unreadable_record_is_handled_before_the_halt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A record that runs longer than the tries take is not left undone: readiness tells meanwhile."""
    monkeypatch.setattr(unreadable, "_FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(unreadable, "_MAX_PAUSE_SECONDS", 0.01)
    consumer = FakeConsumer(log("t", "slow", "b"))
    stumbles(consumer, T0, 1)
    release = asyncio.Event()

    async def handle(record: RawRecord) -> None:
        await release.wait()

    async with Running(consumer, handler(handle)) as run:
        await until(lambda: run.runtime.session is not None and bool(health.not_ready(run.runtime)))
        await until(
            lambda: any("t[0] stands still at offset 1" in why for why in health.not_ready(run.runtime))
        )
        partition = run.runtime.state.partitions[T0]
        assert partition.is_open
        release.set()
        await until(lambda: partition.halt_reason is not None)
        await until(lambda: consumer.stored.get(T0) == Committed(1, ""))
        await run.stop()


async def test_a_fault_that_is_not_about_the_bytes_never_halts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a broker answers may pass: it is tried on, and readiness names it."""
    monkeypatch.setattr(unreadable, "_FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(unreadable, "_MAX_PAUSE_SECONDS", 0.002)
    consumer = FakeConsumer(log("t", "a", "b"))
    plain = consumer.fetch
    stumbles(consumer, T0, 1, is_unreadable=False)
    async with Running(consumer, handler(nothing)) as run:
        await until(lambda: len(consumer.asked) > 30)
        assert run.runtime.state.partitions[T0].is_open
        assert any("t[0] stands still" in why for why in health.not_ready(run.runtime))
        consumer.fetch = plain  # type: ignore[method-assign]
        await until(lambda: consumer.stored.get(T0) == Committed(2, ""))
        assert health.not_ready(run.runtime) == []
        await run.stop()


NO_END_MS = 600_000
STUCK: dict[str, dict[str, Any]] = {
    "breaker": {"admissions": Admissions(breaker=BreakerRules(1.0, 5, 10_000, NO_END_MS, 1, 1, NO_END_MS))},
    "dead letters": {"attempts": 1, "dead_letter": "t.dlq"},
    "rate limit": {"admissions": Admissions(rate=RateRules(0.001, 1))},
    "hanging": {},
}


@pytest.mark.parametrize("why", STUCK)
async def test_what_cannot_go_on_does_not_starve_another_handler(why: str) -> None:
    """One topic's records fill what the group may hold, for as long as it lasts: the other's still come."""
    consumer = FakeConsumer({**log("t", *(f"k{at}" for at in range(300))), U0: []})
    done: list[int] = []
    full = asyncio.Event()

    async def stuck(record: RawRecord) -> None:
        await full.wait()
        if why == "hanging":
            await asyncio.Event().wait()
        raise ConnectionError

    async def fine(record: RawRecord) -> None:
        done.append(record.offset)

    handlers = handler(stuck, name="stuck", **STUCK[why]), handler(fine, "u", name="fine")
    producer, tight = FakeProducer(hold=asyncio.Event()), limits(max_in_flight=100, batch=10)
    async with Running(consumer, *handlers, producer=producer, limits=tight) as run:
        state = run.runtime.state
        await until(lambda: T0 in state.partitions and state.partitions[T0].in_flight > 60)
        full.set()
        consumer.logs[U0].extend(FakeRecord(at, b"u%d" % at) for at in range(60))
        await until(lambda: len(done) == 60)
        assert sum(partition.in_flight for partition in state.partitions.values()) <= 100


async def test_what_is_not_due_fills_the_bytes_of_no_other_handler() -> None:
    """A chunk of delayed records that is larger than the limit leaves the others a record at a time."""
    tomorrow = ((headers.NOT_BEFORE, b"4102444800000"),)
    late = [FakeRecord(at, b"k%d" % at, b"x" * 1_000, tomorrow) for at in range(10)]
    consumer, done = FakeConsumer({T0: late, U0: []}), list[int]()

    async def handle(record: RawRecord) -> None:
        done.append(record.offset)

    handlers = (
        handler(handle, name="later", admissions=Admissions(honours_delays=True)),
        handler(handle, "u", name="now"),
    )
    async with Running(consumer, *handlers, limits=limits(max_bytes=8_000)) as run:
        await until(lambda: T0 in run.runtime.state.holds)
        consumer.logs[U0].extend(FakeRecord(at, b"u%d" % at) for at in range(5))
        await until(lambda: done == [0, 1, 2, 3, 4])
        assert run.runtime.session is not None
        assert run.runtime.session.poller.backpressure.bytes_active
