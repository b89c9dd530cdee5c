"""How a lane's child dies, and what is known of it then: which job ran, what was told before."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from pathlib import Path
from typing import NoReturn

import pytest

from asyncpar.executors.lane_port import Death, LaneStartError, Reply
from asyncpar.executors.lane_process import ChildProcess
from tests.executors.lane_rig import (
    SECONDS,
    Rig,
    batch,
    is_running,
    kill_fork_server,
    let_go,
    rig,
    until,
    wait_on_the_loop,
    work,
)


@pytest.mark.parametrize("index", range(6))
async def test_a_crash_at_any_record_of_a_batch_is_told_with_its_index(index: int) -> None:
    """Those before it have run, and what failed of them was told; the batch before has its reply."""
    values = ["fail" if at % 2 else "ok" for at in range(6)]
    values[index] = "kill"
    async with rig() as one:
        one.lane.send(batch(1, "ok"))
        one.lane.send(batch(2, *values))
        death = await one.death()
        assert [type(told) for told in one.told] == [Reply, Death]
        assert (death.how, death.number, death.index) == ("killed by SIGKILL", 2, index)
        assert list(death.failures) == [at for at in range(index) if at % 2]
        assert one.lane.pid is not None
        assert not is_running(one.lane.pid)


@pytest.mark.parametrize(
    ("deed", "how"),
    [("os exit", "exited with code 3"), ("segfault", "killed by SIGSEGV"), ("kill", "killed by SIGKILL")],
)
@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
async def test_a_death_says_how(deed: str, how: str, start_method: str) -> None:
    """An exit code or the name of a signal."""
    async with rig(start_method=start_method) as one:
        one.lane.send(batch(1, deed))
        assert (await one.death()).how == how


@pytest.mark.parametrize("deed", ["spin", "sleep", "hold the lock"])
async def test_whatever_it_is_doing_it_can_be_killed(deed: str) -> None:
    """A loop in Python, a sleep, and C code that holds the interpreter's lock."""
    async with rig() as one:
        one.lane.send(batch(1, "ok", deed, "ok"))
        await one.running(1, 1)
        one.lane.kill()
        assert await one.death() == Death("killed by SIGKILL", 1, 1, {})


