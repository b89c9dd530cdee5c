"""Dead letters leave, in order, and nothing is done that was not acknowledged; only their partition waits."""

from __future__ import annotations

import asyncio
import logging
import time
from contextvars import ContextVar
from functools import partial

import pytest

from asyncpar import headers
from asyncpar.core.backoff import exp_full_jitter
from asyncpar.core.dead_letter_budget import BudgetRules
from asyncpar.core.offset_codec import decode
from asyncpar.errors import DecodeError, DrainIncompleteError, PublishError, UnknownTopicError
from asyncpar.ports import Late
from asyncpar.records import Committed, OutgoingRecord, RawRecord, TopicPartition
from asyncpar.runtime import outbox, snapshots
from asyncpar.runtime.handlers import Admissions, Handler
from tests.runtime.fakes import FakeConsumer, FakeProducer, FakeRecord, Running, handler, limits, log, until

T0, T1 = TopicPartition("t", 0), TopicPartition("t", 1)
TENANT: ContextVar[str] = ContextVar("tenant", default="nobody")
UNREACHABLE = PublishError("no broker answers", "unreachable")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of milliseconds between tries."""
    monkeypatch.setattr(outbox, "_FIRST_PAUSE_MS", 2)
    monkeypatch.setattr(outbox, "_LONGEST_PAUSE_MS", 5)


def failing(*words: bytes | str, attempts: int = 2, dead_letter: str = ".dlq", **values: object) -> Handler:
    """A handler of topics (texts among `words`) that fails for records of keys (bytes), every time."""
    keys = [word for word in words if isinstance(word, bytes)]
    topics = [word for word in words if isinstance(word, str)]

    async def handle(record: RawRecord) -> None:
        await asyncio.sleep(0)
        if record.key in keys:
            raise ValueError(f"no {record.offset}")

    return handler(handle, *topics, attempts=attempts, dead_letter=dead_letter, **values)


def offsets(producer: FakeProducer) -> list[int | None]:
    return [headers.number(record.headers, headers.OFFSET) for record in producer.sent]


async def test_a_record_that_is_given_up_is_done_once_its_topic_has_it() -> None:
    """Its headers say where it comes from and why; key, value and its own headers are as they were."""
    records = {T0: [FakeRecord(7, b"bad", b"payload", (("trace", b"1"),), timestamp=5)]}
    consumer, producer = FakeConsumer(records), FakeProducer()
    consumer.begins[T0] = 7
    async with Running(consumer, failing(b"bad"), producer=producer) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(8, ""))
        status = snapshots.handler_status(run.runtime.state.pools[0])
        assert (status.dead_letters, status.failed) == (1, 2)
        await run.stop()
    (letter,) = producer.sent
    assert (letter.topic, letter.key, letter.value) == ("t.dlq", b"bad", b"payload")
    found = {name: headers.text(letter.headers, name) for name, _ in letter.headers}
    now = int(found.pop(headers.FAILED) or 0)
    assert 0 <= now - int(found.pop(headers.FIRST_FAILED) or 0) < 10_000
    assert found == {
        "trace": "1",
        headers.TOPIC: "t",
        headers.PARTITION: "0",
        headers.OFFSET: "7",
        headers.TIMESTAMP: "5",
        headers.GROUP: "g",
        headers.HANDLER: "handle",
        headers.ATTEMPTS: "2",
        headers.REASON: "exhausted",
        headers.ERROR_TYPE: "builtins.ValueError",
        headers.ERROR_MESSAGE: "no 7",
    }
    assert producer.is_stopped


async def test_metadata_only_leaves_the_value_out(caplog: pytest.LogCaptureFixture) -> None:
    """And says so."""
    consumer, producer = FakeConsumer(log("t", "bad")), FakeProducer()
    async with Running(consumer, failing(b"bad", attempts=1, metadata_only=True), producer=producer) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(1, ""))
        await run.stop()
    (letter,) = producer.sent
    assert letter.value is None
    assert headers.text(letter.headers, headers.PAYLOAD) == "metadata_only"
    assert "handler handle: t[0] offset 0 goes to t.dlq (exhausted, 1 attempt)" in caplog.messages


async def test_nothing_is_done_before_the_acknowledgement_and_its_key_waits() -> None:
    """Other keys go on; the commit stays below; the status says why."""
    consumer = FakeConsumer(log("t", "bad", "good", "bad", "good"))
    producer = FakeProducer(hold=asyncio.Event())
    async with Running(consumer, failing(b"bad"), producer=producer) as run:
        await until(lambda: T0 in consumer.stored and bool(consumer.stored[T0].metadata))
        await until(lambda: decode(T0, 0, consumer.stored[T0].metadata) == [(1, 2), (3, 4)])
        assert consumer.stored[T0].offset == 0
        (status,) = snapshots.group_status(run.runtime).partitions
        assert (status.blocking_offset, status.blocking_reason) == (0, "leaving")
        assert producer.hold is not None
        producer.hold.set()
        await until(lambda: consumer.stored[T0] == Committed(4, ""))
        await run.stop()
    assert offsets(producer) == [0, 2]


async def test_an_outage_holds_only_the_partition_and_ends_in_order(caplog: pytest.LogCaptureFixture) -> None:
    """It is not fetched, said once, for as long as it lasts; the other partition goes on; then all leaves."""
    logs = {**log("t", "bad", "bad", "bad"), **log("t", "good", partition=1)}
    consumer, producer = FakeConsumer(logs), FakeProducer(down=UNREACHABLE)
    with caplog.at_level(logging.INFO, "asyncpar"):
        async with Running(consumer, failing(b"bad", attempts=1), producer=producer) as run:
            state = run.runtime.state
            await until(lambda: T0 in state.holds)
            assert state.outbox is not None
            sent = state.outbox.sent
            await until(lambda: sent.get(("dead_letter", "handle", "failed"), 0) > 3)
            asked = len(consumer.asked)
            consumer.logs[T1].append(FakeRecord(1, b"good"))
            await until(lambda: consumer.stored.get(T1) == Committed(2, ""))
            assert not any(T0 in one for one in consumer.asked[asked:])
            first, _ = snapshots.group_status(run.runtime).partitions
            assert first.hold_reason == "t.dlq does not take offset 0: no broker answers"
            producer.down = None
            await until(lambda: consumer.stored.get(T0) == Committed(3, ""))
            assert not state.holds
            await run.stop()
    assert offsets(producer) == [0, 1, 2]
    told = [record.message for record in caplog.records if "held" in record.message]
    assert len(told) == 2
    assert "t[0] is held: t.dlq does not take offset 0" in told[0]
    assert "no longer held" in told[1]


async def test_a_letter_that_may_be_there_is_waited_for_and_not_sent_anew() -> None:
    """Its partition is held meanwhile, and each time that it is late counts as a failure."""
    go_on = asyncio.Event()

    class Slow(FakeProducer):
        async def send(
            self, record: OutgoingRecord, timeout_s: float, late: Late | None = None
        ) -> tuple[TopicPartition, int]:
            assert late is not None
            late(UNREACHABLE)
            late(UNREACHABLE)
            await go_on.wait()
            return await super().send(record, timeout_s, late)

    consumer, producer = FakeConsumer(log("t", "bad")), Slow()
    async with Running(consumer, failing(b"bad", attempts=1), producer=producer) as run:
        state = run.runtime.state
        await until(lambda: T0 in state.holds)
        assert list(state.holds[T0].values()) == ["t.dlq does not take offset 0: no broker answers"]
        go_on.set()
        await until(lambda: consumer.stored.get(T0) == Committed(1, ""))
        assert not state.holds
        assert state.outbox is not None
        assert state.outbox.sent == {
            ("dead_letter", "handle", "failed"): 2,
            ("dead_letter", "handle", "sent"): 1,
        }
        await run.stop()
    assert offsets(producer) == [0]


async def test_a_letter_without_an_answer_holds_only_its_own_key() -> None:
    """The leader of its topic is away; what leaves the partition for another topic leaves, now and later."""

    class HalfAway(FakeProducer):
        async def send(
            self, record: OutgoingRecord, timeout_s: float, late: Late | None = None
        ) -> tuple[TopicPartition, int]:
            if record.topic == "a.dlq":
                await asyncio.Event().wait()
            return await super().send(record, timeout_s, late)

    consumer = FakeConsumer(log("t", "a", "b1", "b2"))
    producer = HalfAway(topics={"a.dlq": 1, "b.dlq": 1})
    go_on = asyncio.Event()

    async def fail(record: RawRecord) -> None:
        if record.key == b"b2":
            await go_on.wait()
        raise ValueError

    a = handler(fail, name="a", match=lambda _, raw: raw.key == b"a", attempts=1, dead_letter="a.dlq")
    b = handler(fail, name="b", match=lambda _, raw: raw.key != b"a", attempts=1, dead_letter="b.dlq")
    async with Running(consumer, a, b, producer=producer, shutdown_drain_timeout_ms=50) as run:
        await until(lambda: len(producer.sent) == 1)
        go_on.set()
        await until(lambda: len(producer.sent) == 2)
        assert run.runtime.state.outbox is not None
        assert run.runtime.state.outbox.waiting(T0) == {0}
    assert [letter.key for letter in producer.sent] == [b"b1", b"b2"]


async def test_a_letter_that_waits_for_its_budget_holds_no_letter_of_another_handler() -> None:
    """The partition is held for as long as it waits, with its reason; what was fetched before leaves."""
    consumer, producer = FakeConsumer(log("t", "a1", "a2", "b1", "b2")), FakeProducer()
    go_on = asyncio.Event()

    async def fail(record: RawRecord) -> None:
        if record.key == b"b2":
            await go_on.wait()
        raise ValueError

    budget = Admissions(budget=BudgetRules(share=0.0, at_least=1, window_ms=60_000))
    parts = partial(handler, fail, attempts=1, dead_letter=".dlq")
    a = parts(name="a", match=lambda _, raw: (raw.key or b"")[:1] == b"a", admissions=budget)
    b = parts(name="b", match=lambda _, raw: (raw.key or b"")[:1] == b"b")
    async with Running(consumer, a, b, producer=producer, shutdown_drain_timeout_ms=50) as run:
        await until(lambda: T0 in run.runtime.state.holds and len(producer.sent) == 2)
        go_on.set()
        await until(lambda: len(producer.sent) == 3)
        await until(
            lambda: run.runtime.state.outbox is not None and run.runtime.state.outbox.count_waiting() == 1
        )
        (why,) = run.runtime.state.holds[T0].values()
        assert why.startswith("the dead-letter budget of handler a is used up: dead letters wait")
        assert "leave again as its window moves on" in why


async def test_one_that_is_too_large_does_not_hold_up_the_others_of_its_batch() -> None:
    """Those that are taken are done; it is tried again."""
    keys = [f"bad{at}" for at in range(5)]
    consumer = FakeConsumer(log("t", *keys))
    producer = FakeProducer(refusals=[PublishError("1 MB is too much", "too_large")])
    bad = [key.encode() for key in keys]
    async with Running(consumer, failing(*bad, attempts=1), producer=producer) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(5, ""))
        await run.stop()
    assert sorted(at for at in offsets(producer) if at is not None) == [0, 1, 2, 3, 4]


async def test_a_revoke_waits_for_what_leaves_and_commits_it() -> None:
    """Within the grace; then the next member does not see the record again."""
    consumer = FakeConsumer(log("t", "bad"))
    producer = FakeProducer(hold=asyncio.Event())
    async with Running(
        consumer, failing(b"bad", attempts=1), producer=producer, max_revoke_grace_ms=5000
    ) as run:
        state = run.runtime.state
        await until(lambda: state.outbox is not None and state.outbox.count_waiting() == 1)
        revoking = asyncio.create_task(consumer.revoke())
        await asyncio.sleep(0.01)
        assert not revoking.done()
        assert producer.hold is not None
        producer.hold.set()
        await asyncio.wait_for(revoking, 5)
        assert consumer.stored[T0] == Committed(1, "")
        await run.stop()


async def test_what_could_not_leave_before_a_revoke_runs_again(caplog: pytest.LogCaptureFixture) -> None:
    """It is neither done nor sent in the background afterwards, and nothing stays held."""
    consumer, producer = FakeConsumer(log("t", "bad")), FakeProducer(down=UNREACHABLE)
    async with Running(
        consumer, failing(b"bad", attempts=1), producer=producer, max_revoke_grace_ms=20
    ) as run:
        state = run.runtime.state
        await until(lambda: T0 in state.holds)
        await consumer.revoke()
        assert not state.holds
        assert state.outbox is not None
        assert state.outbox.count_waiting() == 0
        assert consumer.stored.get(T0, Committed(0, "")).offset == 0
        producer.down = None
        consumer.assign([T0])
        await until(lambda: consumer.stored.get(T0) == Committed(1, ""))
        await run.stop()
    assert offsets(producer) == [0]


async def test_a_stop_with_letters_that_cannot_leave_is_incomplete() -> None:
    """The exit code says so; the record runs again after the restart."""
    consumer, producer = FakeConsumer(log("t", "bad")), FakeProducer(down=UNREACHABLE)
    async with Running(
        consumer, failing(b"bad", attempts=1), producer=producer, shutdown_drain_timeout_ms=50
    ) as run:
        await until(lambda: T0 in run.runtime.state.holds)
        with pytest.raises(DrainIncompleteError):
            await run.stop()
    assert producer.is_stopped
    assert consumer.stored.get(T0, Committed(0, "")).offset == 0


async def test_a_halt_beside_a_letter_lets_it_leave_and_count() -> None:
    """The queue is dropped; what leaves is done when it was acknowledged."""
    consumer = FakeConsumer(log("t", "bad", "worse"))
    producer = FakeProducer(hold=asyncio.Event())

    async def handle(record: RawRecord) -> None:
        if record.key == b"bad":
            raise ValueError
        await until(lambda: state.outbox is not None and state.outbox.count_waiting() == 1)
        state.halt(state.partitions[T0], "a test")

    async with Running(consumer, handler(handle, attempts=1, dead_letter=".dlq"), producer=producer) as run:
        state = run.runtime.state
        await until(lambda: T0 in state.partitions and state.partitions[T0].halt_reason is not None)
        assert producer.hold is not None
        producer.hold.set()
        await until(lambda: consumer.stored.get(T0) == Committed(2, ""))
        await run.stop()


async def test_an_undecodable_record_is_given_up_at_once() -> None:
    """One attempt, whatever `attempts` says; also where its key cannot be found."""

    def key_of(topic: str, record: RawRecord) -> bytes | None:
        if record.key == b"bad":
            raise DecodeError("no order")
        return record.key

    async def handle(record: RawRecord) -> None:
        if record.key == b"broken":
            raise DecodeError("no JSON")

    consumer, producer = FakeConsumer(log("t", "bad", "broken", "good")), FakeProducer()
    one = handler(handle, attempts=9, dead_letter=".dlq", key_of=key_of)
    async with Running(consumer, one, producer=producer) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(3, ""))
        await run.stop()
    assert sorted(at for at in offsets(producer) if at is not None) == [0, 1]
    assert {headers.text(one.headers, headers.REASON) for one in producer.sent} == {"undecodable"}


async def test_a_missing_topic_is_refused_at_the_start() -> None:
    """With its name and the handler's; asyncpar creates none."""
    consumer, producer = FakeConsumer(log("t", "bad")), FakeProducer(topics={})
    async with Running(consumer, failing(b"bad"), producer=producer) as run:
        assert run.task is not None
        with pytest.raises(UnknownTopicError, match=r"handler handle: its topic 't.dlq' .* does not exist"):
            await run.task
    assert producer.is_stopped


