"""The watchdog and the lease: what stands still is reported, and a cut-off member starts nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Mapping

import pytest

from asyncpar import extend, headers
from asyncpar.core.failures import FailureRules
from asyncpar.records import CommitAnswer, Committed, GroupToken, RawRecord, TopicPartition
from asyncpar.runtime import health, watchdog
from tests.runtime.fakes import FakeConsumer, FakeProducer, Running, handler, log, until

T0 = TopicPartition("t", 0)


async def nothing(record: RawRecord) -> None:
    """A handler that succeeds."""


async def test_without_answered_heartbeats_nothing_starts_until_one_is() -> None:
    """The lease runs out: records wait; it comes back: they run. Readiness says so meanwhile."""
    consumer = FakeConsumer(log("t", "a", "b"))
    consumer.lease_stops_at = time.monotonic() - 60
    async with Running(consumer, handler(nothing)) as run:
        await until(
            lambda: bool(run.runtime.state.partitions) and run.runtime.state.partitions[T0].in_flight == 2
        )
        await until(lambda: run.runtime.state.lease_closed)
        assert run.runtime.state.pools[0].completed() == 0
        assert any("heartbeats" in reason for reason in health.not_ready(run.runtime))
        consumer.lease_stops_at = None
        await until(lambda: consumer.stored.get(T0) == Committed(2, ""))
        assert not run.runtime.state.lease_closed
        await run.stop()


async def test_the_lease_is_the_session_timeout_less_a_margin() -> None:
    """session_timeout_ms decides for how long starts go on after the last good heartbeat."""
    for session_timeout_ms, held in ((10_000, True), (1_000, False)):
        consumer = FakeConsumer(log("t", "a"))
        consumer.lease_stops_at = time.monotonic() - 2.0
        async with Running(consumer, handler(nothing), session_timeout_ms=session_timeout_ms) as run:
            await until(lambda r=run: r.runtime.session is not None)  # type: ignore[misc]
            assert run.runtime.state.renew_lease(time.monotonic()) is held
            run.runtime.stop(now=True)


async def test_a_gate_that_the_metadata_closed_opens_while_a_commit_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All below it is done: what was held runs, however long the broker takes for its answer."""
    monkeypatch.setattr(watchdog, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(watchdog, "_TICK_SECONDS", 0.005)
    go, asked, answers = asyncio.Event(), asyncio.Event(), asyncio.Event()

    class Slow(FakeConsumer):
        async def commit(
            self, token: GroupToken, offsets: Mapping[TopicPartition, Committed], timeout_s: float
        ) -> dict[TopicPartition, CommitAnswer]:
            asked.set()
            await answers.wait()
            return await super().commit(token, offsets, timeout_s)

    async def second_waits(record: RawRecord) -> None:
        if record.offset == 1:
            await go.wait()

    async with Running(Slow(log("t", "a", "b", "c")), handler(second_waits, concurrency=1)) as run:
        state = run.runtime.state
        await until(asked.is_set)
        await until(lambda: bool(state.pools[0].busy()))
        queues = state.partitions[T0].queues
        assert queues is not None
        queues.move_gate(2)
        go.set()
        await until(lambda: state.pools[0].completed() == 3)
        answers.set()
        await run.stop()


async def test_a_loop_that_stood_still_is_warned_of_and_not_at_once_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With what to do about it; the next minute is quiet."""
    monkeypatch.setattr(watchdog, "_LATE_SECONDS", 0.05)
    monkeypatch.setattr(watchdog, "_TICK_SECONDS", 0.005)
    consumer = FakeConsumer(log("t", "a", "b", "c"))

    async def handle(record: RawRecord) -> None:
        await asyncio.sleep(0.01)  # the watchdog waits for its tick by then
        time.sleep(0.1)  # noqa: ASYNC251 - that is the point

    async with Running(consumer, handler(handle, concurrency=1)) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(3, ""))
        await run.stop()
    lines = [one.getMessage() for one in caplog.records if "stood still" in one.getMessage()]
    assert len(lines) == 1
    assert "group g: the event loop stood still for 0." in lines[0]
    assert 'executor="process"' in lines[0]


async def test_a_blocked_offset_is_warned_of_once_and_turns_readiness_red(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Over max_blocking_duration_ms: one line, one reason, until the offset is done. 0 turns it off."""
    monkeypatch.setattr(watchdog, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(watchdog, "_TICK_SECONDS", 0.005)
    for limit_ms in (30, 0):
        caplog.clear()
        consumer = FakeConsumer(log("t", "stuck", "a"))
        release = asyncio.Event()
        looks = 0

        async def handle(record: RawRecord, release: asyncio.Event = release) -> None:
            if record.key == b"stuck":
                await release.wait()

        async with Running(consumer, handler(handle), max_blocking_duration_ms=limit_ms) as run:
            if limit_ms:
                await until(lambda r=run: bool(r.runtime.session and r.runtime.session.watchdog.blocked))  # type: ignore[misc]
                assert any("offset 0 blocks" in reason for reason in health.not_ready(run.runtime))
            else:
                await until(lambda c=consumer: len(c.asked) > 20)  # type: ignore[misc]
                assert health.not_ready(run.runtime) == []
            release.set()
            await until(lambda c=consumer: c.stored.get(T0) == Committed(2, ""))  # type: ignore[misc]
            await until(lambda r=run: not health.not_ready(r.runtime))  # type: ignore[misc]
            await run.stop()
        lines = [r for r in caplog.records if "has blocked the commit" in r.getMessage()]
        assert len(lines) == (1 if limit_ms else 0), looks


async def test_commits_that_stay_impossible_replace_the_consumer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A commit refused as of no member while heartbeats are good: readiness says so, then a new member."""
    monkeypatch.setattr(watchdog, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(watchdog, "_TICK_SECONDS", 0.005)
    first = FakeConsumer(log("t", "a", "b"), answers=[CommitAnswer.STALE])
    second = FakeConsumer(first.logs, stored=first.stored)
    async with Running(first, handler(nothing), more=[second], session_timeout_ms=1_000) as run:
        reason = "group g: commits are refused, this member is not known to its group"
        await until(lambda: reason in health.not_ready(run.runtime))
        assert not first.stopped
        await until(lambda: second.stored.get(T0) == Committed(2, ""))
        assert health.not_ready(run.runtime) == []
        await run.stop()
    assert first.stopped
    assert len([r for r in caplog.records if "commits have been impossible" in r.getMessage()]) == 1


async def test_a_refused_commit_that_a_rebalance_follows_costs_no_consumer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The usual case: heartbeats are refused as well, and the next assignment makes commits possible."""
    monkeypatch.setattr(watchdog, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(watchdog, "_TICK_SECONDS", 0.005)
    consumer = FakeConsumer(log("t", "a", "b"), answers=[CommitAnswer.STALE])
    async with Running(consumer, handler(nothing), session_timeout_ms=60_000) as run:
        await until(lambda: run.runtime.session is not None)
        assert run.runtime.session is not None
        watch = run.runtime.session.watchdog
        await until(lambda: watch.refused_since is not None)
        consumer.lose()
        await until(lambda: watch.refused_since is None)
        consumer.assign(consumer.logs)
        await until(lambda: consumer.stored.get(T0) == Committed(2, ""))
        assert health.not_ready(run.runtime) == []
        assert run.runtime.state.counters.consumer_replacements == 0
        await run.stop()


async def test_on_blocked_cancel_ends_calls_that_block_for_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed attempt each; other calls are left alone, and `warn` cancels nothing."""
    monkeypatch.setattr(watchdog, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(watchdog, "_TICK_SECONDS", 0.005)
    consumer = FakeConsumer(log("t", "stuck", "beside"))
    release, runs = asyncio.Event(), 0

    async def handle(record: RawRecord) -> None:
        nonlocal runs
        if record.key == b"beside":
            await release.wait()
            return
        runs += 1
        if runs < 3:
            await asyncio.Event().wait()

    one = handler(handle, attempts=3)
    async with Running(consumer, one, max_blocking_duration_ms=30, on_blocked="cancel") as run:
        await until(lambda: runs == 3)
        assert run.runtime.state.pools[0].timeouts == 2
        release.set()
        await until(lambda: consumer.stored.get(T0) == Committed(2, ""))
        await run.stop()


async def test_on_blocked_cancel_leaves_a_call_alone_that_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is alive, and says so."""
    monkeypatch.setattr(watchdog, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(watchdog, "_TICK_SECONDS", 0.005)
    consumer = FakeConsumer(log("t", "slow"))

    async def handle(_: RawRecord) -> None:
        for _ in range(20):
            extend(200)
            await asyncio.sleep(0.01)

    limits = {"max_blocking_duration_ms": 30, "on_blocked": "cancel"}
    async with Running(consumer, handler(handle, attempts=1), **limits) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(1, ""))
        assert run.runtime.state.pools[0].timeouts == 0
        await run.stop()


@pytest.mark.parametrize("waits", ["running", "waiting for a retry"])
async def test_on_blocked_dead_letter_gives_up_what_blocks(
    monkeypatch: pytest.MonkeyPatch, waits: str
) -> None:
    """Whether it runs or waits for a retry, and however many attempts are left."""
    monkeypatch.setattr(watchdog, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(watchdog, "_TICK_SECONDS", 0.005)
    consumer, producer = FakeConsumer(log("t", "stuck")), FakeProducer()

    async def handle(_: RawRecord) -> None:
        if waits == "running":
            await asyncio.Event().wait()
        raise ValueError

    one = handler(handle, dead_letter=".dlq")
    one = dataclasses.replace(
        one, rules=FailureRules(None, 3_600_000, 3_600_000, dead_letter=True, backoff="fixed")
    )
    limits = {"max_blocking_duration_ms": 30, "on_blocked": "dead_letter"}
    async with Running(consumer, one, producer=producer, **limits) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(1, ""))
        await run.stop()
    (letter,) = producer.sent
    assert headers.text(letter.headers, headers.ERROR_TYPE) == "asyncpar.errors.RecordBlockedError"


async def test_on_blocked_dead_letter_halts_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """What blocks is given up in either case."""
    monkeypatch.setattr(watchdog, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(watchdog, "_TICK_SECONDS", 0.005)
    consumer = FakeConsumer(log("t", "stuck"))

    async def handle(_: RawRecord) -> None:
        await asyncio.Event().wait()

    limits = {"max_blocking_duration_ms": 30, "on_blocked": "dead_letter"}
    async with Running(consumer, handler(handle), **limits) as run:
        state = run.runtime.state
        await until(lambda: T0 in state.partitions and state.partitions[T0].halt_reason is not None)
        assert "RecordBlockedError" in (state.partitions[T0].halt_reason or "")
        await run.stop()


async def test_a_fetch_that_never_returns_is_a_dead_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Liveness turns red and the consumer is replaced."""
    monkeypatch.setattr(watchdog, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(watchdog, "_TICK_SECONDS", 0.005)
    monkeypatch.setattr(watchdog.Watchdog, "stall_seconds", 0.2)
    first = FakeConsumer(log("t", "a", "b"))
    second = FakeConsumer(first.logs, stored=first.stored)

    async def hangs(wanted: object, room: int, timeout_ms: int, share: int) -> list[object]:
        await asyncio.Event().wait()
        return []

    first.fetch = hangs  # type: ignore[method-assign, assignment]
    async with Running(first, handler(nothing), more=[second]) as run:
        await until(lambda: second.stored.get(T0) == Committed(2, ""))
        await run.stop()


@pytest.mark.parametrize("where", ["nowhere", "ready"])
async def test_a_blocking_record_that_nobody_will_run_turns_readiness_red(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    """A defect of ours loses a record's place, or leaves it ready with nobody woken: it is said once."""
    monkeypatch.setattr(watchdog, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(watchdog, "_TICK_SECONDS", 0.005)
    consumer = FakeConsumer(log("t", "a"))

    async def handle(record: RawRecord) -> None:
        raise ValueError("again")

    slow_retry = dataclasses.replace(
        handler(handle), rules=FailureRules(None, 3_600_000, 3_600_000, skip_undecodable=False)
    )
    async with Running(consumer, slow_retry, max_blocking_duration_ms=0) as run:
        state = run.runtime.state
        await until(lambda: len(state.parking) == 1)
        assert run.runtime.session is not None
        (vp,) = state.parking.parked()
        state.parking.discard(vp.queues)
        if where == "ready":
            monkeypatch.setattr(state.pools[0], "wake", lambda: None)
            state.pools[0].queue.ready.append(vp)
        await until(lambda: run.runtime.session.watchdog.idle_blocks == {T0: 0})  # type: ignore[union-attr]
        assert any("offset 0 could run" in reason for reason in health.not_ready(run.runtime))
        await run.stop()
    assert len([r for r in caplog.records if "no worker takes it" in r.getMessage()]) == 1


async def test_a_record_that_waits_for_its_retry_or_a_straggler_is_not_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is parked, runs, or waits for a call of an older generation of its key has a place."""
    monkeypatch.setattr(watchdog, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(watchdog, "_TICK_SECONDS", 0.005)
    consumer = FakeConsumer(log("t", "a"))
    started, release = asyncio.Event(), asyncio.Event()

    async def handle(record: RawRecord) -> None:
        started.set()
        await release.wait()
        raise ValueError("again")

    keeps = dataclasses.replace(
        handler(handle, cancel_on_revoke=False),
        rules=FailureRules(None, 3_600_000, 3_600_000, skip_undecodable=False),
    )
    async with Running(consumer, keeps, max_revoke_grace_ms=1) as run:
        state = run.runtime.state

        async def look_for_a_while() -> None:
            asked = len(consumer.asked)
            await until(lambda: len(consumer.asked) > asked + 30)
            assert run.runtime.session is not None
            assert state.partitions[T0].in_flight == 1
            assert not run.runtime.session.watchdog.idle_blocks

        await asyncio.wait_for(started.wait(), 5)
        await look_for_a_while()
        await consumer.revoke()
        consumer.assign(consumer.logs)
        await until(lambda: state.partitions[T0].in_flight == 1)
        await look_for_a_while()
        release.set()
        await until(lambda: len(state.parking) == 1)
        await look_for_a_while()
        await run.stop()
