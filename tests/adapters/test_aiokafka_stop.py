"""Closing a client that misbehaves, without a broker."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asyncpar.adapters.aiokafka_stop import close_consumer


class Transport:
    def __init__(self) -> None:
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True


class Client:
    """A consumer and its inside in one; each step of its end does what the test says."""

    def __init__(self, leave: Any = None, stop: Any = None, close: Any = None) -> None:
        self.steps: list[str] = []
        self.what = {"leave": leave, "stop": stop, "close": close}
        self.tasks: list[asyncio.Task[Any]] = []
        self.transport = Transport()
        self.stopping = asyncio.Event()

    async def _do(self, step: str) -> None:
        self.steps.append(step)
        what = self.what[step]
        if what == "hang":
            await asyncio.Event().wait()
        if what == "swallow one cancellation":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await asyncio.Event().wait()
        if isinstance(what, BaseException):
            raise what

    async def leave(self) -> None:
        await self._do("leave")

    async def stop(self) -> None:
        self.stopping.set()
        await self._do("stop")

    async def close_client(self) -> None:
        await self._do("close")

    def background_tasks(self) -> list[asyncio.Task[Any]]:
        return [task for task in self.tasks if not task.done()]

    def abort(self) -> None:
        self.steps.append("abort")
        for task in self.background_tasks():
            task.cancel()
        self.transport.abort()

    def release_fetch(self) -> None:
        self.steps.append("release")


async def close(client: Client, leave: bool = True, timeout_s: float = 0.6) -> float:
    loop = asyncio.get_running_loop()
    begin = loop.time()
    await asyncio.wait_for(close_consumer(client, client, leave, timeout_s), 5)  # type: ignore[arg-type]
    return loop.time() - begin


async def test_the_order_of_an_end() -> None:
    """Leave first, then stop, then close, then cut what is left."""
    client = Client()
    await close(client)
    assert client.steps == ["leave", "stop", "close", "abort", "release"]


async def test_a_static_member_does_not_leave() -> None:
    """With `leave` false no LeaveGroup is sent."""
    client = Client()
    await close(client, leave=False)
    assert client.steps == ["stop", "close", "abort", "release"]


@pytest.mark.parametrize(
    "what", ["hang", asyncio.CancelledError(), RuntimeError("x"), "swallow one cancellation"]
)
@pytest.mark.parametrize("step", ["leave", "stop", "close"])
async def test_no_step_can_hold_up_the_end(step: str, what: Any) -> None:
    """Whatever a step does, the end comes in time, raises nothing, and sockets are cut."""
    client = Client(**{step: what})
    before = asyncio.all_tasks()
    assert await close(client) < 1.0
    assert client.steps[-2:] == ["abort", "release"]
    assert client.transport.aborted
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_background_tasks_are_cancelled() -> None:
    """Tasks of the client that its own stop() left behind end with it."""
    client = Client(stop=asyncio.CancelledError())
    client.tasks = [asyncio.create_task(asyncio.Event().wait())]
    await close(client)
    assert client.tasks[0].cancelled()


async def test_a_cancelled_end_still_cuts() -> None:
    """A second signal cancels the stop itself: tasks and sockets go all the same."""
    client = Client(stop="hang")
    before = asyncio.all_tasks()
    client.tasks = [asyncio.create_task(asyncio.Event().wait())]
    task = asyncio.create_task(close_consumer(client, client, True, 30))  # type: ignore[arg-type]
    await asyncio.wait_for(client.stopping.wait(), 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert client.transport.aborted
    await asyncio.wait(client.tasks, timeout=1)
    assert client.tasks[0].cancelled()
    assert asyncio.all_tasks() == before
