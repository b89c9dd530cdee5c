"""The in-memory consumer as a member: rebalances, freezes, lost and refused requests, patterns."""

from __future__ import annotations

import asyncio
import math

import pytest

from asyncpar.errors import (
    AuthorizationError,
    BrokerUnreachableError,
    ConfigurationError,
    EngineError,
    FetchError,
)
from asyncpar.records import CommitAnswer, Committed, TopicPartition
from asyncpar.testing.memory_broker import DISCONNECT, LOST_ANSWER
from tests.testing.memory_world import GROUP, MemoryWorld, stop
from tests.testing.virtually import loop, now, until, virtually


@virtually
async def test_a_frozen_member_finds_its_partitions_lost() -> None:
    """A process that stood still beyond its session is removed meanwhile; it hears so first of all."""
    world = MemoryWorld(2, 50)
    a = await world.start("a", within=loop().context_of("a"))
    b = await world.start("b")
    await asyncio.gather(a.joined(1), b.joined(1))
    old, held, lease = a.token, a.partitions, a.consumer.lease_from()
    loop().freeze("a")
    await b.joined(2)
    told = len(a.said)
    await asyncio.sleep(30)
    assert a.said[told:] == []
    assert a.consumer.lease_from() - lease < 3.1  # an answer may have been on its way
    loop().thaw("a")
    await asyncio.gather(a.joined(1), b.joined(1))
    assert a.said[told:] == ["lost", "assigned"]
    assert await a.consumer.commit(old, dict.fromkeys(held, Committed(9, "")), 5) == dict.fromkeys(
        held, CommitAnswer.STALE
    )
    await stop(a, b)


@virtually
async def test_a_short_freeze_costs_nothing() -> None:
    """Within the session a frozen member stays one, and its lease moves on afterwards."""
    world = MemoryWorld(2)
    a = await world.start("a", within=loop().context_of("a"))
    await a.joined(2)
    loop().freeze("a")
    await asyncio.sleep(6)
    loop().thaw("a")
    begun = now()
    await until(lambda: a.consumer.lease_from() >= begun)
    await asyncio.sleep(30)
    assert a.said == ["assigned"]
    await stop(a)


@virtually
async def test_a_member_frozen_while_it_joins() -> None:
    """It holds the others up for the rebalance timeout, is removed, and comes back when it goes on."""
    world = MemoryWorld(2)
    a = await world.start("a", within=loop().context_of("a"))
    await a.joined(2)
    b = await world.start("b")
    loop().freeze("a")
    await b.joined(2)
    await asyncio.sleep(60)
    loop().thaw("a")
    await asyncio.gather(a.joined(1), b.joined(1))
    assert "lost" in a.said
    await stop(a, b)


@virtually
async def test_a_dead_member_frees_its_partitions() -> None:
    """A process that dies says nothing: the others get its partitions when its session is over."""
    world = MemoryWorld(2)
    a = await world.start("a", within=loop().context_of("a"))
    await a.joined(2)
    b = await world.start("b")
    await asyncio.gather(a.joined(1), b.joined(1))
    loop().kill("a")
    begun = now()
    await b.joined(2)
    assert now() - begun <= 10 + 3 + 0.1
    world.broker.send("t", b"v", partition=0)
    await stop(b)


@virtually
async def test_a_revoke_begun_before_a_kick_is_not_repeated() -> None:
    """A member removed while it drains hears nothing more of it: its next assignment is a new one."""
    world = MemoryWorld(2)
    a = await world.start("a")
    await a.joined(2)
    drained = asyncio.Event()

    async def drain(_: object) -> None:
        await drained.wait()

    a.on_revoked = drain
    b = await world.start("b")
    await b.joined(2)
    assert await a.commit(1) == {CommitAnswer.STALE}
    await until(lambda: not a.consumer.member_id)
    drained.set()
    await asyncio.gather(a.joined(1), b.joined(1))
    assert a.said == ["assigned", "revoked", "assigned"]
    await stop(a, b)


