"""What a handler may ask for beside the record: `Context`, and the markers `Header` and `Key`.

`signatures.py` makes one Context per call, only for handlers that ask for it, and reads keys and headers
through the readers below. Nothing here is a way into the engine: no acknowledging, pausing, committing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, MutableMapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeAlias, get_origin

from asyncpar.payloads import ValueDecoder
from asyncpar.records import RawRecord

Reader: TypeAlias = Callable[[RawRecord], object]
"""Reads one argument from a record; raises DecodeError only."""

_LOGGER = logging.getLogger("asyncpar.handler")
_warned: set[str] = set()
"""Functions that were called outside of a call, which is said once each."""

if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    _Adapter = logging.LoggerAdapter


class RunningCall(Protocol):
    """The call that the present handler is in."""

    def extend(self, milliseconds: int | None) -> None:
        """Give it that much time from now on; None: its `timeout_ms` anew."""


CALL: ContextVar[RunningCall] = ContextVar("asyncpar_call")
"""Set in every worker, and so in all that a handler starts."""


def heartbeat() -> None:
    """Tell asyncpar that this handler call is alive: its `timeout_ms` begins anew. Cheap; from any thread.

    Does nothing for a call without a time-out, nor outside of any call that asyncpar made, so that a unit
    test may call the handler itself. A thread that the handler starts on its own is outside too, unless it
    runs in a copy of the handler's context: the first time a warning is logged.
    """
    _extend_running_call("heartbeat", None)


def extend(milliseconds: int) -> None:
    """Let this handler call run for `milliseconds` from now on, if that is longer than it may already.

    Outside of a call as for `heartbeat`. Raises ValueError for less than 1 ms.
    """
    if type(milliseconds) is not int or milliseconds < 1:
        raise ValueError(f"extend: {milliseconds!r} must be a whole number of milliseconds, at least 1")
    _extend_running_call("extend", milliseconds)


def _extend_running_call(name: str, milliseconds: int | None) -> None:
    call = CALL.get(None)
    if call is not None:
        call.extend(milliseconds)
    elif name not in _warned:
        _warned.add(name)
        _LOGGER.warning(
            "asyncpar.%s() does nothing here: it is not within a call that asyncpar made. That is right "
            "in a test that calls a handler itself; a thread that a handler starts has to be run by "
            "contextvars.copy_context().run",
            name,
        )


@dataclass(frozen=True, slots=True)
class Header:
    """Marks a parameter as the header `name`: `trace: Annotated[str | None, Header("trace-id")]`.

    The last of several headers with one name wins. A missing header is the parameter's default, else
    None where the annotation allows it, else the record is undecodable.
    """

    name: str


@dataclass(frozen=True, slots=True)
class Key:
    """Marks a parameter as the record's key: `customer: Annotated[str, Key]`. `Key()` is the same.

    A missing key is treated like a missing header.
    """


def markers_of(hint: Any) -> list[object]:
    """The markers in an `Annotated`, as they were written: `Key`, `Key()` or `Header("x")`."""
    if get_origin(hint) is not Annotated:
        return []
    found: list[object] = list(hint.__metadata__)
    return [extra for extra in found if extra is Key or extra is Header or isinstance(extra, (Key, Header))]


def key_reader(decode: ValueDecoder, missing: Callable[[], object]) -> Reader:
    """Reads the key; `missing()` stands in for one that is not there, or raises."""

    def read(raw: RawRecord) -> object:
        key = raw.key
        return missing() if key is None else decode(key)

    return read


def header_reader(name: str, decode: ValueDecoder, missing: Callable[[], object]) -> Reader:
    """Reads the last header `name`; `missing()` stands in for one that is not there or has no value."""

    def read(raw: RawRecord) -> object:
        # Kafka allows a header without a value, whatever the type of a raw record says.
        headers: Sequence[tuple[str, bytes | None]] = raw.headers
        for header, value in reversed(headers):
            if header == name:
                return missing() if value is None else decode(value)
        return missing()

    return read


class HandlerLogger(_Adapter):
    """A logger whose lines carry where the record came from; a line's own `extra` is kept and wins."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Merge the two `extra`s; the standard one drops the line's own before Python 3.13."""
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


class Context:
    """One call's surroundings, for a handler with a parameter annotated `Context`.

    `state` is what the app's lifespan yielded, None without one; `handler` the handler's name; `group`
    the consumer group; `attempt` counts from 1. A unit test makes one itself: `Context(state=...)`.
    """

    __slots__ = ("_logger", "_offset", "_partition", "_topic", "attempt", "group", "handler", "state")

    def __init__(
        self,
        state: Any = None,
        handler: str = "",
        group: str = "",
        attempt: int = 1,
        *,
        topic: str = "",
        partition: int = -1,
        offset: int = -1,
    ) -> None:
        self.state = state
        self.handler = handler
        self.group = group
        self.attempt = attempt
        self._topic = topic
        self._partition = partition
        self._offset = offset
        self._logger: HandlerLogger | None = None

    @property
    def logger(self) -> HandlerLogger:
        """Logs as `asyncpar.handler`, each line with handler, group, topic, partition, offset, attempt."""
        if self._logger is None:  # most calls log nothing
            self._logger = HandlerLogger(
                _LOGGER,
                {
                    "handler": self.handler,
                    "group": self.group,
                    "topic": self._topic,
                    "partition": self._partition,
                    "offset": self._offset,
                    "attempt": self.attempt,
                },
            )
        return self._logger

    def __repr__(self) -> str:
        # Without `state`, which may hold secrets.
        where = f"{self._topic}[{self._partition}] offset {self._offset}"
        return f"<Context of {self.handler}, {where}, attempt {self.attempt}>"
