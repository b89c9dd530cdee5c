"""Modelled lanes: they keep what the lane port promises, and fail as they are asked to."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Literal

import pytest

import asyncpar
from asyncpar.context import heartbeat
from asyncpar.executors.lane_port import Batch, Death, Job, JobFailure, LaneStartError, Progress, Reply
from asyncpar.testing.modelled_lanes import JobFault, LaneFaults, ModelledLane, ModelledLanes
from asyncpar.testing.virtual_time import MEMBER, run_virtually
from tests.testing.virtually import loop, now, until, virtually

FOR_EVER = 1 << 62
FAILURE = JobFailure("failed", ("builtins.ValueError",), "no", "")


def job(offset: int) -> Job:
    return Job("t", 0, offset, None, b"v", (), 0, 0, 1, 1)


def batch(number: int, *offsets: int) -> Batch:
    return Batch(number, [job(offset) for offset in offsets])


class Faults(LaneFaults):
    def __init__(self) -> None:
        self.job: dict[int, JobFault] = {}
        self.reply: float | Literal["torn"] = 0.0
        self.start: str | None = None

    def of_start(self) -> str | None:
        return self.start

    def of_job(self, job: Job) -> JobFault | None:
        return self.job.get(job.offset)

    def of_reply(self, batch: Batch) -> float | Literal["torn"]:
        return self.reply


class Bench:
    """One lane under test, and what it said. Each record takes a second, and fails at offset 13."""

    def __init__(self, *, timeout_ms: int | None = None) -> None:
        self.faults = Faults()
        self.said: list[Reply | Death] = []
        self.started: list[int] = []
        self.ended: list[int] = []
        self.lanes = ModelledLanes(self._run, self.faults, timeout_ms=timeout_ms)

    async def _run(self, job: Job) -> JobFailure | None:
        self.started.append(job.offset)
        await asyncio.sleep(1)
        self.ended.append(job.offset)
        return FAILURE if job.offset == 13 else None

    async def lane(self) -> ModelledLane:
        lane = self.lanes(self.said.append, self.said.append)
        await lane.start()
        lane.renew_lease(FOR_EVER)
        return lane


@virtually
async def test_batches_run_one_after_the_other_and_are_replied_to_in_order() -> None:
    """With what failed, by index, and the time that the handler took."""
    bench = Bench()
    lane = await bench.lane()
    lane.send(batch(1, 12, 13))
    lane.send(batch(2, 14))
    await until(lambda: len(bench.said) == 2)
    first, second = bench.said
    assert isinstance(first, Reply)
    assert first[:3] == (1, 2, {1: FAILURE})
    assert first.seconds == pytest.approx(2.0, abs=0.001)
    assert second[:3] == (2, 1, {})
    assert lane.progress() is None


@virtually
async def test_progress_is_what_runs() -> None:
    """Batch, index, and since when; behind the last one while the reply is still to come."""
    bench = Bench()
    bench.faults.reply = 5.0
    lane = await bench.lane()
    assert lane.progress() is None
    began = now()
    lane.send(batch(7, 1, 2))
    await asyncio.sleep(1.5)
    progress = lane.progress()
    assert isinstance(progress, Progress)
    assert (progress.number, progress.index, progress.extended_ns) == (7, 1, 0)
    assert progress.started_ns / 1e9 == pytest.approx(began + 1, abs=0.001)
    await asyncio.sleep(2)
    assert lane.progress()[:2] == (7, 2)  # type: ignore[index]
    assert bench.said == []
    await asyncio.sleep(4)
    assert len(bench.said) == 1
    assert lane.progress() is None


@virtually
async def test_nothing_starts_of_batches_below_the_stop_word() -> None:
    """What runs runs on; a later batch is not meant."""
    bench = Bench()
    lane = await bench.lane()
    for number, offset in ((1, 10), (2, 20), (3, 30)):
        lane.send(batch(number, offset, offset + 1))
    await asyncio.sleep(0.5)
    lane.stop_before(3)
    await until(lambda: len(bench.said) == 3)
    assert [reply[:2] for reply in bench.said] == [(1, 1), (2, 0), (3, 2)]
    assert bench.started == [10, 30, 31]


@virtually
async def test_nothing_starts_without_a_lease() -> None:
    """Past it, and before it was ever written."""
    bench = Bench()
    lane = await bench.lane()
    lane.renew_lease(int((now() + 1.5) * 1e9))
    lane.send(batch(1, 1, 2, 3))
    await until(lambda: bench.said)
    assert [reply[:2] for reply in bench.said] == [(1, 2)]
    other = bench.lanes(bench.said.append, bench.said.append)
    await other.start()
    other.send(batch(1, 9))
    await until(lambda: len(bench.said) == 2)
    assert 9 not in bench.started


@pytest.mark.parametrize(
    ("fault", "ended"), [("crash_before", [13]), ("crash_after", [13, 14]), ("hang", [13])]
)
def test_a_fault_at_a_record(fault: JobFault, ended: list[int]) -> None:
    """The child dies at it, with what it had told before; or it stays at it until it is killed."""

    @virtually
    async def test() -> None:
        bench = Bench()
        bench.faults.job[14] = fault
        lane = await bench.lane()
        lane.send(batch(1, 13, 14, 15))
        await asyncio.sleep(10)
        if fault == "hang":
            assert bench.said == []
            lane.kill()
            await asyncio.sleep(1)
        how = "killed by SIGKILL" if fault == "hang" else "killed by SIGSEGV"
        assert bench.said == [Death(how, 1, 1, {0: FAILURE})]
        assert bench.ended == ended
        assert lane.is_dead

    test()


@virtually
async def test_a_torn_reply_is_a_death_behind_the_last_record() -> None:
    """The reply is never heard."""
    bench = Bench()
    bench.faults.reply = "torn"
    lane = await bench.lane()
    lane.send(batch(1, 1, 13))
    await until(lambda: bench.said)
    assert bench.said == [Death("killed by SIGKILL", 1, 2, {1: FAILURE})]
    assert lane.is_dead


@virtually
async def test_a_killed_child_does_nothing_more_and_is_told_of_once() -> None:
    """Idle or not, killed twice or not."""
    bench = Bench()
    busy, idle = await bench.lane(), await bench.lane()
    busy.send(batch(1, 1))
    await asyncio.sleep(0.5)
    for lane in (busy, idle):
        lane.kill()
        lane.kill()
    assert bench.said == []
    await asyncio.sleep(5)
    assert bench.said == [Death("killed by SIGKILL", 1, 0, {}), Death("killed by SIGKILL", 0, 0, {})]
    assert bench.ended == []


@virtually
async def test_a_child_that_cannot_start_says_why() -> None:
    """And is dead."""
    bench = Bench()
    bench.faults.start = "no memory"
    lane = bench.lanes(bench.said.append, bench.said.append)
    with pytest.raises(LaneStartError, match="no memory"):
        await lane.start()
    assert lane.is_dead
    await lane.close(1.0)


@virtually
async def test_closing_waits_for_what_runs_and_then_kills() -> None:
    """Nothing more starts, nothing is told any more, in the time that is given."""
    bench = Bench()
    patient, hasty = await bench.lane(), await bench.lane()
    for lane, offset in ((patient, 1), (hasty, 3)):
        lane.send(batch(1, offset, offset + 1))
    await asyncio.sleep(0.5)
    began = now()
    await asyncio.gather(patient.close(10), hasty.close(0.1))
    assert now() - began == pytest.approx(0.5, abs=0.01)
    await asyncio.sleep(10)
    assert (sorted(bench.started), bench.ended, bench.said) == ([1, 3], [1], [])
    assert patient.is_dead
    assert hasty.is_dead


@virtually
async def test_closing_before_the_child_is_ready_keeps_it_from_starting() -> None:
    """Its start fails."""
    bench = Bench()
    lane = bench.lanes(bench.said.append, bench.said.append)
    start = asyncio.create_task(lane.start())
    await asyncio.sleep(0)
    await lane.close(1.0)
    with pytest.raises(LaneStartError, match="closed"):
        await start


@virtually
async def test_a_frozen_child_goes_on_when_it_is_thawed_and_dies_when_it_is_killed() -> None:
    """As under SIGSTOP; what others read of it is as it was."""
    bench = Bench()
    lane, doomed = await bench.lane(), await bench.lane()
    lane.send(batch(1, 1))
    doomed.send(batch(1, 2))
    await asyncio.sleep(0.5)
    lane.freeze()
    doomed.freeze()
    await asyncio.sleep(10)
    assert bench.said == []
    assert lane.progress()[:2] == (1, 0)  # type: ignore[index]
    lane.thaw()
    doomed.kill()
    await asyncio.sleep(1)
    assert sorted(type(said).__name__ for said in bench.said) == ["Death", "Reply"]
    assert bench.ended == [1]


def test_a_child_runs_on_while_its_parent_is_frozen() -> None:
    """It is a process of its own: the parent hears of it when it wakes."""

    async def main() -> None:
        bench = Bench()

        async def parent() -> ModelledLane:
            lane = await bench.lane()
            lane.send(batch(1, 1))
            return lane

        await asyncio.create_task(parent(), context=loop().context_of("m1"))
        loop().freeze("m1")
        await asyncio.sleep(5)
        assert (bench.ended, bench.said) == ([1], [])
        loop().thaw("m1")
        await asyncio.sleep(0.01)
        assert len(bench.said) == 1

    run_virtually(main)


@virtually
async def test_orphans_end_and_tell_nobody() -> None:
    """Their parent was killed."""
    bench = Bench()
    lane = await bench.lane()
    lane.send(batch(1, 1))
    await asyncio.sleep(0.5)
    bench.lanes.orphan()
    await asyncio.sleep(5)
    assert (bench.ended, bench.said, lane.is_dead) == ([], [], True)


@virtually
async def test_a_handler_may_ask_for_time() -> None:
    """`extend()` and `heartbeat()` reach the progress of their own lane; the longest counts."""
    bench = Bench(timeout_ms=5_000)
    members: list[str] = []

    async def run(job: Job) -> None:
        members.append(MEMBER.get())
        if job.offset != 3:
            heartbeat()
        if job.offset == 1:
            asyncpar.extend(9_000)
            heartbeat()
        await asyncio.sleep(1)

    bench.lanes.run = run
    lane = await bench.lane()
    lane.send(batch(1, 1, 2, 3))
    began = now()
    extended = []
    for _ in range(3):
        await asyncio.sleep(0.5)
        progress = lane.progress()
        assert progress is not None
        extended.append(progress.extended_ns / 1e9)
        await asyncio.sleep(0.5001)
    assert extended == pytest.approx([began + 9, began + 1 + 5, 0.0], abs=0.01)
    assert set(members) == {"/child-1"}
    assert MEMBER.get() == ""
    assert contextvars.copy_context().get(MEMBER) is None
