"""Lifecycle events: what an app tells its `@app.on_event` functions, beside a line in the log and a metric.

Lives here: the event and the safe way to its listeners. Never here: when something happens: `runtime` knows.
"""

from __future__ import annotations

import contextvars
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from asyncpar.errors import ConfigurationError

_LOG = logging.getLogger("asyncpar.app")
EventKind: TypeAlias = Literal[
    "breaker_opened",
    "breaker_closed",
    "budget_used_up",
    "budget_recovered",
    "key_poisoned",
    "key_recovered",
]


@dataclass(frozen=True, slots=True)
class LifecycleEvent:
    """Something of a handler began or is over."""

    kind: EventKind
    group: str
    handler: str
    at: float
    """When, seconds since the epoch."""
    reason: str
    """Why, in words for people."""
    topic: str | None = None
    """Of the key; None where it is about the handler as a whole."""
    key: bytes | None = None


Listener: TypeAlias = Callable[[LifecycleEvent], None]


class Listeners:
    """Those of one app. What one of them raises goes to the log, and harms nobody."""

    def __init__(self) -> None:
        self._listeners: list[tuple[Listener, contextvars.Context]] = []

    def add(self, listener: Listener) -> Listener:
        """`listener` hears of all that comes, in the context of whoever calls this; also a decorator.

        Called on the event loop, where it must not block. Raises ConfigurationError for a coroutine function,
        which nobody would await.
        """
        given: object = listener
        if not callable(given) or inspect.iscoroutinefunction(given):
            raise ConfigurationError(
                f"on_event: {listener!r} is no plain function; it is called on the event loop and not "
                "awaited: let it start a task, or put the event into a queue"
            )
        self._listeners.append((listener, contextvars.copy_context()))
        return listener

    def tell(self, event: LifecycleEvent) -> None:
        """All of them, in the order in which they came."""
        for listener, context in self._listeners:
            try:
                context.copy().run(listener, event)
            except Exception:  # noqa: BLE001 - a listener's own fault, which is in the log
                _LOG.exception("on_event failed for %s of handler %s", event.kind, event.handler)
