"""How a handler's call is put together: decoding, tombstones, tasks, threads and middlewares."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asyncpar.errors import DecodeError, HandlerError, HandlerFailedError, Skip, TombstoneError
from asyncpar.executors.invoke import invocation
from asyncpar.executors.threads import ThreadExecutor
from asyncpar.middleware import Call, CallNext
from asyncpar.records import Outcome, RawRecord, Record, Verdict
from asyncpar.signatures import plan_call
from asyncpar.topics import specs_of, topic
from tests.runtime.fakes import FakeRecord


def invoke(
    function: Any, record: FakeRecord, *, threads: bool = False, middlewares: Any = (), **options: Any
) -> Any:
    """Run one attempt of `function` on `record`, as a worker does."""
    spec = specs_of(topic("t", **options)(function))[0]
    executor = ThreadExecutor("test", 1) if threads else None
    call = invocation(plan_call(spec, group="g"), None, middlewares, executor)

    of_value = getattr(call.invoke, "of_value", None)

    async def run() -> Any:
        try:
            if of_value is not None and record.value is not None:
                return await of_value(record.value)
            return await call.invoke("t", 0, record, 1, 1)
        finally:
            if executor is not None:
                executor.close()

    return asyncio.run(run())


def test_raw_bytes_reach_the_handler_as_they_are() -> None:
    """The plain case: the value itself; a missing one is an undecodable record, or None where allowed."""
    seen: list[object] = []

    async def handle(value: bytes) -> None:
        seen.append(value)

    async def optional(value: bytes | None) -> None:
        seen.append(value)

    invoke(handle, FakeRecord(0, value=b"x"))
    invoke(optional, FakeRecord(0, value=None))
    assert seen == [b"x", None]
    with pytest.raises(TombstoneError):
        invoke(handle, FakeRecord(0, value=None))


@pytest.mark.parametrize("options", [{}, {"tombstones": "skip"}], ids=str)
def test_a_worker_may_call_what_takes_the_value_alone(options: dict[str, Any]) -> None:
    """It is told of the function itself."""

    async def handle(value: bytes) -> None: ...

    call = invocation(plan_call(specs_of(topic("t", **options)(handle))[0], group="g"), None, (), None)
    assert getattr(call.invoke, "of_value", None) is handle


@pytest.mark.parametrize("how", ["typed", "with the record", "middleware", "task per record", "thread"])
def test_whatever_stands_around_a_handler_is_not_passed_by(how: str) -> None:
    """Decoding, other arguments, middlewares, a task or a thread of its own: a worker goes through them."""

    async def handle(value: bytes) -> None: ...

    async def typed(value: int) -> None: ...

    async def recorded(value: bytes, record: Record) -> None: ...

    def plain(value: bytes) -> None: ...

    async def around(call: Call, call_next: CallNext) -> Outcome:
        return await call_next(call)

    function: Any = {"typed": typed, "with the record": recorded, "thread": plain}.get(how, handle)
    spec = specs_of(topic("t", task_per_record=how == "task per record")(function))[0]
    threads = ThreadExecutor("test", 1) if how == "thread" else None
    middlewares = (around,) if how == "middleware" else ()
    call = invocation(plan_call(spec, group="g"), None, middlewares, threads)
    assert getattr(call.invoke, "of_value", None) is None
    if threads is not None:
        threads.close()


def test_tombstones_are_skipped_where_told_so() -> None:
    """tombstones="skip" passes a record without a value over, before the handler."""

    async def handle(value: bytes) -> None:
        raise AssertionError

    with pytest.raises(Skip):
        invoke(handle, FakeRecord(0, value=None), tombstones="skip")


@pytest.mark.parametrize("threads", [True, False])
def test_an_async_decoder_is_awaited(threads: bool) -> None:
    """decoder= as a coroutine function, on the loop and in threads; its failure is a decode error."""
    seen: list[object] = []

    async def decoder(name: str, raw: RawRecord) -> str:
        await asyncio.sleep(0)
        if raw.value == b"bad":
            raise ValueError("bad")
        return f"{name}:{raw.offset}"

    async def on_loop(value: str) -> None:
        seen.append(value)

    def in_thread(value: str) -> None:
        seen.append(value)

    handle = in_thread if threads else on_loop
    invoke(handle, FakeRecord(3), threads=threads, decoder=decoder)
    assert seen == ["t:3"]

    async def again(value: str) -> None:
        seen.append(value)

    with pytest.raises(DecodeError):
        invoke(again, FakeRecord(3, value=b"bad"), decoder=decoder)


def test_task_per_record_runs_each_in_a_task_of_its_own() -> None:
    """Code that is keyed on the current task sees a fresh one, and its failure is the record's."""
    seen: list[object] = []

    async def handle(value: bytes) -> None:
        seen.append(asyncio.current_task())
        raise ValueError("no")

    outer: list[object] = []

    async def around(call: Call, call_next: CallNext) -> Outcome:
        outer.append(asyncio.current_task())
        return await call_next(call)

    outcome = invoke(handle, FakeRecord(0), middlewares=[around], task_per_record=True)
    assert outcome.verdict is Verdict.FAILED
    assert seen[0] is not outer[0]


