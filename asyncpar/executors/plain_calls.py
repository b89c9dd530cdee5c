"""Calls of plain functions, in a thread or in a child process: one that returns an awaitable is refused.

Never here: where a function runs. Imports nothing heavy, because a child imports it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from asyncpar.errors import DecodeError, HandlerError, HandlerFailedError
from asyncpar.signatures import CallPlan


class ReturnedAwaitableError(HandlerError, DecodeError):
    """A plain function returned an awaitable, which nothing awaits: its record is not handled.

    It would be so at every attempt. A DecodeError, because that is what halts the partition at once.
    """


def in_full(plan: CallPlan) -> Callable[..., object]:
    """The plain function of `plan`, refused when it leaves its work to an awaitable that it returns."""
    function: Callable[..., Any] = plan.spec.function
    refuse_awaitable = awaitable_refusal(plan)

    def call(*args: Any, **kwargs: Any) -> object:
        result: object = function(*args, **kwargs)
        refuse_awaitable(result)
        return result

    return call


def awaitable_refusal(plan: CallPlan) -> Callable[[object], None]:
    """What raises for a result of the function of `plan` that is an awaitable."""
    # A setting that passes over what cannot be read must not pass over a handler that did nothing.
    may_skip = plan.spec.on_decode_error == "skip"
    refusal = HandlerFailedError if may_skip else ReturnedAwaitableError

    def refuse(result: object) -> None:
        if result is None or not inspect.isawaitable(result):
            return
        if inspect.iscoroutine(result):
            result.close()
        raise refusal(
            f"{plan.spec.where}: returned a {type(result).__name__}, which nothing awaits, so the record is "
            "not handled; write `async def` and await it"
        )

    return refuse
