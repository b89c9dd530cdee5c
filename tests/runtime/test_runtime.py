"""One group's life on a consumer in memory: order, commits, halts, replacement, stop."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import defaultdict

import pytest

from asyncpar.core.assignment import State
from asyncpar.core.failures import FailureRules
from asyncpar.core.offset_codec import decode, decode_attempts
from asyncpar.errors import (
    AuthorizationError,
    BrokerUnreachableError,
    ConsumerFailedError,
    DecodeError,
    DrainIncompleteError,
    EngineError,
)
from asyncpar.records import CommitAnswer, Committed, RawRecord, TopicPartition
from asyncpar.runtime import runtime as runtime_module
from tests.runtime.fakes import FakeConsumer, FakeRecord, Running, handler, limits, log, until

T0 = TopicPartition("t", 0)
T1 = TopicPartition("t", 1)


async def test_every_record_is_handled_in_order_per_key_and_committed() -> None:
    """A thousand records of ten keys, handlers that wait: per key in order, all committed."""
    keys = [f"k{at % 10}" for at in range(1000)]
    consumer = FakeConsumer(log("t", *keys))
    seen: dict[bytes, list[int]] = defaultdict(list)
    running: set[bytes] = set()

    async def handle(record: RawRecord) -> None:
        assert record.key is not None and record.key not in running
        running.add(record.key)
        await asyncio.sleep(0)
        running.discard(record.key)
        seen[record.key].append(record.offset)

    async with Running(consumer, handler(handle)) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(1000, ""))
        await run.stop()
    assert all(offsets == sorted(offsets) for offsets in seen.values())
    assert sum(map(len, seen.values())) == 1000
    assert consumer.stopped


async def test_other_keys_overtake_a_stuck_record_and_the_commit_does_not() -> None:
    """With offset 0 stuck, all others are done, the commit stays at 0 and its metadata holds the rest."""
    consumer = FakeConsumer(log("t", "stuck", *(f"k{at}" for at in range(99))))
    release = asyncio.Event()

    async def handle(record: RawRecord) -> None:
        if record.key == b"stuck":
            await release.wait()

    async with Running(consumer, handler(handle)) as run:
        await until(lambda: T0 in consumer.stored)
        await until(lambda: decode(T0, 0, consumer.stored[T0].metadata) == [(1, 100)])
        assert consumer.stored[T0].offset == 0
        release.set()
        await until(lambda: consumer.stored[T0] == Committed(100, ""))
        await run.stop()


async def test_what_the_metadata_lists_as_done_is_not_run_again() -> None:
    """A restart from a commit with gaps runs only the records that were not done."""
    first = FakeConsumer(log("t", "stuck", *(f"k{at}" for at in range(9))))

    async def stuck(record: RawRecord) -> None:
        if record.key == b"stuck":
            await asyncio.Event().wait()

    async with Running(first, handler(stuck), shutdown_drain_timeout_ms=0) as run:
        await until(lambda: T0 in first.stored and bool(first.stored[T0].metadata))
        with pytest.raises(DrainIncompleteError):
            await run.stop()
    again: list[int] = []

    async def handle(record: RawRecord) -> None:
        again.append(record.offset)

    second = FakeConsumer(first.logs, stored=dict(first.stored))
    async with Running(second, handler(handle)) as run:
        await until(lambda: second.stored[T0] == Committed(10, ""))
        assert run.runtime.state.counters.redelivered == 9
        await run.stop()
    assert again == [0]


async def test_a_failing_record_is_parked_and_its_key_waits_while_others_go_on() -> None:
    """A record that fails twice runs again after the others; the next one of its key comes after it."""
    consumer = FakeConsumer(log("t", "bad", "bad", "a", "b"))
    seen: list[int] = []
    failures = [ValueError("one"), ValueError("two")]

    async def handle(record: RawRecord) -> None:
        if record.offset == 0 and failures:
            raise failures.pop()
        seen.append(record.offset)

    async with Running(consumer, handler(handle)) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(4, ""))
        assert run.runtime.state.pools[0].retries == 2
        await run.stop()
    assert seen.index(0) < seen.index(1)
    assert sorted(seen) == [0, 1, 2, 3]


async def test_exhausted_attempts_halt_the_partition_and_the_others_go_on() -> None:
    """After three runs of offset 1 its partition halts at 1; the other partition is worked off."""
    consumer = FakeConsumer({**log("t", "a", "bad", "a", "b"), **log("t", *"cdefgh", partition=1)})
    runs: list[int] = []

    async def handle(record: RawRecord) -> None:
        if record.key == b"bad":
            runs.append(record.offset)
            raise ValueError("no")

    async with Running(consumer, handler(handle, attempts=3)) as run:
        partitions = run.runtime.state.partitions
        await until(lambda: T0 in partitions and partitions[T0].state is State.HALTED)
        await until(lambda: consumer.stored.get(T1) == Committed(6, ""))
        await until(lambda: T0 in consumer.stored and consumer.stored[T0].offset == 1)
        assert runs == [1, 1, 1]
        assert partitions[T0].in_flight == 0
        assert "offset 1" in str(partitions[T0].halt_reason) and "ValueError: no" in str(
            partitions[T0].halt_reason
        )
        await run.stop()


async def test_retry_halted_runs_only_what_is_not_done() -> None:
    """A halted partition that is told to go on runs the failed record and its key's later ones, once."""
    consumer = FakeConsumer(log("t", "bad", "a", "bad", "b"))
    broken = True
    seen: list[int] = []

    async def handle(record: RawRecord) -> None:
        if record.key == b"bad" and broken:
            await until(lambda: {1, 3} <= set(seen))
            raise ValueError("no")
        seen.append(record.offset)

    async with Running(consumer, handler(handle, attempts=1)) as run:
        partitions = run.runtime.state.partitions
        with pytest.raises(KeyError):
            run.runtime.retry_halted(TopicPartition("other", 0))
        await until(lambda: T0 in partitions and partitions[T0].state is State.HALTED)
        broken = False
        run.runtime.retry_halted(T0)
        await until(lambda: consumer.stored.get(T0) == Committed(4, ""))
        with pytest.raises(ValueError, match="not halted"):
            run.runtime.retry_halted(T0)
        await run.stop()
    assert sorted(seen) == [0, 1, 2, 3]


