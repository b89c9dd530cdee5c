"""The process bridge: which lane gets how much and when, and what it counts; on modelled lanes."""

from __future__ import annotations

import asyncio

import pytest

from asyncpar.executors.process_feed import Pace
from tests.executors.bridge_world import World, ends
from tests.testing.virtually import loop, now, until, virtually


def sizes(world: World) -> list[int]:
    """Of all batches sent, by lane."""
    return [len(batch.calls) for lane in world.bridge._lanes for batch in lane.batches]


@virtually
async def test_a_record_goes_to_an_idle_lane_at_once() -> None:
    """It waits for no other, and no timer runs for it."""
    async with World(max_batch_wait_ms=60_000) as world:
        began = now()
        world.run(1)
        await asyncio.sleep(0.001)
        assert world.started == [1]
        assert now() - began < 0.002


@virtually
async def test_until_the_pace_is_known_a_batch_is_one_record() -> None:
    """Each lane gets one; nothing is sent behind it, for it may run for hours."""
    async with World(lanes=2, max_batch_wait_ms=1) as world:
        calls = world.run(1, 2, 3, 4, 5)
        await asyncio.sleep(0.005)
        assert sizes(world) == [1, 1]
        assert await ends(*calls) == ["ok"] * 5


@virtually
async def test_what_waits_is_shared_by_the_idle_lanes() -> None:
    """Batches grow with what waits, up to the limit."""
    async with World(lanes=2, batch_size=4, seconds=0.01) as world:
        await world.warm()
        calls = world.run(1, 2, 3, 4, 5)
        await asyncio.sleep(0.001)
        assert sizes(world) == [3, 2]
        await ends(*calls)
        calls = world.run(*range(10, 30))
        await asyncio.sleep(0.001)
        assert sizes(world) == [4, 4, 4, 4]
        assert world.bridge.statistics.pending == 4
        await ends(*calls)


@virtually
async def test_a_batch_is_not_expected_to_take_longer_than_50_ms() -> None:
    """By the mean time of the last records, which follows the handler."""
    async with World(batch_size=64, seconds=0.02) as world:
        await world.warm()
        calls = world.run(*range(1, 6))
        await asyncio.sleep(0.001)
        assert max(sizes(world)) == 2
        await ends(*calls)
        for offset in range(100, 300):
            world.seconds[offset] = 0.0001
        await ends(*world.run(*range(100, 200)))
        calls = world.run(*range(200, 300))
        await asyncio.sleep(0.001)
        assert max(sizes(world)) > 20
        await ends(*calls)


def test_pace_stays_within_its_limits() -> None:
    """One record at least, `most` at most; what did not run says nothing."""
    pace = Pace()
    pace.note(1.0, 0)
    assert (pace.seconds, pace.is_quick, pace.batch_limit(64)) == (None, False, 1)
    pace.note(0.0, 5)
    assert (pace.is_quick, pace.batch_limit(64)) == (True, 64)
    pace = Pace()
    pace.note(5.0, 5)
    assert (pace.is_quick, pace.batch_limit(64)) == (False, 1)
    pace.note(0.2, 1)
    assert pace.seconds == pytest.approx(0.8)


@virtually
async def test_a_busy_lane_gets_a_second_batch_when_that_is_full() -> None:
    """At once, so that the child has work when it has replied; never a third."""
    async with World(batch_size=4, max_batch_wait_ms=60_000, seconds=0.01) as world:
        await world.warm()
        first = world.run(1)
        await asyncio.sleep(0.001)
        more = world.run(2, 3, 4)
        await asyncio.sleep(0.001)
        assert sizes(world) == [1]
        more += world.run(5)
        await asyncio.sleep(0.001)
        assert sizes(world) == [1, 4]
        more += world.run(6, 7, 8, 9, 10)
        await asyncio.sleep(0.001)
        assert sizes(world) == [1, 4]
        assert await ends(*first, *more) == ["ok"] * 10
        assert world.started == list(range(1, 11))


@virtually
async def test_a_busy_lane_gets_a_second_batch_when_records_have_waited() -> None:
    """From `max_batch_wait_ms` after the first of them came, whatever there is."""
    async with World(batch_size=4, max_batch_wait_ms=20, seconds=0.01) as world:
        await world.warm()
        world.seconds[1] = 0.4
        calls = world.run(1)
        await asyncio.sleep(0.001)
        calls += world.run(2)
        await asyncio.sleep(0.015)
        calls += world.run(3)
        await asyncio.sleep(0.004)
        assert sizes(world) == [1]
        await asyncio.sleep(0.002)
        assert sizes(world) == [1, 2]
        assert await ends(*calls) == ["ok"] * 3


