"""Partitions that cannot be fetched, topics that are gone, and a fetcher that died in silence."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from asyncpar.errors import AuthorizationError
from asyncpar.records import Committed, RawRecord, TopicPartition
from asyncpar.runtime import health, reach
from tests.runtime.fakes import FakeConsumer, FakeRecord, Running, handler, log, until

T0, T1 = TopicPartition("t", 0), TopicPartition("t", 1)


async def nothing(record: RawRecord) -> None:
    """A handler that succeeds."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds are hundredths here."""
    monkeypatch.setattr(reach, "_CHECK_SECONDS", 0.02)
    monkeypatch.setattr(reach, "_RECHECK_SECONDS", 0.01)
    monkeypatch.setattr(reach, "_LOST_AFTER_SECONDS", 0.05)
    monkeypatch.setattr(reach, "_DEAD_AFTER_SECONDS", 0.2)


def said(caplog: pytest.LogCaptureFixture, part: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if part in record.getMessage()]


def fetches_nothing(consumer: FakeConsumer, is_down: Callable[[], bool]) -> None:
    """While `is_down`, fetches of `consumer` come back empty."""
    original = consumer.fetch

    async def fetch(wanted: list[TopicPartition], room: int, timeout_ms: int, share: int) -> object:
        if is_down():
            await asyncio.sleep(0.001)
            return []
        return await original(wanted, room, timeout_ms, share)

    consumer.fetch = fetch  # type: ignore[method-assign, assignment]


async def test_a_fetcher_that_died_in_silence_is_replaced() -> None:
    """Nothing is delivered although the log grows: after some looks the consumer counts as dead."""
    first = FakeConsumer(log("t", "a", "b"))
    second = FakeConsumer(first.logs, stored=first.stored)
    fetches_nothing(first, lambda: True)
    async with Running(first, handler(nothing), more=[second]) as run:
        await until(lambda: bool(run.runtime.session and run.runtime.session.reach.lost))
        (reason,) = health.not_ready(run.runtime)
        assert reason == (
            "t[0] cannot be fetched: nothing was delivered from offset 0, although the log ends at 2"
        )
        await until(lambda: second.stored.get(T0) == Committed(2, ""))
        assert run.runtime.state.counters.consumer_replacements == 1
        await run.stop()


async def test_a_partition_without_a_leader_is_named_until_it_has_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Readiness names that one and not its neighbour; one line when it begins and one when it is over."""
    caplog.set_level("INFO", "asyncpar.runtime")
    consumer = FakeConsumer({**log("t", "a"), **log("t", "a", partition=1)})
    async with Running(consumer, handler(nothing)) as run:
        await until(lambda: len(consumer.stored) == 2)
        assert health.not_ready(run.runtime) == []
        consumer.end_reasons[T1] = "the leader of t[1] is not known (yet)"
        await until(lambda: bool(health.not_ready(run.runtime)))
        assert health.not_ready(run.runtime) == [
            "t[1] cannot be fetched: the leader of t[1] is not known (yet)"
        ]
        asked = len(consumer.asked)
        await until(lambda: len(consumer.asked) > asked + 20)
        consumer.end_reasons.clear()
        await until(lambda: not health.not_ready(run.runtime))
        await run.stop()
    assert len(said(caplog, "t[1] could not be fetched")) == 1
    assert len(said(caplog, "t[1] can be fetched again")) == 1


async def test_a_leader_that_is_elected_soon_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    """What is over before the limit turns nothing red."""
    consumer = FakeConsumer(log("t", "a"))
    async with Running(consumer, handler(nothing)) as run:
        await until(lambda: run.runtime.session is not None)
        assert run.runtime.session is not None
        watch = run.runtime.session.reach
        await until(lambda: len(consumer.stored) == 1)
        consumer.end_reasons[T0] = "no leader"
        await until(lambda: bool(watch._since))
        consumer.end_reasons.clear()
        await until(lambda: not watch._since)
        assert not watch.lost
        await run.stop()
    assert not said(caplog, "could not be fetched")


async def test_a_topic_that_is_gone_is_named() -> None:
    """A member to which nothing is assigned is ready, unless that is because its topic does not exist."""
    consumer = FakeConsumer(log("t", "a"))
    async with Running(consumer, handler(nothing)) as run:
        await until(lambda: len(consumer.stored) == 1)
        await consumer.revoke()
        consumer.assign([])
        assert run.runtime.session is not None
        watch = run.runtime.session.reach
        checked = asyncio.Event()
        original = consumer.end

        async def end(partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
            checked.set()
            return await original(partitions)

        consumer.end = end  # type: ignore[method-assign, assignment]
        await asyncio.wait_for(checked.wait(), 5)
        assert not watch.lost
        assert health.not_ready(run.runtime) == []
        consumer.end_reasons[T0] = "the leader of t[0] is not known (yet)"
        await until(lambda: bool(watch.lost))
        assert health.not_ready(run.runtime) == ["topic t is away: the leader of t[0] is not known (yet)"]
        consumer.end_reasons.clear()
        consumer.assign(consumer.logs)
        await until(lambda: not watch.lost)
        await until(lambda: not health.not_ready(run.runtime))
        await run.stop()


async def test_an_outage_does_not_count_as_a_dead_fetcher() -> None:
    """The time without a broker is not added to the one in which nothing is delivered."""
    consumer = FakeConsumer(log("t", "a"))
    down = False
    fetches_nothing(consumer, lambda: down)
    async with Running(consumer, handler(nothing)) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(1, ""))
        down = True
        consumer.logs[T0].append(FakeRecord(1))
        assert run.runtime.session is not None
        watch = run.runtime.session.reach
        await until(lambda: bool(watch._stuck))
        consumer.end_reasons[T0] = "node 1 does not answer"
        await until(lambda: not watch._stuck)
        await until(lambda: T0 in watch.lost)
        consumer.end_reasons.clear()
        down = False
        await until(lambda: consumer.stored.get(T0) == Committed(2, ""))
        assert run.runtime.state.counters.consumer_replacements == 0
        await run.stop()


async def test_a_missing_right_that_is_met_while_looking_ends_the_run() -> None:
    """DESCRIBE taken away: the run ends with what is missing, not with a dead task."""
    consumer = FakeConsumer(log("t", "a"))

    async def forbidden(partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        raise AuthorizationError("no right on topic t")

    consumer.end = forbidden  # type: ignore[method-assign, assignment]
    async with Running(consumer, handler(nothing)) as run:
        assert run.task is not None
        with pytest.raises(AuthorizationError, match="topic t"):
            await asyncio.wait_for(run.task, 5)
