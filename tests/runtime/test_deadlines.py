"""A call that runs for longer than its time-out is cancelled and has failed; one that is deaf is named."""

from __future__ import annotations

import asyncio
import logging
import threading
import time

import pytest

import asyncpar
from asyncpar.errors import HandlerTimeoutError
from asyncpar.records import Committed, RawRecord, TopicPartition
from asyncpar.runtime import deadlines, snapshots
from asyncpar.runtime.deadlines import Deadlines
from tests.runtime.fakes import FakeConsumer, FakeProducer, Running, handler, log, until

T0 = TopicPartition("t", 0)


async def test_a_call_over_its_time_is_cancelled_and_runs_again() -> None:
    """An ordinary failure: it costs an attempt and is counted; other keys are not concerned."""
    consumer = FakeConsumer(log("t", "slow", "quick"))
    seen: list[bytes | None] = []

    async def handle(record: RawRecord) -> None:
        seen.append(record.key)
        if record.key == b"slow" and seen.count(b"slow") == 1:
            await asyncio.Event().wait()

    async with Running(consumer, handler(handle, attempts=2, timeout_seconds=0.05)) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(2, ""))
        status = snapshots.handler_status(run.runtime.state.pools[0])
        await run.stop()
    assert sorted(seen, key=str) == [b"quick", b"slow", b"slow"]
    assert (status.timeouts, status.failed) == (1, 1)


async def test_the_failure_says_what_it_was() -> None:
    """Also when the handler made another exception of its cancellation."""
    consumer, producer = FakeConsumer(log("t", "a", "b")), FakeProducer()

    async def handle(record: RawRecord) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if record.key == b"b":
                raise OSError("broken off") from None
            raise

    one = handler(handle, attempts=1, timeout_seconds=0.03, dead_letter=".dlq")
    async with Running(consumer, one, producer=producer) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(2, ""))
        await run.stop()
    name = f"{HandlerTimeoutError.__module__}.{HandlerTimeoutError.__qualname__}"
    found = [dict(record.headers) for record in producer.sent]
    assert [one["x-asyncpar-error-type"].decode() for one in found] == [name, name]
    assert all(b"timeout_ms" in one["x-asyncpar-error-message"] for one in found)


async def test_a_success_that_comes_back_after_the_cancellation_counts() -> None:
    """The work is done; to run it again would do it twice."""
    consumer = FakeConsumer(log("t", "a"))
    runs = 0

    async def handle(_: RawRecord) -> None:
        nonlocal runs
        runs += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)

    async with Running(consumer, handler(handle, attempts=1, timeout_seconds=0.03)) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(1, ""))
        await run.stop()
    assert runs == 1


