"""How a lane's child starts and ends: what it says when it cannot, what it leaves in order, what it holds."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

import pytest

from asyncpar.executors.lane_child import PRELOAD_VARIABLE
from asyncpar.executors.lane_port import LaneStartError
from tests.executors.lane_rig import (
    MODULE,
    SECONDS,
    Rig,
    batch,
    has_started,
    is_running,
    kill_fork_server,
    let_go,
    rig,
    until,
    work,
)

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (
            {"module": "tests.executors.no_such"},
            "importing tests.executors.no_such.obey raised ModuleNotFoundError: No ",
        ),
        ({"qualname": "no_such"}, f"importing {MODULE}.no_such raised AttributeError: module "),
        (
            {"handler": "another", "qualname": "obey"},
            f"{MODULE}.obey has no @topic of this name in a child process",
        ),
        ({"qualname": "lifespan"}, f"{MODULE}.lifespan has no @topic of this name"),
        ({"lifespan": f"{MODULE}:failing_lifespan"}, "failing_lifespan raised LookupError: no database"),
        ({"lifespan": f"{MODULE}:no_such"}, "no_such raised AttributeError"),
        ({"lifespan": f"{MODULE}:dying_lifespan"}, "its process exited with code 9 before it was ready"),
    ],
)
async def test_a_child_that_cannot_start_says_why(given: dict[str, str], why: str) -> None:
    """One line with the reason, the handler named once, and nothing left running."""
    one = Rig(work(**given), "forkserver")
    with pytest.raises(LaneStartError) as caught:
        await asyncio.wait_for(one.lane.start(), SECONDS)
    text = str(caught.value)
    assert why in text
    assert text.startswith(f"handler {given.get('handler', 'obey')}: its child process did not start: ")
    assert text.count("handler ") == 1
    assert "\n" not in text
    assert one.lane.pid is None
    await one.lane.close(1)
    assert one.told == []


async def test_the_traceback_of_a_failed_start_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """The line names the error, the log shows where it came from."""
    one = Rig(work(lifespan=f"{MODULE}:failing_lifespan"), "forkserver")
    with pytest.raises(LaneStartError):
        await asyncio.wait_for(one.lane.start(), SECONDS)
    assert "child_handlers.py" in caplog.text


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
async def test_a_child_has_the_environment_of_its_parent_now(
    start_method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the one in which the fork server was started, nor what was meant for that one."""
    async with rig(start_method=start_method):
        pass
    monkeypatch.setenv("ASYNCPAR_THUMBNAILS", "here")
    async with rig(start_method=start_method) as one:
        one.lane.send(batch(1, "environment"))
        reply = await one.reply()
    text = str(reply.failures)
    assert "ASYNCPAR_THUMBNAILS=here" in text
    assert PRELOAD_VARIABLE not in text


async def test_a_start_that_the_system_refuses_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process, no socket left behind."""

    def refuse(*_: object) -> None:
        raise OSError("too many processes")

    monkeypatch.setattr("asyncpar.executors.lane.ChildProcess.launch", refuse)
    one = Rig(work(), "forkserver")
    with pytest.raises(LaneStartError, match="did not start: OSError: too many processes"):
        await asyncio.wait_for(one.lane.start(), SECONDS)
    assert one.lane._socket is None


@pytest.mark.parametrize("missing", ["a descriptor", "a thread", "the pool's thread"])
async def test_a_start_for_which_the_system_has_nothing_left_says_so(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket, a thread, or the pool's own: whoever waits is told, and no process stays without work."""
    launched: list[int] = []
    start_thread = threading.Thread.start

    def no_socket() -> NoReturn:
        raise OSError(24, "Too many open files")

    def no_thread(thread: threading.Thread) -> None:
        if missing == "a thread" or type(thread) is not threading.Thread:
            launched.extend(child.pid for child in multiprocessing.active_children() if child.pid)
            raise RuntimeError("can't start new thread")
        start_thread(thread)

    if missing == "a descriptor":
        monkeypatch.setattr(socket, "socketpair", no_socket)
    else:
        monkeypatch.setattr(threading.Thread, "start", no_thread)
    one = Rig(work(), "forkserver")
    with pytest.raises(LaneStartError, match="did not start: (OSError: .*open files|RuntimeError: .*thread)"):
        await asyncio.wait_for(one.lane.start(), SECONDS)
    monkeypatch.undo()
    await until(lambda: not any(is_running(pid) for pid in launched), "the end of what was launched")
    assert bool(launched) is (missing == "the pool's thread")


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
async def test_a_start_that_is_given_up_leaves_nothing(start_method: str) -> None:
    """Cancelled while the child hangs in its lifespan: the child is killed, nothing is told."""
    one = Rig(work(lifespan=f"{MODULE}:hanging_lifespan"), start_method)
    start = asyncio.create_task(one.lane.start())
    await until(lambda: one.lane._child, "the process")
    assert one.lane._child is not None
    pid = one.lane._child.pid
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    await until(lambda: not is_running(pid), "the child's end")
    await one.lane.close(1)
    assert one.told == []


async def test_closing_before_the_child_is_ready_ends_it() -> None:
    """Whoever waits for the start is told that there is none."""
    one = Rig(work(lifespan=f"{MODULE}:hanging_lifespan"), "forkserver")
    start = asyncio.create_task(one.lane.start())
    await until(lambda: one.lane._child, "the process")
    await one.lane.close(SECONDS)
    with pytest.raises(LaneStartError, match="killed by SIGKILL"):
        await start