@virtually
async def test_lost_requests_of_a_rebalance() -> None:
    """Each request of a join may be lost, or its answer, and the group still comes together."""
    for request in ("FindCoordinator", "JoinGroup", "SyncGroup", "Heartbeat", "Metadata"):
        for fault in (DISCONNECT, LOST_ANSWER):
            world = MemoryWorld(4)
            a = await world.start("a")
            await a.joined(4)
            world.broker.fail(request, fault, times=3)  # type: ignore[arg-type]
            b = world.member("b")
            while True:
                try:
                    await b.start("t")
                    break
                except BrokerUnreachableError:
                    b = world.member("b")
            await asyncio.gather(a.joined(2), b.joined(2))
            assert not a.partitions & b.partitions
            await stop(a, b)


@virtually
async def test_refused_requests_of_a_rebalance() -> None:
    """Answers that tell a client to try again, or to begin anew, do not keep the group apart."""
    codes = ("NOT_COORDINATOR", "COORDINATOR_NOT_AVAILABLE", "UNKNOWN_MEMBER_ID")
    for request, more in (
        ("JoinGroup", ("COORDINATOR_LOAD_IN_PROGRESS",)),
        ("SyncGroup", ("REBALANCE_IN_PROGRESS", "ILLEGAL_GENERATION")),
        ("Heartbeat", ("REBALANCE_IN_PROGRESS", "ILLEGAL_GENERATION")),
    ):
        world = MemoryWorld(4)
        for code in (*codes, *more):
            world.broker.fail(request, code, times=2)  # type: ignore[arg-type]
        a, b = await world.start("a"), await world.start("b")
        await until(lambda a=a, b=b: len(a.partitions) == len(b.partitions) == 2)
        await asyncio.sleep(60)
        await asyncio.gather(a.joined(2), b.joined(2))
        await stop(a, b)


@virtually
async def test_what_cannot_be_mended_is_raised_by_fetch() -> None:
    """Rights and settings that the group refuses come out of the next fetch, which lets it try again."""
    for request, code, error in (
        ("JoinGroup", "GROUP_AUTHORIZATION_FAILED", AuthorizationError),
        ("SyncGroup", "GROUP_AUTHORIZATION_FAILED", AuthorizationError),
        ("JoinGroup", "INVALID_SESSION_TIMEOUT", ConfigurationError),
        ("JoinGroup", "INVALID_GROUP_ID", ConfigurationError),
        ("JoinGroup", "KAFKA_STORAGE_ERROR", FetchError),
        ("SyncGroup", "COORDINATOR_LOAD_IN_PROGRESS", FetchError),
    ):
        world = MemoryWorld(1)
        world.broker.fail(request, code)  # type: ignore[arg-type]
        a = await world.start("a")
        with pytest.raises(error):
            await a.consumer.fetch([], 10, 60_000)
        await a.joined(1)
        assert a.consumer.failure() is None
        await stop(a)


@virtually
async def test_another_protocol_is_refused() -> None:
    """A member whose assignor differs from the group's is told, and does not disturb it."""
    world = MemoryWorld(1)
    a = await world.start("a")
    await a.joined(1)
    b = await world.start("b", client_options={"partition_assignment_strategy": "range"})
    with pytest.raises(ConfigurationError, match="INCONSISTENT_GROUP_PROTOCOL"):
        await b.consumer.fetch([], 10, 60_000)
    assert a.said == ["assigned"]
    await stop(a, b)


@virtually
async def test_heartbeats_that_end_for_good_are_a_failure() -> None:
    """A missing right and an unexpected answer end the heartbeats: the consumer says so."""
    for code, error in (
        ("GROUP_AUTHORIZATION_FAILED", AuthorizationError),
        ("COORDINATOR_LOAD_IN_PROGRESS", EngineError),
    ):
        world = MemoryWorld(1)
        a = await world.start("a")
        await a.joined(1)
        world.broker.fail("Heartbeat", code)
        await until(lambda a=a: a.consumer.failure() is not None)
        assert isinstance(a.consumer.failure(), error)
        with pytest.raises((AuthorizationError, FetchError)):
            await a.consumer.fetch([], 10, 100)
        await stop(a)


@virtually
async def test_a_mute_network_ends_the_lease_and_then_the_membership() -> None:
    """While heartbeats are not answered the lease stands still; others go on; afterwards all is lost."""
    world = MemoryWorld(2)
    a = await world.start("a")
    await a.joined(2)
    lease = a.consumer.lease_from()
    world.link.mute.add("Heartbeat")
    await asyncio.sleep(12)
    assert a.consumer.lease_from() == lease
    assert world.broker.group(GROUP).members == {}
    assert a.said == ["assigned"]
    world.link.mute.clear()
    await a.until(lambda: a.said == ["assigned", "lost", "assigned"], 60)
    await stop(a)


