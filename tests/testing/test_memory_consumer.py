"""The in-memory consumer while requests are lost, slow, or answered with errors."""

from __future__ import annotations

import asyncio

import pytest

from asyncpar.errors import (
    AuthorizationError,
    BrokerError,
    BrokerUnreachableError,
    EngineError,
    UnknownTopicError,
)
from asyncpar.records import CommitAnswer, Committed
from asyncpar.testing.memory_broker import DISCONNECT
from tests.testing.contract_member import offsets
from tests.testing.memory_world import GROUP, MemoryWorld
from tests.testing.virtually import now, until, virtually


@virtually
async def test_a_start_waits_for_a_broker() -> None:
    """It is dialled until the startup timeout is over; one that comes up before is good enough."""
    world = MemoryWorld(1, startup_timeout_ms=5_000)
    world.broker.down()
    begun = now()
    with pytest.raises(BrokerUnreachableError, match="within 5000 ms"):
        await world.start("a")
    assert now() - begun == pytest.approx(5.0, abs=0.1)
    starting = asyncio.create_task(world.start("b"))
    await asyncio.sleep(3)
    world.broker.up()
    await (await starting).joined(1)
    await starting.result().consumer.stop(3)


@pytest.mark.parametrize("request_name", ["Connect", "FindCoordinator"])
def test_a_start_without_an_answer_ends(request_name: str) -> None:
    """A broker that takes requests and never answers them is as good as none."""

    @virtually
    async def run() -> None:
        world = MemoryWorld(1, startup_timeout_ms=5_000)
        world.link.mute.add(request_name)
        begun = now()
        with pytest.raises(BrokerUnreachableError):
            await world.start("a")
        assert now() - begun == pytest.approx(5.0, abs=0.1)

    run()


@virtually
async def test_a_start_waits_for_topics_if_told_to() -> None:
    """wait_for_topics waits, also while the broker is away; without it the topic is named at once."""
    world = MemoryWorld(1)
    with pytest.raises(UnknownTopicError, match="'tt' does not exist"):
        await world.start("a", "tt")
    starting = asyncio.create_task(world.start("a", "tt", wait_for_topics=True))
    await asyncio.sleep(5)
    world.broker.down()
    await asyncio.sleep(5)
    world.broker.up()
    assert not starting.done()
    world.broker.create_topic("tt", 2)
    await (await starting).joined(2)
    await starting.result().consumer.stop(3)
    world.broker.fail("Metadata", DISCONNECT)
    with pytest.raises(BrokerUnreachableError, match="looking topics up"):
        await world.start("a")


@virtually
async def test_a_cancelled_start_leaves_nothing() -> None:
    """Whoever gives up a start has no task of it left."""
    world = MemoryWorld(1)
    world.link.mute.add("FindCoordinator")
    before = asyncio.all_tasks()
    starting = asyncio.create_task(world.start("a"))
    await asyncio.sleep(1)
    starting.cancel()
    await asyncio.wait({starting})
    assert starting.cancelled()
    assert asyncio.all_tasks() == before


@virtually
async def test_commits_that_nobody_answers() -> None:
    """A commit without an answer is RETRY in time, and does not stop the heartbeats for longer."""
    world = MemoryWorld(1)
    a = await world.start("a")
    await a.joined(1)
    world.link.mute.add("OffsetCommit")
    begun = now()
    assert await a.commit(1, timeout_s=2.0) == {CommitAnswer.RETRY}
    assert now() - begun == pytest.approx(2.0, abs=0.1)
    world.link.mute.clear()
    await until(lambda: a.consumer.lease_from() > begun)
    assert await a.commit(1) == {CommitAnswer.ACKNOWLEDGED}
    await a.consumer.stop(3)


@virtually
async def test_commits_without_rights() -> None:
    """A missing right on group or topic is FORBIDDEN, wherever it is noticed."""
    world = MemoryWorld(1)
    a = await world.start("a")
    await a.joined(1)
    for error in ("GROUP_AUTHORIZATION_FAILED", "TOPIC_AUTHORIZATION_FAILED"):
        world.broker.fail("OffsetCommit", error)
        assert await a.commit(1) == {CommitAnswer.FORBIDDEN}
    world.broker.move_coordinator(GROUP)
    assert await a.commit(1) == {CommitAnswer.RETRY}
    world.broker.fail("FindCoordinator", "GROUP_AUTHORIZATION_FAILED")
    assert await a.commit(1) == {CommitAnswer.FORBIDDEN}
    await a.consumer.stop(3)


@virtually
async def test_a_commit_for_a_deleted_topic() -> None:
    """It says so, and the others are stored."""
    world = MemoryWorld(1)
    world.broker.create_topic("gone")
    a = await world.start("a", "t", "gone")
    await a.joined(2)
    world.broker.delete_topic("gone")
    answers = await a.consumer.commit(a.token, dict.fromkeys(a.partitions, Committed(1, "")), 5.0)
    assert {tp.topic: answer for tp, answer in answers.items()} == {
        "t": CommitAnswer.ACKNOWLEDGED,
        "gone": CommitAnswer.UNKNOWN_TOPIC,
    }
    assert await a.consumer.has_commits()
    await a.consumer.stop(3)