async def test_a_kill_before_there_is_a_process_reaches_it() -> None:
    """Asked for while the process is being made."""
    one = Rig(work(lifespan=f"{MODULE}:hanging_lifespan"), "forkserver")
    start = asyncio.create_task(one.lane.start())
    await asyncio.sleep(0)
    one.lane.kill()
    with pytest.raises(LaneStartError, match="killed by SIGKILL"):
        await asyncio.wait_for(start, SECONDS)


async def test_closing_what_was_never_started_is_nothing() -> None:
    """No process is made for it."""
    await Rig(work(), "forkserver").lane.close(1)


async def test_the_loop_goes_on_while_a_lane_starts() -> None:
    """A fork server that has to start first takes its time; the loop never stands still for long."""
    kill_fork_server()
    one = Rig(work(), "forkserver")
    longest, ticks, last = 0.0, 0, time.monotonic()
    began = last
    start = asyncio.create_task(one.lane.start())
    while not start.done():
        await asyncio.sleep(0)
        now = time.monotonic()
        longest, ticks, last = max(longest, now - last), ticks + 1, now
    await start
    took = last - began
    await one.lane.close(SECONDS)
    assert ticks > 10
    assert longest < took / 2


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
async def test_a_clean_end_leaves_the_lifespan(start_method: str, caplog: pytest.LogCaptureFixture) -> None:
    """What runs ends first, nothing is told any more, and the process is gone when close returns."""
    async with rig(work(lifespan=f"{MODULE}:lifespan"), start_method) as one:
        one.lane.send(batch(1, "ok"))
        await one.reply()
        one.lane.send(batch(2, "ok"))
        pid = one.lane.pid
        assert pid is not None
        await one.lane.close(SECONDS)
        assert not is_running(pid)
    assert "left" in caplog.messages
    assert one.told[1:] == []


async def test_nothing_more_starts_once_a_lane_closes(tmp_path: Path) -> None:
    """The rest of what was sent is dropped; what runs may end."""
    names = [str(tmp_path / name) for name in "ab"]
    async with rig(work("gated")) as one:
        one.lane.send(batch(1, *names))
        await until(lambda: has_started(names[0]), "the first record")
        closing = asyncio.create_task(one.lane.close(2 * SECONDS))
        await asyncio.sleep(0)
        let_go(names[0])
        let_go(names[1])
        await asyncio.wait_for(closing, SECONDS)
        assert not has_started(names[1])


async def test_a_child_that_its_pool_has_lost_is_killed_once_it_has_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As when the fork server dies at that moment: nobody tells the child to exit, nobody waits for it."""
    async with rig(work(lifespan=f"{MODULE}:lifespan")) as one:
        assert one.lane._child is not None
        pool = one.lane._child._pool
        shut_down = pool.shutdown

        def lose_it() -> None:
            kill_fork_server()
            shut_down()

        monkeypatch.setattr(pool, "shutdown", lose_it)
        await asyncio.wait_for(one.lane.close(2 * SECONDS), SECONDS)
    assert "left" in caplog.messages


async def test_a_lifespan_that_cannot_be_left_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """The child ends all the same."""
    async with rig(work(lifespan=f"{MODULE}:failing_to_leave")) as one:
        await one.lane.close(SECONDS)
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "leaving process_lifespan" in errors[0].message
    assert "no way out" in (errors[0].exc_text or "")


@pytest.mark.parametrize("deed", ["sleep", "hold the lock", "deaf"])
async def test_a_deaf_child_is_killed_in_the_end(deed: str) -> None:
    """It runs on, or never leaves its lifespan: close takes its time and no longer."""
    child = work(lifespan=f"{MODULE}:deaf_lifespan") if deed == "deaf" else work()
    async with rig(child) as one:
        if deed != "deaf":
            one.lane.send(batch(1, deed))
            await one.running()
        pid = one.lane.pid
        assert pid is not None
        await asyncio.wait_for(one.lane.close(0.1), SECONDS)
        assert not is_running(pid)
    assert one.told == []


HEAVY = (
    "aiokafka asyncio asyncpar.app asyncpar.runtime asyncpar.adapters asyncpar.settings "
    "asyncpar.executors.lane asyncpar.executors.threads click concurrent.futures.thread fastapi "
    "prometheus_client pydantic ssl starlette uvicorn"
)


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_a_child_holds_nothing_heavy(start_method: str) -> None:
    """No event loop, no client, no web server is imported for a handler that needs none."""
    code = f"""
import asyncio, sys, time
from asyncpar.executors.lane import ChildWork, lanes
from asyncpar.executors.lane_port import Batch

async def main():
    replies = asyncio.Queue()
    work = ChildWork("tests.executors.trivial_handler", "modules", "modules", "g")
    lane = lanes(work, {start_method!r})(replies.put_nowait, print)
    await lane.start()
    lane.renew_lease(time.monotonic_ns() + 10**12)
    lane.send(Batch(1, [("t", 0, 0, None, {HEAVY!r}.encode(), (), 0, 0, 1, 1)]))
    print(repr((await replies.get()).failures[0].message))
    await lane.close(10)

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, timeout=60, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("''\n", "")
