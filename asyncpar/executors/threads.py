"""Plain functions run in threads of the handler's own, as many as it has slots.

Never the loop's default executor or a limiter shared with the host. A thread cannot be stopped: a
cancelled call goes on, and its worker waits for it, so that its key stays locked until it has
really ended.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


class ThreadExecutor:
    """The threads of one handler."""

    def __init__(self, name: str, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"asyncpar-{name}")

    async def run(self, call: Callable[[], object]) -> object:
        """Run `call` in a thread, in a copy of the caller's context; its result or its exception.

        The first cancellation is put off until the thread has ended; a success then still counts.
        A second one gives up waiting.
        """
        running = asyncio.wrap_future(self._pool.submit(contextvars.copy_context().run, call))
        try:
            await asyncio.wait({running})
        except asyncio.CancelledError:
            await asyncio.wait({running})
        return running.result()

    def close(self) -> None:
        """Start nothing more; threads that still run are not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)
