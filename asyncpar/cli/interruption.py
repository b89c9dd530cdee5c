"""Ctrl-C for commands that write: the first one lets what is under way end, the second one does not.

Called by the commands' `*_run.py`, inside of their event loop.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruptible() -> Iterator[asyncio.Event]:
    """The first SIGINT or SIGTERM sets the event, the second cancels the task that is in this context."""
    loop, task, stop = asyncio.get_running_loop(), asyncio.current_task(), asyncio.Event()
    assert task is not None

    def hear() -> None:
        if stop.is_set():
            task.cancel()
        stop.set()

    def heard(_number: int, _frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(hear)

    before = {number: signal.signal(number, heard) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
