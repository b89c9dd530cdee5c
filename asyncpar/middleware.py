"""Middlewares: code around each attempt on a record, in the parent process.

`async def m(call: Call, call_next: CallNext) -> Outcome`. The first middleware given to the app is
the outermost. A handler's failure arrives as an `Outcome`, not as an exception; what a middleware
itself raises is a failed attempt. Cancellation passes through as CancelledError.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from asyncpar.errors import ConfigurationError
from asyncpar.records import Outcome, Record


@dataclass(frozen=True, slots=True)
class Call:
    """One attempt: the handler's name, its records (one, but for batches), its number, the group."""

    handler: str
    records: tuple[Record, ...]
    attempt: int
    group: str = ""


CallNext = Callable[[Call], Awaitable[Outcome]]
Middleware = Callable[[Call, CallNext], Awaitable[Outcome]]


def compose(middlewares: Sequence[Middleware], innermost: CallNext) -> CallNext:
    """One function that runs `middlewares`, the first outermost, around `innermost`."""
    chain = innermost
    for middleware in reversed(middlewares):
        chain = _around(middleware, chain)
    return chain


def _around(middleware: Middleware, call_next: CallNext) -> CallNext:
    async def run(call: Call) -> Outcome:
        outcome: object = await middleware(call, call_next)
        if not isinstance(outcome, Outcome):
            name = getattr(middleware, "__qualname__", repr(middleware))
            raise ConfigurationError(
                f"middleware {name} returned {type(outcome).__name__}: return the Outcome of call_next(call)"
            )
        return outcome

    return run
