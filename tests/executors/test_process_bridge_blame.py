"""The process bridge: who is at fault when a child dies, hangs or says nothing; on modelled lanes."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref

import pytest

import asyncpar
from asyncpar.errors import RemoteHandlerError, WorkerDiedError
from asyncpar.executors import process_outcomes
from tests.executors.bridge_world import TOPIC, Raw, World, ends, failed
from tests.testing.virtually import now, until, virtually

RECORDS = 5


@pytest.mark.parametrize("when", ["crash_before", "crash_after"])
@pytest.mark.parametrize("index", range(RECORDS))
def test_a_crash_is_the_fault_of_the_record_that_ran(index: int, when: str) -> None:
    """What ran before it is settled as it ended; what lies behind it comes back free of charge."""

    @virtually
    async def test() -> None:
        async with World(batch_size=RECORDS, max_batch_wait_ms=0) as world:
            await world.warm()
            world.faults.jobs[index].append(when)  # type: ignore[arg-type]
            world.failures[0] = failed()
            calls = world.run(*range(RECORDS), 90, 91)
            before = ["RemoteHandlerError", "ok", "ok", "ok"][:index]
            after = ["NotStartedError"] * (len(calls) - index - 1)
            assert await ends(*calls) == [*before, "WorkerDiedError", *after]
            with pytest.raises(WorkerDiedError, match=rf"t\[0\] offset {index}: killed by SIGSEGV") as caught:
                calls[index].result()
            assert not caught.value.is_final
            assert world.bridge.statistics.blamed == {"crash": 1, "timeout": 0}

    test()


@virtually
async def test_two_children_that_die_at_once_blame_a_record_each() -> None:
    """Neither death is taken for the other's, and both lanes are back."""
    async with World(lanes=2) as world:
        await world.warm()
        world.faults.jobs[1].append("crash_before")
        world.faults.jobs[6].append("crash_before")
        world.seconds[0] = 0.02  # so that both are at it at the same moment
        calls = world.run(*range(8))
        first = ["ok", "WorkerDiedError", "NotStartedError", "NotStartedError"]
        assert await ends(*calls) == [*first, "ok", "ok", "WorkerDiedError", "NotStartedError"]
        for offset, call in ((1, calls[1]), (6, calls[6])):
            with pytest.raises(WorkerDiedError, match=f"offset {offset}: killed by SIGSEGV"):
                call.result()
        await asyncio.sleep(0.1)
        statistics = world.bridge.statistics
        assert (statistics.lanes, statistics.restarts, statistics.blamed["crash"]) == (2, 2, 2)


@virtually
async def test_the_second_crash_of_a_record_is_final_and_says_both() -> None:
    """Also when others ran in between, and in another child."""
    async with World() as world:
        world.faults.jobs[1].extend(["crash_before", "crash_before"])
        assert await ends(*world.run(1)) == ["WorkerDiedError"]
        assert await ends(*world.run(2)) == ["ok"]
        [call] = world.run(1)
        assert await ends(call) == ["WorkerDiedError"]
        error = call.exception()
        assert isinstance(error, WorkerDiedError)
        assert error.is_final
        assert "second time: killed by SIGSEGV (before: killed by SIGSEGV)" in str(error)


@virtually
async def test_a_crash_is_forgotten_when_the_record_ends_otherwise() -> None:
    """By a success, a failure of its own, or its time; not by coming back unrun."""
    async with World(timeout_ms=1000) as world:
        for ending in ("ok", "RemoteHandlerError", "HandlerTimeoutError"):
            world.faults.jobs[1].append("crash_before")
            assert await ends(*world.run(1)) == ["WorkerDiedError"]
            if ending == "RemoteHandlerError":
                world.failures[1] = failed()
            if ending == "HandlerTimeoutError":
                world.faults.jobs[1].append("hang")
            assert await ends(*world.run(1)) == [ending]
            world.faults.jobs[1].append("crash_before")
            [call] = world.run(1)
            await ends(call)
            error = call.exception()
            assert isinstance(error, WorkerDiedError)
            assert not error.is_final
            world.failures.clear()
            assert await ends(*world.run(1)) == ["ok"]


