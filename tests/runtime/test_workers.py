"""Workers: contexts, cancellations, yields, wake-ups, and what an exception means."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import decimal
import gc
import weakref

import pytest

from asyncpar.core.assignment import State
from asyncpar.core.failures import FailureRules
from asyncpar.records import Committed, Outcome, RawRecord, TopicPartition, Verdict
from tests.runtime.fakes import FakeConsumer, FakeRecord, Running, handler, limits, log, until

T0 = TopicPartition("t", 0)
TENANT: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")


async def test_a_context_variable_set_by_one_record_is_not_seen_by_another() -> None:
    """A handler that leaves a ContextVar behind retires its worker; no other record sees the value."""
    consumer = FakeConsumer(log("t", *(f"k{at}" for at in range(50))))
    seen: list[str] = []

    async def handle(record: RawRecord) -> None:
        seen.append(TENANT.get())
        TENANT.set(f"tenant of {record.offset}")
        await asyncio.sleep(0)

    async with Running(consumer, handler(handle, concurrency=3)) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(50, ""))
        assert run.runtime.state.pools[0].retired == 50
        await run.stop()
    assert seen == ["nobody"] * 50


async def test_decimal_arithmetic_retires_no_worker() -> None:
    """Decimal sets a context variable of its own at first use: that is no leak of the handler's."""
    consumer = FakeConsumer(log("t", *(f"k{at}" for at in range(50))))

    async def handle(record: RawRecord) -> None:
        assert decimal.Decimal("1.1") + 1 == decimal.Decimal("2.1")
        await asyncio.sleep(0)

    async with Running(consumer, handler(handle)) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(50, ""))
        assert run.runtime.state.pools[0].retired == 0
        await run.stop()


async def test_a_task_factory_that_drops_the_context_lets_none_leak() -> None:
    """Its tasks run in copies of whatever was current; workers are judged by those."""
    loop = asyncio.get_running_loop()
    loop.set_task_factory(lambda loop, coro, **given: asyncio.Task(coro, loop=loop))
    tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")
    seen: list[str] = []
    consumer = FakeConsumer(log("t", "a", "b", "c"))

    async def handle(record: RawRecord) -> None:
        seen.append(tenant.get())
        tenant.set("somebody")

    try:
        async with Running(consumer, handler(handle, concurrency=1)) as run:
            await until(lambda: consumer.stored.get(T0) == Committed(3, ""))
            assert run.runtime.state.pools[0].retired == 3
            await run.stop()
    finally:
        loop.set_task_factory(None)
    assert seen == ["nobody"] * 3


async def test_a_context_whose_comparison_raises_retires_the_worker() -> None:
    """A value that cannot be compared counts as a change."""

    class Odd:
        def __eq__(self, other: object) -> bool:
            raise RuntimeError("not comparable")

        __hash__ = None  # type: ignore[assignment]

    consumer = FakeConsumer(log("t", "a", "b"))
    odd: contextvars.ContextVar[object] = contextvars.ContextVar("odd")
    odd.set(Odd())

    async def handle(record: RawRecord) -> None:
        odd.set(Odd())

    async with Running(consumer, handler(handle)) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(2, ""))
        assert run.runtime.state.pools[0].retired == 2
        await run.stop()


async def test_what_takes_the_value_alone_is_called_with_it() -> None:
    """By the worker itself; a record without a value goes the whole way, which knows what that means."""
    consumer = FakeConsumer({T0: [FakeRecord(0, value=b"x"), FakeRecord(1, value=None)]})
    seen: list[object] = []

    async def of_value(value: bytes) -> None:
        seen.append(value)

    async def in_full(record: RawRecord) -> None:
        seen.append(record.offset)

    one = handler(in_full)
    one.invoke.of_value = of_value  # type: ignore[attr-defined]
    async with Running(consumer, one) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(2, ""))
        await run.stop()
    assert seen == [b"x", 1]


