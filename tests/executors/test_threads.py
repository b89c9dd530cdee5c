"""Threads: results, contexts, and a cancellation that waits for the thread's real end."""

from __future__ import annotations

import asyncio
import contextvars
import threading

import pytest

from asyncpar.executors.threads import ThreadExecutor

TENANT: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")


async def test_results_and_exceptions_come_back() -> None:
    """What the function returns or raises is what the caller gets."""
    executor = ThreadExecutor("test", 1)

    def fails() -> None:
        raise ValueError("no")

    try:
        assert await executor.run(lambda: 42) == 42
        with pytest.raises(ValueError, match="no"):
            await executor.run(fails)
    finally:
        executor.close()


async def test_the_callers_context_is_seen_and_not_changed() -> None:
    """A context variable reaches the thread; what the thread sets stays there."""
    executor = ThreadExecutor("test", 1)
    TENANT.set("acme")
    seen: list[str] = []

    def call() -> None:
        seen.append(TENANT.get())
        TENANT.set("changed")

    try:
        await executor.run(call)
    finally:
        executor.close()
    assert seen == ["acme"]
    assert TENANT.get() == "acme"


async def test_a_cancelled_call_ends_when_its_thread_ends_and_its_success_counts() -> None:
    """The first cancel is put off: the key stays locked until the thread is done."""
    executor = ThreadExecutor("test", 1)
    started, release = threading.Event(), threading.Event()

    def call() -> str:
        started.set()
        assert release.wait(10)
        return "done"

    try:
        task = asyncio.create_task(executor.run(call))
        assert await asyncio.to_thread(started.wait, 10)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=0.05)
        assert not done
        release.set()
        assert await asyncio.wait_for(task, 10) == "done"
    finally:
        release.set()
        executor.close()


async def test_a_second_cancellation_gives_up_waiting() -> None:
    """A host that ends its loop is not held up for ever."""
    executor = ThreadExecutor("test", 1)
    started, release = threading.Event(), threading.Event()

    def call() -> None:
        started.set()
        release.wait(10)

    try:
        task = asyncio.create_task(executor.run(call))
        assert await asyncio.to_thread(started.wait, 10)
        for _ in range(2):
            task.cancel()
            await asyncio.wait({task}, timeout=0.02)
        with pytest.raises(asyncio.CancelledError):
            await task
    finally:
        release.set()
        executor.close()