@virtually
async def test_a_wait_begins_with_the_record_that_waits() -> None:
    """A timer that was set for a record that has gone meanwhile sends nothing early."""
    async with World(batch_size=4, max_batch_wait_ms=50, seconds=0.01) as world:
        await world.warm()
        world.seconds.update({1: 0.03, 2: 0.2})
        calls = world.run(1)
        await asyncio.sleep(0.001)
        calls += world.run(2)  # sent when 1 has ended
        await asyncio.sleep(0.04)
        calls += world.run(3)
        await asyncio.sleep(0.02)
        assert sizes(world) == [1]
        await asyncio.sleep(0.032)
        assert sizes(world) == [1, 1]
        assert await ends(*calls) == ["ok"] * 3


@virtually
async def test_no_wait_means_that_a_second_batch_goes_at_once() -> None:
    """`max_batch_wait_ms=0`; and what finds no room spins no timer."""
    async with World(batch_size=4, max_batch_wait_ms=0, seconds=0.01) as world:
        await world.warm()
        calls = world.run(1)
        await asyncio.sleep(0.001)
        calls += world.run(2)
        await asyncio.sleep(0.001)
        assert sizes(world) == [1, 1]
        calls += world.run(3)
        await asyncio.sleep(0.001)
        steps = loop().steps
        await asyncio.sleep(0.005)
        assert loop().steps - steps < 10
        assert await ends(*calls) == ["ok"] * 3


@virtually
async def test_nothing_is_sent_behind_long_records() -> None:
    """Another lane may be free sooner; what is gained is less than a hundredth of the record's time."""
    async with World(lanes=2, max_batch_wait_ms=1, seconds=0.2) as world:
        await world.warm()
        world.seconds[1] = 30
        calls = world.run(1, 2, 3, 4)
        await asyncio.sleep(0.01)
        assert sizes(world) == [1, 1]
        assert await ends(*calls[1:]) == ["ok"] * 3
        assert now() < 1020
        assert await ends(calls[0]) == ["ok"]


@virtually
async def test_what_lies_behind_an_endless_record_runs_elsewhere() -> None:
    """It comes back from the lane after half a second, and that lane gets nothing until it is empty."""
    async with World(lanes=2, batch_size=4) as world:
        await world.warm()
        world.seconds[1] = 60
        calls = world.run(1, 2, 3, 4, 5, 6)
        began = now()
        assert await ends(*calls[1:]) == ["NotStartedError"] * 2 + ["ok"] * 3
        assert now() - began < 1
        again = world.run(2, 3)
        assert await ends(*again) == ["ok"] * 2
        assert now() - began < 2
        assert [len(lane.batches) for lane in world.bridge._lanes] == [1, 0]
        assert await ends(calls[0]) == ["ok"]


@virtually
async def test_a_lane_that_is_ready_later_is_fed() -> None:
    """Records wait for lanes as well as lanes for records."""
    async with World() as world:
        world.children.lanes[0].die("killed by SIGKILL")
        await asyncio.sleep(0.005)
        assert world.bridge.statistics.lanes == 0
        assert await ends(*world.run(1, 2)) == ["ok", "ok"]


@virtually
async def test_statistics_tell_transit_from_the_handlers_time() -> None:
    """Transit only of batches that did not wait behind another."""
    async with World(batch_size=1) as world:
        await world.warm()
        world.faults.replies[1] = 0.5
        calls = world.run(1, 2)
        await until(lambda: sizes(world) == [1, 1], 1)
        busy = world.bridge.statistics
        assert (busy.lanes, busy.busy, busy.pending) == (1, 1, 0)
        await ends(*calls)
        statistics = world.bridge.statistics
        assert statistics.batch_sizes == {1: 3}
        assert sum(statistics.transit_seconds.counts) == 2
        assert statistics.transit_seconds.total == pytest.approx(0.5, abs=0.01)
        assert sum(statistics.handler_seconds.counts) == 3
        assert statistics.handler_seconds.total == pytest.approx(0.03, abs=0.01)
        assert (statistics.busy, statistics.restarts, statistics.recycled) == (0, 0, 0)
