"""How records come: fairly, bounded, from where they were sought, and errors after what came before them."""

from __future__ import annotations

import asyncio

import pytest

from asyncpar.errors import AuthorizationError, FetchError, OffsetOutOfRangeError
from asyncpar.testing.memory_broker import DISCONNECT
from asyncpar.testing.memory_fetch import RECORDS_PER_REQUEST
from tests.testing.contract_member import offsets
from tests.testing.memory_world import MemoryListener, MemoryWorld
from tests.testing.virtually import loop, now, virtually


async def sought(world: MemoryWorld, partitions: int) -> MemoryListener:
    """A member that is ready to read everything from the beginning."""
    one = await world.start("a")
    for tp in await one.joined(partitions):
        one.consumer.seek(tp, 0)
    return one


@virtually
async def test_partitions_take_turns() -> None:
    """With much in each, every one is served before one is served again."""
    world = MemoryWorld(4, 400)
    a = await sought(world, 4)
    everything = sorted(a.partitions)
    await a.consumer.fetch(everything, 100, 100)
    served = [chunk.partition for _ in range(8) for chunk in await a.consumer.fetch(everything, 100, 100)]
    assert sorted(served[:4]) == [0, 1, 2, 3]
    assert served[4:] == served[:4]
    await a.consumer.stop(3)


@virtually
async def test_everything_comes_once_and_in_order() -> None:
    """Whatever the bounds of fetches and requests are, no record is missing, doubled or out of order."""
    world = MemoryWorld(2, RECORDS_PER_REQUEST + 70)
    a = await sought(world, 2)
    got = await a.read(a.partitions, 2 * (RECORDS_PER_REQUEST + 70), max_records=93)
    assert offsets(got) == {tp: list(range(RECORDS_PER_REQUEST + 70)) for tp in a.partitions}
    await a.consumer.stop(3)


@virtually
async def test_an_idle_fetch_asks_nothing() -> None:
    """Once a partition is known to be empty nothing is sent until something happens to it."""
    world = MemoryWorld(1, 1)
    a = await sought(world, 1)
    (tp,) = a.partitions
    await a.read([tp], 1)
    world.link.log.clear()
    for _ in range(5):
        begun = now()
        assert await a.consumer.fetch([tp], 10, 100) == []
        assert now() - begun == pytest.approx(0.1, abs=0.01)
    assert world.link.log == []
    fetching = asyncio.create_task(a.consumer.fetch([tp], 10, 100_000))
    await asyncio.sleep(1)
    world.broker.send("t", b"v")
    (chunk,) = await fetching
    assert [record.offset for record in chunk.records] == [1]
    assert now() - begun < 2
    await a.consumer.stop(3)


@virtually
async def test_a_seek_forgets_what_was_fetched() -> None:
    """What was buffered, or is under way, from another position is never delivered."""
    world = MemoryWorld(1, 100)
    a = await sought(world, 1)
    (tp,) = a.partitions
    assert len((await a.consumer.fetch([tp], 10, 100))[0].records) == 10
    a.consumer.seek(tp, 50)
    assert offsets(await a.read([tp], 1, max_records=1)) == {tp: [50]}
    world.link.slow["Fetch"] = 0.5
    a.consumer.seek(tp, 90)
    assert await a.consumer.fetch([tp], 10, 100) == []
    a.consumer.seek(tp, 20)
    assert offsets(await a.read([tp], 10, max_records=10)) == {tp: list(range(20, 30))}
    await a.consumer.stop(3)


@virtually
async def test_a_chunk_is_the_callers() -> None:
    """Changing a delivered list changes nobody else's records."""
    world = MemoryWorld(1, 4)
    a = await sought(world, 1)
    (tp,) = a.partitions
    (chunk,) = await a.consumer.fetch([tp], 10, 100)
    chunk.records.clear()
    a.consumer.seek(tp, 0)
    assert offsets(await a.read([tp], 4)) == {tp: [0, 1, 2, 3]}
    await a.consumer.stop(3)


@virtually
async def test_an_error_comes_after_what_came_before_it() -> None:
    """Records that were fetched are delivered first, then the error is raised, and others go on."""
    world = MemoryWorld(2, 3)
    a = await sought(world, 2)
    p0, p1 = sorted(a.partitions)
    a.consumer.seek(p1, 99)
    (chunk,) = await a.consumer.fetch([p0, p1], 10, 100)
    assert (chunk.partition, len(chunk.records)) == (0, 3)
    for _ in range(2):
        with pytest.raises(OffsetOutOfRangeError) as caught:
            await a.consumer.fetch([p0, p1], 10, 100)
        assert caught.value.offsets == {p1: 99}
    assert await a.consumer.fetch([p0], 10, 100) == []
    a.consumer.seek(p1, 2)
    assert offsets(await a.read([p0, p1], 1)) == {p1: [2]}
    await a.consumer.stop(3)


