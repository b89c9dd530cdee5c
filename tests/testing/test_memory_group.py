"""The coordinator's state machine, request by request, on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from asyncpar.records import GroupToken, TopicPartition
from asyncpar.testing.memory_assignors import Wish
from asyncpar.testing.memory_group import MemoryGroup
from asyncpar.testing.memory_link import Code, LinkError, RefusedError
from asyncpar.testing.memory_roster import Joined, JoinRequest
from tests.testing.virtually import loop, now, virtually

P0, P1 = TopicPartition("t", 0), TopicPartition("t", 1)
SESSION_S, REBALANCE_S = 10.0, 5.0


def request(
    member_id: str = "", instance_id: str | None = None, topics: str = "t", rebalance_s: float = REBALANCE_S
) -> JoinRequest:
    """A JoinGroup."""
    wish = Wish(frozenset({topics}))
    return JoinRequest("m", member_id, instance_id, SESSION_S, rebalance_s, "range", wish)


def new_id(group: MemoryGroup) -> str:
    """What a first JoinGroup is answered with."""
    with pytest.raises(RefusedError) as refused:
        group.join(request())
    assert refused.value.code is Code.MEMBER_ID_REQUIRED
    return refused.value.member_id


def code_of(act: Callable[[], object]) -> Code:
    """What `act` is refused with."""
    with pytest.raises(RefusedError) as refused:
        act()
    return refused.value.code


async def heard(answer: asyncio.Future[Joined | Exception]) -> Joined:
    """A JoinGroup's answer, which must be a good one."""
    joined = await asyncio.wait_for(answer, 60)
    assert isinstance(joined, Joined), joined
    return joined


async def stable_group(count: int = 2) -> tuple[MemoryGroup, list[str]]:
    """A group of `count` members in its first stable generation; the first one leads."""
    group = MemoryGroup("g")
    ids = [new_id(group) for _ in range(count)]
    joins = [group.join(request(member_id)) for member_id in ids]
    for join in joins:
        await heard(join)
    for member_id in reversed(ids):
        group.sync(
            member_id, None, group.generation, {ids[0]: [P0], ids[-1]: [P1]} if member_id == ids[0] else {}
        )
    assert group.state == "Stable"
    return group, ids


@virtually
async def test_first_members_make_a_generation() -> None:
    """All who were given an id are waited for; the leader is told of all; the plan reaches each."""
    group = MemoryGroup("g")
    a, b = new_id(group), new_id(group)
    join_a = group.join(request(a))
    assert group.state == "PreparingRebalance"
    assert not join_a.done()
    join_b = group.join(request(b))
    assert (group.state, group.generation) == ("CompletingRebalance", 1)
    joined_a, joined_b = await heard(join_a), await heard(join_b)
    assert joined_a.leader_id == joined_b.leader_id == a
    assert set(joined_a.members) == {a, b}
    assert joined_b.members == {}
    sync_b = group.sync(b, None, 1, {})
    assert not sync_b.done()
    assert await group.sync(a, None, 1, {a: [P0], b: [P1]}) == {P0}
    assert await sync_b == {P1}
    assert group.state == "Stable"
    assert await group.sync(b, None, 1, {}) == {P1}


@virtually
async def test_an_id_that_is_never_used_expires() -> None:
    """An id given out holds a rebalance up for a session, no longer; leaving with it frees at once."""
    group = MemoryGroup("g")
    lost, a = new_id(group), new_id(group)
    begun = now()
    await heard(group.join(request(a, rebalance_s=60)))
    assert now() - begun == pytest.approx(SESSION_S, abs=0.1)
    assert code_of(lambda: group.join(request(lost))) is Code.UNKNOWN_MEMBER_ID
    other = new_id(group)
    again = group.join(request(a, topics="u"))
    assert not again.done()
    group.leave(other)
    await heard(again)


@virtually
async def test_heartbeats_tell_of_a_rebalance() -> None:
    """While members are waited for a heartbeat is answered 27, and commits of the old token are taken."""
    group, (a, b) = await stable_group()
    token = GroupToken(group.generation, b)
    group.heartbeat(b, token.generation)
    join_a = group.join(request(a))
    assert group.state == "PreparingRebalance"
    assert code_of(lambda: group.heartbeat(b, token.generation)) is Code.REBALANCE_IN_PROGRESS
    assert code_of(lambda: group.sync(b, None, token.generation, {})) is Code.REBALANCE_IN_PROGRESS
    group.check_commit(token)
    join_b = group.join(request(b))
    joined = await heard(join_b)
    await heard(join_a)
    assert group.state == "CompletingRebalance"
    assert code_of(lambda: group.check_commit(token)) is Code.ILLEGAL_GENERATION
    assert code_of(lambda: group.heartbeat(b, token.generation)) is Code.ILLEGAL_GENERATION
    assert code_of(lambda: group.sync(b, None, token.generation, {})) is Code.ILLEGAL_GENERATION
    fresh = GroupToken(joined.generation, b)
    assert code_of(lambda: group.check_commit(fresh)) is Code.REBALANCE_IN_PROGRESS
    group.heartbeat(b, fresh.generation)
    group.sync(a, None, joined.generation, {})
    group.check_commit(fresh)


