"""What a bench counts around each call, on clocks of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from asyncpar import headers
from asyncpar.cli.bench_meter import HandlerMeter, Meter
from asyncpar.core.failures import FailureRules
from asyncpar.errors import DecodeError, NotStartedError, Skip
from asyncpar.records import SUCCESS, Outcome, RawRecord, Verdict
from asyncpar.runtime.handlers import Handler
from asyncpar.testing.memory_log import MemoryRecord


class Clock:
    """Two clocks that go on together."""

    def __init__(self) -> None:
        self.now = 100.0

    def wall(self) -> float:
        return 1_700_000_000 + self.now


class Measured:
    """A handler that a meter watches; each call takes `seconds`, and does what `ends` does."""

    def __init__(self, limit: int | None = None, **values: Any) -> None:
        self.clock = Clock()
        self.meter = Meter(limit, lambda: self.clock.now, self.clock.wall)
        self.seconds = 0.5
        self.ends: Callable[[], Any] = lambda: None

        async def invoke(topic: str, partition: int, raw: RawRecord, attempt: int, generation: int) -> Any:
            self.clock.now += self.seconds
            return self.ends()

        handler = Handler(
            name="bill",
            topics=("orders",),
            pattern=None,
            executor="async",
            concurrency=10,
            invoke=invoke,
            judged=values.pop("judged", False),
            key_of=values.pop("key_of", None),
            rules=FailureRules(attempts=None, base_ms=1, max_ms=1),
            **values,
        )
        self.watched = self.meter.watched("billing", handler)

    @property
    def seen(self) -> HandlerMeter:
        return self.meter.handlers[0]

    async def call(self, key: bytes | None = b"alice", partition: int = 0, **record: Any) -> Any:
        raw = MemoryRecord(offset=0, key=key, value=b"", **record)
        return await self.watched.invoke("orders", partition, raw, 1, 0)

    def sent(self, seconds_ago: float) -> int:
        return round((self.clock.wall() - seconds_ago) * 1000)


def raising(error: BaseException) -> Callable[[], Any]:
    """What ends a call with `error`."""

    def end() -> None:
        raise error

    return end


async def test_calls_that_end_well_are_counted_with_their_time() -> None:
    """From the first call's begin to the last one's end, by key within a partition."""
    one = Measured()
    for key, partition in ((b"alice", 0), (b"alice", 0), (b"alice", 1), (b"bob", 0)):
        await one.call(key, partition)
    assert (one.meter.done, one.seen.done, one.seen.failed) == (4, 4, 0)
    assert one.meter.elapsed_seconds == 2.0
    assert one.meter.bins == {5: 1, 10: 1, 15: 1, 20: 1}
    assert one.seen.seconds.mean == 0.5
    assert one.seen.keys.busiest == (("orders", 0, b"alice"), 2)


@pytest.mark.parametrize(
    ("end", "judged", "done", "failed"),
    [
        (raising(Skip("no")), False, 1, 0),
        (raising(ValueError("no")), False, 0, 1),
        (raising(DecodeError("no")), False, 0, 1),
        (raising(NotStartedError("later")), False, 0, 0),
        (raising(asyncio.CancelledError()), False, 0, 0),
        (lambda: SUCCESS, True, 1, 0),
        (lambda: Outcome(Verdict.SKIPPED), True, 1, 0),
        (lambda: Outcome(Verdict.FAILED, ValueError("no")), True, 0, 1),
    ],
)
async def test_every_end_of_a_call_passes_through_and_counts_as_what_it_is(
    end: Callable[[], Any], judged: bool, done: int, failed: int
) -> None:
    """What is passed over is done, what raised has failed, what was not run or was cancelled is nothing."""
    one = Measured(judged=judged)
    given: list[Any] = []

    def note() -> Any:
        try:
            given.append(end())
        except BaseException as error:
            given.append(error)
            raise
        return given[-1]

    one.ends = note
    try:
        got = await one.call()
    except BaseException as error:  # noqa: BLE001 - compared with what the handler raised
        got = error
    assert got is given[0]
    assert (one.seen.done, one.seen.failed) == (done, failed)
    assert one.seen.seconds.number == done + failed


async def test_latency_is_from_the_intended_time_of_what_was_sent_meanwhile() -> None:
    """Records that were there before do not count; one without a header counts from its timestamp."""
    one = Measured()
    await one.call(timestamp=one.sent(0))
    assert (one.seen.latency.number, one.seen.age.number) == (0, 0)
    one.meter.begin_latency()
    one.clock.now += 10

    def intended(ago: float) -> list[tuple[str, bytes]]:
        return [(headers.INTENDED, str(one.sent(ago)).encode())]

    await one.call(timestamp=one.sent(20), headers=intended(20))
    await one.call(timestamp=one.sent(1), headers=intended(20))
    assert (one.seen.latency.number, one.seen.age.number) == (0, 0)
    await one.call(timestamp=one.sent(1), headers=intended(3))
    assert one.seen.latency.at(1.0) == pytest.approx(3.5, rel=0.02)
    await one.call(timestamp=one.sent(1))
    assert one.seen.age.at(1.0) == pytest.approx(1.5, rel=0.02)
    assert one.seen.latency.number == 1


async def test_keys_are_those_that_order_goes_by() -> None:
    """A function's key, none where it has none or refuses the record, and none without order."""
    own = Measured(key_of=lambda topic, raw: raw.value)
    await own.call(b"alice")
    assert own.seen.keys.busiest == (("orders", 0, b""), 1)
    for key_of in (lambda topic, raw: None, lambda topic, raw: raising(DecodeError("no"))()):
        unordered = Measured(key_of=key_of)
        await unordered.call(b"alice")
        assert unordered.seen.keys.busiest is None
    keyless = Measured()
    await keyless.call(None)
    assert keyless.seen.keys.busiest is None


async def test_the_limit_is_told_and_nothing_counts_after_it() -> None:
    """What ends while the app stops is not part of the bench."""
    one = Measured(limit=2)
    await one.call()
    assert not one.meter.reached.is_set()
    await one.call()
    assert one.meter.reached.is_set()
    await one.call()
    one.ends = raising(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        await one.call()
    assert (one.meter.done, one.seen.done, one.seen.failed, one.meter.elapsed_seconds) == (2, 2, 0, 1.0)


def test_departures_are_counted_by_handler_and_kind() -> None:
    """What left for another topic; a departure of somebody else's group is not ours."""
    one = Measured()
    departure: Any = SimpleNamespace(handler="bill", kind="dead_letter")
    one.meter.left("billing", departure)
    one.meter.left("shipping", departure)
    assert one.seen.left == {"dead_letter": 1}