async def test_an_undecodable_record_halts_at_once_or_is_skipped() -> None:
    """By the handler's rule: a halt without a second try, or done and counted."""

    async def handle(record: RawRecord) -> None:
        if record.key == b"bad":
            raise DecodeError("not JSON")

    consumer = FakeConsumer(log("t", "a", "bad", "b"))
    async with Running(consumer, handler(handle)) as run:
        await until(
            lambda: (
                bool(run.runtime.state.partitions) and run.runtime.state.partitions[T0].state is State.HALTED
            )
        )
        assert run.runtime.state.pools[0].tally("t").undecodable == 1
        await run.stop()
    consumer = FakeConsumer(log("t", "a", "bad", "b"))
    async with Running(consumer, handler(handle, skip_undecodable=True)) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(3, ""))
        await run.stop()


async def test_a_key_function_that_fails_is_an_undecodable_record_and_loses_no_other() -> None:
    """A record without an ordering key halts the partition there; what came before it is done."""

    def key_of(topic: str, record: RawRecord) -> bytes | None:
        if record.key == b"bad":
            raise DecodeError("no key")
        return record.key

    async def handle(record: RawRecord) -> None:
        return None

    consumer = FakeConsumer(log("t", "a", "bad", "b"))
    async with Running(consumer, handler(handle, key_of=key_of, skip_undecodable=True)) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(3, ""))
        assert run.runtime.state.pools[0].tally("t").succeeded == 2
        await run.stop()
    consumer = FakeConsumer(log("t", "a", "bad", "b"))
    async with Running(consumer, handler(handle, key_of=key_of)) as run:
        await until(
            lambda: (
                bool(run.runtime.state.partitions) and run.runtime.state.partitions[T0].state is State.HALTED
            )
        )
        await run.stop()
    assert consumer.stored.get(T0, Committed(0, "")).offset <= 1


