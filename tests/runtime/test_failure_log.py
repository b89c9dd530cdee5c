"""What the log says of failures: one line a second, and nothing is left out for good."""

from __future__ import annotations

import asyncio
import contextvars
import logging

import pytest

from asyncpar.records import RawRecord, TopicPartition
from asyncpar.runtime.failure_log import FailureLog
from tests.runtime.fakes import FakeConsumer, FakeProducer, Running, handler, log, until
from tests.testing.virtually import now, run_virtually

T0 = TopicPartition("t", 0)
_TENANT = contextvars.ContextVar("tenant", default="nobody")


def failures(lines: list[str]) -> list[str]:
    """What is said of each failure: its offset, and how many were left out before it."""
    return [line.split(" offset ")[1].replace(", attempt 1: OSError: down", "") for line in lines]


def test_what_was_left_out_is_said_when_its_second_is_over(caplog: pytest.LogCaptureFixture) -> None:
    """The first failure at once; of those behind it the last one, with the number of the others."""
    noted = FailureLog(logging.getLogger("asyncpar.test"), "h")

    async def burst() -> None:
        for offset in range(5):
            noted.note(T0, offset, 1, OSError("down"), now())
        assert failures(caplog.messages) == ["0"]
        await asyncio.sleep(1.5)
        assert failures(caplog.messages) == ["0", "4 (3 more failures since the last line)"]
        noted.note(T0, 5, 1, OSError("down"), now())  # half a second after the line before
        await asyncio.sleep(1)
        noted.note(T0, 6, 1, OSError("down"), now())
        await asyncio.sleep(10)
        noted.note(T0, 7, 1, OSError("down"), now())

    run_virtually(burst, max_steps=1_000)
    assert failures(caplog.messages)[2:] == ["5", "6", "7"]
    assert all(line.exc_info for line in caplog.records)


def test_a_flood_is_one_line_a_second(caplog: pytest.LogCaptureFixture) -> None:
    """Every failure is in some line's number, also when they never pause."""
    noted = FailureLog(logging.getLogger("asyncpar.test"), "h")

    async def flood() -> None:
        for offset in range(1_000):
            noted.left(T0, offset, "t.dlq", "exhausted", 5, now())
            await asyncio.sleep(0.01)
        noted.close()

    run_virtually(flood, max_steps=100_000)
    said = [
        int(line.partition("(exhausted, 5 attempts) (")[2].partition(" ")[0] or 0) for line in caplog.messages
    ]
    assert len(said) + sum(said) == 1_000
    assert len(said) in (11, 12)


def test_a_line_that_is_told_later_is_nobodys(caplog: pytest.LogCaptureFixture) -> None:
    """Log filters read context variables: what one handler has set says nothing of the others' failures."""
    noted = FailureLog(logging.getLogger("asyncpar.test"), "h")
    told: list[str] = []
    caplog.handler.addFilter(lambda _: told.append(_TENANT.get()) or True)

    async def burst() -> None:
        _TENANT.set("ada")
        for offset in range(2):
            noted.note(T0, offset, 1, OSError("down"), now())
        await asyncio.sleep(2)

    run_virtually(burst, max_steps=1_000)
    assert told == ["ada", "nobody"]


async def test_the_stop_says_what_is_left(caplog: pytest.LogCaptureFixture) -> None:
    """Also when it comes within the second."""
    consumer, producer = FakeConsumer(log("t", *"abcd")), FakeProducer()

    async def handle(record: RawRecord) -> None:
        raise OSError("down")

    async with Running(consumer, handler(handle, attempts=1, dead_letter=".dlq"), producer=producer) as run:
        await until(lambda: len(producer.sent) == 4)
        await run.stop()
    failed = [line for line in caplog.messages if "failed on" in line]
    left = [line for line in caplog.messages if "goes to" in line]
    assert failed[-1].endswith("(2 more failures since the last line)")
    assert left[-1].endswith("(2 more records since the last line)")
