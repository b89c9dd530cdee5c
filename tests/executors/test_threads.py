"""Threads: results, contexts, and a cancellation that waits for the thread's real end."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest

from asyncpar.executors.threads import ThreadExecutor
from tests.executors.lane_rig import wait_on_the_loop

ROOT = Path(__file__).parents[2]
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


async def test_a_cancellation_between_the_end_and_the_news_of_it_loses_no_success() -> None:
    """The thread has ended, the loop knows, and the task that waits has not run yet."""
    executor = ThreadExecutor("test", 1)
    try:
        task = asyncio.create_task(executor.run(lambda: "done"))
        await asyncio.sleep(0)
        wait_on_the_loop(lambda: executor._ended, "the call has ended")
        executor._settle()
        task.cancel()
        assert await asyncio.wait_for(task, 10) == "done"
    finally:
        executor.close()


async def test_what_ends_while_the_loop_is_busy_is_told_at_once() -> None:
    """Of many calls, with one wake-up of the loop."""
    executor = ThreadExecutor("test", 4)
    loop = asyncio.get_running_loop()
    wakes: list[object] = []
    wake = loop.call_soon_threadsafe

    def counting(*what: Any, **how: Any) -> asyncio.Handle:
        wakes.append(what)
        return wake(*what, **how)

    try:
        await asyncio.gather(*[executor.run(lambda: None) for _ in range(4)])
        loop.call_soon_threadsafe = counting  # type: ignore[method-assign]
        calls = [asyncio.create_task(executor.run(lambda: "done")) for _ in range(40)]
        await asyncio.sleep(0)
        wait_on_the_loop(lambda: len(executor._ended) == len(calls), "all have ended")
        assert await asyncio.wait_for(asyncio.gather(*calls), 10) == ["done"] * 40
        assert len(wakes) == 1
    finally:
        loop.call_soon_threadsafe = wake  # type: ignore[method-assign]
        executor.close()


def test_news_that_its_loop_never_heard_hold_up_no_other_loop() -> None:
    """As of an app that runs again after a loop was closed in the middle of its work."""
    executor = ThreadExecutor("test", 2)
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()

    release = threading.Event()

    async def begin() -> asyncio.Task[object]:
        task = first.create_task(executor.run(lambda: release.wait(10)))
        await asyncio.sleep(0)
        return task

    async def again() -> object:
        task = asyncio.create_task(executor.run(lambda: "heard"))
        done, _ = await asyncio.wait({task}, timeout=5)
        assert done
        return task.result()

    try:
        task = first.run_until_complete(begin())
        release.set()
        wait_on_the_loop(lambda: executor._ended, "the call has ended")
        first.close()
        assert second.run_until_complete(again()) == "heard"
        assert not task.done()
    finally:
        executor.close()
        second.close()


def test_an_idle_thread_keeps_no_loop_alive() -> None:
    """Nor what hangs on it."""
    executor, loop = ThreadExecutor("test", 1), asyncio.new_event_loop()
    try:
        assert loop.run_until_complete(executor.run(lambda: "done")) == "done"
        loop.close()
        kept = weakref.ref(loop)
        del loop
        wait_on_the_loop(lambda: gc.collect() is not None and kept() is None, "the loop is freed")
    finally:
        executor.close()


async def test_threads_are_made_when_needed_and_used_again() -> None:
    """One call after the other takes one thread; as many at a time as there are slots, and the rest waits."""
    executor = ThreadExecutor("test", 2)
    names: list[str] = []
    both = threading.Barrier(2)

    def call() -> None:
        both.wait(10)
        names.append(threading.current_thread().name)

    try:
        for _ in range(2):
            assert (await executor.run(lambda: threading.current_thread().name)) == "asyncpar-test_0"
        await asyncio.wait_for(asyncio.gather(*(executor.run(call) for _ in range(4))), 10)
        assert set(names) == {"asyncpar-test_0", "asyncpar-test_1"}
    finally:
        executor.close()


async def test_stop_iteration_is_an_error_like_others() -> None:
    """A coroutine cannot raise it, and a future refuses it: it comes back as a RuntimeError."""
    executor = ThreadExecutor("test", 1)
    try:
        with pytest.raises(RuntimeError, match="StopIteration"):
            await asyncio.wait_for(executor.run(lambda: next(iter(()))), 10)
    finally:
        executor.close()


async def test_closing_cancels_what_waits_and_ends_idle_threads() -> None:
    """What runs is not waited for; nothing is started after it."""
    executor = ThreadExecutor("closing", 1)
    started, release = threading.Event(), threading.Event()

    def call() -> str:
        started.set()
        assert release.wait(10)
        return "done"

    running = asyncio.create_task(executor.run(call))
    try:
        assert await asyncio.to_thread(started.wait, 10)
        waiting = asyncio.create_task(executor.run(lambda: "never"))
        await asyncio.sleep(0)
        executor.close()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(waiting, 10)
        with pytest.raises(RuntimeError, match="closed"):
            await executor.run(lambda: "never")
    finally:
        release.set()
    assert await asyncio.wait_for(running, 10) == "done"
    for thread in threading.enumerate():
        if thread.name.startswith("asyncpar-closing"):
            await asyncio.to_thread(thread.join, 10)
            assert not thread.is_alive()


def test_a_call_that_never_ends_does_not_keep_the_process() -> None:
    """The interpreter ends although a thread hangs, with the loop closed and the executor too."""
    code = """
import asyncio, threading
from asyncpar.executors.threads import ThreadExecutor
from tests.executors.lane_rig import wait_on_the_loop

async def main():
    executor, started = ThreadExecutor("test", 1), threading.Event()
    task = asyncio.create_task(executor.run(lambda: (started.set(), threading.Event().wait())))
    await asyncio.to_thread(started.wait, 10)
    task.cancel()
    await asyncio.sleep(0)
    executor.close()

asyncio.run(main())
print("ended")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, timeout=30, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ended\n", "")


def test_a_call_that_ends_after_its_loop_is_heard_by_nobody() -> None:
    """No traceback of the thread: the loop that it would tell is closed."""
    executor = ThreadExecutor("late", 1)
    started, release = threading.Event(), threading.Event()

    def call() -> None:
        started.set()
        release.wait(10)

    async def main() -> None:
        task = asyncio.create_task(executor.run(call))
        assert await asyncio.to_thread(started.wait, 10)
        task.cancel()
        await asyncio.sleep(0)

    asyncio.run(main())
    executor.close()
    release.set()
    for thread in threading.enumerate():
        if thread.name.startswith("asyncpar-late"):
            thread.join(10)
            assert not thread.is_alive()
