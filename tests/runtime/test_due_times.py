"""Records that are not due hold what is theirs and nothing else: no other handler, no later life of it."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from functools import partial

import pytest

from asyncpar import headers
from asyncpar.core.breaker import BreakerRules
from asyncpar.core.rate_limit import RateRules
from asyncpar.records import Committed, RawRecord, TopicPartition
from asyncpar.runtime import watchdog
from asyncpar.runtime.handlers import Admissions, Handler
from tests.runtime.fakes import FakeConsumer, FakeProducer, FakeRecord, Running, handler, limits, until

T0, U0 = TopicPartition("t", 0), TopicPartition("u", 0)
DELAYED = Admissions(honours_delays=True)
Header = tuple[str, bytes]


def due_in(milliseconds: int) -> tuple[Header, ...]:
    return ((headers.NOT_BEFORE, b"%d" % (round(time.time() * 1000) + milliseconds)),)


def late(offset: int, milliseconds: int = 60_000, key: bytes = b"late") -> FakeRecord:
    return FakeRecord(offset, key, b"", due_in(milliseconds))


def waiting(done: list[int], *topics: str, **values: object) -> Handler:
    """A handler that notes what it runs."""

    async def handle(record: RawRecord) -> None:
        done.append(record.offset)

    return handler(handle, *topics, **{"admissions": DELAYED, **values})


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A watchdog that looks all the time."""
    monkeypatch.setattr(watchdog, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(watchdog, "_TICK_SECONDS", 0.005)


async def looks(run: Running, times: int = 10) -> None:
    """Until the watchdog has looked so often."""
    assert run.runtime.session is not None
    seen, look = 0, run.runtime.session.watchdog._look

    def counting(now: float) -> None:
        nonlocal seen
        seen += 1
        look(now)

    run.runtime.session.watchdog._look = counting  # type: ignore[method-assign]
    await until(lambda: seen >= times)


async def test_a_record_that_is_not_due_holds_no_other_handler_of_its_topic() -> None:
    """Where `match=` sends a partition's records to two handlers, the partition is fetched."""
    consumer, done = FakeConsumer({T0: [late(0), FakeRecord(1, b"now")]}), list[int]()
    later = waiting(done, name="later", match=lambda _, raw: raw.key == b"late")
    now = waiting(done, name="now", match=lambda _, raw: raw.key == b"now", admissions=None)
    async with Running(consumer, later, now) as run:
        await until(lambda: done == [1] and len(run.runtime.state.parking) == 1)
        consumer.logs[T0].append(FakeRecord(2, b"now"))
        await until(lambda: done == [1, 2])


async def test_a_retry_topic_that_handlers_share_is_held_for_all_of_them() -> None:
    """All of its records wait, whoever runs them: a backlog of them does not fill the memory."""
    retry, stops = TopicPartition("t.retry.1m", 0), (("t.retry.1m", 60.0),)
    records = [FakeRecord(at, b"%d" % (at % 2), b"", due_in(300 if at < 2 else 60_000)) for at in range(50)]
    consumer, done = FakeConsumer({retry: records}), list[int]()
    one = partial(waiting, done, "t", retry.topic, retry_topics=stops, admissions=Admissions())
    handlers = (
        one(name="even", match=lambda _, raw: raw.key == b"0"),
        one(name="odd", match=lambda _, raw: raw.key == b"1"),
    )
    producer = FakeProducer(topics={retry.topic: 1})
    async with Running(consumer, *handlers, producer=producer, limits=limits(batch=4)) as run:
        state = run.runtime.state
        await until(lambda: retry in state.holds)
        assert state.partitions[retry].in_flight <= 8
        await until(lambda: sorted(done) == [0, 1] and retry in state.holds)
        assert state.partitions[retry].in_flight <= 16


@pytest.mark.parametrize(("asked_after", "is_held"), [(0.05, True), (0.01, False)])
async def test_a_hold_goes_on_when_the_next_record_is_not_due_either(
    asked_after: float, is_held: bool
) -> None:
    """The first record may have run a moment before its hold's end; while it waits, that end stands."""
    async with Running(FakeConsumer({T0: []}), waiting([], "t")) as run:
        state = run.runtime.state
        await until(lambda: T0 in state.partitions and state.partitions[T0].is_open)
        gate, now = state.pools[0].gate, state.clock.monotonic()
        assert gate is not None
        assert gate.due_times is not None
        gate.due_times.hold(T0, late(0), now, 0.05)
        gate.due_times.hold(T0, late(1), now + asked_after, 60.0)
        await until(lambda: state.clock.monotonic() > now + 0.1)
        assert (T0 in state.holds) is is_held


async def test_the_timer_of_an_earlier_assignment_ends_no_hold_of_the_next() -> None:
    """The record that is due soon went with the old one; what is there now is due in a minute."""
    consumer, done = FakeConsumer({T0: [late(0, 100)], U0: [late(0, 200)]}), list[int]()
    async with Running(consumer, waiting(done, "t", "u")) as run:
        state = run.runtime.state
        await until(lambda: T0 in state.holds)
        await consumer.revoke()
        consumer.logs[T0][0] = late(0)
        consumer.assign(consumer.logs)
        await until(lambda: done == [0])
        assert list(state.holds) == [T0]
        await consumer.revoke([T0])
        assert not state.holds


async def test_a_halted_partition_that_goes_on_is_not_held_by_what_waited_before() -> None:
    """Its records begin anew at its HWM, and are fetched at once."""
    consumer, runs = FakeConsumer({T0: [late(0), FakeRecord(1, b"bad")]}), list[int]()
    go_on = asyncio.Event()

    async def handle(record: RawRecord) -> None:
        runs.append(record.offset)
        if len(runs) == 1:
            await go_on.wait()
            raise ValueError

    async with Running(consumer, handler(handle, attempts=1, admissions=DELAYED)) as run:
        state = run.runtime.state
        await until(lambda: runs == [1] and T0 in state.holds)
        go_on.set()
        await until(lambda: state.partitions[T0].halt_reason is not None)
        run.runtime.retry_halted(T0)
        await until(lambda: runs == [1, 1])


async def test_a_call_that_hangs_is_told_although_others_wait_for_their_time(quick: None) -> None:
    """Waiting for a due time is no blocking; hanging is, whatever holds the partition."""
    consumer = FakeConsumer({T0: [FakeRecord(0, b"hangs"), late(1)]})

    async def handle(_: RawRecord) -> None:
        await asyncio.Event().wait()

    async with Running(consumer, handler(handle, admissions=DELAYED), max_blocking_duration_ms=30) as run:
        await until(lambda: T0 in run.runtime.state.holds and run.runtime.session is not None)
        session = run.runtime.session
        assert session is not None
        await until(lambda: session.watchdog.blocked == {T0: 0})


async def test_a_record_blocks_from_the_time_on_at_which_it_is_due(quick: None) -> None:
    """Not from that on at which it was fetched: its first retry is not too late already."""
    record, producer, runs = late(0, 200), FakeProducer(), list[float]()
    consumer = FakeConsumer({T0: [record]})

    async def handle(_: RawRecord) -> None:
        runs.append(time.monotonic())
        if len(runs) == 1:
            raise ValueError

    one = handler(handle, attempts=2, dead_letter=".dlq", admissions=DELAYED)
    one = replace(one, rules=replace(one.rules, base_ms=60, max_ms=60, backoff="fixed"))
    values = {"max_blocking_duration_ms": 150, "on_blocked": "dead_letter"}
    async with Running(consumer, one, producer=producer, **values) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(1, ""))
        await run.stop()
    assert len(runs) == 2
    assert not producer.sent


