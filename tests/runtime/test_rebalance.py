"""Assignments, revokes, losses, stragglers and first positions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

import pytest

from asyncpar.core.assignment import State
from asyncpar.core.offset_codec import encode
from asyncpar.errors import (
    AsyncparError,
    AuthorizationError,
    BrokerError,
    ConfigurationError,
    OffsetOutOfRangeError,
)
from asyncpar.records import Committed, RawRecord, TopicPartition
from tests.runtime.fakes import FakeConsumer, FakeRecord, Running, config, handler, log, until

T0 = TopicPartition("t", 0)


async def nothing(record: RawRecord) -> None:
    """A handler that succeeds."""


def stuck_at_first() -> tuple[asyncio.Event, list[int], Callable[[RawRecord], Awaitable[None]]]:
    """What releases offset 0, the offsets in the order of their starts, and the handler."""
    release, runs = asyncio.Event(), list[int]()

    async def handle(record: RawRecord) -> None:
        runs.append(record.offset)
        if record.offset == 0:
            await release.wait()

    return release, runs, handle


async def test_a_revoke_waits_for_what_runs_and_commits_it_with_the_old_token() -> None:
    """Nothing new starts, the running record ends and is committed, then the partition is released."""
    consumer = FakeConsumer(log("t", *(["k"] * 5)))
    release = asyncio.Event()
    started: list[int] = []

    async def handle(record: RawRecord) -> None:
        started.append(record.offset)
        await release.wait()

    async with Running(consumer, handler(handle), max_revoke_grace_ms=5000) as run:
        await until(lambda: started == [0])
        revoking = asyncio.create_task(consumer.revoke())
        await until(lambda: run.runtime.state.partitions[T0].state is State.DRAINING)
        assert not revoking.done()
        release.set()
        await asyncio.wait_for(revoking, 5)
        assert started == [0]
        assert consumer.stored[T0] == Committed(1, "")
        assert not run.runtime.state.partitions
        consumer.assign(consumer.logs)
        await until(lambda: consumer.stored[T0] == Committed(5, ""))
        assert not run.runtime.state.counters.stragglers
        await run.stop()
    assert started == [0, 1, 2, 3, 4]


async def test_the_grace_is_used_and_bounded() -> None:
    """max_revoke_grace_ms decides: 0 cancels at once, 2000 lets a handler of 50 ms end."""
    for grace_ms, ended in ((0, 0), (2000, 1)):
        consumer = FakeConsumer(log("t", "k"))
        finished = 0
        started = asyncio.Event()

        async def handle(record: RawRecord, started: asyncio.Event = started) -> None:
            nonlocal finished
            started.set()
            await asyncio.sleep(0.05)
            finished += 1

        async with Running(consumer, handler(handle), max_revoke_grace_ms=grace_ms) as run:
            await started.wait()
            await asyncio.wait_for(consumer.revoke(), 5)
            assert finished == ended
            assert (T0 in consumer.stored) == bool(ended)
            await run.stop()


async def test_the_groups_deadline_beats_the_grace() -> None:
    """A grace of a minute does not make a revoke last longer than the group allows."""
    consumer = FakeConsumer(log("t", "k"), seconds_to_drain=1.6)
    started = asyncio.Event()

    async def handle(record: RawRecord) -> None:
        started.set()
        await asyncio.Event().wait()

    async with Running(consumer, handler(handle), max_revoke_grace_ms=60_000) as run:
        await started.wait()
        await asyncio.wait_for(consumer.revoke(), 5)
        await run.stop()


async def test_a_straggler_keeps_its_key_locked_and_is_adopted() -> None:
    """A handler outlives the revoke, the partition comes back: it runs once, and its key waits for it."""
    consumer = FakeConsumer(log("t", "k", "k", "other"))
    release, runs, handle = stuck_at_first()

    keeps = handler(handle, cancel_on_revoke=False)
    async with Running(consumer, keeps, max_revoke_grace_ms=20) as run:
        await until(lambda: 2 in runs)
        await consumer.revoke()
        assert run.runtime.state.counters.stragglers == {"left": 1}
        consumer.assign(consumer.logs)
        await until(lambda: run.runtime.state.partitions[T0].in_flight == 2)
        assert runs.count(1) == 0, "a later record of the key ran beside the straggler"
        release.set()
        await until(lambda: consumer.stored.get(T0) == Committed(3, ""))
        assert run.runtime.state.counters.stragglers == {"left": 1, "adopted": 1}
        await run.stop()
    assert runs == [0, 2, 1]


@pytest.mark.parametrize("stored", [None, Committed(1, "")])
async def test_a_straggler_of_a_record_that_the_log_has_lost_is_not_adopted(stored: Committed | None) -> None:
    """Another record has its offset now, and is run."""
    consumer = FakeConsumer(log("t", "a", "b", "k"))
    release = asyncio.Event()
    runs: list[bytes | None] = []

    async def handle(record: RawRecord) -> None:
        runs.append(record.key)
        if record.key == b"k":
            await release.wait()

    async with Running(consumer, handler(handle, cancel_on_revoke=False), max_revoke_grace_ms=20) as run:
        await until(lambda: b"k" in runs)
        await consumer.revoke()
        consumer.stored.clear()
        if stored is not None:
            consumer.stored[T0] = stored
        del consumer.logs[T0][2:]
        consumer.assign(consumer.logs)
        await until(lambda: consumer.stored.get(T0) == Committed(2, ""))
        release.set()
        await until(lambda: run.runtime.state.counters.stale_completions == 1)
        consumer.logs[T0].append(FakeRecord(2, b"new"))
        await until(lambda: consumer.stored[T0] == Committed(3, ""))
        await run.stop()
    assert runs[-1] == b"new"
    assert "adopted" not in run.runtime.state.counters.stragglers


async def test_a_straggler_that_was_overtaken_is_not_adopted() -> None:
    """When another member has committed past it meanwhile, its end is dropped and counted."""
    consumer = FakeConsumer(log("t", "k", "k"))
    release, runs, handle = stuck_at_first()

    async with Running(consumer, handler(handle, cancel_on_revoke=False), max_revoke_grace_ms=20) as run:
        await until(lambda: runs == [0])
        await consumer.revoke()
        consumer.stored[T0] = Committed(1, "")
        consumer.assign(consumer.logs)
        await until(lambda: run.runtime.state.partitions[T0].in_flight == 1)
        release.set()
        await until(lambda: consumer.stored[T0] == Committed(2, ""))
        assert run.runtime.state.counters.stale_completions == 1
        assert "adopted" not in run.runtime.state.counters.stragglers
        await run.stop()
    assert runs == [0, 1]


async def test_a_straggler_that_fails_runs_again_after_its_end() -> None:
    """Its redelivered record waits for the straggler's end and then runs as any other."""
    consumer = FakeConsumer(log("t", "k"))
    release = asyncio.Event()
    runs = 0

    async def handle(record: RawRecord) -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            await release.wait()
            raise ValueError("late")

    async with Running(consumer, handler(handle, cancel_on_revoke=False), max_revoke_grace_ms=20) as run:
        await until(lambda: runs == 1)
        await consumer.revoke()
        consumer.assign(consumer.logs)
        await until(lambda: run.runtime.state.partitions[T0].in_flight == 1)
        assert runs == 1
        release.set()
        await until(lambda: consumer.stored.get(T0) == Committed(1, ""))
        await run.stop()
    assert runs == 2