@pytest.mark.parametrize("is_hasty", [False, True])
async def test_a_reply_in_the_buffer_counts_although_its_child_is_dead(
    is_hasty: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop is held up until the child has died: the reply is heard first, the torn rest is not.

    Also where reading takes many rounds, and nothing else takes time.
    """
    if is_hasty:
        monkeypatch.setattr("asyncpar.executors.lane._BYTES_AT_ONCE", 7)
        monkeypatch.setattr(ChildProcess, "release", _release_at_once)
    async with rig() as one:
        assert one.lane.pid is not None
        one.lane.send(batch(1, "ok", "fail"))
        one.lane.send(batch(2, "fail", "torn reply"))
        wait_on_the_loop(lambda: not is_running(one.lane.pid or 0), "the child's death")
        death = await one.death()
        first, _ = one.told
        assert isinstance(first, Reply)
        assert (first.number, first.run, list(first.failures)) == (1, 2, [1])
        assert (death.how, death.number, death.index, list(death.failures)) == (
            "exited with code 5",
            2,
            1,
            [0],
        )


async def _release_at_once(child: ChildProcess) -> str:
    child._end_pool()
    return "exited with code 5"


async def test_a_child_that_dies_with_nothing_running_blames_no_job() -> None:
    """Killed from outside between batches."""
    async with rig() as one:
        one.lane.send(batch(1, "ok"))
        await one.reply()
        await one.at_rest()
        assert one.lane.pid is not None
        os.kill(one.lane.pid, signal.SIGKILL)
        assert await one.death() == Death("killed by SIGKILL", 0, 0, {})


async def test_a_lane_whose_idle_child_was_killed_closes_at_once() -> None:
    """Before its death is known: nobody waits for a word of it, however much time there is."""
    async with rig() as one:
        one.lane.send(batch(1, "ok"))
        await one.reply()
        assert one.lane.pid is not None
        os.kill(one.lane.pid, signal.SIGKILL)
        await asyncio.wait_for(one.lane.close(2 * SECONDS), SECONDS)
        assert not is_running(one.lane.pid)


@pytest.mark.parametrize("deed", ["close everything", "nonsense"])
async def test_a_child_that_cannot_be_talked_to_is_killed(
    deed: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It has closed its socket, or says what makes no sense: its process is ended, then its death is told."""
    async with rig() as one:
        one.lane.send(batch(1, "ok", deed))
        assert await one.death() == Death("killed by SIGKILL", 1, 1, {})
        errors = [record.message for record in caplog.records if record.levelno == logging.ERROR]
        assert len(errors) == (deed == "nonsense")


async def test_a_death_is_told_although_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that waits for the pool would know more; that the process is gone is known without it."""

    def refuse(_: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    async with rig() as one:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        one.lane.kill()
        assert await one.death() == Death("ended, nobody knows how", 0, 0, {})
        monkeypatch.undo()


async def test_to_send_to_a_dead_child_is_nothing() -> None:
    """Its death is told all the same, once; later calls do nothing."""
    async with rig() as one:
        one.lane.kill()
        one.lane.send(batch(1, "ok"))
        await one.death()
        one.lane.send(batch(2, "ok"))
        one.lane.kill()
        await one.lane.close(1)
        assert len(one.told) == 1


async def _kill_fork_server(one: Rig) -> None:
    """Until the pool believes that its process has died."""
    kill_fork_server()
    child = one.lane._child
    assert child is not None
    await until(lambda: child._pool._broken, "the pool to break")


async def test_a_lane_outlives_its_fork_server(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The pool takes the child for dead, and it lives: nothing is told; it works on, and leaves in order."""
    name = str(tmp_path / "a")
    async with rig(work("gated", lifespan="tests.executors.child_handlers:lifespan")) as one:
        one.lane.send(batch(1, name))
        await one.running()
        await _kill_fork_server(one)
        assert not one.deaths
        let_go(name)
        assert (await one.reply()).run == 1
        one.lane.send(batch(2, name))
        assert (await one.reply()).run == 1
        assert one.lane.pid is not None
        await asyncio.wait_for(one.lane.close(2 * SECONDS), SECONDS)
        assert not is_running(one.lane.pid)
        assert "left" in caplog.messages


@pytest.mark.parametrize("has_pidfd", [True, False])
async def test_a_death_without_a_fork_server_is_told_when_it_is_certain(
    has_pidfd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows the exit code then, but that the process is gone is known."""
    if not has_pidfd:
        monkeypatch.delattr(os, "pidfd_open")
    async with rig() as one:
        one.lane.send(batch(1, "ok", "spin"))
        await one.running(1, 1)
        assert one.lane.pid is not None
        await _kill_fork_server(one)
        if has_pidfd:
            one.lane.kill()
        death = await one.death()
        assert not is_running(one.lane.pid)
        assert death == Death("ended, nobody knows how", 1, 1, {})


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
async def test_without_pidfds_deaths_are_told_too(start_method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS: a crash, and a kill."""
    monkeypatch.delattr(os, "pidfd_open")
    for deed, how in (("os exit", "exited with code 3"), ("spin", "killed by SIGKILL")):
        async with rig(start_method=start_method) as one:
            one.lane.send(batch(1, "ok", deed))
            if deed == "spin":
                await one.running(1, 1)
                one.lane.kill()
            assert await one.death() == Death(how, 1, 1, {})
            assert one.lane.pid is not None
            assert not is_running(one.lane.pid)


async def test_a_lane_can_be_started_after_the_fork_server_was_killed() -> None:
    """At once, or by the second attempt: a new fork server takes its place."""
    async with rig() as one:
        await _kill_fork_server(one)
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                async with rig() as one:
                    one.lane.send(batch(1, "ok"))
                    assert (await one.reply()).run == 1
                break
            except LaneStartError:
                await asyncio.sleep(0.01)