async def test_what_never_failed_is_not_given_up_as_blocked(quick: None) -> None:
    """`on_blocked="dead_letter"` is for what fails: a rate limit keeps back, and fails nothing."""
    consumer, producer = FakeConsumer({T0: [FakeRecord(0, b"a"), FakeRecord(1, b"a")]}), FakeProducer()
    done = list[int]()
    one = waiting(done, admissions=Admissions(key_rate=RateRules(0.01, 1)), dead_letter=".dlq")
    values = {"max_blocking_duration_ms": 10, "on_blocked": "dead_letter"}
    async with Running(consumer, one, producer=producer, **values) as run:
        await until(lambda: done == [0] and len(run.runtime.state.parking) == 1)
        await looks(run)
        assert len(run.runtime.state.parking) == 1
        assert not producer.sent


async def test_what_is_far_ahead_in_a_retry_topic_is_not_believed(caplog: pytest.LogCaptureFixture) -> None:
    """Somebody else wrote it, or a clock is wrong: it runs at once, and one line says so."""
    retry = TopicPartition("t.retry.5s", 0)
    year_3000 = ((headers.NOT_BEFORE, b"32503680000000"),)
    records = [FakeRecord(0, b"a", b"", year_3000), FakeRecord(1, b"b", b"", year_3000), late(2, 5_500)]
    consumer, done = FakeConsumer({retry: records}), list[int]()
    one = waiting(done, "t", "t.retry.5s", retry_topics=(("t.retry.5s", 5.0),), admissions=Admissions())
    async with Running(consumer, one, producer=FakeProducer(topics={"t.retry.5s": 1})) as run:
        await until(lambda: done == [0, 1] and retry in run.runtime.state.holds)
    (line,) = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
    assert line.startswith("t.retry.5s[0] offset 0: its header x-asyncpar-not-before lies ")
    assert "in a retry topic whose delay is 5.0 s; such records are run at once" in line


