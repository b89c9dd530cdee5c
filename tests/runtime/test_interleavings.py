"""What may change while the runtime waits: an assignment, a loss or a stop in the middle of something."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from asyncpar.core.assignment import State
from asyncpar.errors import AuthorizationError, EngineError, FetchError, OffsetOutOfRangeError
from asyncpar.records import Chunk, CommitAnswer, Committed, GroupToken, RawRecord, TopicPartition
from asyncpar.runtime import health
from tests.runtime.fakes import FakeConsumer, Running, handler, log, until

T0 = TopicPartition("t", 0)
T1 = TopicPartition("t", 1)


async def nothing(record: RawRecord) -> None:
    """A handler that succeeds."""


@dataclass
class SlowOffsets(FakeConsumer):
    """Reads committed offsets when `may_read` is set."""

    may_read: asyncio.Event = field(default_factory=asyncio.Event)
    reads: int = 0

    async def committed(
        self, partitions: Collection[TopicPartition]
    ) -> dict[TopicPartition, Committed | None]:
        """See the port."""
        self.reads += 1
        await self.may_read.wait()
        return await super().committed(partitions)


async def test_a_stale_answer_to_an_older_token_leaves_the_new_one_alone() -> None:
    """A commit in flight over a loss is refused after the next assignment, which commits all the same."""
    consumer = FakeConsumer(log("t", *"abc"), hold_commits=asyncio.Event())
    async with Running(consumer, handler(nothing)) as run:
        await until(lambda: run.runtime.state.pools[0].completed() == 3)
        assert run.runtime.session is not None
        await until(run.runtime.session.committer._lock.locked)
        consumer.lose()
        consumer.assign(consumer.logs)
        await until(lambda: run.runtime.state.pools[0].completed() == 6)
        assert consumer.hold_commits is not None
        consumer.hold_commits.set()
        await until(lambda: consumer.stored.get(T0) == Committed(3, ""))
        assert run.runtime.state.counters.commits["stale"] == 1
        await run.stop()


async def test_a_revoke_of_one_partition_cancels_no_record_of_another() -> None:
    """A worker that ended its record in time runs one of a kept partition: that one is left alone."""
    consumer = FakeConsumer({**log("t", "quick", "stuck"), **log("t", "other", partition=1)})
    release = {key: asyncio.Event() for key in (b"quick", b"stuck", b"other")}
    started: list[bytes | None] = []
    cancelled: list[bytes | None] = []

    async def handle(record: RawRecord) -> None:
        assert record.key is not None
        started.append(record.key)
        try:
            await release[record.key].wait()
        except asyncio.CancelledError:
            cancelled.append(record.key)
            raise

    async with Running(consumer, handler(handle, concurrency=2), max_revoke_grace_ms=300) as run:
        await until(lambda: len(started) == 2)
        revoking = asyncio.create_task(consumer.revoke([T0]))
        await until(lambda: run.runtime.state.partitions[T0].state is State.DRAINING)
        release[b"quick"].set()
        await until(lambda: b"other" in started)
        await asyncio.wait_for(revoking, 5)
        release[b"other"].set()
        await until(lambda: consumer.stored.get(T1) == Committed(1, ""))
        await run.stop()
    assert cancelled == [b"stuck"]
    assert started == [b"quick", b"stuck", b"other"]


async def test_a_revoke_of_one_partition_leaves_another_one_opening() -> None:
    """While offsets are read one partition is taken back: the other one opens when they are there."""
    consumer = SlowOffsets({**log("t", "a"), **log("t", "b", partition=1)})
    async with Running(consumer, handler(nothing)) as run:
        await until(lambda: consumer.reads == 1)
        await consumer.revoke([T0])
        consumer.may_read.set()
        await until(lambda: consumer.stored.get(T1) == Committed(1, ""))
        assert T0 not in consumer.stored
        await run.stop()


async def test_retrying_a_partition_without_a_position_survives_the_revoke_of_another() -> None:
    """Halted for want of a commit and told to go on: it opens, whatever becomes of its neighbour."""
    consumer = SlowOffsets({**log("t", "a"), **log("t", "b", partition=1)})
    consumer.may_read.set()
    async with Running(consumer, handler(nothing), offset_reset="error") as run:
        partitions = run.runtime.state.partitions
        await until(lambda: T1 in partitions and partitions[T1].state is State.HALTED)
        consumer.may_read.clear()
        consumer.stored[T1] = Committed(0, "")
        run.runtime.retry_halted(T1)
        await until(lambda: consumer.reads == 2)
        await consumer.revoke([T0])
        consumer.may_read.set()
        await until(lambda: consumer.stored.get(T1) == Committed(1, ""))
        await run.stop()


@pytest.mark.parametrize("was", [State.OPENING, State.OPEN, State.DRAINING])
async def test_an_assignment_without_a_revoke_begins_anew(was: State) -> None:
    """The client revoked nothing: what is still held counts as lost, and nothing gets stuck."""
    consumer = SlowOffsets(log("t", *"abc"))
    first = asyncio.Event()

    async def handle(record: RawRecord) -> None:
        if not first.is_set():
            first.set()
            await asyncio.Event().wait()

    async with Running(consumer, handler(handle), max_revoke_grace_ms=5000) as run:
        partitions = run.runtime.state.partitions
        await until(lambda: consumer.reads == 1)
        if was is not State.OPENING:
            consumer.may_read.set()
            await asyncio.wait_for(first.wait(), 5)
        revoking = asyncio.create_task(consumer.revoke()) if was is State.DRAINING else None
        await until(lambda: partitions[T0].state is was)
        first.set()
        consumer.assign(consumer.logs)
        consumer.may_read.set()
        await until(lambda: consumer.stored.get(T0) == Committed(3, ""))
        assert run.runtime.state.counters.rebalances["lost"] == 1
        if revoking is not None:
            await asyncio.wait_for(revoking, 5)
            assert partitions[T0].is_open
        await run.stop()


async def test_an_assignment_leaves_alone_what_it_does_not_name() -> None:
    """A client that gives partition by partition: the one held goes on, its commits carry the new token."""
    consumer = FakeConsumer(log("t", "a"))
    started, release = asyncio.Event(), asyncio.Event()

    async def handle(record: RawRecord) -> None:
        if record.key == b"a":
            started.set()
            await release.wait()

    async with Running(consumer, handler(handle)) as run:
        await asyncio.wait_for(started.wait(), 5)
        consumer.logs |= log("t", "b", partition=1)
        consumer.generation += 1
        assert consumer.listener is not None
        consumer.listener.assigned(frozenset({T1}), GroupToken(consumer.generation, "member"))
        await until(lambda: consumer.stored.get(T1) == Committed(1, ""))
        release.set()
        await until(lambda: consumer.stored.get(T0) == Committed(1, ""))
        assert not run.runtime.state.counters.stale_completions
        assert "lost" not in run.runtime.state.counters.rebalances
        await run.stop()


async def test_a_fetch_that_raises_after_a_new_life_began_loses_nothing_of_it() -> None:
    """It had taken records from the new position: the client is put back there as well."""
    consumer = FakeConsumer(log("t", *"abcde"))
    seen: set[int] = set()
    once = [True]
    original = consumer.fetch

    async def fetch(
        wanted: Sequence[TopicPartition], room: int, timeout_ms: int, share: int | None = None
    ) -> list[Chunk]:
        if wanted and once:
            once.clear()
            await consumer.revoke()
            consumer.assign(consumer.logs)
            await until(lambda: run.runtime.state.partitions[T0].is_open)
            consumer.positions[T0] = 3
            raise FetchError("the next partition is corrupt")
        return await original(wanted, room, timeout_ms, share)

    consumer.fetch = fetch  # type: ignore[method-assign]

    async def handle(record: RawRecord) -> None:
        seen.add(record.offset)

    async with Running(consumer, handler(handle)) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(5, ""))
        await run.stop()
    assert seen == {0, 1, 2, 3, 4}


async def test_an_answer_out_of_range_to_a_position_of_an_older_life_resets_nothing() -> None:
    """The present position lies in the log: it is fetched from there, nothing is run or committed again."""
    consumer = FakeConsumer(
        log("t", *"abcdefghij"),
        stored={T0: Committed(8, "")},
        begins={T0: 3},
        fetch_errors=[OffsetOutOfRangeError({T0: 0})],
    )
    seen: list[int] = []

    async def handle(record: RawRecord) -> None:
        seen.append(record.offset)

    async with Running(consumer, handler(handle)) as run:
        await until(lambda: consumer.stored[T0] == Committed(10, ""))
        assert run.runtime.state.partitions[T0].generation == 1
        assert not run.runtime.state.counters.offset_resets
        await run.stop()
    assert seen == [8, 9]


async def test_a_truncation_after_an_unanswered_commit_is_committed() -> None:
    """The broker may have stored more than it said: the new start is committed, or a restart skips it."""
    consumer = FakeConsumer(log("t", *"ab"))
    original = consumer.commit

    async def commit(
        token: GroupToken, offsets: Mapping[TopicPartition, Committed], timeout_s: float
    ) -> dict[TopicPartition, CommitAnswer]:
        answers = await original(token, offsets, timeout_s)
        if consumer.logs[T0]:
            consumer.logs[T0] = []
            consumer.fetch_errors.append(OffsetOutOfRangeError({T0: 2}))
            return dict.fromkeys(answers, CommitAnswer.RETRY)
        return answers

    consumer.commit = commit  # type: ignore[method-assign]
    async with Running(consumer, handler(nothing)) as run:
        await until(lambda: T0 in run.runtime.state.partitions)
        await until(lambda: run.runtime.state.partitions[T0].generation == 2)
        await until(lambda: consumer.stored[T0] == Committed(0, ""))
        await run.stop()


async def test_a_rebalance_during_a_stop_leaves_liveness_green() -> None:
    """The stop has ended the poller: a revoke in the middle of its drain is no reason to kill the process."""
    consumer = FakeConsumer(log("t", "k"))
    started, release = asyncio.Event(), asyncio.Event()

    async def handle(record: RawRecord) -> None:
        started.set()
        await release.wait()

    async with Running(consumer, handler(handle), max_revoke_grace_ms=5000) as run:
        await asyncio.wait_for(started.wait(), 5)
        run.runtime.stop()
        await until(lambda: run.runtime.state.stopping)
        assert run.runtime.session is not None
        await until(lambda: not run.runtime.session.is_serving())  # type: ignore[union-attr]
        revoking = asyncio.create_task(consumer.revoke())
        await until(lambda: bool(run.runtime.state.counters.rebalances.get("revoked")))
        assert health.not_live(run.runtime) == []
        release.set()
        await asyncio.wait_for(revoking, 5)
        await run.stop()


async def test_a_straggler_of_a_stop_and_a_revoke_at_once_is_counted_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both give the partition up; the first one records the call that outlives it."""
    monkeypatch.setattr("asyncpar.runtime.rebalance._CANCEL_SECONDS", 0.05)
    consumer = FakeConsumer(log("t", "k"))
    started, release = asyncio.Event(), asyncio.Event()

    async def handle(record: RawRecord) -> None:
        started.set()
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()

    async with Running(consumer, handler(handle), max_revoke_grace_ms=300) as run:
        await asyncio.wait_for(started.wait(), 5)
        revoking = asyncio.create_task(consumer.revoke())
        await until(lambda: run.runtime.state.partitions[T0].state is State.DRAINING)
        run.runtime.stop(now=True)
        await until(lambda: not run.runtime.state.partitions)
        was_revoking = not revoking.done()
        await asyncio.wait_for(revoking, 5)
        release.set()
    assert was_revoking
    assert run.runtime.state.counters.stragglers == {"left": 1}