async def test_a_handler_that_swallows_cancellation_is_a_straggler_not_a_hang() -> None:
    """The revoke returns in time, the record stays undone, the call is counted."""
    consumer = FakeConsumer(log("t", "k"))
    release = asyncio.Event()
    started = asyncio.Event()

    async def handle(record: RawRecord) -> None:
        started.set()
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    async with Running(consumer, handler(handle), max_revoke_grace_ms=10) as run:
        await started.wait()
        await asyncio.wait_for(consumer.revoke(), 5)
        assert run.runtime.state.counters.stragglers == {"left": 1}
        assert consumer.stored.get(T0, Committed(0, "")).offset == 0
        release.set()
        await until(lambda: not run.runtime.unfinished())
        assert run.runtime.state.counters.stale_completions == 1
        await run.stop()


async def test_a_lost_partition_is_neither_drained_nor_committed() -> None:
    """What runs is cancelled at once, nothing is committed, it is counted as lost."""
    consumer = FakeConsumer(log("t", "k", "a"))
    cancelled = asyncio.Event()

    async def handle(record: RawRecord) -> None:
        if record.key == b"k":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise

    async with Running(consumer, handler(handle), commit_interval_ms=60_000) as run:
        await until(lambda: run.runtime.state.pools[0].completed() == 1)
        before = len(consumer.commits)
        consumer.lose()
        await asyncio.wait_for(cancelled.wait(), 5)
        assert len(consumer.commits) == before
        assert run.runtime.state.counters.rebalances["lost"] == 1
        await run.stop()


