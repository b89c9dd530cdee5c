"""Plain functions run in threads of the handler's own, as many as it has slots.

Never the loop's default executor or a limiter shared with the host. A thread cannot be stopped: a
cancelled call goes on, and its worker waits for it, so that its key stays locked until it has
really ended. A call that never ends does not keep the process: the threads are daemons, which the
interpreter does not wait for (those of `concurrent.futures` it joins, for ever if need be).
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TypeAlias

_Ended: TypeAlias = tuple[object, BaseException | None]
"""What a call returned, or what it raised."""


@dataclass(frozen=True, slots=True)
class _Job:
    call: Callable[[], object]
    context: contextvars.Context
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[_Ended]


class ThreadExecutor:
    """The threads of one handler, each made when a call finds no idle one. Called on the event loop."""

    def __init__(self, name: str, threads: int) -> None:
        self._name = f"asyncpar-{name}"
        self._most = threads
        self._threads = 0
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._unfinished = 0
        """Calls that were handed over and have not ended."""
        self._is_closed = False

    async def run(self, call: Callable[[], object]) -> object:
        """Run `call` in a thread, in a copy of the caller's context; its result or its exception.

        The first cancellation is put off until the thread has ended; a success then still counts.
        A second one gives up waiting. RuntimeError after `close`.
        """
        answer = self._hand_over(call)
        try:
            await asyncio.wait({answer})
        except asyncio.CancelledError:
            await asyncio.wait({answer})
        result, error = answer.result()
        try:
            if error is not None:
                raise error
            return result
        finally:
            del answer, error  # its traceback leads here: what it holds would stay until the next collection

    def _hand_over(self, call: Callable[[], object]) -> asyncio.Future[_Ended]:
        if self._is_closed:
            raise RuntimeError(f"the threads of {self._name} are closed: nothing is started any more")
        loop = asyncio.get_running_loop()
        job = _Job(call, contextvars.copy_context(), loop, loop.create_future())
        self._jobs.put(job)
        self._unfinished += 1
        if self._threads < min(self._unfinished, self._most):
            name = f"{self._name}_{self._threads}"
            threading.Thread(target=self._work, name=name, daemon=True).start()
            self._threads += 1
        return job.answer

    def _work(self) -> None:
        """What a thread does: one call after the other, until it is told to end."""
        while (job := self._jobs.get()) is not None:
            try:
                ended: _Ended = job.context.run(job.call), None
            except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
                ended = None, error
            with suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits any more
                job.loop.call_soon_threadsafe(self._settle, job.answer, ended)
            del job, ended  # nothing of a call is kept while there is no other

    def _settle(self, answer: asyncio.Future[_Ended], ended: _Ended) -> None:
        self._unfinished -= 1
        answer.set_result(ended)

    def close(self) -> None:
        """Start nothing more; threads that still run are not waited for, what waits for one is cancelled."""
        self._is_closed = True
        with suppress(Empty):
            while True:
                job = self._jobs.get_nowait()
                if job is not None:
                    job.answer.cancel()
        for _ in range(self._threads):
            self._jobs.put(None)