async def test_handlers_that_share_a_topic_split_it_by_match_and_keep_a_keys_order() -> None:
    """Records go where match= says; one key in two handlers still runs in order, one at a time."""
    consumer = FakeConsumer(log("t", *(["k"] * 20)))
    seen: list[tuple[str, int]] = []

    async def even(record: RawRecord) -> None:
        await asyncio.sleep(0)
        seen.append(("even", record.offset))

    async def odd(record: RawRecord) -> None:
        seen.append(("odd", record.offset))

    handlers = [
        handler(even, name="even", match=lambda topic, raw: raw.offset % 2 == 0),
        handler(odd, name="odd", match=lambda topic, raw: raw.offset % 2 == 1),
    ]
    async with Running(consumer, *handlers) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(20, ""))
        await run.stop()
    assert seen == [("even" if at % 2 == 0 else "odd", at) for at in range(20)]


@pytest.mark.parametrize("skip", [True, False])
async def test_a_record_that_no_handler_matches_is_skipped_or_halts(skip: bool) -> None:
    """By unmatched=: passed over and counted, or the partition halts there and says so."""
    consumer = FakeConsumer(log("t", "a", "b", "a"))

    async def handle(record: RawRecord) -> None:
        return None

    only_a = handler(handle, match=lambda topic, raw: raw.key == b"a", skip_unmatched=skip)
    async with Running(consumer, only_a) as run:
        if skip:
            await until(lambda: consumer.stored.get(T0) == Committed(3, ""))
            assert run.runtime.state.pools[0].tally("t").skipped == 1
        else:
            partitions = run.runtime.state.partitions
            await until(lambda: T0 in partitions and partitions[T0].state is State.HALTED)
            assert "offset 1" in str(partitions[T0].halt_reason)
        await run.stop()


async def test_a_match_that_raises_is_an_undecodable_record() -> None:
    """An exception in match= halts the partition with its text, it does not kill the poller."""
    consumer = FakeConsumer(log("t", "a"))

    def match(topic: str, raw: RawRecord) -> bool:
        raise RuntimeError("broken predicate")

    async def handle(record: RawRecord) -> None:
        return None

    async with Running(consumer, handler(handle, match=match)) as run:
        partitions = run.runtime.state.partitions
        await until(lambda: T0 in partitions and partitions[T0].state is State.HALTED)
        assert "broken predicate" in str(partitions[T0].halt_reason)
        await run.stop()


async def test_two_patterns_on_one_topic_end_the_run() -> None:
    """A topic that fits two handlers' patterns is refused with both names."""
    consumer = FakeConsumer(log("t", "a"))

    async def handle(record: RawRecord) -> None:
        return None

    import re

    first = handler(handle, "x", name="first", pattern=re.compile("t.*"))
    second = handler(handle, "y", name="second", pattern=re.compile(".*t"))
    async with Running(consumer, first, second) as run:
        assert run.task is not None
        with pytest.raises(Exception, match="first and second"):
            await asyncio.wait_for(run.task, 5)


async def test_limits_of_records_are_never_passed_and_intake_goes_on() -> None:
    """With 20 in flight at most and slow handlers, the tracker never holds more, and all is done."""
    consumer = FakeConsumer(log("t", *(f"k{at}" for at in range(200))))
    most = 0

    async def handle(record: RawRecord) -> None:
        nonlocal most
        most = max(most, run.runtime.state.partitions[T0].in_flight)
        await asyncio.sleep(0.001)

    async with Running(consumer, handler(handle), limits=limits(max_in_flight=20)) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(200, ""))
        await run.stop()
    assert 6 < most <= 20