async def test_nothing_is_committed_between_revoke_and_assignment() -> None:
    """After the revoke's own commit the token is gone."""
    consumer = FakeConsumer(log("t", "a", "b"))
    async with Running(consumer, handler(nothing)) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(2, ""))
        await consumer.revoke()
        assert run.runtime.state.token is None
        assert not await run.runtime.session.committer.final([], 0.0)  # type: ignore[union-attr]
        await run.stop()


async def test_an_error_while_reading_offsets_never_reads_as_nothing_committed() -> None:
    """A failed OffsetFetch is tried again; the start is the committed offset, not the beginning."""
    consumer = FakeConsumer(
        log("t", *"abcd"), stored={T0: Committed(3, "")}, committed_errors=[BrokerError("loading")] * 2
    )
    seen: list[int] = []

    async def handle(record: RawRecord) -> None:
        seen.append(record.offset)

    async with Running(consumer, handler(handle), offset_reset="latest") as run:
        await until(lambda: consumer.stored[T0] == Committed(4, ""))
        await run.stop()
    assert seen == [3]


async def test_latest_starts_at_the_end_and_commits_that_at_once() -> None:
    """A new group under latest: old records are passed over, the position is kept by a commit."""
    consumer = FakeConsumer(log("t", *"abcd"))
    async with Running(consumer, handler(nothing), offset_reset="latest") as run:
        await until(lambda: consumer.stored.get(T0) == Committed(4, ""))
        assert run.runtime.state.counters.offset_resets == {"no_commit": 1}
        assert run.runtime.state.pools[0].completed() == 0
        await run.stop()


async def test_a_new_partition_of_a_group_with_commits_starts_at_the_beginning_under_latest() -> None:
    """What a new topic held before we looked is not skipped."""
    consumer = FakeConsumer(log("t", *"abcd"), group_has_commits=True)
    async with Running(consumer, handler(nothing), offset_reset="latest") as run:
        await until(lambda: consumer.stored.get(T0) == Committed(4, ""))
        assert run.runtime.state.pools[0].completed() == 4
        await run.stop()


async def test_offset_reset_error_halts_a_partition_without_a_commit() -> None:
    """The partition halts with the reason; nothing is read."""
    consumer = FakeConsumer(log("t", *"abcd"))
    async with Running(consumer, handler(nothing), offset_reset="error") as run:
        partitions = run.runtime.state.partitions
        await until(lambda: T0 in partitions and partitions[T0].state is State.HALTED)
        assert "offset_reset=error" in str(partitions[T0].halt_reason)
        await run.stop()
    assert not consumer.commits