@virtually
async def test_retention_and_truncation_are_noticed() -> None:
    """A position that the log does not have any more is out of range, also for a member that waits."""
    world = MemoryWorld(1, 10)
    a = await sought(world, 1)
    (tp,) = a.partitions
    await a.read([tp], 10)
    fetching = asyncio.create_task(a.consumer.fetch([tp], 10, 10_000))
    await asyncio.sleep(0.1)
    world.broker.truncate(tp, 5)
    with pytest.raises(OffsetOutOfRangeError):
        await fetching
    a.consumer.seek(tp, 5)
    world.broker.send("t", b"new")
    got = await a.read([tp], 1)
    assert got[tp][0].value == b"new"
    world.broker.skip_offsets(tp, 4)
    world.broker.delete_records(tp, 10)
    a.consumer.seek(tp, 6)
    with pytest.raises(OffsetOutOfRangeError) as caught:
        await a.consumer.fetch([tp], 10, 1_000)
    assert caught.value.offsets == {tp: 6}
    await a.consumer.stop(3)


@virtually
async def test_answers_that_mean_something() -> None:
    """A missing right and a corrupt record are raised; everything that may pass is asked again."""
    world = MemoryWorld(1, 1)
    a = await sought(world, 1)
    (tp,) = a.partitions
    world.broker.fail("Fetch", "TOPIC_AUTHORIZATION_FAILED")
    with pytest.raises(AuthorizationError, match="'t'"):
        await a.consumer.fetch([tp], 10, 100)
    world.broker.fail("Fetch", "CORRUPT_MESSAGE")
    with pytest.raises(FetchError, match=r"t\[0\] at offset 0") as caught:
        await a.consumer.fetch([tp], 10, 100)
    assert (caught.value.partition, caught.value.offset, caught.value.unreadable) == (tp, 0, True)
    for error in ("NOT_LEADER_OR_FOLLOWER", "UNKNOWN_TOPIC_OR_PARTITION", DISCONNECT):
        world.broker.fail("Fetch", error)
    begun = now()
    assert offsets(await a.read([tp], 1)) == {tp: [0]}
    assert now() - begun == pytest.approx(0.3, abs=0.05)
    await a.consumer.stop(3)


@virtually
async def test_a_fetch_that_nobody_answers() -> None:
    """Fetches go on in time while a request is lost; after the request's time it is sent again."""
    world = MemoryWorld(1, 3, session_timeout_ms=60_000)
    a = await sought(world, 1)
    (tp,) = a.partitions
    world.link.mute.add("Fetch")
    begun = now()
    for _ in range(10):
        assert await a.consumer.fetch([tp], 10, 100) == []
    assert now() - begun == pytest.approx(1.0, abs=0.1)
    world.link.mute.clear()
    assert offsets(await a.read([tp], 3)) == {tp: [0, 1, 2]}
    assert now() - begun == pytest.approx(15.0, abs=0.3)
    await a.consumer.stop(3)


@virtually
async def test_a_broker_that_went_down_is_waited_for() -> None:
    """Fetches return in time and empty; the record sent after it came back arrives."""
    world = MemoryWorld(1)
    a = await sought(world, 1)
    (tp,) = a.partitions
    world.broker.down()
    begun = now()
    assert await a.consumer.fetch([tp], 10, 300) == []
    assert now() - begun == pytest.approx(0.3, abs=0.01)
    world.broker.up()
    world.broker.send("t", b"v")
    assert offsets(await a.read([tp], 1)) == {tp: [0]}
    await a.consumer.stop(3)


@virtually
async def test_a_deleted_topic_delivers_nothing() -> None:
    """Fetches of it are empty, and nobody spins; made anew it is read from where we were."""
    world = MemoryWorld(1, 2)
    a = await sought(world, 1)
    (tp,) = a.partitions
    await a.read([tp], 2)
    world.broker.delete_topic("t")
    before = loop().steps
    assert await a.consumer.fetch([tp], 10, 5_000) == []
    assert loop().steps - before < 1_000
    world.broker.create_topic("t")
    for _ in range(3):
        world.broker.send("t", b"new")
    assert offsets(await a.read([tp], 1)) == {tp: [2]}
    await a.consumer.stop(3)
