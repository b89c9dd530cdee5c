"""What a child has told of a batch that has not ended."""

from __future__ import annotations

import logging
import socket

import pytest

from asyncpar.executors.lane_frames import frame
from asyncpar.executors.lane_port import JobFailure
from tests.executors.lane_rig import Rig, batch, rig, wait_on_the_loop, work


async def test_failures_of_a_batch_that_runs_are_known_as_soon_as_the_next_record_runs() -> None:
    """Also when the loop has not looked: what the progress shows to be over is known in full."""
    async with rig() as child:
        child.lane.send(batch(1, "ok", "fail", "skip", "sleep"))
        wait_on_the_loop(
            lambda: (at := child.lane.progress()) is not None and at.index == 3, "the last record runs"
        )
        told = child.lane.told(1)
        assert {index: failure.kind for index, failure in told.items()} == {1: "failed", 2: "skipped"}
        assert child.lane.told(2) == {}
        assert child.replies == []
        child.lane.kill()
        assert (await child.death()).failures == told


async def test_a_reply_that_has_come_meanwhile_is_told_first() -> None:
    """Its failures come with it, and once only."""
    async with rig() as child:
        child.lane.send(batch(1, "fail"))
        child.lane.send(batch(2, "nap", "sleep"))
        wait_on_the_loop(
            lambda: (at := child.lane.progress()) is not None and at.number == 2, "the next batch runs"
        )
        assert child.lane.told(1) == {}
        [reply] = child.replies
        assert set(reply.failures) == {0}
        child.lane.kill()
        await child.death()


async def test_what_is_told_has_an_end_although_the_child_logs_on_and_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it had sent when it was asked is read, and not what it sends meanwhile."""
    line = frame(("log", logging.makeLogRecord({"name": "tests.child", "msg": "more"}).__dict__))
    heard: list[object] = []
    ours, theirs = socket.socketpair()

    def one_more(record: object) -> None:
        heard.append(record)
        assert len(heard) < 100, "it reads for as long as something comes"
        theirs.sendall(line)

    monkeypatch.setattr("asyncpar.executors.lane.log_here", one_more)
    lane = Rig(work(), "forkserver").lane
    with ours, theirs:
        ours.setblocking(False)
        lane._socket = ours
        theirs.sendall(frame(("failure", 1, 0, tuple(JobFailure("failed", (), "no", "")))) + line)
        assert set(lane.told(1)) == {0}
    assert len(heard) == 1


async def test_nothing_is_told_of_a_child_that_has_gone() -> None:
    """To ask is no error."""
    async with rig() as child:
        child.lane.kill()
        await child.death()
        assert child.lane.told(1) == {}