async def test_the_header_means_nothing_to_a_handler_that_is_not_delayed() -> None:
    """Retry topics of its own do not make it look at it elsewhere."""
    consumer, done = FakeConsumer({T0: [late(0)]}), list[int]()
    one = waiting(done, "t", "t.retry.5s", retry_topics=(("t.retry.5s", 5.0),), admissions=Admissions())
    async with Running(consumer, one, producer=FakeProducer(topics={"t.retry.5s": 1})):
        await until(lambda: done == [0])


async def test_a_partition_that_waits_for_days_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """A delayed handler may mean it; nobody should have to guess why nothing comes."""
    consumer, done = (
        FakeConsumer({T0: [late(at, 3 * 86_400_000, b"%d" % at) for at in range(5)]}),
        list[int](),
    )
    async with Running(consumer, waiting(done)) as run:
        await until(lambda: len(run.runtime.state.parking) == 5)
    told = [record.message for record in caplog.records if "is not fetched" in record.message]
    assert told == [
        "t[0] is not fetched for 3.0 days: offset 0 is not due before, by its header x-asyncpar-not-before"
    ]


async def test_two_handlers_of_one_name_hold_their_own_partitions() -> None:
    """Two declarations on one function: the breaker of one closes, and that of the other goes on holding."""
    logs = {tp: [FakeRecord(at, b"%d" % at) for at in range(5)] for tp in (T0, U0)}

    async def down(_: RawRecord) -> None:
        raise ConnectionError

    def opening_for(ms: int) -> Admissions:
        return Admissions(breaker=BreakerRules(min_calls=3, open_ms=ms, max_open_ms=ms))

    one = partial(handler, down, name="same")
    handlers = one("t", admissions=opening_for(60_000)), one("u", admissions=opening_for(20))
    async with Running(FakeConsumer(logs), *handlers) as run:
        gate = run.runtime.state.pools[1].gate
        assert gate is not None
        await until(lambda: T0 in run.runtime.state.holds and gate.openings >= 2)
        assert T0 in run.runtime.state.holds
