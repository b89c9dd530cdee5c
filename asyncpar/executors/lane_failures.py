"""From an exception in a child to a `JobFailure`: words only, bounded, and whatever the exception is like.

A user's exception never crosses: it may not pickle, or run code when it is unpickled.
"""

from __future__ import annotations

import os
import traceback

from asyncpar.errors import DecodeError, HandlerFailedError, Permanent, Retryable, RetryAfter, Skip
from asyncpar.executors.lane_port import FailureKind, JobFailure

_OURS = os.path.join(os.path.dirname(__file__), "")  # noqa: PTH118,PTH120 - a prefix of code's file names
_MOST_CHARS_OF_MESSAGE = 10_000
_MOST_CHARS_OF_TRACEBACK = 100_000
_KINDS: tuple[tuple[type[BaseException], FailureKind], ...] = (
    (Skip, "skipped"),
    (DecodeError, "undecodable"),
    (RetryAfter, "retry_after"),
    (Retryable, "retryable"),
    (Permanent, "permanent"),
    (Exception, "failed"),
)


def failure_of(error: BaseException) -> JobFailure:
    """How a handler ended that raised `error`; what is no Exception has failed as HandlerFailedError."""
    text = traceback_text(error)
    kind = next((kind for known, kind in _KINDS if isinstance(error, known)), None)
    if kind is None:
        what = "called exit" if isinstance(error, SystemExit) else "raised what is no Exception"
        error, kind = HandlerFailedError(f"the handler {what}: {_shown(error)}"), "failed"
    delay_ms, is_free = (error.delay_ms, error.is_free) if isinstance(error, RetryAfter) else (0, False)
    if delay_ms is None:  # of a class that does not call its base class: the usual delay
        kind, delay_ms = "retryable", 0
    ancestors = tuple(
        plain_text(f"{one.__module__}.{one.__qualname__}") for one in type(error).__mro__ if one is not object
    )
    return JobFailure(kind, ancestors, message_of(error), text, int(delay_ms), bool(is_free))


def message_of(error: BaseException) -> str:
    """`str(error)`, or that it has none."""
    try:
        return plain_text(str(error))
    except BaseException as problem:  # noqa: BLE001 - a user's `__str__` may raise anything
        return f"(its message cannot be shown: str() raised {type(problem).__name__})"


def last_line(error: BaseException) -> str:
    """Class and message on one line, for messages of ours that tell of it."""
    message = " ".join(message_of(error).split())
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def traceback_text(error: BaseException) -> str:
    """As it is printed, with its causes; each part and the whole are bounded."""
    try:
        shown = traceback.TracebackException.from_exception(error)
        while shown.stack and shown.stack[0].filename.startswith(_OURS):
            del shown.stack[0]  # how the call came about is the same each time, and not the user's
        parts = shown.format()
        text = "\n".join(plain_text(part.rstrip("\n")) for part in parts)
    except Exception as problem:  # noqa: BLE001 - formatting runs code of the user's classes
        return f"(its traceback cannot be shown: {type(problem).__name__})"
    # The end tells most: it is where the exception itself stands.
    return text if len(text) <= _MOST_CHARS_OF_TRACEBACK else f"...\n{text[-_MOST_CHARS_OF_TRACEBACK:]}"


def plain_text(text: str) -> str:
    """A plain str that can be encoded, cut when it is long."""
    if len(text) > _MOST_CHARS_OF_MESSAGE:
        text = f"{text[:_MOST_CHARS_OF_MESSAGE]}... ({len(text)} characters)"
    # By way of bytes, because a subclass of str would not cross, and a lone surrogate could not be written.
    return str.encode(text, "utf-8", "backslashreplace").decode()


def _shown(error: BaseException) -> str:
    try:
        return plain_text(repr(error))
    except BaseException:  # noqa: BLE001 - as for `str()`
        return type(error).__name__
