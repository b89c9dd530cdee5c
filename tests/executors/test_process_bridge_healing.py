"""The process bridge: lanes that die, wear out or cannot be started; on modelled lanes."""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import Any

import pytest

from asyncpar.errors import HandlerError
from asyncpar.testing.modelled_lanes import ModelledLane
from tests.executors.bridge_world import World, ends, wait_to
from tests.testing.virtually import now, until, virtually


@virtually
async def test_a_dead_lane_is_replaced_at_once() -> None:
    """Within the time that a start takes; its records run there."""
    async with World() as world:
        await world.warm()
        world.lane.die("killed by SIGKILL")
        began = now()
        await asyncio.sleep(0.003)
        assert await ends(*world.run(1)) == ["ok"]
        assert now() - began < 0.04
        assert (world.bridge.statistics.restarts, world.bridge.statistics.failed_starts) == (1, 0)


@virtually
async def test_a_start_without_a_child_says_why() -> None:
    """As an error of the declaration, which ends the app; nothing is tried again."""
    world = World(lanes=2)
    world.faults.no_start = "handler h: its child process did not start: no module named x"
    with pytest.raises(HandlerError, match="^handler h: its child process did not start: no module named x$"):
        await world.bridge.start()
    await asyncio.sleep(100)
    assert len(world.children.lanes) == 2
    await world.bridge.close(1.0)
    world.check_clean()


@virtually
async def test_another_error_at_the_start_is_raised_as_it_is() -> None:
    """It is a fault of ours, and not to be taken for one of the declaration."""
    world = World()
    world.faults.of_start = lambda: 1 / 0  # type: ignore[assignment,method-assign,return-value]
    with pytest.raises(ZeroDivisionError):
        await world.bridge.start()


@virtually
async def test_any_error_of_a_later_start_is_said_and_tried_again() -> None:
    """Whatever the system says: what a lane does not know as a reason has its class in front."""
    async with World() as world:
        await world.warm()
        heard: list[str | None] = []
        world.bridge.open(lambda: float("inf"), heard.append)
        world.faults.of_start = lambda: int("no memory")  # type: ignore[assignment,method-assign,return-value]
        world.lane.die("killed by SIGKILL")
        await asyncio.sleep(3)
        assert heard[0] is not None
        assert heard[0].startswith("its child process did not start: ValueError: invalid literal")
        for lane in world.children.lanes[1:]:
            lane.is_dead = True  # the model knows of its own reasons only


@virtually
async def test_a_start_with_a_part_of_the_lanes_is_a_start() -> None:
    """The others are tried again."""
    world = World(lanes=6)
    world.faults.starts.extend(["no memory"] * 5)
    async with world:
        assert world.bridge.statistics.lanes == 1
        assert world.bridge.refusal is None
        await asyncio.sleep(0.2)
        assert world.bridge.statistics.lanes == 6


@virtually
async def test_a_start_that_is_cancelled_leaves_nothing() -> None:
    """The app was stopped while its children started."""
    world = World(lanes=2)
    world.children.start_seconds = 50
    start = asyncio.create_task(world.bridge.start())
    await asyncio.sleep(1)
    start.cancel()
    assert await ends(start) == ["CancelledError"]
    world.check_clean()


@virtually
async def test_failed_starts_are_tried_again_more_and_more_slowly() -> None:
    """After 0.1 s, doubling to 10 s, for ever."""
    async with World() as world:
        tried: list[float] = []

        def refuse() -> str:
            tried.append(now())
            return "no memory"

        await world.warm()
        world.children.start_seconds = 0.0
        world.faults.of_start = refuse  # type: ignore[method-assign]
        world.lane.die("killed by SIGKILL")
        await asyncio.sleep(60)
        waits = [round(after - before, 1) for before, after in itertools.pairwise(tried)]
        assert waits[:10] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 10.0]