@pytest.mark.parametrize("policy", ["earliest", "latest", "error"])
async def test_a_position_outside_of_the_log_is_reset_by_policy_and_counted(
    policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Retention passed the commit: earliest, latest and error each act, with one ERROR line."""
    consumer = FakeConsumer(
        log("t", *"abcd", start=10),
        stored={T0: Committed(5, "")},
        begins={T0: 10},
        fetch_errors=[OffsetOutOfRangeError({T0: 5})],
    )
    async with Running(consumer, handler(nothing), offset_reset=policy) as run:
        partitions = run.runtime.state.partitions
        if policy == "error":
            await until(lambda: T0 in partitions and partitions[T0].state is State.HALTED)
        else:
            await until(lambda: consumer.stored[T0] == Committed(14, ""))
            assert run.runtime.state.pools[0].completed() == (4 if policy == "earliest" else 0)
        assert run.runtime.state.counters.offset_resets == {"out_of_range": 1}
        await run.stop()
    lines = [
        r.getMessage()
        for r in caplog.records
        if r.levelname == "ERROR" and "outside of the log" in r.getMessage()
    ]
    assert len(lines) == 1 and "t[0]" in lines[0]


async def test_a_truncated_log_begins_a_new_generation_below_the_old_position() -> None:
    """The commit may go back only in a new generation, and what was read before does not count there."""
    consumer = FakeConsumer(
        log("t", *"ab"), stored={T0: Committed(9, "")}, fetch_errors=[OffsetOutOfRangeError({T0: 9})]
    )
    async with Running(consumer, handler(nothing)) as run:
        await until(lambda: consumer.stored[T0] == Committed(2, ""))
        assert run.runtime.state.partitions[T0].generation == 2
        await run.stop()


async def test_foreign_and_misplaced_metadata_is_ignored_and_counted() -> None:
    """Another tool's string, or ours from another place: records run again rather than being lost."""
    for text, reason in (("whatever", "foreign"), ("ap1:00000000:AQIBAg", "misplaced")):
        consumer = FakeConsumer(log("t", *"abc"), stored={T0: Committed(1, text)})
        async with Running(consumer, handler(nothing)) as run:
            await until(lambda c=consumer: c.stored[T0] == Committed(3, ""))  # type: ignore[misc]
            assert run.runtime.state.counters.metadata_ignored == {reason: 1}
            assert run.runtime.state.pools[0].completed() == 2
            await run.stop()


@pytest.mark.parametrize("ending", ["stop", "revoke"])
async def test_a_stop_and_a_revoke_wait_for_a_straggler_that_may_be_adopted(ending: str) -> None:
    """The partition came back to the same member: the call's success still counts, so it is committed."""
    consumer = FakeConsumer(log("t", "k", "other"))
    release, runs, handle = stuck_at_first()

    keeps = handler(handle, cancel_on_revoke=False)
    async with Running(consumer, keeps, max_revoke_grace_ms=20) as run:
        await until(lambda: 1 in runs)
        await consumer.revoke()
        consumer.assign(consumer.logs)
        await until(lambda: run.runtime.state.partitions[T0].is_open)
        run.runtime.state.config = config(max_revoke_grace_ms=5_000)
        goes = asyncio.create_task(run.stop() if ending == "stop" else consumer.revoke())
        await until(lambda: run.runtime.state.partitions[T0].state is State.DRAINING)
        assert not goes.done()
        release.set()
        await goes
        assert consumer.stored[T0] == Committed(2, "")
    assert runs == [0, 1]


async def test_a_missing_right_on_the_bounds_of_the_log_ends_the_run() -> None:
    """A position outside of the log, and no right to ask where it begins: the error is the missing right."""
    consumer = FakeConsumer(log("t", *"ab"), fetch_errors=[OffsetOutOfRangeError({T0: 0})])

    async def forbidden(partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        raise AuthorizationError("no right on topic t[0]")

    async with Running(consumer, handler(nothing)) as run:
        consumer.stored[T0] = Committed(0, "")
        consumer.beginning = forbidden  # type: ignore[method-assign, assignment]
        assert run.task is not None
        with pytest.raises(AuthorizationError, match=r"topic t\[0\]"):
            await asyncio.wait_for(run.task, 5)


@pytest.mark.parametrize("error", [AuthorizationError("no right on group g"), ConfigurationError("bad name")])
async def test_what_no_retry_mends_while_offsets_are_read_ends_the_run(error: AsyncparError) -> None:
    """It comes out as it is, so that the exit code says what it was."""
    consumer = FakeConsumer(log("t", *"ab"), committed_errors=[error])
    async with Running(consumer, handler(nothing)) as run:
        assert run.task is not None
        with pytest.raises(type(error), match=str(error)):
            await asyncio.wait_for(run.task, 5)


async def test_done_runs_beyond_the_end_of_a_truncated_log_do_not_count() -> None:
    """The log lost its tail: records that take the lost offsets are handled, not taken for done."""
    consumer = FakeConsumer(log("t", "a", "b", "c"))
    consumer.stored[T0] = Committed(1, encode(T0, 1, [(2, 3), (3, 6)]).text)
    seen: list[int] = []

    async def handle(record: RawRecord) -> None:
        seen.append(record.offset)

    async with Running(consumer, handler(handle)) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(3, ""))
        consumer.logs[T0] += [FakeRecord(3, b"d"), FakeRecord(4, b"e")]
        await until(lambda: consumer.stored.get(T0) == Committed(5, ""))
        assert run.runtime.state.counters.metadata_ignored == {"beyond_end": 1}
        await run.stop()
    assert seen == [1, 3, 4]


async def test_a_halted_partition_whose_log_was_truncated_goes_on_within_it() -> None:
    """Nobody fetched from it: what is done beyond its new end is found out when it is to run again."""
    consumer = FakeConsumer(log("t", "bad", "a", "b", "c"))
    is_mended = False
    seen: list[int] = []
    asked, refusals = consumer.end, [BrokerError("no leader")]

    async def end(partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        if refusals:
            raise refusals.pop()
        return await asked(partitions)

    async def handle(record: RawRecord) -> None:
        if record.key == b"bad" and not is_mended:
            await until(lambda: {1, 2, 3} <= set(seen))
            raise ValueError
        seen.append(record.offset)

    async with Running(consumer, handler(handle, attempts=1)) as run:
        partitions = run.runtime.state.partitions
        await until(lambda: T0 in partitions and partitions[T0].state is State.HALTED)
        await until(lambda: T0 in consumer.stored and bool(consumer.stored[T0].metadata))
        del consumer.logs[T0][2:]
        consumer.end = end  # type: ignore[method-assign]
        is_mended = True
        run.runtime.retry_halted(T0)
        await until(lambda: consumer.stored[T0] == Committed(2, ""))
        consumer.logs[T0] += [FakeRecord(2, b"d"), FakeRecord(3, b"e")]
        await until(lambda: consumer.stored[T0] == Committed(4, ""))
        await run.stop()
    assert not refusals
    assert sorted(seen) == [0, 1, 2, 2, 3, 3]


async def test_a_partition_whose_leader_is_silent_holds_up_no_other_one() -> None:
    """Restoring what is done needs the log's end; it is asked for again until it is known."""
    consumer = FakeConsumer({**log("t", "a", "b"), **log("t", "a", "b", partition=1)})
    other = TopicPartition("t", 1)
    for tp in (T0, other):
        consumer.stored[tp] = Committed(0, encode(tp, 0, [(1, 2)]).text)
    asked = consumer.end
    silent = True

    async def end(partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        if silent and other in partitions:
            raise BrokerError("no leader", {other: "no leader"})
        return await asked(partitions)

    consumer.end = end  # type: ignore[method-assign]
    async with Running(consumer, handler(nothing)) as run:
        await until(lambda: consumer.stored[T0] == Committed(2, ""))
        assert run.runtime.state.partitions[other].state is State.OPENING
        silent = False
        await until(lambda: consumer.stored[other] == Committed(2, ""))
        await run.stop()


@pytest.mark.parametrize("how", ["lost", "revoked"])
async def test_what_runs_of_an_older_life_is_cancelled_with_its_partition(how: str) -> None:
    """A call from before a halt that was retried: it is not left to hang when the partition goes."""
    consumer = FakeConsumer(log("t", "hangs", "bad", "good"))
    cancelled = asyncio.Event()
    is_mended = False

    async def handle(record: RawRecord) -> None:
        if record.key == b"hangs" and not is_mended:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
        if record.key == b"bad" and not is_mended:
            raise ValueError

    async with Running(consumer, handler(handle, attempts=1, concurrency=3)) as run:
        state = run.runtime.state
        await until(lambda: T0 in state.partitions and state.partitions[T0].halt_reason is not None)
        is_mended = True
        consumer.stored[T0] = Committed(0, "")
        run.runtime.retry_halted(T0)
        state.stragglers.clear()  # as after a truncated log: its success would not count
        if how == "lost":
            consumer.lose()
        else:
            await consumer.revoke()
        await asyncio.wait_for(cancelled.wait(), 5)
        run.runtime.stop(now=True)