@pytest.mark.parametrize("fails", [False, True])
async def test_a_task_that_ended_before_its_cancellation_came_has_ended(fails: bool) -> None:
    """Its worker has not heard of it yet: it did not run for nothing."""

    async def handle(value: bytes) -> None:
        # It comes when this has ended, and before the worker knows.
        asyncio.get_running_loop().call_soon(worker.cancel)
        if fails:
            raise ValueError("no")

    spec = specs_of(topic("t", task_per_record=True)(handle))[0]
    call = invocation(plan_call(spec, group="g"), None, (), None)
    worker = asyncio.ensure_future(call.invoke("t", 0, FakeRecord(0), 1, 1))
    await asyncio.wait({worker}, timeout=5)
    assert not worker.cancelled()
    assert isinstance(worker.exception(), ValueError) is fails


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (None, Verdict.SUCCESS),
        (ValueError("no"), Verdict.FAILED),
        (DecodeError("no"), Verdict.UNDECODABLE),
        (SystemExit(3), Verdict.FAILED),
    ],
)
def test_middlewares_get_every_end_of_an_attempt_as_an_outcome(
    error: BaseException | None, verdict: Verdict
) -> None:
    """Success, failure, undecodable and exit arrive as verdicts, not as exceptions."""

    async def handle(value: bytes) -> None:
        if error is not None:
            raise error

    async def passing(call: Call, call_next: CallNext) -> Outcome:
        return await call_next(call)

    assert invoke(handle, FakeRecord(0), middlewares=[passing]).verdict is verdict


def test_a_skipped_tombstone_is_an_outcome_for_middlewares() -> None:
    """Middlewares see the skip."""

    async def handle(value: bytes) -> None:
        raise AssertionError

    async def passing(call: Call, call_next: CallNext) -> Outcome:
        return await call_next(call)

    outcome = invoke(handle, FakeRecord(0, value=None), middlewares=[passing], tombstones="skip")
    assert outcome.verdict is Verdict.SKIPPED


@pytest.mark.parametrize("async_decoder", [True, False])
def test_a_plain_function_that_returns_an_awaitable_has_not_handled_its_record(async_decoder: bool) -> None:
    """Nothing would await it: the record halts its partition at once, and the message says what to write."""

    async def send(value: bytes) -> None:
        raise AssertionError

    async def decoder(name: str, raw: RawRecord) -> bytes:
        return raw.value or b""

    def handle(value: bytes) -> object:
        return send(value)

    options: dict[str, Any] = {"decoder": decoder} if async_decoder else {}
    with pytest.raises(HandlerError, match="handler handles: returned a coroutine.*async def") as caught:
        invoke(handle, FakeRecord(0), threads=True, name="handles", **options)
    # What is undecodable is never retried, which is what such a handler needs as well.
    assert isinstance(caught.value, DecodeError)


def test_a_returned_awaitable_is_not_passed_over_with_what_cannot_be_decoded() -> None:
    """on_decode_error="skip" says nothing about handlers that do not do their work."""

    async def send() -> None:
        raise AssertionError

    def handle(value: bytes) -> object:
        return send()

    with pytest.raises(HandlerFailedError, match="returned a coroutine"):
        invoke(handle, FakeRecord(0), threads=True, on_decode_error="skip")