@virtually
async def test_children_that_cannot_be_started_are_a_refusal_until_one_lives() -> None:
    """After five failures; told to the runtime, and taken back when a child has lived for a second."""
    async with World() as world:
        heard: list[tuple[float, str | None]] = []
        world.bridge.open(lambda: float("inf"), lambda why: heard.append((now(), why)))
        await world.warm()
        world.children.start_seconds = 0.0
        world.faults.no_start = "no memory"
        died = now()
        world.lane.die("killed by SIGKILL")
        await asyncio.sleep(0.01)
        waiting = world.run(1)
        await until(lambda: heard)
        assert heard[0][1] == world.bridge.refusal == "no memory"
        assert heard[0][0] - died == pytest.approx(0.1 + 0.2 + 0.4 + 0.8, abs=0.01)
        assert world.bridge.statistics.failed_starts == 5
        late: list[str | None] = []
        world.bridge.open(lambda: float("inf"), late.append)
        assert late == ["no memory"]
        world.faults.no_start = None
        assert await ends(*waiting) == ["ok"]
        alive = now()
        assert world.bridge.refusal is not None
        await until(lambda: world.bridge.refusal is None)
        assert late == ["no memory", None]
        assert now() - alive == pytest.approx(1.0, abs=0.05)


@virtually
async def test_a_lane_that_serves_keeps_others_failures_from_being_a_refusal() -> None:
    """Work goes on, on fewer lanes; when the last one dies, it is one."""
    async with World(lanes=2) as world:
        world.faults.no_start = "no memory"
        first, second = world.children.lanes
        first.die("killed by SIGKILL")
        await asyncio.sleep(25)
        assert world.bridge.statistics.failed_starts >= 5
        assert world.bridge.refusal is None
        assert await ends(*world.run(1)) == ["ok"]
        second.die("killed by SIGKILL")
        await asyncio.sleep(1)
        assert world.bridge.refusal is not None


@virtually
async def test_children_that_end_as_soon_as_they_are_ready_have_failed_to_start() -> None:
    """They are not started for ever in a tight loop, and are a refusal like others."""
    async with World() as world:
        heard: list[str | None] = []
        world.bridge.open(lambda: float("inf"), heard.append)
        world.doom_seconds = 0.03
        world.lane.die("killed by SIGKILL")
        await asyncio.sleep(60)
        world.doom_seconds = None
        assert 8 <= len(world.children.lanes) <= 16
        assert heard[0] == "its child process ended as soon as it was ready: exited with code 1"
        assert world.bridge.refusal is not None
        await asyncio.sleep(12)
        assert world.bridge.refusal is None


@virtually
async def test_failures_now_and_then_are_no_refusal() -> None:
    """Each was followed by a start; and those before a refusal do not count for the next one."""
    async with World() as world:
        heard: list[str | None] = []
        world.bridge.open(lambda: float("inf"), heard.append)
        for _ in range(8):
            await world.warm()
            world.faults.starts.append("no memory")
            world.lane.die("killed by SIGKILL")
            await asyncio.sleep(20)
            assert world.bridge.statistics.lanes == 1
        assert world.bridge.statistics.failed_starts == 8
        assert heard == []
        world.faults.starts.extend(["no memory"] * 5)
        world.lane.die("killed by SIGKILL")
        await until(lambda: world.bridge.refusal)
        await until(lambda: world.bridge.refusal is None)
        await world.warm()
        world.faults.starts.append("no memory")
        world.lane.die("killed by SIGKILL")
        await asyncio.sleep(0.05)
        assert world.bridge.statistics.lanes == 0
        assert heard == ["no memory", None]


@virtually
async def test_a_child_that_dies_before_its_start_is_noticed_never_serves() -> None:
    """It is replaced like any other."""
    async with World() as world:
        await world.warm()
        make = world.children.__call__

        def dying(*callbacks: Any) -> ModelledLane:
            lane = make(*callbacks)
            start = lane.start

            async def die_at_once() -> None:
                await start()
                lane.die("exited with code 1")
                await asyncio.sleep(0.01)

            lane.start = die_at_once  # type: ignore[method-assign]
            world.make = world.children
            return lane

        world.make = dying
        world.lane.die("killed by SIGKILL")
        await asyncio.sleep(0.2)
        assert [lane.is_dead for lane in world.children.lanes] == [True, True, False]
        assert world.bridge.statistics.lanes == 1
        assert world.bridge.statistics.failed_starts == 1