@virtually
async def test_a_token_may_come_back() -> None:
    """A coordinator that forgot an unfinished rebalance gives the same generation again."""
    world = MemoryWorld(2)
    a, b = await world.start("a"), await world.start("b")
    await asyncio.gather(a.joined(1), b.joined(1))
    old, told = b.token, len(b.said)
    world.link.slow["SyncGroup"] = 2.0
    c = await world.start("c")
    await until(lambda: world.broker.group(GROUP).state == "CompletingRebalance")
    world.broker.move_coordinator(GROUP)
    await asyncio.sleep(60)
    assert b.said[told] == "revoked"
    assert b.token.generation > old.generation
    assert sorted(len(one.partitions) for one in (a, b, c)) == [0, 1, 1]
    await stop(a, b, c)


@virtually
async def test_a_pattern_follows_the_topics() -> None:
    """Topics that match as a whole are taken at the next metadata refresh, and given up when deleted."""
    world = MemoryWorld(1, metadata_max_age_ms=5_000)
    world.broker.create_topic("tt")
    a = await world.start("a", pattern="t.?")
    b = await world.start("b", pattern="t.?")
    await asyncio.gather(a.joined(1), b.joined(1))
    world.broker.create_topic("t2", 2)
    world.broker.create_topic("t33", 2)
    begun = now()
    await until(lambda: len(a.partitions) == len(b.partitions) == 2)
    assert now() - begun < 5 + 3 + 1
    assert {tp.topic for tp in a.partitions | b.partitions} == {"t", "tt", "t2"}
    world.broker.delete_topic("t2")
    await until(lambda: len(a.partitions) == len(b.partitions) == 1)
    await stop(a, b)


@virtually
async def test_a_pattern_without_topics_waits_for_some() -> None:
    """A member of nothing is a member; metadata that is refused or lost is asked for again."""
    world = MemoryWorld(1, metadata_max_age_ms=5_000)
    a = await world.start("a", pattern="none")
    await a.joined(0)
    world.broker.fail("Metadata", DISCONNECT, times=3)
    world.broker.fail("Metadata", "KAFKA_STORAGE_ERROR", times=3)
    world.broker.create_topic("none")
    await a.joined(1)
    assert await a.consumer.end([TopicPartition("none", 0)]) == {TopicPartition("none", 0): 0}
    world.broker.fail("Metadata", "TOPIC_AUTHORIZATION_FAILED")
    with pytest.raises(AuthorizationError):
        await a.consumer.fetch([], 10, 60_000)
    await stop(a)


@virtually
async def test_growth_is_noticed_by_the_leader_only_once() -> None:
    """One rebalance, not one per member, shares out new partitions."""
    world = MemoryWorld(2, metadata_max_age_ms=5_000)
    a, b = await world.start("a"), await world.start("b")
    await asyncio.gather(a.joined(1), b.joined(1))
    generation = world.broker.group(GROUP).generation
    world.broker.add_partitions("t", 4)
    await until(lambda: len(a.partitions) == len(b.partitions) == 2)
    await asyncio.sleep(30)
    assert world.broker.group(GROUP).generation == generation + 1
    await stop(a, b)


@virtually
async def test_a_listener_that_raises_breaks_nothing() -> None:
    """The port says that it never does; the client logs it and goes on, as the real one."""
    world = MemoryWorld(2)
    a = await world.start("a")
    await a.joined(2)

    async def broken(_: object) -> None:
        raise RuntimeError("a bug in the listener")

    a.on_revoked = broken
    b = await world.start("b")
    await b.joined(1)
    assert a.consumer.failure() is None
    await stop(a, b)


@virtually
async def test_an_idle_member_costs_next_to_nothing() -> None:
    """Nothing ticks but heartbeats and metadata: an hour is a few thousand steps."""
    world = MemoryWorld(2)
    a = await world.start("a")
    await a.joined(2)
    before = loop().steps
    await asyncio.sleep(3_600)
    heartbeats, refreshes = 3_600 / 3, 3_600 / 30
    assert loop().steps - before < (heartbeats + refreshes) * 8
    assert a.consumer.drain_deadline() > now() > a.consumer.lease_from() > -math.inf
    await stop(a)