async def test_a_start_that_fails_raises_its_error_and_closes_the_consumer() -> None:
    """What the consumer's start raises is what run() raises."""
    consumer = FakeConsumer(log("t"), start_error=BrokerUnreachableError("nobody at 127.0.0.1:1"))

    async def handle(record: RawRecord) -> None:
        return None

    async with Running(consumer, handler(handle)) as run:
        assert run.task is not None
        with pytest.raises(BrokerUnreachableError):
            await asyncio.wait_for(run.task, 5)
    assert consumer.stopped


async def test_a_dead_client_is_replaced_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second consumer goes on from the commits; what was running when the first died runs again."""
    first = FakeConsumer(log("t", *(f"k{at}" for at in range(50))))
    second = FakeConsumer(first.logs, stored=first.stored)
    seen: set[int] = set()

    async def handle(record: RawRecord) -> None:
        if record.offset == 25:
            first.dead = EngineError("the fetcher ended")
            if run.runtime.session is not None and run.runtime.session.consumer is first:
                await asyncio.Event().wait()
        seen.add(record.offset)

    async with Running(first, handler(handle), more=[second]) as run:
        await until(lambda: second.stored.get(T0) == Committed(50, ""))
        assert first.stopped
        assert run.runtime.state.counters.consumer_replacements == 1
        assert run.runtime.state.counters.rebalances["lost"] == 1
        await run.stop()
    assert seen == set(range(50))


async def test_a_client_that_dies_too_often_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """After three replacements the fourth death is raised, not healed."""
    monkeypatch.setattr("asyncpar.runtime.watchdog._LOOK_SECONDS", 0.01)
    consumers = [FakeConsumer(log("t"), dead=EngineError("broken")) for _ in range(4)]

    async def handle(record: RawRecord) -> None:
        return None

    async with Running(consumers[0], handler(handle), more=consumers[1:]) as run:
        assert run.task is not None
        with pytest.raises(ConsumerFailedError, match="broken"):
            await asyncio.wait_for(run.task, 10)
    assert all(consumer.stopped for consumer in consumers)


async def test_a_task_that_dies_ends_the_run_with_its_reason() -> None:
    """Silence is a fault: an exception in the poller's task is raised by run()."""
    consumer = FakeConsumer(log("t", "a"), fetch_errors=[RuntimeError("a defect")])

    async def handle(record: RawRecord) -> None:
        return None

    async with Running(consumer, handler(handle)) as run:
        assert run.task is not None
        with pytest.raises(EngineError, match="a defect"):
            await asyncio.wait_for(run.task, 5)


async def test_a_missing_right_on_the_group_ends_the_run() -> None:
    """A commit that is forbidden is raised: nothing would ever be committed."""
    consumer = FakeConsumer(log("t", "a"), answers=[CommitAnswer.FORBIDDEN] * 50)

    async def handle(record: RawRecord) -> None:
        return None

    async with Running(consumer, handler(handle)) as run:
        assert run.task is not None
        with pytest.raises(AuthorizationError, match="group g"):
            await asyncio.wait_for(run.task, 5)


async def test_a_stop_lets_running_handlers_end_and_starts_no_others() -> None:
    """The stop waits for what runs, drops what is queued and commits what is done."""
    consumer = FakeConsumer(log("t", *(["k"] * 10)))
    started: list[int] = []
    release = asyncio.Event()

    async def handle(record: RawRecord) -> None:
        started.append(record.offset)
        await release.wait()

    async with Running(consumer, handler(handle)) as run:
        await until(lambda: started == [0])
        run.runtime.stop()
        await until(lambda: run.runtime.state.stopping)
        release.set()
        await run.stop()
    assert started == [0]
    assert consumer.stored[T0] == Committed(1, "")


