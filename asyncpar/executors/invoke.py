"""From a call plan to what a worker calls once per attempt.

Decoding, middlewares and the place where the function runs are put together here, at start, so
that a worker pays only for what a handler uses: a plain handler is one call.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from asyncpar.errors import DecodeError, HandlerError, HandlerFailedError, Skip
from asyncpar.executors.threads import ThreadExecutor
from asyncpar.middleware import Call, Middleware, compose
from asyncpar.records import SUCCESS, Outcome, RawRecord, Record, Verdict
from asyncpar.signatures import CallPlan

Attempt = Callable[[str, int, RawRecord, int, int], Coroutine[Any, Any, Any]]
"""`(topic, partition, record, attempt, generation)` to a coroutine that runs the handler once."""


class ReturnedAwaitableError(HandlerError, DecodeError):
    """A plain function returned an awaitable, which nothing awaits: its record is not handled.

    It would be so at every attempt. A DecodeError, because that is what halts the partition at once.
    """


@dataclass(frozen=True, slots=True)
class Invocation:
    """How workers run a handler. `judged`: the coroutine's result is an Outcome."""

    invoke: Attempt
    judged: bool


def invocation(
    plan: CallPlan, state: object, middlewares: Sequence[Middleware], threads: ThreadExecutor | None
) -> Invocation:
    """Put a handler's call together. `threads` is where a plain function runs; None: on the loop."""
    attempt = _attempt(plan, state, threads)
    if plan.spec.task_per_record:
        attempt = _in_own_task(attempt)
    if plan.skips_tombstones:
        attempt = _skipping_tombstones(attempt)
    if not middlewares:
        return Invocation(attempt, judged=False)
    return Invocation(_with_middlewares(plan, attempt, middlewares), judged=True)


def _attempt(plan: CallPlan, state: object, threads: ThreadExecutor | None) -> Attempt:
    if plan.is_async_decoder:
        return _decoding_on_the_loop(plan, state, threads)
    bound = plan.bind(state)
    if threads is not None:
        in_full = _in_full(plan)

        def in_thread(
            topic: str, partition: int, raw: RawRecord, attempt: int, generation: int
        ) -> Coroutine[Any, Any, Any]:
            def call() -> object:
                args, kwargs = bound(topic, partition, raw, attempt, generation)
                return in_full(*args, **kwargs)

            return threads.run(call)

        return in_thread

    function: Callable[..., Any] = plan.spec.function
    if plan.raw_only and plan.accepts_none:
        return lambda topic, partition, raw, attempt, generation: function(raw.value)

    def on_loop(
        topic: str, partition: int, raw: RawRecord, attempt: int, generation: int
    ) -> Coroutine[Any, Any, Any]:
        args, kwargs = bound(topic, partition, raw, attempt, generation)
        coroutine: Coroutine[Any, Any, Any] = function(*args, **kwargs)
        return coroutine

    if not plan.raw_only:
        return on_loop

    def raw_on_loop(
        topic: str, partition: int, raw: RawRecord, attempt: int, generation: int
    ) -> Coroutine[Any, Any, Any]:
        value = raw.value
        if value is None:
            return on_loop(topic, partition, raw, attempt, generation)  # raises: a missing value
        coroutine: Coroutine[Any, Any, Any] = function(value)
        return coroutine

    return raw_on_loop


def _decoding_on_the_loop(plan: CallPlan, state: object, threads: ThreadExecutor | None) -> Attempt:
    """For an async `decoder=`: awaited on the loop, also when the function runs in a thread."""
    function: Callable[..., Any] = plan.spec.function
    in_full = _in_full(plan)
    bound = plan.bind_async(state)

    async def run(topic: str, partition: int, raw: RawRecord, attempt: int, generation: int) -> object:
        args, kwargs = await bound(topic, partition, raw, attempt, generation)
        if threads is not None:
            return await threads.run(lambda: in_full(*args, **kwargs))
        return await function(*args, **kwargs)

    return run


def _in_full(plan: CallPlan) -> Callable[..., object]:
    """The plain function of `plan`, refused when it leaves its work to an awaitable that it returns."""
    function: Callable[..., Any] = plan.spec.function
    # A setting that passes over what cannot be read must not pass over a handler that did nothing.
    may_skip = plan.spec.on_decode_error == "skip"
    refusal = HandlerFailedError if may_skip else ReturnedAwaitableError

    def call(*args: Any, **kwargs: Any) -> object:
        result: object = function(*args, **kwargs)
        if not inspect.isawaitable(result):
            return result
        if inspect.iscoroutine(result):
            result.close()
        raise refusal(
            f"{plan.spec.where}: returned a {type(result).__name__}, which nothing awaits, so the record is "
            "not handled; write `async def` and await it"
        )

    return call


def _in_own_task(attempt: Attempt) -> Attempt:
    """A task per record, for code that is keyed on `asyncio.current_task()`."""

    async def run(topic: str, partition: int, raw: RawRecord, number: int, generation: int) -> object:
        return await asyncio.get_running_loop().create_task(
            attempt(topic, partition, raw, number, generation)
        )

    return run


def _skipping_tombstones(attempt: Attempt) -> Attempt:
    def run(
        topic: str, partition: int, raw: RawRecord, number: int, generation: int
    ) -> Coroutine[Any, Any, Any]:
        if raw.value is None:
            raise Skip("a tombstone, and tombstones='skip'")
        return attempt(topic, partition, raw, number, generation)

    return run


def _with_middlewares(plan: CallPlan, attempt: Attempt, middlewares: Sequence[Middleware]) -> Attempt:
    name, group = plan.spec.name, plan.group

    async def innermost(call: Call) -> Outcome:
        (record,) = call.records
        try:
            await attempt(record.topic, record.partition, record, call.attempt, record.generation)
        except Skip as skipped:
            return Outcome(Verdict.SKIPPED, skipped)
        except DecodeError as error:
            return Outcome(Verdict.UNDECODABLE, error)
        except Exception as error:  # noqa: BLE001 - a middleware gets every failure as an outcome
            return Outcome(Verdict.FAILED, error)
        except SystemExit as error:
            return Outcome(Verdict.FAILED, HandlerFailedError(f"the handler called exit: {error!r}"))
        return SUCCESS

    chain = compose(middlewares, innermost)

    async def run(topic: str, partition: int, raw: RawRecord, number: int, generation: int) -> Outcome:
        record = Record(
            topic,
            partition,
            raw.offset,
            raw.key,
            raw.value,
            raw.headers,
            raw.timestamp,
            raw.timestamp_type,
            number,
            generation,
        )
        return await chain(Call(name, (record,), number, group))

    return run
