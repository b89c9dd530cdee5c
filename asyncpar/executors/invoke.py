"""From a call plan to what a worker calls once per attempt.

Decoding, middlewares and the place where the function runs are put together here, at start, so
that a worker pays only for what a handler uses: a plain handler is one call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from asyncpar.errors import DecodeError, HandlerFailedError, NotStartedError, Skip
from asyncpar.executors.plain_calls import in_full
from asyncpar.executors.process_bridge import ProcessBridge
from asyncpar.executors.threads import ThreadExecutor
from asyncpar.middleware import Call, Middleware, compose
from asyncpar.records import SUCCESS, Outcome, RawRecord, Record, Verdict
from asyncpar.signatures import CallPlan

Attempt = Callable[[str, int, RawRecord, int, int], Coroutine[Any, Any, Any]]
"""`(topic, partition, record, attempt, generation)` to a coroutine that runs the handler once."""


@dataclass(frozen=True, slots=True)
class Invocation:
    """How workers run a handler. `judged`: the coroutine's result is an Outcome."""

    invoke: Attempt
    judged: bool


def invocation(
    plan: CallPlan,
    state: object,
    middlewares: Sequence[Middleware],
    where: ThreadExecutor | ProcessBridge | None,
) -> Invocation:
    """Put a handler's call together. `where` a plain function runs; None: on the loop.

    In a child process its arguments are made there, with a state of its own.
    """
    attempt = where.run if isinstance(where, ProcessBridge) else _attempt(plan, state, where)
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
        call_in_full = in_full(plan)

        def in_thread(
            topic: str, partition: int, raw: RawRecord, attempt: int, generation: int
        ) -> Coroutine[Any, Any, Any]:
            def call() -> object:
                args, kwargs = bound(topic, partition, raw, attempt, generation)
                return call_in_full(*args, **kwargs)

            return threads.run(call)

        return in_thread

    function: Callable[..., Any] = plan.spec.function

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
            return on_loop(topic, partition, raw, attempt, generation)  # takes it as missing, or raises
        coroutine: Coroutine[Any, Any, Any] = function(value)
        return coroutine

    return _of_value(raw_on_loop, function)


def _decoding_on_the_loop(plan: CallPlan, state: object, threads: ThreadExecutor | None) -> Attempt:
    """For an async `decoder=`: awaited on the loop, also when the function runs in a thread."""
    function: Callable[..., Any] = plan.spec.function
    call_in_full = in_full(plan)
    bound = plan.bind_async(state)

    async def run(topic: str, partition: int, raw: RawRecord, attempt: int, generation: int) -> object:
        args, kwargs = await bound(topic, partition, raw, attempt, generation)
        if threads is not None:
            return await threads.run(lambda: call_in_full(*args, **kwargs))
        return await function(*args, **kwargs)

    return run


def _in_own_task(attempt: Attempt) -> Attempt:
    """A task per record, for code that is keyed on `asyncio.current_task()`."""

    async def run(topic: str, partition: int, raw: RawRecord, number: int, generation: int) -> object:
        task = asyncio.get_running_loop().create_task(attempt(topic, partition, raw, number, generation))
        try:
            return await task
        except asyncio.CancelledError:
            if task.done() and not task.cancelled():
                return task.result()  # it had ended before the cancellation came: how it did counts
            raise

    return run


def _skipping_tombstones(attempt: Attempt) -> Attempt:
    def run(
        topic: str, partition: int, raw: RawRecord, number: int, generation: int
    ) -> Coroutine[Any, Any, Any]:
        if raw.value is None:
            raise Skip("a tombstone, and tombstones='skip'")
        return attempt(topic, partition, raw, number, generation)

    return _of_value(run, getattr(attempt, "of_value", None))


def _of_value(attempt: Attempt, function: Callable[..., Any] | None) -> Attempt:
    """`attempt`, for workers (see `runtime.handlers.Invoke`); whatever is put around it is called instead."""
    attempt.of_value = function  # type: ignore[attr-defined]
    return attempt


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
        except NotStartedError:
            raise  # no outcome: it runs again as if nothing had been
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
            tuple(raw.headers),
            raw.timestamp,
            raw.timestamp_type,
            number,
            generation,
        )
        return await chain(Call(name, (record,), number, group))

    return run