async def test_workers_that_wait_for_work_keep_no_record_alive() -> None:
    """However long nothing comes: values may be large, and none of them counts as in flight any more."""

    class Watched(FakeRecord):
        """Without slots: it can be referred to weakly."""

    consumer = FakeConsumer({T0: [Watched(at, b"k%d" % at) for at in range(5)]})
    alive = [weakref.ref(record) for record in consumer.logs[T0]]

    async def handle(record: RawRecord) -> None:
        await asyncio.sleep(0)

    async with Running(consumer, handler(handle)) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(5, ""))
        consumer.logs[T0].clear()
        await until(lambda: not gc.collect() and all(one() is None for one in alive))
        await run.stop()


async def test_a_handler_that_cancels_its_own_task_fails_once_and_hurts_no_other() -> None:
    """CancelledError without a reason of ours is an ordinary failure of that record only."""
    consumer = FakeConsumer(log("t", "a", "bad", "b", "c"))
    runs: list[int] = []

    async def handle(record: RawRecord) -> None:
        runs.append(record.offset)
        if record.offset == 1 and runs.count(1) == 1:
            raise asyncio.CancelledError
        await asyncio.sleep(0)

    async with Running(consumer, handler(handle, concurrency=1)) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(4, ""))
        assert run.runtime.state.pools[0].tally("t").failed == 1
        await run.stop()
    assert sorted(runs) == [0, 1, 1, 2, 3]


async def test_a_cancellation_left_behind_by_a_handler_is_not_delivered_to_the_next_record() -> None:
    """A handler that cancels the current task and returns at once: the next record is not touched."""
    consumer = FakeConsumer(log("t", *(f"k{at}" for at in range(10))))
    runs: list[int] = []

    async def handle(record: RawRecord) -> None:
        runs.append(record.offset)
        if record.offset == 3:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            return
        await asyncio.sleep(0)

    async with Running(consumer, handler(handle, concurrency=1)) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(10, ""))
        assert run.runtime.state.pools[0].tally("t").failed == 0
        await run.stop()
    assert runs == list(range(10))


async def test_a_task_cancelled_from_outside_leaves_its_record_unsettled_and_it_runs_again() -> None:
    """No attempt is counted; another worker takes the record."""
    consumer = FakeConsumer(log("t", "a"))
    runs = 0

    async def handle(record: RawRecord) -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            await asyncio.Event().wait()

    async with Running(consumer, handler(handle)) as run:
        await until(lambda: runs == 1)
        (worker,) = run.runtime.state.pools[0].busy()
        assert worker.task is not None
        worker.task.cancel()
        await until(lambda: consumer.stored.get(T0) == Committed(1, ""))
        assert run.runtime.state.pools[0].tally("t").failed == 0
        await run.stop()
    assert runs == 2


async def test_an_idle_worker_that_is_cancelled_is_replaced_when_there_is_work() -> None:
    """Cancelling an idle worker costs nothing: the next records find a new one."""
    consumer = FakeConsumer(log("t", "a"))

    async def handle(record: RawRecord) -> None:
        return None

    async with Running(consumer, handler(handle, concurrency=1)) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(1, ""))
        (worker,) = run.runtime.state.pools[0].workers
        assert worker.task is not None
        worker.task.cancel()
        await until(lambda: not run.runtime.state.pools[0].workers)
        consumer.logs[T0].extend(log("t", "b", "c", start=1)[T0])
        await until(lambda: consumer.stored.get(T0) == Committed(3, ""))
        await run.stop()


@pytest.mark.parametrize("raised", [SystemExit("no"), BaseExceptionGroup("exit", [SystemExit("no")])])
async def test_a_handler_that_calls_exit_has_failed_and_the_process_lives(raised: BaseException) -> None:
    """SystemExit in a handler is a failed attempt, and so is whatever else is no Exception."""
    consumer = FakeConsumer(log("t", "a"))

    async def handle(record: RawRecord) -> None:
        raise raised

    async with Running(consumer, handler(handle, attempts=2)) as run:
        partitions = run.runtime.state.partitions
        await until(lambda: T0 in partitions and partitions[T0].state is State.HALTED)
        assert "exit" in str(partitions[T0].halt_reason)
        await run.stop()


