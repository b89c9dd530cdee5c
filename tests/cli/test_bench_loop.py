"""How busy the event loop is: shares of the time since the watch began."""

from __future__ import annotations

import asyncio
import time

import pytest

from asyncpar.cli.bench_loop import LATE_SECONDS, LoopFigures, LoopWatch


def test_shares_are_of_the_time_watched() -> None:
    """What was computed before the beginning does not count, nor does a second beginning."""
    now = {"clock": 10.0, "thread": 3.0, "process": 5.0}
    watch = LoopWatch(lambda: now["clock"], lambda: now["thread"], lambda: now["process"])
    watch.loop_came(9.0)
    watch.thread_came(9.0)
    assert watch.figures() == LoopFigures(0.0, 0.0, 0.0, 0.0, 0.0)
    watch.begin()
    now.update(clock=14.0, thread=5.0, process=11.0)
    watch.begin()
    for late in (0.0, 0.0, LATE_SECONDS * 2, 0.1):
        watch.loop_came(late)
    for late in (0.0, LATE_SECONDS * 2, 0.0, 0.0):
        watch.thread_came(late)
    figures = watch.figures()
    assert (figures.late_share, figures.machine_late_share) == (0.5, 0.25)
    assert figures.late_p99_seconds == pytest.approx(0.1, rel=0.02)
    assert (figures.thread_share, figures.process_share) == (0.5, 1.5)


async def test_a_loop_that_is_blocked_comes_late() -> None:
    """A call that does not await is seen in the looks."""
    watch = LoopWatch()
    watch.begin()
    looking = asyncio.create_task(watch.run())
    for _ in range(4):
        time.sleep(0.03)  # noqa: ASYNC251 - what is tested
        await asyncio.sleep(0)
    looking.cancel()
    await asyncio.wait({looking})
    assert watch.figures().late_share > 0
