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
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import NamedTuple, TypeAlias

_Ended: TypeAlias = tuple[object, BaseException | None]
"""What a call returned, or what it raised."""


class _Answer(asyncio.Future[_Ended]):
    """What a call comes to.

    Who waits for it and is cancelled learns of that when the call has ended; a second time, at once.
    """

    _is_asked_to_end = False

    def cancel(self, msg: object = None) -> bool:
        """What a task does with that which it waits for; False: not now (source: `asyncio.Task.cancel`)."""
        if not self._is_asked_to_end:
            self._is_asked_to_end = True
            return False
        return super().cancel(msg)

    def drop(self) -> None:
        """There will be none: who waits is cancelled at once."""
        super().cancel()


class _Job(NamedTuple):
    call: Callable[[], object]
    context: contextvars.Context
    answer: _Answer


class ThreadExecutor:
    """The threads of one handler, each made when a call finds no idle one. Called on the event loop."""

    def __init__(self, name: str, threads: int) -> None:
        self._name = f"asyncpar-{name}"
        self._most = threads
        self._threads = 0
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._ended: deque[tuple[_Answer, _Ended]] = deque()
        """Calls that have ended in their threads; who waits for them is told by the loop."""
        self._told: asyncio.AbstractEventLoop | None = None
        """The loop that is going to look at those."""
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
            result, error = await answer
        except asyncio.CancelledError:
            if answer.cancelled():
                raise
            result, error = answer.result()
        try:
            if error is not None:
                raise error
            return result
        finally:
            del answer, error  # its traceback leads here: what it holds would stay until the next collection

    def _hand_over(self, call: Callable[[], object]) -> _Answer:
        if self._is_closed:
            raise RuntimeError(f"the threads of {self._name} are closed: nothing is started any more")
        job = _Job(call, contextvars.copy_context(), _Answer(loop=asyncio.get_running_loop()))
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
            self._end(job.answer, ended)
            del job, ended  # nothing of a call is kept while there is no other

    def _end(self, answer: _Answer, ended: _Ended) -> None:
        """In a thread: have the loop told, unless it is about to look and finds this one too."""
        loop = answer.get_loop()
        self._ended.append((answer, ended))
        if self._told is not loop:
            self._told = loop
            with suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits any more
                loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        """On the loop: tell those who wait what has ended by now."""
        self._told = None  # before the look: what ends meanwhile is seen, or told
        while self._ended:
            answer, ended = self._ended.popleft()
            self._unfinished -= 1
            try:
                if not answer.cancelled():
                    answer.set_result(ended)
            except RuntimeError:  # who waited for it was of a loop that was closed
                continue

    def close(self) -> None:
        """Start nothing more; threads that still run are not waited for, what waits for one is cancelled."""
        self._is_closed = True
        with suppress(Empty):
            while True:
                job = self._jobs.get_nowait()
                if job is not None:
                    job.answer.drop()
        for _ in range(self._threads):
            self._jobs.put(None)
