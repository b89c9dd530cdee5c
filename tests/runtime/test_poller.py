"""The poller: what it asks for, what it does with errors, and chunks of another life."""

from __future__ import annotations

import asyncio

import pytest

from asyncpar.errors import AuthorizationError, FetchError
from asyncpar.records import Committed, RawRecord, TopicPartition
from tests.runtime.fakes import FakeConsumer, Running, handler, limits, log, until

T0 = TopicPartition("t", 0)
T1 = TopicPartition("t", 1)


async def nothing(record: RawRecord) -> None:
    """A handler that succeeds."""


async def test_a_fetch_that_raises_loses_nothing_that_it_had_taken() -> None:
    """The client drained a partition and then raised: its position is put back, all records are handled."""
    consumer = FakeConsumer(log("t", *(f"k{at}" for at in range(50))))
    seen: set[int] = set()
    original = consumer.fetch
    failed = False

    async def fetch(wanted: list[TopicPartition], max_records: int, timeout_ms: int) -> list[object]:
        nonlocal failed
        chunks = await original(wanted, max_records, timeout_ms)
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


async def test_waiting_for_one_slow_record_is_no_busy_loop() -> None:
    """While one record runs, each fetch may wait at the client for at least 50 ms."""
    consumer = FakeConsumer(log("t", "slow"))
    waits: list[int] = []
    original = consumer.fetch
    release = asyncio.Event()

    async def fetch(wanted: list[TopicPartition], max_records: int, timeout_ms: int) -> object:
        waits.append(timeout_ms)
        return await original(wanted, max_records, timeout_ms)

    consumer.fetch = fetch  # type: ignore[method-assign, assignment]

    async def handle(record: RawRecord) -> None:
        await release.wait()

    async with Running(consumer, handler(handle)) as run:
        await until(lambda: len(waits) > 10)
        assert min(waits) >= 50
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
        pauses = [poller._pause_while_held() for _ in range(6)]
        assert pauses == sorted(pauses)
        assert pauses[-1] == 0.04
        release.set()
        await until(lambda: consumer.stored.get(T0) == Committed(10, ""))
        await run.stop()