@virtually
async def test_a_child_for_which_there_is_not_even_memory_to_share_is_tried_again() -> None:
    """To make a lane may fail as well as to start it."""
    async with World() as world:
        await world.warm()

        def refuse(*_: Any) -> ModelledLane:
            world.make = world.children
            raise OSError("no space left")

        world.make = refuse
        world.lane.die("killed by SIGKILL")
        await asyncio.sleep(0.2)
        statistics = world.bridge.statistics
        assert (statistics.lanes, statistics.failed_starts) == (1, 1)
        assert world.bridge.refusal is None


@virtually
async def test_a_young_child_that_we_kill_has_not_failed_to_start() -> None:
    """Whether or not it ran anything: that was ours to do."""
    async with World() as world:
        world.lane.freeze()
        [call] = world.run(1)
        await asyncio.sleep(0.01)
        for _ in range(2):
            call.cancel()
            await asyncio.sleep(0.001)
        assert await ends(call) == ["CancelledError"]
        await asyncio.sleep(0.1)
        statistics = world.bridge.statistics
        assert (statistics.restarts, statistics.failed_starts) == (1, 0)


@virtually
async def test_one_early_death_is_made_good_at_once() -> None:
    """A child that somebody kills is back without a pause, however young it was."""
    async with World() as world:
        world.lane.die("killed by SIGKILL")
        await asyncio.sleep(0.03)
        assert world.bridge.statistics.lanes == 1


@virtually
async def test_records_that_crash_their_child_cost_no_pause() -> None:
    """They are bounded by their attempts; the lane is back at once each time."""
    async with World() as world:
        for offset in range(20):
            world.faults.jobs[offset].append("crash_before")
        began = now()
        for offset in range(20):
            assert await ends(*world.run(offset)) == ["WorkerDiedError"]
        assert now() - began < 20 * 0.03
        assert world.bridge.refusal is None


def test_a_refusal_and_its_end_are_one_line_each(caplog: pytest.LogCaptureFixture) -> None:
    """The transition, at the level that it deserves."""

    @virtually
    async def test() -> None:
        async with World() as world:
            world.faults.no_start = "no memory"
            world.lane.die("killed by SIGKILL")
            await asyncio.sleep(60)
            world.faults.no_start = None
            await asyncio.sleep(12)

    with caplog.at_level(logging.INFO, "test.processes"):
        test()
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    said = [line for level, line in lines if level == "ERROR"]
    assert len(said) == 1
    assert said[0].startswith("handler h has no child process left, and none can be started: no memory; ")
    assert lines[-1] == ("WARNING", "handler h: its child processes can be started again")


@virtually
async def test_a_keeper_that_fails_is_a_refusal() -> None:
    """A defect of ours: it is not passed over in silence."""
    async with World() as world:
        world.bridge._keeper._replaced = lambda lane: 1 / 0  # type: ignore[assignment,method-assign,return-value]
        await world.warm()
        world.lane.die("killed by SIGKILL")
        await asyncio.sleep(0.1)
        assert world.bridge.refusal == "a lane is not kept any more: ZeroDivisionError: division by zero"


@virtually
async def test_a_close_that_is_cancelled_while_children_end_kills_them() -> None:
    """They were to end by themselves, and do not."""
    async with World() as world:
        await world.warm()
        world.lane.freeze()
        closing = asyncio.create_task(world.bridge.close(1000))
        await asyncio.sleep(1)
        closing.cancel()
        assert await ends(closing) == ["CancelledError"]


# -- recycling -----------------------------------------------------------------------------------