@pytest.mark.parametrize("how", ["stop", "cancel"])
async def test_a_start_that_connects_while_it_is_called_off_is_closed(how: str) -> None:
    """No member that nobody knows of stays in the group."""

    class Stubborn(FakeConsumer):
        async def start(self, subscription: object, listener: object) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await super().start(subscription, listener)  # type: ignore[arg-type]

    consumer = Stubborn(log("t"))
    async with Running(consumer, handler(nothing)) as run:
        assert run.task is not None
        await until(lambda: run.runtime.session is not None)
        if how == "stop":
            await run.stop()
        else:
            run.task.cancel()
            await asyncio.wait({run.task}, timeout=5)
        assert run.task.done()
        assert consumer.stopped


async def test_a_drain_that_is_cancelled_still_leaves_the_group() -> None:
    """The host cancels the run twice: the consumer is stopped and no task of the session goes on."""
    consumer = FakeConsumer(log("t", "k"))
    started = asyncio.Event()

    async def handle(record: RawRecord) -> None:
        started.set()
        await asyncio.Event().wait()

    async with Running(consumer, handler(handle), shutdown_drain_timeout_ms=600_000) as run:
        assert run.task is not None
        await asyncio.wait_for(started.wait(), 5)
        run.task.cancel()
        await until(lambda: run.runtime.state.stopping)
        run.task.cancel()
        await asyncio.wait({run.task}, timeout=5)
        assert run.task.cancelled()
        assert consumer.stopped
        assert run.runtime.session is not None
        await until(lambda: not run.runtime.session._tasks)  # type: ignore[union-attr]


