"""Failed attempts in the log: one line a second per handler at most, with the number of those left out.

Nothing is left out for good: what the last line did not say is said when its second is over, or at the stop.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable

from asyncpar.records import TopicPartition

_SPACING_SECONDS = 1.0
_MAX_CHARS = 300

_Line = Callable[[int], None]
"""Writes a line; takes the number of those that were left out before it."""


class FailureLog:
    """One handler's failures, and its records that leave. Made and used on the event loop."""

    __slots__ = ("_departures", "_failures", "_handler", "_log")

    def __init__(self, log: logging.Logger, handler: str) -> None:
        self._log = log
        self._handler = handler
        self._failures = _Spacing()
        self._departures = _Spacing()

    def note(
        self, partition: TopicPartition, offset: int, attempt: int, error: BaseException | None, now: float
    ) -> None:
        """Log this failure, or count it for the next line."""

        def line(left_out: int) -> None:
            self._log.warning(
                "handler %s failed on %s offset %d, attempt %d: %s%s",
                self._handler,
                partition,
                offset,
                attempt,
                brief(error),
                f" ({left_out} more failures since the last line)" if left_out else "",
                exc_info=error,
            )

        self._failures.say(line, now)

    def left(
        self, partition: TopicPartition, offset: int, topic: str, reason: str, attempts: int, now: float
    ) -> None:
        """Log that a record leaves for `topic`, or count it for the next line."""

        def line(left_out: int) -> None:
            self._log.warning(
                "handler %s: %s offset %d goes to %s (%s, %d %s)%s",
                self._handler,
                partition,
                offset,
                topic,
                reason or "its attempts here are used up",
                attempts,
                "attempt" if attempts == 1 else "attempts",
                f" ({left_out} more records since the last line)" if left_out else "",
            )

        self._departures.say(line, now)

    def close(self) -> None:
        """Say what was left out; nothing is noted any more."""
        self._failures.close()
        self._departures.close()


class _Spacing:
    """One line a second: the first at once, and at its end the last one of those that came meanwhile."""

    __slots__ = ("_context", "_last", "_left_out", "_next", "_timer")

    def __init__(self) -> None:
        self._next = float("-inf")
        self._left_out = 0
        """Before `_last`."""
        self._last: _Line | None = None
        """What was not said yet."""
        self._timer: asyncio.TimerHandle | None = None
        self._context = contextvars.copy_context()
        """Not a handler's: a line about many records must not carry what one of them has set."""

    def say(self, line: _Line, now: float) -> None:
        """Write `line`, or keep it until it is due; only the last one is kept, the others are counted."""
        if self._last is not None:
            self._left_out += 1
        self._last = line
        if now >= self._next:
            self._write(now)
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._next - now, self._due, context=self._context)

    def _due(self) -> None:
        self._timer = None
        self._write(self._next)

    def _write(self, now: float) -> None:
        self._next = now + _SPACING_SECONDS
        line, self._last = self._last, None
        left_out, self._left_out = self._left_out, 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if line is not None:
            line(left_out)

    def close(self) -> None:
        """Write what was kept."""
        self._write(self._next)


def brief(error: BaseException | None) -> str:
    """The type and the first line of `error`, cut off where it gets long."""
    if error is None:
        return "no reason given"
    try:
        lines = str(error).splitlines()
    except Exception:  # noqa: BLE001 - a user's exception may refuse to be shown
        lines = ["(its message cannot be shown)"]
    return f"{type(error).__name__}: {lines[0][:_MAX_CHARS]}" if lines else type(error).__name__
