"""What becomes of failures: whatever a handler raises, a header says or a cancellation is turned into."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from asyncpar import headers
from asyncpar.core.breaker import BreakerRules
from asyncpar.errors import RetryAfter
from asyncpar.executors.invoke import invocation
from asyncpar.middleware import Call, CallNext
from asyncpar.records import Committed, Outcome, RawRecord, TopicPartition
from asyncpar.runtime.handlers import Admissions, Handler
from asyncpar.signatures import plan_call
from asyncpar.topics import specs_of, topic
from tests.runtime.fakes import FakeConsumer, FakeProducer, FakeRecord, Running, handler, log, until

T0 = TopicPartition("t", 0)


class Shy(Exception):  # noqa: N818 - what a user may write
    """Its message cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no")


class Busy(RetryAfter):
    """Says no delay."""

    def __init__(self) -> None:
        self.note = "x"


@pytest.mark.parametrize("kind", [Shy, Busy])
async def test_any_exception_is_an_ordinary_failure(kind: type[Exception]) -> None:
    """Also one that refuses to be shown, and one that was not made as its base class wants it."""
    consumer, producer = FakeConsumer(log("t", "a", "b")), FakeProducer()

    async def handle(record: RawRecord) -> None:
        if record.key == b"a":
            raise kind

    async with Running(consumer, handler(handle, attempts=2, dead_letter=".dlq"), producer=producer) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(2, ""))
        await run.stop()
    assert [letter.key for letter in producer.sent] == [b"a"]


async def test_a_header_that_is_no_number_is_no_number() -> None:
    """Somebody else wrote it: the record runs at once, and nothing dies of it."""
    consumer = FakeConsumer({T0: [FakeRecord(0, b"a", b"", ((headers.NOT_BEFORE, b"--5"),))]})

    async def handle(record: RawRecord) -> None:
        await asyncio.sleep(0)

    async with Running(consumer, handler(handle, admissions=Admissions(honours_delays=True))) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(1, ""))
        await run.stop()


async def converting(record: RawRecord) -> None:
    """Its cleanup makes an error of a cancellation, as some libraries do."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        raise OSError("connection closed") from None


def passing_over_os_errors(made: Handler) -> Handler:
    return replace(made, rules=replace(made.rules, on_error={OSError: "skip"}))


async def test_what_a_revoke_cancelled_is_not_judged_by_what_its_cleanup_raised() -> None:
    """Nobody ran it to its end: it is not passed over."""
    consumer = FakeConsumer(log("t", "a"))
    async with Running(consumer, passing_over_os_errors(handler(converting)), max_revoke_grace_ms=50) as run:
        await until(lambda: bool(run.runtime.state.pools and run.runtime.state.pools[0].busy()))
        await consumer.revoke()
        assert consumer.stored.get(T0, Committed(0, "")).offset == 0
        await run.stop()


async def test_a_time_out_is_one_behind_a_middleware_too() -> None:
    """Whatever its cleanup raised: counted, and judged as what it is."""
    consumer, producer = FakeConsumer(log("t", "a")), FakeProducer()

    async def through(call: Call, call_next: CallNext) -> Outcome:
        return await call_next(call)

    async def handle(value: bytes) -> None:
        await converting(FakeRecord(0))

    spec = specs_of(topic("t")(handle))[0]
    call: Any = invocation(plan_call(spec, group="g"), None, (through,), None)
    made = handler(converting, attempts=1, timeout_seconds=0.03, dead_letter=".dlq")
    one = passing_over_os_errors(replace(made, invoke=call.invoke, judged=call.judged))
    async with Running(consumer, one, producer=producer) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(1, ""))
        assert run.runtime.state.pools[0].timeouts == 1
        await run.stop()
    (letter,) = producer.sent
    assert headers.text(letter.headers, headers.ERROR_TYPE) == "asyncpar.errors.HandlerTimeoutError"


async def test_what_an_opening_breaker_gives_back_is_not_taken_again() -> None:
    """Neither from the record that opened it, nor by the end of a call that ran then."""
    consumer = FakeConsumer(log("t", "x"))
    opened, runs = asyncio.Event(), SimpleNamespace(of_x=0)

    async def down(record: RawRecord) -> None:
        if record.key == b"x":
            runs.of_x += 1
            if runs.of_x == 3:
                await opened.wait()
        raise ConnectionError

    rules = BreakerRules(min_calls=5, open_ms=60_000, max_open_ms=60_000)
    async with Running(consumer, handler(down, attempts=5, admissions=Admissions(breaker=rules))) as run:
        await until(lambda: runs.of_x == 3)
        consumer.logs[T0].extend(FakeRecord(at, b"k%d" % at) for at in range(1, 6))
        await until(lambda: T0 in run.runtime.state.holds)
        queues = run.runtime.state.partitions[T0].queues
        assert queues is not None
        opened.set()
        await until(lambda: not run.runtime.state.pools[0].busy())
        assert not any(queues.attempts.values())
        run.runtime.stop(now=True)
        await run.stop()


@pytest.mark.parametrize("origin", ["t", "elsewhere", None])
async def test_a_letter_out_of_a_retry_topic_says_where_its_record_was_read_first(origin: str | None) -> None:
    """Its time as well; headers that name a topic of nobody's choose no dead-letter topic."""
    written = [] if origin is None else [(headers.TOPIC, origin.encode()), (headers.PARTITION, b"2")]
    written += [(headers.OFFSET, b"7"), (headers.TIMESTAMP, b"55")]
    retry = TopicPartition("t.retry.1s", 0)
    consumer = FakeConsumer({retry: [FakeRecord(0, b"a", b"", tuple(written), timestamp=99)]})

    async def handle(record: RawRecord) -> None:
        raise ValueError

    made = handler(
        handle, "t", "t.retry.1s", attempts=1, dead_letter=".dlq", retry_topics=(("t.retry.1s", 1.0),)
    )
    producer = FakeProducer(topics={"t.dlq": 1, "t.retry.1s": 1})
    async with Running(consumer, made, producer=producer) as run:
        await until(lambda: consumer.stored.get(retry) == Committed(1, ""))
        await run.stop()
    (letter,) = producer.sent
    assert letter.topic == "t.dlq"
    place = headers.origin(letter.headers), headers.number(letter.headers, headers.TIMESTAMP)
    assert place == (((T0[0], 2), 7), 55) if origin == "t" else ((retry, 0), 99)