@virtually
async def test_a_worn_lane_serves_until_its_successor_is_ready() -> None:
    """No gap: it takes batches meanwhile, then ends what it has and is closed. Nothing is run twice."""
    async with World(batch_size=2, max_tasks_per_child=3, max_batch_wait_ms=0) as world:
        await world.warm()
        world.children.start_seconds = 0.1
        calls = world.run(*range(12))
        begun = now()
        await asyncio.sleep(0.06)
        assert [lane.pid for lane in world.children.lanes] == [1001, None]
        assert len(world.ended) >= 4
        assert await ends(*calls) == ["ok"] * 12
        assert now() - begun < 12 * 0.01 + 0.02
        await asyncio.sleep(0.15)
        old, new = world.children.lanes[:2]
        assert (old.is_dead, new.is_dead) == (True, False)
        statistics = world.bridge.statistics
        assert (statistics.recycled, statistics.restarts, statistics.lanes) == (1, 0, 1)
        assert world.ended == list(range(12))


@virtually
async def test_a_retired_lane_ends_what_it_has_and_gets_no_more() -> None:
    """What it runs for long is still watched, and then it is closed."""
    async with World(max_tasks_per_child=1, timeout_ms=2000) as world:
        world.seconds.update({-1: 0.0, 1: 1.0})
        world.children.start_seconds = 0.1
        await world.warm()
        [long] = world.run(1)
        await asyncio.sleep(0.2)
        old, new = world.children.lanes
        assert await ends(*world.run(2)) == ["ok"]
        assert new._progress is None
        assert not old.is_dead
        assert world.bridge.statistics.lanes >= 2
        assert await ends(long) == ["ok"]
        await asyncio.sleep(0.01)
        assert old.is_dead
        world.faults.jobs[3].append("hang")
        [hanging] = world.run(3)
        await asyncio.sleep(0.2)
        assert await ends(hanging) == ["HandlerTimeoutError"]


@virtually
async def test_a_retiring_lane_with_room_gets_no_second_batch() -> None:
    """Its successor does, and what finds no room there waits."""
    async with World(max_tasks_per_child=1) as world:
        world.seconds.update({-1: 0.0, 1: 0.4})
        world.children.start_seconds = 0.1
        await world.warm()
        calls = world.run(1)
        await asyncio.sleep(0.15)
        calls += world.run(*range(2, 14))
        await asyncio.sleep(0.001)
        assert [len(lane.batches) for lane in world.bridge._lanes] == [1, 2]
        assert world.bridge.statistics.pending == 4
        assert await ends(*calls) == ["ok"] * 13


@virtually
async def test_closing_waits_for_lanes_that_are_being_retired() -> None:
    """One that does not end by itself is killed before all is over."""
    async with World(max_tasks_per_child=1) as world:
        await world.warm()
        world.children.lanes[0].freeze()
        await asyncio.sleep(0.1)
        old, _ = world.children.lanes
        assert not old.is_dead
        await world.bridge.close(5.0)
        assert old.is_dead


@virtually
async def test_a_worn_lane_stays_while_no_successor_can_be_started() -> None:
    """Old is better than none; if it dies meanwhile, the successor is its replacement."""
    async with World(max_tasks_per_child=1) as world:
        world.faults.no_start = "no memory"
        await world.warm()
        await asyncio.sleep(20)
        assert await ends(*world.run(1, 2)) == ["ok", "ok"]
        assert world.bridge.refusal is None
        world.lane.die("killed by SIGKILL")
        world.children.lanes[0].die("killed by SIGKILL")
        world.faults.no_start = None
        await asyncio.sleep(12)
        statistics = world.bridge.statistics
        assert (statistics.restarts, statistics.recycled, statistics.lanes) == (1, 0, 1)


@virtually
async def test_lanes_are_recycled_again_and_again() -> None:
    """Each after its own share."""
    async with World(lanes=2, max_tasks_per_child=10, batch_size=4) as world:
        begun = now()
        for first in range(0, 400, 20):
            assert await ends(*world.run(*range(first, first + 20))) == ["ok"] * 20
        await wait_to(begun + 10)
        assert 20 <= world.bridge.statistics.recycled <= 40
        assert sum(not lane.is_dead for lane in world.children.lanes) == 2
