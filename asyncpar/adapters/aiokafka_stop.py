"""Leaving a group and closing a client within a bound, whatever the broker does.

The client's own stop() hangs with a frozen broker, and with a dead one raises CancelledError and leaves its
sockets open. Never here: draining and committing, which come before. Called by `aiokafka_consumer`.
Always: nothing is awaited directly, so that a foreign CancelledError cannot be taken for our own; at the end
every task and socket of the client is gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Coroutine
from typing import Any

from asyncpar.adapters.aiokafka_errors import one_line
from asyncpar.adapters.aiokafka_private import ClientInternals

log = logging.getLogger(__name__)

# At most, in seconds: what a healthy broker needs many times over. With less time each gets its share.
LEAVE_SECONDS, STOP_SECONDS, CANCEL_SECONDS, CLOSE_SECONDS = 1.0, 3.0, 1.0, 1.0
_WHOLE = LEAVE_SECONDS + STOP_SECONDS + CANCEL_SECONDS + CLOSE_SECONDS


async def close_consumer(consumer: Any, inside: ClientInternals, leave: bool, timeout_s: float) -> None:
    """Leave the group if `leave`, stop, close: about `timeout_s` at most. Raises nothing but cancellation."""
    share = min(timeout_s / _WHOLE, 1.0)
    started: list[asyncio.Task[None]] = []

    def start(step: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        started.append(asyncio.get_running_loop().create_task(step))
        return started[-1]

    try:
        if leave:
            # First, and over another connection: the coordinator may be busy with our JoinGroup.
            await _settle([start(inside.leave())], share * LEAVE_SECONDS, "leaving the group")
        stopping = start(consumer.stop())
        await asyncio.wait([stopping], timeout=share * STOP_SECONDS)
        tasks = [stopping, *inside.background_tasks()]
        await _settle(tasks, share * CANCEL_SECONDS, "stopping", cancel_first=True)
        await _settle([start(inside.close_client())], share * CLOSE_SECONDS, "closing connections")
    finally:
        for task in started:
            task.cancel()
        inside.abort()
        inside.release_fetch()


async def _settle(
    tasks: Collection[asyncio.Task[Any]],
    seconds: float,
    what: str,
    cancel_first: bool = False,
) -> None:
    """Wait for `tasks` for `seconds` in all, cancel those that are still there, read how they ended."""
    if not cancel_first:
        await asyncio.wait(tasks, timeout=seconds / 2)
    # Twice: the client's fetch task swallows a cancellation while it cancels its own children.
    for _ in range(2):
        waiting = [task for task in tasks if not task.done()]
        if not waiting:
            break
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting, timeout=seconds / 4)
    for task in tasks:
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            log.debug("%s: %s", what, one_line(error))
