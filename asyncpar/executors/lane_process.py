"""The process of a lane: a pool of one, its only job, and the knowledge of when it has certainly ended.

The pool alone does not know that: when the fork server dies it takes its process for dead, and that one
lives. So a pidfd watches the process, and SIGKILL goes through it; where there is none (macOS), the pool's
word counts unless it comes without an exit code. Never here: what the child is told, what it says.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

T = TypeVar("T")

_UNKNOWN = 255
"""What multiprocessing says when nobody knows the exit code, because the fork server has gone."""
_LOOK_AGAIN_SECONDS = 0.01
_SECONDS_FOR_THE_EXIT_CODE = 1.0


def in_thread(call: Callable[[], T]) -> asyncio.Future[T]:
    """What `call` returns or raises, run in a thread of its own that nothing waits for at exit."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(result)  # type: ignore[arg-type] # of `call`, when there is no error

    def run() -> None:
        result, error = None, None
        try:
            result = call()
        except BaseException as raised:  # noqa: BLE001 - raised again where it is waited for
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="asyncpar-lane", daemon=True).start()
    return answer


class ChildProcess:
    """A running process, from `launch` to `release`. All but `launch` on the event loop."""

    def __init__(self, pool: ProcessPoolExecutor, process: BaseProcess) -> None:
        assert process.pid is not None, "it was started"
        self.pid: int = process.pid
        self._pool = pool
        self._process = process
        self._pidfd = _open_pidfd(self.pid)
        self._is_over = False
        self._pool_ended: asyncio.Future[None] | None = None

    @classmethod
    def launch(
        cls,
        start_method: str,
        enter: Callable[..., None],
        arguments: tuple[Any, ...],
        job: Callable[[], None],
    ) -> ChildProcess:
        """Start `enter(*arguments)` and then `job()` in a new process. Blocks for milliseconds or more."""
        made: list[BaseProcess] = []
        context = _noting(multiprocessing.get_context(start_method), made)
        pool = ProcessPoolExecutor(1, context, enter, arguments)
        try:
            pool.submit(job)
        except BaseException:  # the pool's thread, say, cannot be started, and its process waits for work
            for process in made:
                process.kill()
            raise
        return cls(pool, made[0])

    async def gone(self) -> None:
        """Until the process has certainly ended."""
        loop = asyncio.get_running_loop()
        gone: asyncio.Future[None] = loop.create_future()
        watched = self._process.sentinel if self._pidfd is None else self._pidfd

        def note() -> None:
            if not gone.done():
                gone.set_result(None)

        loop.add_reader(watched, note)
        try:
            await gone
        finally:
            loop.remove_reader(watched)
        if self._pidfd is None:
            await self._outlive()
        self._is_over = True

    async def _outlive(self) -> None:
        """Without a pidfd: where the fork server has not seen its end, kill it, and look until it is gone."""
        ended = self._end_pool()
        if ended is not None:
            await ended
        if ended is None or self._process.exitcode == _UNKNOWN:
            self.kill()
            while _exists(self.pid):  # noqa: ASYNC110 - the system has no event for this
                await asyncio.sleep(_LOOK_AGAIN_SECONDS)

    def kill(self) -> None:
        """SIGKILL; nothing when it has ended."""
        if self._is_over:
            return  # its number may be another's by now
        with contextlib.suppress(ProcessLookupError):
            if self._pidfd is None:
                os.kill(self.pid, signal.SIGKILL)
            else:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def dismiss(self) -> None:
        """Its job is done: the pool lets it exit. Where the pool has lost it, that is left to SIGKILL."""
        ended = self._end_pool()
        if ended is None:
            self.kill()
        else:
            ended.add_done_callback(lambda _: self.kill())

    async def release(self) -> str:
        """Free all that belongs to it, once it is gone. How it ended, in words."""
        ended = self._end_pool()
        if ended is not None:
            await asyncio.wait({ended}, timeout=_SECONDS_FOR_THE_EXIT_CODE)
        if ended is None or not ended.done():
            return _how(None)  # the pool frees the rest when it notices
        code = self._process.exitcode
        with contextlib.suppress(ValueError):  # somebody else has reaped it, and the code is lost
            self._process.close()
        return _how(code)

    def drop(self) -> None:
        """Kill it if need be, and wait for nothing."""
        self.kill()
        self._is_over = True
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None

    def _end_pool(self) -> asyncio.Future[None] | None:
        """Done when the pool has ended; None: no thread can be started that waits for it."""
        if self._pool_ended is None:
            try:
                self._pool_ended = in_thread(self._pool.shutdown)
            except RuntimeError:
                self._pool.shutdown(wait=False)
        return self._pool_ended


def _noting(context: BaseContext, made: list[BaseProcess]) -> BaseContext:
    """`context`, whose processes are put into `made`: a pool does not tell which are its own."""

    def make(*args: Any, **kwargs: Any) -> BaseProcess:
        process: BaseProcess = context.Process(*args, **kwargs)  # type: ignore[attr-defined] # each has one
        made.append(process)
        return process

    noting = copy.copy(context)
    noting.Process = make  # type: ignore[attr-defined]
    return noting


def _open_pidfd(pid: int) -> int | None:
    """None where the system has no such thing."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _how(code: int | None) -> str:
    if code is None or code == _UNKNOWN:
        return "ended, nobody knows how"
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