async def test_a_nested_task_groups_failure_is_the_records_and_leaves_no_cancellation() -> None:
    """Before 3.13 a handled TaskGroup failure leaves a cancellation count: it must not grow."""
    consumer = FakeConsumer(log("t", *(f"k{at}" for at in range(20))))
    failed: set[int] = set()

    async def boom() -> None:
        raise ValueError("inside")

    async def handle(record: RawRecord) -> None:
        if record.offset % 2 == 0 and record.offset not in failed:
            failed.add(record.offset)
            async with asyncio.TaskGroup() as group:
                group.create_task(boom())
                await asyncio.sleep(1)
        async with asyncio.timeout(5):
            await asyncio.sleep(0)

    async with Running(consumer, handler(handle, concurrency=2)) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(20, ""))
        tasks = [worker.task for worker in run.runtime.state.pools[0].workers]
        assert all(task is not None and task.cancelling() == 0 for task in tasks)
        await run.stop()


async def test_handlers_that_never_wait_leave_the_loop_to_others() -> None:
    """While thousands of no-op records run, another task still gets its turns."""
    consumer = FakeConsumer(log("t", *(f"k{at % 100}" for at in range(20_000))))
    turns = 0
    done = False

    async def handle(record: RawRecord) -> None:
        for _ in range(200):
            pass

    async def other() -> None:
        nonlocal turns
        while not done:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    async with Running(consumer, handler(handle)) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(20_000, ""))
        await run.stop()
    done = True
    await task
    assert turns > 20


async def test_as_many_run_as_there_are_slots_and_no_more() -> None:
    """Forty waiting keys, seven slots: seven run together."""
    consumer = FakeConsumer(log("t", *(f"k{at}" for at in range(40))))
    now = most = 0

    async def handle(record: RawRecord) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.005)
        now -= 1

    async with Running(consumer, handler(handle, concurrency=7)) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(40, ""))
        assert len(run.runtime.state.pools[0].workers) <= 7
        await run.stop()
    assert most == 7


async def test_workers_that_may_not_start_do_not_wake_each_other_for_ever() -> None:
    """The lease is over while one handler waits: what is ready stays, and the loop is not kept busy by it."""
    consumer = FakeConsumer(log("t", "slow", "b"))
    release = asyncio.Event()

    async def handle(record: RawRecord) -> None:
        if record.key == b"slow":
            await release.wait()

    async with Running(consumer, handler(handle, concurrency=3), session_timeout_ms=1_000) as run:
        state = run.runtime.state
        (pool,) = state.pools
        await until(lambda: pool.completed() == 1 and len(pool.busy()) == 1)
        consumer.lease_stops_at = state.clock.monotonic() - 60
        await until(lambda: state.lease_closed)
        consumer.logs[T0] += log("t", "c", "d", start=2)[T0]
        await until(lambda: len(pool.queue.ready) == 2)
        for _ in range(5):
            await asyncio.sleep(0)
        before = pool._turn
        for _ in range(100):
            await asyncio.sleep(0)
        assert pool._turn - before <= 1
        consumer.lease_stops_at = None
        await until(lambda: pool.completed() == 3)
        release.set()
        await run.stop()


async def test_keyless_records_run_in_parallel() -> None:
    """Without a key nothing orders them: all of them run at the same time."""
    consumer = FakeConsumer(log("t", *"abcdef"))
    consumer.logs[T0] = [type(r)(r.offset, None, r.value) for r in consumer.logs[T0]]
    together = asyncio.Barrier(6)

    async def handle(record: RawRecord) -> None:
        await together.wait()

    async with Running(consumer, handler(handle)) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(6, ""))
        await run.stop()