async def test_a_stop_while_a_dead_client_is_replaced_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second consumer never connects: that does not hold up the stop."""
    monkeypatch.setattr("asyncpar.runtime.watchdog._LOOK_SECONDS", 0.01)
    connecting = asyncio.Event()

    class Slow(FakeConsumer):
        async def start(self, subscription: object, listener: object) -> None:
            connecting.set()
            await asyncio.Event().wait()

    first, second = FakeConsumer(log("t"), dead=EngineError("the fetcher ended")), Slow(log("t"))
    async with Running(first, handler(nothing), more=[second]) as run:
        await asyncio.wait_for(connecting.wait(), 5)
        async with asyncio.timeout(5):
            await run.stop()
    assert first.stopped and second.stopped


@pytest.mark.parametrize(
    ("error", "raised"),
    [(AuthorizationError("no DESCRIBE"), AuthorizationError), (OSError("x"), EngineError)],
)
async def test_until_end_raises_when_the_ends_cannot_be_read(
    error: Exception, raised: type[Exception]
) -> None:
    """--drain-and-exit that cannot learn the end offsets ends with that error, it does not run for ever."""
    consumer = FakeConsumer(log("t", "a"))

    async def handle(record: RawRecord) -> None:
        await asyncio.Event().wait()

    async def end(partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        raise error

    consumer.end = end  # type: ignore[method-assign]
    run = Running(consumer, handler(handle))
    with pytest.raises(raised):
        await asyncio.wait_for(run.runtime.run(until_end=True), 5)