@virtually
async def test_a_record_that_came_back_unrun_keeps_its_crash() -> None:
    """That it was cut off by somebody else's fault says nothing of it."""
    async with World() as world:
        world.faults.jobs[1].extend(["crash_before", "crash_before"])
        await ends(*world.run(1))
        world.faults.jobs[0].append("crash_before")
        world.seconds[-1] = 0.0
        await world.warm()
        assert await ends(*world.run(0, 1)) == ["WorkerDiedError", "NotStartedError"]
        [call] = world.run(1)
        await ends(call)
        assert call.exception().is_final  # type: ignore[union-attr]


def test_what_is_remembered_of_crashes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest is forgotten: it would need three crashes."""
    monkeypatch.setattr(process_outcomes, "_CRASHES_REMEMBERED", 2)

    @virtually
    async def test() -> None:
        async with World() as world:
            finals = []
            for offset in (1, 2, 3, 3, 1):
                world.faults.jobs[offset].append("crash_before")
                [call] = world.run(offset)
                await ends(call)
                finals.append(call.exception().is_final)  # type: ignore[union-attr]
            assert finals == [False, False, False, True, False]

    test()


@virtually
async def test_a_death_with_nothing_running_is_nobodys_fault() -> None:
    """Somebody else killed an idle child; or one that stood between two records."""
    async with World() as world:
        await world.warm()
        world.faults.replies[1] = 5.0
        calls = world.run(1, 2)
        await until(lambda: world.ended == [1, 2])
        world.lane._progress = None
        world.lane.die("killed by SIGKILL")
        assert await ends(*calls) == ["NotStartedError"] * 2
        assert sum(world.bridge.statistics.blamed.values()) == 0


@virtually
async def test_a_failure_that_was_told_is_the_records_end_also_if_the_child_dies_at_it() -> None:
    """It failed, and then the child died before it went on: nobody crashed it."""
    async with World() as world:
        await world.warm()
        world.seconds[2] = 5
        calls = world.run(1, 2)
        await until(lambda: world.started == [1, 2])
        world.lane._failures[1] = failed()
        world.lane.die("killed by SIGKILL")
        assert await ends(*calls) == ["ok", "RemoteHandlerError"]
        assert sum(world.bridge.statistics.blamed.values()) == 0


@virtually
async def test_a_torn_reply_loses_nothing() -> None:
    """The child stood behind its last record: all had ended, as it had told."""
    async with World() as world:
        await world.warm()
        world.failures[1] = failed()
        world.faults.replies[1] = "torn"
        assert await ends(*world.run(1, 2, 3)) == ["RemoteHandlerError", "ok", "ok"]
        assert world.bridge.statistics.restarts == 0  # not yet
        assert await ends(*world.run(4)) == ["ok"]
        assert world.bridge.statistics.restarts == 1


@virtually
async def test_a_late_reply_is_waited_for() -> None:
    """What ran has ended, whenever that is heard."""
    async with World(timeout_ms=1000) as world:
        await world.warm()
        world.faults.replies[1] = 7.0
        assert await ends(*world.run(1, 2)) == ["ok", "ok"]
        assert world.bridge.statistics.restarts == 0


# -- time ----------------------------------------------------------------------------------------


@virtually
async def test_a_record_past_its_time_ends_with_its_child() -> None:
    """It alone is at fault; it had all of its time, however long it waited before."""
    async with World(timeout_ms=300) as world:
        await world.warm()
        world.seconds[1] = 0.25
        world.faults.jobs[2].append("hang")
        calls = world.run(1, 2, 3)
        began = now()
        assert await ends(*calls) == ["ok", "HandlerTimeoutError", "NotStartedError"]
        assert 0.55 < now() - began < 0.65
        statistics = world.bridge.statistics
        assert (statistics.blamed, statistics.kills["timeout"]) == ({"crash": 0, "timeout": 1}, 1)


@virtually
async def test_a_record_that_ends_as_it_is_killed_for_its_time_counts() -> None:
    """The next one was cut off by our kill: it is not blamed for it."""
    async with World(timeout_ms=300) as world:
        await world.warm()
        world.seconds[1] = 0.4
        lane = world.lane
        kill = lane.kill
        lane.kill = lambda: asyncio.get_running_loop().call_later(0.12, kill)  # type: ignore[assignment,method-assign]
        world.seconds[2] = 5
        calls = world.run(1, 2)
        assert await ends(*calls) == ["ok", "NotStartedError"]
        assert world.bridge.statistics.blamed == {"crash": 0, "timeout": 0}


@virtually
async def test_a_heartbeat_and_an_extension_give_more_time() -> None:
    """Counted from when they were asked for."""
    async with World(timeout_ms=300) as world:
        world.seconds.update({1: 2.0, 2: 2.5, 3: 0.5})
        world.actions[1] = lambda: asyncpar.extend(3000)
        world.actions[2] = lambda: asyncpar.extend(1000)
        world.actions[3] = lambda: asyncio.get_running_loop().call_later(0.25, asyncpar.heartbeat)
        began = now()
        assert await ends(*world.run(1)) == ["ok"]
        assert await ends(*world.run(2)) == ["HandlerTimeoutError"]
        assert 3.0 < now() - began < 3.2
        assert await ends(*world.run(3)) == ["ok"]


@virtually
async def test_without_a_time_limit_a_record_may_run_for_ever() -> None:
    """Only a cancellation or the end of the bridge ends it."""
    async with World() as world:
        world.seconds[1] = 250
        assert await ends(*world.run(1)) == ["ok"]


@virtually
async def test_a_child_that_has_work_and_does_nothing_is_ended() -> None:
    """Frozen, or stuck in our own code: after ten seconds, by nobody's fault."""
    async with World() as world:
        await world.warm()
        world.lane.freeze()
        calls = world.run(1, 2)
        began = now()
        assert await ends(*calls) == ["NotStartedError"] * 2
        assert 10 < now() - began < 10.5
        statistics = world.bridge.statistics
        assert (statistics.kills["stuck"], sum(statistics.blamed.values())) == (1, 0)


