"""Failed attempts in the log: one line a second per handler at most, with the number of those left out."""

from __future__ import annotations

import logging

from asyncpar.records import TopicPartition

_SPACING_SECONDS = 1.0
_MAX_CHARS = 300


class FailureLog:
    """One handler's failures."""

    __slots__ = ("_departed", "_handler", "_left_out", "_log", "_next", "_next_departure")

    def __init__(self, log: logging.Logger, handler: str) -> None:
        self._log = log
        self._handler = handler
        self._next = float("-inf")
        self._left_out = 0
        self._next_departure = float("-inf")
        self._departed = 0

    def note(
        self, partition: TopicPartition, offset: int, attempt: int, error: BaseException | None, now: float
    ) -> None:
        """Log this failure, or count it for the next line."""
        if now < self._next:
            self._left_out += 1
            return
        self._next = now + _SPACING_SECONDS
        left_out, self._left_out = self._left_out, 0
        more = f" ({left_out} more failures since the last line)" if left_out else ""
        self._log.warning(
            "handler %s failed on %s offset %d, attempt %d: %s%s",
            self._handler,
            partition,
            offset,
            attempt,
            brief(error),
            more,
            exc_info=error,
        )

    def left(
        self, partition: TopicPartition, offset: int, topic: str, reason: str, attempts: int, now: float
    ) -> None:
        """Log that a record leaves for `topic`, or count it for the next line."""
        if now < self._next_departure:
            self._departed += 1
            return
        self._next_departure = now + _SPACING_SECONDS
        departed, self._departed = self._departed, 0
        self._log.warning(
            "handler %s: %s offset %d goes to %s (%s, %d attempts)%s",
            self._handler,
            partition,
            offset,
            topic,
            reason or "its attempts here are used up",
            attempts,
            f" ({departed} more records since the last line)" if departed else "",
        )


def brief(error: BaseException | None) -> str:
    """The type and the first line of `error`, cut off where it gets long."""
    if error is None:
        return "no reason given"
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:_MAX_CHARS]}" if lines else type(error).__name__
