"""Failed attempts in the log: one line a second per handler at most, with the number of those left out."""

from __future__ import annotations

import logging

from asyncpar.records import TopicPartition

_SPACING_SECONDS = 1.0
_MAX_CHARS = 300


class FailureLog:
    """One handler's failures, and its records that leave."""

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
        left_out = self._failures.next_line(now)
        if left_out is None:
            return
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

    def left(
        self, partition: TopicPartition, offset: int, topic: str, reason: str, attempts: int, now: float
    ) -> None:
        """Log that a record leaves for `topic`, or count it for the next line."""
        left_out = self._departures.next_line(now)
        if left_out is None:
            return
        self._log.warning(
            "handler %s: %s offset %d goes to %s (%s, %d attempts)%s",
            self._handler,
            partition,
            offset,
            topic,
            reason or "its attempts here are used up",
            attempts,
            f" ({left_out} more records since the last line)" if left_out else "",
        )


class _Spacing:
    """One line a second."""

    __slots__ = ("_left_out", "_next")

    def __init__(self) -> None:
        self._next = float("-inf")
        self._left_out = 0

    def next_line(self, now: float) -> int | None:
        """How many were left out before the line that is due at `now`; None: it is counted."""
        if now < self._next:
            self._left_out += 1
            return None
        self._next = now + _SPACING_SECONDS
        left_out, self._left_out = self._left_out, 0
        return left_out


def brief(error: BaseException | None) -> str:
    """The type and the first line of `error`, cut off where it gets long."""
    if error is None:
        return "no reason given"
    try:
        lines = str(error).splitlines()
    except Exception:  # noqa: BLE001 - a user's exception may refuse to be shown
        lines = ["(its message cannot be shown)"]
    return f"{type(error).__name__}: {lines[0][:_MAX_CHARS]}" if lines else type(error).__name__
