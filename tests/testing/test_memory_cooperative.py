"""Cooperative members of the in-memory broker: a rebalance takes only what moves."""

from __future__ import annotations

import asyncio

from asyncpar.records import CommitAnswer, Committed, TopicPartition
from tests.testing.contract_member import offsets
from tests.testing.memory_world import GROUP, MemoryWorld, stop
from tests.testing.virtually import until, virtually


@virtually
async def test_cooperative_members_give_up_only_what_moves() -> None:
    """Whoever keeps a partition keeps its position, buffers and commits over the rebalance."""
    world = MemoryWorld(4, 20)
    a = await world.start("a", cooperative=True)
    for tp in await a.joined(4):
        a.consumer.seek(tp, 5)
    await a.read(a.partitions, 60)
    old = a.token
    stored: list[CommitAnswer] = []

    async def drain(revoked: frozenset[TopicPartition]) -> None:
        await asyncio.sleep(1)
        stored.extend((await a.consumer.commit(old, dict.fromkeys(revoked, Committed(20, "")), 5)).values())
        assert not b.partitions

    a.on_revoked = drain
    b = await world.start("b", cooperative=True)
    await until(lambda: len(a.partitions) == len(b.partitions) == 2)
    assert [len(taken) for taken in a.taken] == [2]
    assert stored == [CommitAnswer.ACKNOWLEDGED] * 2
    assert "lost" not in a.said
    kept = sorted(a.partitions)
    assert [a.consumer.position(tp) for tp in kept] == [20, 20]
    assert [a.consumer.position(tp) for tp in sorted(b.partitions)] == [None, None]
    assert await a.commit(20) == {CommitAnswer.ACKNOWLEDGED}
    assert set((await a.consumer.commit(old, dict.fromkeys(kept, Committed(20, "")), 5)).values()) == {
        CommitAnswer.ACKNOWLEDGED
    }
    world.broker.send("t", b"v", partition=kept[0].partition)
    assert offsets(await a.read(kept, 1)) == {kept[0]: [20]}
    assert set((await b.consumer.committed(b.partitions)).values()) == {Committed(20, "")}
    await b.consumer.stop(3)
    await until(lambda: len(a.partitions) == 4)
    assert [len(taken) for taken in a.taken] == [2]
    await stop(a)


@virtually
async def test_a_cooperative_member_that_is_removed_loses_all() -> None:
    """Its former tokens are good for nothing then, and the other one is given everything."""
    world = MemoryWorld(2)
    a = await world.start("a", cooperative=True)
    await a.joined(2)
    b = await world.start("b", cooperative=True)
    await until(lambda: len(a.partitions) == len(b.partitions) == 1)
    old, held = a.token, a.partitions
    world.broker.kick(GROUP, a.consumer.member_id)
    await a.until(lambda: "lost" in a.said, 60)
    assert set((await a.consumer.commit(old, dict.fromkeys(held, Committed(1, "")), 5)).values()) == {
        CommitAnswer.STALE
    }
    await until(lambda: len(a.partitions) == len(b.partitions) == 1)
    await stop(a, b)


@virtually
async def test_a_cooperative_member_removed_while_it_gives_back() -> None:
    """A revoke that outlives the membership is followed by the loss of the rest."""
    world = MemoryWorld(4)
    a = await world.start("a", cooperative=True)
    await a.joined(4)
    drained = asyncio.Event()

    async def drain(_: object) -> None:
        await drained.wait()

    a.on_revoked = drain
    b = await world.start("b", cooperative=True)
    await a.until(lambda: "revoked" in a.said, 60)
    world.broker.kick(GROUP, a.consumer.member_id)
    await until(lambda: len(b.partitions) == 4)
    drained.set()
    await until(lambda: len(a.partitions) == len(b.partitions) == 2)
    assert a.said[:3] == ["assigned", "revoked", "lost"]
    await stop(a, b)


@virtually
async def test_a_cooperative_member_removed_while_it_joins_again_loses_what_it_kept() -> None:
    """Its JoinGroup is answered with UNKNOWN_MEMBER_ID: others may have had its partitions since."""
    world = MemoryWorld(2)
    a = await world.start("a", cooperative=True)
    await a.joined(2)
    world.broker.fail("JoinGroup", "UNKNOWN_MEMBER_ID", member="a")
    b = await world.start("b", cooperative=True)
    await until(lambda: len(a.partitions) == len(b.partitions) == 1)
    assert "lost" in a.said
    await stop(a, b)
