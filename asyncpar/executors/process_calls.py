"""One attempt on one record, from the moment a worker asks for it until its end is known.

Lives here: what a worker waits for, and how a child's word on a failure becomes an exception. Never here:
which lane runs it. Always: a call ends exactly once; who ends it later is not heard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from asyncpar.errors import (
    ChildTraceback,
    DecodeError,
    Permanent,
    RemoteHandlerError,
    Retryable,
    RetryAfter,
    Skip,
)
from asyncpar.executors.lane_port import FailureKind, Fields, JobFailure
from asyncpar.records import TopicPartition


class Call:
    """One attempt. `future` is done when it has ended: `error` None then says that it succeeded."""

    __slots__ = ("error", "fields", "future", "is_cancelled", "is_over", "since")

    def __init__(self, fields: Fields, future: asyncio.Future[None]) -> None:
        self.fields = fields
        self.future = future
        self.error: BaseException | None = None
        self.is_over = False
        self.since = 0.0
        """When it began to wait for a lane."""
        self.is_cancelled = False
        """Whoever waits for it was cancelled; it has not ended for that."""

    @property
    def place(self) -> tuple[str, int, int]:
        """Topic, partition and offset."""
        return self.fields[:3]

    @property
    def where(self) -> str:
        """How messages name its record."""
        topic, partition, offset = self.place
        return f"{topic}[{partition}] offset {offset}"

    def is_of(self, tp: TopicPartition) -> bool:
        """Its record is one of `tp`."""
        return self.fields[:2] == tp

    def end(self, error: BaseException | None = None) -> None:
        """It has ended. A future that was cancelled meanwhile stays so: who waits asks `is_over`."""
        if self.is_over:
            return
        self.is_over = True
        self.error = error
        if not self.future.done():
            self.future.set_result(None)


class SentBatch:
    """Calls that were sent to a lane together, until it has replied. `is_alone`: nothing ran before them."""

    __slots__ = ("calls", "is_alone", "number", "sent_at")

    def __init__(self, number: int, calls: list[Call], sent_at: float, is_alone: bool) -> None:
        self.number = number
        self.calls = calls
        self.sent_at = sent_at
        self.is_alone = is_alone


def error_of(failure: JobFailure) -> BaseException:
    """What the worker raises for a failure in a child; the child's traceback is shown as its cause."""
    error = _MAKERS[failure.kind](failure)
    if failure.traceback:
        error.__cause__ = ChildTraceback(failure.traceback)
    return error


def _retry_after(failure: JobFailure) -> RetryAfter:
    error = RetryAfter(failure.message, delay_ms=failure.delay_ms)
    error.is_free = failure.is_free
    return error


_MAKERS: Mapping[FailureKind, Callable[[JobFailure], BaseException]] = {
    "failed": lambda failure: RemoteHandlerError(failure.message, failure.ancestors, failure.traceback),
    "undecodable": lambda failure: DecodeError(failure.message),
    "skipped": lambda failure: Skip(failure.message),
    "retryable": lambda failure: Retryable(failure.message),
    "retry_after": _retry_after,
    "permanent": lambda failure: Permanent(failure.message),
}