@virtually
async def test_strangers_are_refused() -> None:
    """Whoever is no member hears so from every request."""
    group, _ = await stable_group()
    stranger = GroupToken(group.generation, "x")
    for act in (
        lambda: group.heartbeat("x", 1),
        lambda: group.sync("x", None, 1, {}),
        lambda: group.leave("x"),
        lambda: group.join(request("x")),
        lambda: group.check_commit(stranger),
    ):
        assert code_of(act) is Code.UNKNOWN_MEMBER_ID
    other = request()._replace(protocol="roundrobin")
    assert code_of(lambda: group.join(other)) is Code.INCONSISTENT_GROUP_PROTOCOL


@virtually
async def test_who_does_not_join_again_in_time_is_removed() -> None:
    """The rebalance timeout (the largest of all members') bounds the wait; heartbeats do not help."""
    group, (a, b) = await stable_group()
    begun = now()
    join = group.join(request(a))

    async def beat() -> None:
        while True:
            await asyncio.sleep(1)
            if b in group.members:
                code_of(lambda: group.heartbeat(b, 1))

    beating = asyncio.create_task(beat())
    joined = await heard(join)
    beating.cancel()
    assert now() - begun == pytest.approx(REBALANCE_S, abs=0.1)
    assert set(joined.members) == {a}
    assert code_of(lambda: group.heartbeat(b, joined.generation)) is Code.UNKNOWN_MEMBER_ID


@virtually
async def test_a_silent_member_is_removed() -> None:
    """A session that ends starts a rebalance of the others; commits count as signs of life."""
    group, (a, b) = await stable_group()
    for _ in range(4):
        await asyncio.sleep(SESSION_S * 0.6)
        if b not in group.members:
            break
        group.check_commit(GroupToken(1, a))
    assert set(group.members) == {a}
    assert group.state == "PreparingRebalance"
    await heard(group.join(request(a)))


@virtually
async def test_everybody_silent_leaves_an_empty_group() -> None:
    """The last session that ends leaves the group empty, in a generation of its own, with its offsets."""
    group, _ = await stable_group()
    await asyncio.sleep(SESSION_S * 2 + REBALANCE_S)
    assert (group.state, group.members, group.leader) == ("Empty", {}, None)
    assert group.generation > 1


@virtually
async def test_who_joined_but_never_synced_is_removed() -> None:
    """A member whose SyncGroup does not come within the rebalance timeout starts the next rebalance."""
    group = MemoryGroup("g")
    a, b = new_id(group), new_id(group)
    joins = [group.join(request(a)), group.join(request(b))]
    for join in joins:
        await heard(join)
    group.sync(a, None, 1, {})
    await asyncio.sleep(REBALANCE_S + 0.1)
    assert set(group.members) == {a}
    assert group.state == "PreparingRebalance"


@virtually
async def test_a_leader_that_never_syncs_is_replaced() -> None:
    """Followers that wait for the plan hear of a rebalance, and one of them leads it."""
    group = MemoryGroup("g")
    a, b = new_id(group), new_id(group)
    joins = [group.join(request(a)), group.join(request(b))]
    for join in joins:
        await heard(join)
    waiting = group.sync(b, None, 1, {})
    answer = await asyncio.wait_for(waiting, 60)
    assert isinstance(answer, RefusedError)
    assert answer.code is Code.REBALANCE_IN_PROGRESS
    joined = await heard(group.join(request(b)))
    assert (joined.leader_id, set(joined.members)) == (b, {b})


@virtually
async def test_a_follower_that_lost_its_answer_hears_it_again() -> None:
    """Joining again with nothing new causes no rebalance; a leader, or a new wish, does."""
    group, (a, b) = await stable_group()
    joined = await heard(group.join(request(b)))
    assert (joined.generation, joined.leader_id, group.state) == (1, a, "Stable")
    again = group.join(request(b, topics="u"))
    assert group.state == "PreparingRebalance"
    assert group.join(request(b, topics="u")) is again
    await heard(group.join(request(a)))
    late = await heard(group.join(request(b, topics="u")))
    assert (late.generation, group.state) == (2, "CompletingRebalance")


@virtually
async def test_leaving_starts_a_rebalance_at_once() -> None:
    """A member that leaves is not waited for; the one that leaves while it waits to join hears 25."""
    group, (a, b) = await stable_group()
    join_a = group.join(request(a))
    group.leave(b)
    assert set((await heard(join_a)).members) == {a}
    c = new_id(group)
    waiting = group.join(request(c))
    group.leave(c)
    answer = await waiting
    assert isinstance(answer, RefusedError)
    assert answer.code is Code.UNKNOWN_MEMBER_ID
    assert code_of(lambda: group.heartbeat(a, 2)) is Code.REBALANCE_IN_PROGRESS