@virtually
async def test_reading_offsets_never_takes_an_error_for_none() -> None:
    """Errors of the whole answer raise; one that nobody answers raises when its time is over."""
    world = MemoryWorld(1)
    a = await world.start("a")
    (tp,) = await a.joined(1)
    for error, raised in (
        ("COORDINATOR_LOAD_IN_PROGRESS", BrokerError),
        ("NOT_COORDINATOR", BrokerError),
        (DISCONNECT, BrokerError),
        ("GROUP_AUTHORIZATION_FAILED", AuthorizationError),
        ("TOPIC_AUTHORIZATION_FAILED", AuthorizationError),
    ):
        world.broker.fail("OffsetFetch", error)
        with pytest.raises(raised):
            await a.consumer.committed([tp])
    world.link.mute.add("OffsetFetch")
    begun = now()
    with pytest.raises(BrokerError, match="no answer in time"):
        await a.consumer.has_commits()
    assert now() - begun == pytest.approx(15.0, abs=0.1)
    await a.consumer.stop(3)


@virtually
async def test_bounds_are_asked_for_patiently() -> None:
    """Errors that may pass are asked again until the request's time is over; a missing right is told."""
    world = MemoryWorld(1, 3)
    a = await world.start("a")
    (tp,) = await a.joined(1)
    world.broker.fail("ListOffsets", "NOT_LEADER_OR_FOLLOWER")
    world.broker.fail("ListOffsets", DISCONNECT)
    assert await a.consumer.end([tp]) == {tp: 3}
    world.broker.fail("ListOffsets", "TOPIC_AUTHORIZATION_FAILED")
    with pytest.raises(AuthorizationError):
        await a.consumer.beginning([tp])
    world.broker.down()
    begun = now()
    with pytest.raises(BrokerError, match="reading the bounds"):
        await a.consumer.end([tp])
    assert now() - begun == pytest.approx(15.0, abs=0.2)
    await a.consumer.stop(3)


@virtually
async def test_a_stop_is_bounded_whatever_hangs() -> None:
    """Nobody answers, and a revoke does not return: the stop takes its time, no more, and leaves no task."""
    before = asyncio.all_tasks()
    world = MemoryWorld(2)
    a = await world.start("a")
    await a.joined(2)

    async def forever(_: object) -> None:
        await asyncio.get_running_loop().create_future()

    a.on_revoked = forever
    b = await world.start("b")
    await a.until(lambda: "revoked" in a.said, 30)
    world.link.mute |= {"LeaveGroup", "Heartbeat", "JoinGroup", "Fetch"}
    for one in (a, b):
        begun = now()
        await one.consumer.stop(3.0)
        assert now() - begun <= 3.0
        await one.consumer.stop(3.0)
    assert asyncio.all_tasks() == before


@virtually
async def test_a_stop_within_a_revoke_lets_it_end() -> None:
    """A revoke that drains when the stop comes is waited for, and no member is left behind."""
    world = MemoryWorld(2)
    a = await world.start("a")
    await a.joined(2)
    ended: list[bool] = []

    async def drain(_: object) -> None:
        await asyncio.sleep(1)
        ended.append(True)

    a.on_revoked = drain
    b = await world.start("b")
    await a.until(lambda: "revoked" in a.said, 30)
    await a.consumer.stop(6.0)
    assert ended == [True]
    await b.joined(2)
    assert set(world.broker.group(GROUP).members) == {b.token.member_id}
    await b.consumer.stop(3)


@virtually
async def test_a_client_that_breaks_down() -> None:
    """It sends no heartbeats any more, and says why; once stopped it has no failure."""
    world = MemoryWorld(1)
    a = await world.start("a")
    await a.joined(1)
    assert a.consumer.failure() is None
    a.consumer.break_down("a bug")
    failure = a.consumer.failure()
    assert isinstance(failure, EngineError)
    assert "a bug" in str(failure)
    await asyncio.sleep(30)
    assert world.broker.group(GROUP).members == {}
    await a.consumer.stop(3)
    assert a.consumer.failure() is None


@virtually
async def test_records_flow_over_a_slow_link() -> None:
    """Delays cost time, not records: a fetch returns in its time and a later one has what was under way."""
    world = MemoryWorld(1, 5)
    a = await world.start("a")
    (tp,) = await a.joined(1)
    world.link.slow["Fetch"] = 0.3
    a.consumer.seek(tp, 0)
    begun = now()
    assert await a.consumer.fetch([tp], 10, 200) == []
    assert now() - begun == pytest.approx(0.2, abs=0.05)
    assert offsets(await a.read([tp], 5)) == {tp: [0, 1, 2, 3, 4]}
    assert now() - begun == pytest.approx(0.6, abs=0.05)
    await a.consumer.stop(3)