async def test_a_stop_cancels_what_does_not_end_and_says_so() -> None:
    """After the drain's time the handler is cancelled, its record stays undone, run() raises."""
    consumer = FakeConsumer(log("t", "k"))
    cancelled = asyncio.Event()

    async def handle(record: RawRecord) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with Running(consumer, handler(handle), shutdown_drain_timeout_ms=50) as run:
        await until(lambda: bool(run.runtime.unfinished()))
        with pytest.raises(DrainIncompleteError, match="running handlers were cancelled"):
            await run.stop()
    assert cancelled.is_set()
    assert consumer.stored.get(T0, Committed(0, "")).offset == 0


async def test_a_stop_while_connecting_ends_at_once() -> None:
    """A consumer that never connects does not hold up the stop."""

    class Slow(FakeConsumer):
        async def start(self, subscription: object, listener: object) -> None:
            await asyncio.Event().wait()

    async def handle(record: RawRecord) -> None:
        return None

    consumer = Slow(log("t"))
    async with Running(consumer, handler(handle)) as run:
        await until(lambda: run.runtime.session is not None)
        await run.stop()
    assert consumer.stopped


async def test_until_end_stops_at_the_ends_read_at_the_start() -> None:
    """--drain-and-exit: ends when everything that was there is done; a halt ends it with an error."""
    consumer = FakeConsumer({**log("t", "a", "b"), **log("t", partition=1)})

    async def handle(record: RawRecord) -> None:
        return None

    run = Running(consumer, handler(handle))
    await asyncio.wait_for(run.runtime.run(until_end=True), 10)
    assert consumer.stored[T0] == Committed(2, "")

    async def fails(record: RawRecord) -> None:
        raise ValueError("no")

    run = Running(FakeConsumer(consumer.logs), handler(fails, attempts=1))
    with pytest.raises(DrainIncompleteError, match="halted"):
        await asyncio.wait_for(run.runtime.run(until_end=True), 10)


async def test_markers_at_the_end_of_a_log_leave_no_lag() -> None:
    """With everything done, the position past trailing markers is committed."""
    consumer = FakeConsumer(log("t", "a", "b"), ends={T0: 5})

    async def handle(record: RawRecord) -> None:
        return None

    async with Running(consumer, handler(handle)) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(5, ""))
        await run.stop()


async def test_holes_and_a_first_offset_above_zero_never_block() -> None:
    """Records at 7, 9 and 20 only: the commit goes to 21."""
    consumer = FakeConsumer({T0: [FakeRecord(at, b"k") for at in (7, 9, 20)]}, begins={T0: 7})

    async def handle(record: RawRecord) -> None:
        return None

    async with Running(consumer, handler(handle)) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(21, ""))
        await run.stop()


def test_the_replacement_budget_is_what_the_design_says() -> None:
    """Three replacements in ten minutes."""
    assert (runtime_module._MAX_REPLACEMENTS, runtime_module._REPLACEMENT_WINDOW_SECONDS) == (3, 600.0)


async def test_attempts_survive_a_rebalance() -> None:
    """The next member goes on counting; a commit of its own for a failure alone there is none."""
    consumer = FakeConsumer(log("t", "bad", "good"))
    attempts: list[int] = []

    async def handle(topic: str, partition: int, record: RawRecord, attempt: int, generation: int) -> None:
        if record.key == b"bad":
            attempts.append(attempt)
            raise ValueError

    patient = FailureRules(4, 40, 40, backoff="fixed")
    one = dataclasses.replace(handler(handle), invoke=handle, rules=patient)  # type: ignore[arg-type]
    async with Running(consumer, one) as run:
        state = run.runtime.state
        await until(lambda: len(attempts) == 3)
        commits = len(consumer.commits)
        assert commits <= 2
        await consumer.revoke()
        assert decode_attempts(T0, 0, consumer.stored[T0].metadata) == {0: 3}
        consumer.assign([T0])
        await until(lambda: T0 in state.partitions and state.partitions[T0].halt_reason is not None)
        assert attempts == [1, 2, 3, 4]
        await run.stop()