@virtually
async def test_an_empty_group_waits_for_more() -> None:
    """With an initial delay the first member waits that long for others."""
    group = MemoryGroup("g", initial_delay_s=3.0)
    a = new_id(group)
    begun = now()
    join_a = group.join(request(a))
    await asyncio.sleep(1)
    b = new_id(group)
    join_b = group.join(request(b))
    assert set((await heard(join_a)).members) == {a, b}
    await heard(join_b)
    assert now() - begun == pytest.approx(3.0, abs=0.1)


@virtually
async def test_a_static_member_comes_back_under_a_new_id() -> None:
    """In a stable group it takes its place without a rebalance; the old id is fenced."""
    group = MemoryGroup("g")
    first = await heard(group.join(request(instance_id="i")))
    group.sync(first.member_id, "i", 1, {first.member_id: [P0]})
    second = await heard(group.join(request(instance_id="i")))
    assert second.member_id != first.member_id
    # It leads, but is told its old name: it must not make a new plan.
    assert (second.generation, second.leader_id, second.members) == (1, first.member_id, {})
    assert await group.sync(second.member_id, "i", 1, {}) == {P0}
    assert code_of(lambda: group.heartbeat(first.member_id, 1, "i")) is Code.FENCED_INSTANCE_ID
    assert code_of(lambda: group.heartbeat(first.member_id, 1)) is Code.UNKNOWN_MEMBER_ID
    assert code_of(lambda: group.join(request(first.member_id, "i"))) is Code.FENCED_INSTANCE_ID
    again = group.join(request(second.member_id, "i"))
    assert (await heard(again)).leader_id == second.member_id


@virtually
async def test_a_static_member_replaced_while_it_waits_is_fenced() -> None:
    """Its JoinGroup is answered 82, and the new one's with the next generation."""
    group, (a, _) = await stable_group()
    waiting = group.join(request(instance_id="i"))
    replaced = group.join(request(instance_id="i"))
    answer = await waiting
    assert isinstance(answer, RefusedError)
    assert answer.code is Code.FENCED_INSTANCE_ID
    join_a = group.join(request(a))
    await asyncio.sleep(REBALANCE_S + 1)
    assert (await heard(replaced)).generation == (await heard(join_a)).generation == 2


@virtually
async def test_absent_static_members_stay_until_their_session_ends() -> None:
    """A rebalance does not remove a static member that is away: it keeps a share until its session ends."""
    group, (a, b) = await stable_group()
    static = group.join(request(instance_id="i"))
    joins = [group.join(request(a)), group.join(request(b))]
    static_id = (await heard(static)).member_id
    for join in joins:
        await heard(join)
    plan = {a: [P0], static_id: [P1]}
    for member_id in (b, static_id, a):
        group.sync(member_id, None, 2, plan if member_id == a else {})
    for member_id in (a, b):
        group.join(request(member_id, topics="u"))
    await asyncio.sleep(REBALANCE_S + 0.1)
    assert (group.state, group.generation) == ("CompletingRebalance", 3)
    assert static_id in group.members
    group.unload(RefusedError(Code.NOT_COORDINATOR))


@virtually
async def test_a_new_coordinator_knows_the_last_finished_rebalance() -> None:
    """Waiting requests hear why; members and generation are those of the last plan; sessions begin anew."""
    group, (a, b) = await stable_group()
    await asyncio.sleep(SESSION_S * 0.9)
    group.heartbeat(a, 1)
    waiting = group.join(request(a, topics="u"))
    newcomer = new_id(group)
    gone = LinkError("gone")
    group.unload(gone)
    assert await waiting is gone
    await asyncio.sleep(SESSION_S * 2)
    group.load()
    assert (group.state, group.generation, set(group.members)) == ("Stable", 1, {a, b})
    assert group.members[b].assignment == {P1}
    assert code_of(lambda: group.join(request(newcomer))) is Code.UNKNOWN_MEMBER_ID
    await asyncio.sleep(SESSION_S * 0.9)
    group.heartbeat(b, 1)
    await asyncio.sleep(SESSION_S * 0.2)
    assert set(group.members) == {b}


@virtually
async def test_timers_belong_to_the_broker() -> None:
    """What a member's request starts goes on when that member's own timers do not run."""
    group, (a, b) = await stable_group()
    joined = asyncio.create_task(join_later(group, a), context=loop().context_of("frozen"))
    await asyncio.sleep(0.01)
    loop().freeze("frozen")
    await asyncio.sleep(REBALANCE_S + 0.1)
    assert b not in group.members
    assert not joined.done()
    loop().thaw("frozen")
    assert set((await joined).members) == {a}


async def join_later(group: MemoryGroup, member_id: str) -> Joined:
    """A JoinGroup of a leader."""
    return await heard(group.join(request(member_id)))