@virtually
async def test_a_child_that_is_frozen_for_a_while_goes_on() -> None:
    """Its records are neither lost nor blamed."""
    async with World() as world:
        await world.warm()
        calls = world.run(1, 2, 3)
        await asyncio.sleep(0.015)
        world.lane.freeze()
        await asyncio.sleep(8)
        world.lane.thaw()
        assert (await ends(*calls))[:2] == ["ok", "ok"]
        assert world.bridge.statistics.restarts == 0


@virtually
async def test_a_child_is_silent_only_as_long_as_it_is_seen_at_nothing() -> None:
    """Several times of silence, each shorter, do not add up: neither around a record nor around a reply."""
    async with World(batch_size=1, max_batch_wait_ms=0) as world:
        await world.warm()
        world.lane.freeze()
        asyncio.get_running_loop().call_later(6, world.lane.thaw)
        world.seconds.update({1: 2.0, 2: 0.001, 3: 0.001})
        world.faults.replies.update({1: 6.0, 2: 6.0, 3: 6.0})
        [first] = world.run(1)
        assert await ends(first) == ["ok"]
        world.bridge._feed.pace.seconds = 0.001
        assert await ends(*world.run(2, 3)) == ["ok", "ok"]
        assert world.bridge.statistics.restarts == 0


# -- the log -------------------------------------------------------------------------------------


def test_deaths_are_logged_once_a_second(caplog: pytest.LogCaptureFixture) -> None:
    """With what ran, and how many lines were left out; a kill for a cancellation is no warning."""

    @virtually
    async def test() -> None:
        async with World() as world:
            for offset in (1, 2, 3):
                world.faults.jobs[offset].append("crash_before")
                await ends(*world.run(offset))
            await asyncio.sleep(1)
            world.seconds[4] = 50
            [call] = world.run(4)
            await asyncio.sleep(0.1)
            call.cancel()
            await ends(call)

    with caplog.at_level(logging.INFO, "test.processes"):
        test()
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    first, second = (record.getMessage() for record in caplog.records)
    assert first == "handler h: child process 1001 ended: killed by SIGSEGV, while it ran t[0] offset 1"
    assert second.startswith("handler h: child process 1004 ended: killed by SIGKILL (by us: cancelled), ")
    assert second.endswith("while it ran t[0] offset 4 (2 more since the last line)")


@virtually
async def test_an_error_is_free_when_its_worker_has_dealt_with_it() -> None:
    """No cycle keeps it, and all that its traceback holds, until the next collection."""
    async with World() as world:
        world.failures[1] = failed()
        gc.disable()
        try:
            await world.bridge.run(TOPIC, 0, Raw(1), 1, 1)
        except RemoteHandlerError as error:
            kept = weakref.ref(error)
        finally:
            gc.enable()
        assert kept() is None