async def test_a_judged_outcome_decides() -> None:
    """With middlewares the outcome is what they return: skipped is done, failed is tried again."""
    consumer = FakeConsumer(log("t", "skip", "fail", "ok"))
    failures = 1

    async def handle(record: RawRecord) -> Outcome:
        nonlocal failures
        if record.key == b"skip":
            return Outcome(Verdict.SKIPPED)
        if record.key == b"fail" and failures:
            failures -= 1
            return Outcome(Verdict.FAILED, ValueError("once"))
        return Outcome(Verdict.SUCCESS)

    async with Running(consumer, handler(handle, judged=True)) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(3, ""))
        tally = run.runtime.state.pools[0].tally("t")
        assert (tally.skipped, tally.failed, tally.succeeded) == (1, 1, 2)
        await run.stop()


async def test_failures_log_one_line_a_second_not_one_each(caplog: pytest.LogCaptureFixture) -> None:
    """A hundred failures in a row are a line or two, which name the handler and the place."""
    consumer = FakeConsumer(log("t", *(f"k{at}" for at in range(100))))
    runs: dict[int, int] = {}

    async def handle(record: RawRecord) -> None:
        runs[record.offset] = runs.get(record.offset, 0) + 1
        if runs[record.offset] == 1:
            raise ValueError("first time")

    async with Running(consumer, handler(handle)) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(100, ""))
        await run.stop()
    lines = [record.getMessage() for record in caplog.records if "failed on" in record.getMessage()]
    assert 1 <= len(lines) <= 5
    assert "handler handle failed on t[0] offset" in lines[0]


async def test_bytes_in_flight_hold_intake_back_and_one_record_always_fits() -> None:
    """Records of 1,000 bytes under a limit of 500: still handled, one chunk at a time."""
    consumer = FakeConsumer(log("t", *(f"k{at}" for at in range(6))))
    consumer.logs[T0] = [type(r)(r.offset, r.key, b"x" * 1000) for r in consumer.logs[T0]]
    most = 0

    async def handle(record: RawRecord) -> None:
        nonlocal most
        most = max(most, run.runtime.state.partitions[T0].in_flight)
        await asyncio.sleep(0.002)

    tight = limits(max_bytes=500, batch=2)
    async with Running(consumer, handler(handle), limits=tight) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(6, ""))
        await run.stop()
    assert most <= 2


async def test_a_record_that_waits_for_its_retry_takes_no_slot() -> None:
    """With one slot in all and a retry that is far away, the other keys are worked off meanwhile."""
    consumer = FakeConsumer(log("t", "bad", *(f"k{at}" for at in range(20))))

    async def handle(record: RawRecord) -> None:
        if record.key == b"bad":
            raise ValueError("no")

    slow_retry = FailureRules(None, 3_600_000, 3_600_000, skip_undecodable=False)
    one_slot = dataclasses.replace(handler(handle, concurrency=1), rules=slow_retry)
    async with Running(consumer, one_slot) as run:
        await until(lambda: run.runtime.state.pools[0].completed() == 20)
        assert len(run.runtime.state.parking) == 1
        await run.stop()


async def test_nothing_is_logged_per_record_at_any_level(caplog: pytest.LogCaptureFixture) -> None:
    """A thousand records at DEBUG level leave a handful of lines."""
    consumer = FakeConsumer(log("t", *(f"k{at % 10}" for at in range(1000))))

    async def handle(record: RawRecord) -> None:
        await asyncio.sleep(0)

    with caplog.at_level("DEBUG", logger="asyncpar"):
        async with Running(consumer, handler(handle)) as run:
            await until(lambda: consumer.stored.get(T0) == Committed(1000, ""))
            await run.stop()
    assert len([line for line in caplog.records if line.name.startswith("asyncpar")]) < 20