async def test_the_budget_turns_a_flood_into_a_hold() -> None:
    """So many leave; the next ones wait, their partition is held, and the status says why."""
    keys = [f"bad{at}" for at in range(10)]
    consumer, producer = FakeConsumer(log("t", *keys)), FakeProducer()
    budget = Admissions(budget=BudgetRules(share=0.0, at_least=3, window_ms=60_000))
    one = failing(*(key.encode() for key in keys), attempts=1, admissions=budget)
    async with Running(consumer, one, producer=producer, shutdown_drain_timeout_ms=50) as run:
        await until(lambda: T0 in run.runtime.state.holds)
        await until(lambda: len(producer.sent) == 3)
        (status,) = snapshots.group_status(run.runtime).partitions
        assert "budget of handler handle is used up" in (status.hold_reason or "")
        with pytest.raises(DrainIncompleteError):
            await run.stop()
    assert len(producer.sent) == 3


async def test_a_record_travels_through_its_retry_topics_and_ends_as_a_dead_letter() -> None:
    """Attempts add up, the first failure and the place where it was read first stay, with each delay."""
    stops = (("t.retry.5s", 5.0), ("t.retry.1m", 60.0))
    values = {"retry_topics": stops, "dead_letter": ".dlq"}
    producer = FakeProducer(topics={"t.dlq": 1, "t.retry.5s": 1, "t.retry.1m": 1})
    record = FakeRecord(7, b"bad", b"payload", (("trace", b"1"),), timestamp=5)
    for at, topic in enumerate(("t", "t.retry.5s", "t.retry.1m")):
        tp = TopicPartition(topic, 0)
        consumer = FakeConsumer({tp: [FakeRecord(at, record.key, record.value, record.headers, timestamp=5)]})
        consumer.begins[tp] = at
        one = failing(b"bad", "t", "t.retry.5s", "t.retry.1m", attempts=1, **values)
        async with Running(consumer, one, producer=producer) as run:
            stored, done = consumer.stored, {tp: Committed(at + 1, "")}
            await until(partial(lambda stored, done: stored == done, stored, done))
            await run.stop()
        sent = producer.sent[-1]
        record = FakeRecord(0, sent.key, sent.value, sent.headers)
    assert [one.topic for one in producer.sent] == ["t.retry.5s", "t.retry.1m", "t.dlq"]
    for at, one in enumerate(producer.sent):
        assert headers.origin(one.headers) == (T0, 0)
        assert headers.number(one.headers, headers.ATTEMPTS) == at + 1
        assert headers.text(one.headers, "trace") == "1"
        assert (one.key, one.value) == (b"bad", b"payload")
    first = [headers.number(one.headers, headers.FIRST_FAILED) for one in producer.sent]
    assert len(set(first)) == 1
    due = [headers.number(one.headers, headers.NOT_BEFORE) for one in producer.sent]
    failed = [headers.number(one.headers, headers.FAILED) or 0 for one in producer.sent]
    assert due == [failed[0] + 5_000, failed[1] + 60_000, None]


