"""One slot of a handler: its task, what it runs now and for how long, and who waits for the end of that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any

from asyncpar.context import CALL
from asyncpar.core.breaker import Ticket
from asyncpar.core.virtual_partitions import VirtualPartition
from asyncpar.errors import (
    DecodeError,
    HandlerFailedError,
    HandlerTimeoutError,
    NotStartedError,
    RecordBlockedError,
    Skip,
)
from asyncpar.records import RawRecord, Verdict
from asyncpar.runtime.handlers import Invoke

_TIMEOUTS = {
    "timeout": "cancelled at its timeout_ms,",
    "blocked": "cancelled because it blocked the commit for longer than max_blocking_duration_ms,",
    "blocked_for_good": "given up because it blocked the commit for longer than max_blocking_duration_ms,",
}
"""Reasons of a cancellation that make an attempt a failed one, and how the failure says so."""


class Interrupted(Exception):  # noqa: N818 - not an error: the record was not settled
    """The attempt was ended by us or from outside; it counts for nothing."""

    def __init__(self, worker_ends: bool) -> None:
        self.worker_ends = worker_ends


class CallersContext:
    """Compares as the context of whoever compares it does, by a copy.

    For a worker whose task does not run in the context that it was given, because the program's task factory
    makes its own: else what a handler leaves behind there would be seen by the next record.
    """

    def __ne__(self, home: object) -> bool:
        return copy_context() != home


class Worker:
    """One slot: its task, and what it runs now."""

    __slots__ = (
        "_clock",
        "call",
        "cancel_reason",
        "context",
        "finished",
        "record",
        "started",
        "task",
        "ticket",
        "vp",
        "wake",
    )

    def __init__(self, clock: Callable[[], float], context: Context) -> None:
        self._clock = clock
        self.context = context
        """The one that its task was given to run in."""
        self.task: asyncio.Task[None] | None = None
        self.vp: VirtualPartition | None = None
        self.record: RawRecord | None = None
        self.started = 0.0
        self.cancel_reason: str | None = None
        self.ticket = Ticket(0)
        """What the breaker gave the call that runs now."""
        self.wake: asyncio.Future[None] | None = None
        self.call: Call | None = None
        """Who may ask for more time; None also while what runs has all the time that it wants."""
        self.finished: asyncio.Future[None] | None = None
        """Set by whoever waits for the end of the running record."""

    def ran(self) -> float:
        """Seconds since what runs now has started."""
        return self._clock() - self.started

    @property
    def offset(self) -> int | None:
        """Of the record that runs now."""
        return None if self.record is None else self.record.offset

    def extend(self, milliseconds: int | None) -> None:
        """Nothing: what runs outside of a `Call` has all the time that it wants."""

    def deadline(self, timeout_seconds: float) -> float:
        """When what runs now is over its time."""
        ends = self.started + timeout_seconds
        return ends if self.call is None else max(ends, self.call.until)

    def cancel(self, reason: str) -> None:
        """Cancel what runs, for `reason`; nothing when nothing runs."""
        if self.vp is not None and self.task is not None and self.cancel_reason is None:
            self.cancel_reason = reason
            self.task.cancel()

    def when_finished(self) -> asyncio.Future[None]:
        """Done when the record that runs now has ended."""
        if self.finished is None:
            self.finished = asyncio.get_running_loop().create_future()
        return self.finished


class Call:
    """One attempt whose time is watched: what `heartbeat()` and `extend()` reach in it and in all it starts.

    Nothing reads it any more once its attempt has ended, so that a task which a handler left behind keeps no
    later record alive.
    """

    __slots__ = ("_clock", "_timeout_seconds", "until", "worker")

    def __init__(self, worker: Worker, clock: Callable[[], float], timeout_seconds: float | None) -> None:
        self.worker = worker
        self._clock = clock
        self._timeout_seconds = timeout_seconds
        self.until = float("-inf")
        """Until when it asked for time: monotonic seconds."""

    def extend(self, milliseconds: int | None) -> None:
        """It gets that much time from now on; None: the handler's time-out anew."""
        seconds = self._timeout_seconds if milliseconds is None else milliseconds / 1000
        if seconds is not None:
            self.until = max(self.until, self._clock() + seconds)


def watched(invoke: Invoke, clock: Callable[[], float], timeout_seconds: float | None) -> Invoke:
    """`invoke` with a `Call` around each attempt."""

    async def call(topic: str, partition: int, record: RawRecord, attempt: int, generation: int) -> Any:
        worker = CALL.get()
        assert isinstance(worker, Worker)
        worker.call = mine = Call(worker, clock, timeout_seconds)
        CALL.set(mine)
        try:
            return await invoke(topic, partition, record, attempt, generation)
        finally:
            CALL.set(worker)
            worker.call = None

    return call


def classify(me: Worker, task: asyncio.Task[None], raised: BaseException) -> tuple[Verdict, BaseException]:
    """What an exception out of a handler means. Raises Interrupted when it settles nothing."""
    if isinstance(raised, Skip):
        return Verdict.SKIPPED, raised
    if me.cancel_reason in _TIMEOUTS and isinstance(raised, Exception | asyncio.CancelledError):
        return Verdict.FAILED, _timed_out(me, me.cancel_reason, raised)
    was_cancelled = me.cancel_reason is not None and isinstance(raised, Exception)
    if was_cancelled or isinstance(raised, NotStartedError):
        raise Interrupted(worker_ends=False)  # what a handler makes of its cancellation says nothing
    if isinstance(raised, DecodeError):
        return Verdict.UNDECODABLE, raised
    if isinstance(raised, Exception):
        return Verdict.FAILED, raised
    if isinstance(raised, asyncio.CancelledError):
        if me.cancel_reason is not None:
            raise Interrupted(worker_ends=False)
        if task.cancelling():
            raise Interrupted(worker_ends=True)
        return Verdict.FAILED, raised
    if isinstance(raised, KeyboardInterrupt | GeneratorExit):
        raise raised
    what = "called exit" if isinstance(raised, SystemExit) else "raised what is no Exception"
    return Verdict.FAILED, HandlerFailedError(f"the handler {what}: {raised!r}")


def _timed_out(me: Worker, reason: str, raised: BaseException) -> HandlerTimeoutError:
    kind = RecordBlockedError if reason == "blocked_for_good" else HandlerTimeoutError
    error = kind(f"{_TIMEOUTS[reason]} {me.ran():.3g} s after its start")
    error.__cause__ = None if isinstance(raised, asyncio.CancelledError) else raised
    return error