async def test_a_deaf_handler_keeps_its_key_and_is_named_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its followers wait, others go on; it is counted while it lasts."""
    monkeypatch.setattr(deadlines, "_DEAF_SECONDS", 0.05)
    consumer = FakeConsumer(log("t", "deaf", "deaf", "other"))
    release = asyncio.Event()
    seen: list[int] = []

    async def handle(record: RawRecord) -> None:
        seen.append(record.offset)
        while record.offset == 0 and not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    with caplog.at_level(logging.ERROR, "asyncpar"):
        async with Running(consumer, handler(handle, timeout_seconds=0.03)) as run:
            await until(lambda: any("runs on with t[0] offset 0" in one for one in caplog.messages))
            pool = run.runtime.state.pools[0]
            assert snapshots.handler_status(pool).uncancellable == 1
            asked = time.monotonic()
            await until(lambda: time.monotonic() > asked + 0.2)
            assert seen == [0, 2]
            release.set()
            await until(lambda: consumer.stored.get(T0) == Committed(3, ""))
            await run.stop()
    assert seen == [0, 2, 1]
    assert sum("runs on with" in one for one in caplog.messages) == 1


async def test_a_thread_is_waited_for_before_its_record_runs_again() -> None:
    """A thread cannot be stopped: two runs of one record never overlap."""
    from asyncpar.executors.threads import ThreadExecutor

    consumer = FakeConsumer(log("t", "a"))
    threads = ThreadExecutor("x", 2)
    release = threading.Event()
    running = most = runs = 0

    def work() -> None:
        nonlocal running, most, runs
        running, runs = running + 1, runs + 1
        most = max(most, running)
        release.wait(10)
        running -= 1
        if runs == 1:
            raise ValueError

    async def handle(_: RawRecord) -> object:
        return await threads.run(work)

    async with Running(consumer, handler(handle, timeout_seconds=0.03)) as run:
        worker = run.runtime.state.pools[0]
        await until(lambda: any(one.cancel_reason == "timeout" for one in worker.busy()))
        release.set()
        await until(lambda: consumer.stored.get(T0) == Committed(1, ""))
        await run.stop()
    threads.close()
    assert (most, runs) == (1, 2)


async def test_a_heartbeat_begins_the_time_out_anew_and_an_extension_moves_it() -> None:
    """From the handler or what it calls; a silent call is cancelled all the same."""
    consumer = FakeConsumer(log("t", "beats", "extends", "silent"))
    ended: list[bytes | None] = []

    async def handle(record: RawRecord) -> None:
        if record.key == b"extends":
            asyncpar.extend(60_000)
        begin = time.monotonic()
        while time.monotonic() < begin + 0.4:
            if record.key == b"beats":
                asyncpar.heartbeat()
            await asyncio.sleep(0.01)
        ended.append(record.key)

    async with Running(consumer, handler(handle, attempts=1, timeout_seconds=0.15)) as run:
        await until(
            lambda: (
                run.runtime.state.partitions[T0].halt_reason is not None
                if T0 in run.runtime.state.partitions
                else False
            )
        )
        await until(lambda: len(ended) == 2)
        assert "failed once" in (run.runtime.state.partitions[T0].halt_reason or "")
        await run.stop()
    assert sorted(map(str, ended)) == ["b'beats'", "b'extends'"]


async def test_an_extension_ends_with_its_record() -> None:
    """The next record of the same worker has the usual time."""
    consumer = FakeConsumer(log("t", "a", "b"))

    async def handle(record: RawRecord) -> None:
        if record.offset == 0:
            asyncpar.extend(60_000)
            return
        await asyncio.Event().wait()

    async with Running(consumer, handler(handle, attempts=1, concurrency=1, timeout_seconds=0.05)) as run:
        state = run.runtime.state
        await until(lambda: T0 in state.partitions and state.partitions[T0].halt_reason is not None)
        await run.stop()


async def test_an_extension_ends_with_its_attempt() -> None:
    """The next attempt of the same record, on the same worker, has the usual time."""
    consumer, runs = FakeConsumer(log("t", "a")), 0

    async def handle(_: RawRecord) -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            asyncpar.extend(60_000)
            raise ValueError
        await asyncio.Event().wait()

    async with Running(consumer, handler(handle, concurrency=1, timeout_seconds=0.05)) as run:
        await until(lambda: run.runtime.state.pools[0].timeouts == 1)


async def test_a_heartbeat_of_a_call_that_has_ended_keeps_no_other_one_alive() -> None:
    """A task that a handler left behind beats for nobody, also while its worker runs the next record."""
    consumer, beating = FakeConsumer(log("t", "first", "hangs")), list[asyncio.Task[None]]()

    async def beat() -> None:
        while True:
            asyncpar.heartbeat()
            await asyncio.sleep(0.01)

    async def handle(record: RawRecord) -> None:
        if record.key == b"first":
            beating.append(asyncio.create_task(beat()))
            return
        await asyncio.Event().wait()

    async with Running(consumer, handler(handle, concurrency=1, timeout_seconds=0.05)) as run:
        await until(lambda: run.runtime.state.pools[0].timeouts == 1)
        assert run.runtime.state.pools[0].retired == 0
        assert not beating[0].done()
        beating[0].cancel()


async def test_an_idle_handler_is_looked_at_once_per_time_out() -> None:
    """No timer per record, no busy look."""
    consumer = FakeConsumer(log("t"))

    async def handle(_: RawRecord) -> None:
        """Never called."""

    async with Running(consumer, handler(handle)) as run:
        watch = Deadlines(run.runtime.state.pools[0], 7.0)
        assert watch._look() == pytest.approx(7.0, abs=0.1)
        await run.stop()