async def test_a_partition_whose_next_record_is_not_due_is_not_fetched() -> None:
    """So a retry topic does not fill the memory, and waiting for its time is no blocking."""
    due = round(time.time() * 1000) + 3_600_000
    waits = (headers.NOT_BEFORE, str(due).encode())
    retry = TopicPartition("t.retry.1h", 0)
    consumer = FakeConsumer(
        {retry: [FakeRecord(at, b"k", headers=(waits,)) for at in range(100)], **log("t", "a")}
    )
    one = failing(
        b"",
        "t",
        "t.retry.1h",
        retry_topics=(("t.retry.1h", 3600.0),),
        admissions=Admissions(honours_delays=True),
    )
    producer = FakeProducer(topics={"t.dlq": 1, "t.retry.1h": 1, "t.retry.1h.dlq": 1})
    async with Running(consumer, one, producer=producer, limits=limits(batch=10)) as run:
        await until(lambda: retry in run.runtime.state.holds)
        await until(lambda: consumer.stored.get(T0) == Committed(1, ""))
        (status,) = [
            one for one in snapshots.group_status(run.runtime).partitions if one.topic == retry.topic
        ]
        assert status.in_flight <= 30
        assert "its next record is due in" in (status.hold_reason or "")
        await run.stop()


async def test_what_a_handler_sets_does_not_travel_with_its_record() -> None:
    """The producer runs in the group's context, not in that of whoever failed first."""
    seen: list[str] = []

    class Watching(FakeProducer):
        async def send(
            self, record: OutgoingRecord, timeout_s: float, late: Late | None = None
        ) -> tuple[TopicPartition, int]:
            seen.append(TENANT.get())
            return await super().send(record, timeout_s, late)

    async def handle(_: RawRecord) -> None:
        TENANT.set("somebody")
        raise ValueError

    consumer = FakeConsumer(log("t", "a"))
    async with Running(consumer, handler(handle, attempts=1, dead_letter=".dlq"), producer=Watching()) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(1, ""))
        await run.stop()
    assert seen == ["nobody"]


async def test_the_budget_is_a_share_of_records_not_of_calls() -> None:
    """Retries do not enlarge it: of ten records that fail five times each, half may leave."""
    keys = [f"bad{at}" for at in range(10)]
    consumer, producer = FakeConsumer(log("t", *keys)), FakeProducer()
    budget = Admissions(budget=BudgetRules(share=0.5, at_least=1, window_ms=60_000))
    one = failing(*(key.encode() for key in keys), attempts=5, admissions=budget)
    async with Running(consumer, one, producer=producer, shutdown_drain_timeout_ms=50) as run:
        await until(lambda: T0 in run.runtime.state.holds)
        await until(lambda: run.runtime.state.pools[0].tally("t").failed == 50)
        with pytest.raises(DrainIncompleteError):
            await run.stop()
    assert 1 <= len(producer.sent) <= 5


def test_pauses_between_tries_are_bounded() -> None:
    """Whatever the number of tries."""
    assert max(exp_full_jitter(tries, 200, 30_000, 0.999) for tries in range(1, 200)) < 30.0
