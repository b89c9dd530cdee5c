"""Members come, go and freeze under load: nothing is lost, and no key runs in two places."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from asyncpar.testing.history import Event, HistoryFile, Kind, read
from tests import freezing, kafka_tools
from tests.conftest import Broker, TopicFactory
from tests.integration.conftest import MemberFactory
from tests.integration.coverage import ended, started
from tests.integration.load import load
from tests.integration.members import STEADY, Member
from tests.integration.plan import Plan
from tests.integration.waiting import ended_calls, eventually, until_committed_to_end, until_ended
from tests.integration.watch import judge

pytestmark = pytest.mark.broker


def handled_by(history_path: Path, member: Member) -> int:
    """How many calls of `member` have ended well."""
    return ended_calls(history_path, member.name)


async def until_handled_by(history_path: Path, member: Member, more: int) -> None:
    """Wait until `member` has handled `more` records beyond those of now."""
    before = handled_by(history_path, member)
    await eventually(
        lambda: handled_by(history_path, member) >= before + more, f"member {member.pid} handled {more} more"
    )


async def test_a_member_that_joins_and_leaves_under_load_causes_no_duplicate(
    broker: Broker, make_topic: TopicFactory, group_id: str, members: MemberFactory, history_path: Path
) -> None:
    """Handlers that end within the grace make both rebalances clean: each record runs once, keys never
    overlap.
    """
    topic = make_topic(partitions=4)
    plan = Plan(topic, str(history_path), work_ms=5)
    async with load(broker.bootstrap, topic, history_path, keys=200) as produced:
        first = members(plan, broker.bootstrap, group_id, **STEADY)
        await until_ended(history_path, 1000)
        second = members(plan, broker.bootstrap, group_id, **STEADY)
        await until_handled_by(history_path, second, 1000)
        await until_handled_by(history_path, first, 500)
        assert await asyncio.to_thread(second.stop) == 0, second.log
        left_at = time.monotonic_ns()
        await until_all_run_on(history_path, first, left_at, 4)
    finals = await until_committed_to_end(broker.bootstrap, group_id, topic)
    assert await asyncio.to_thread(first.stop) == 0, first.log

    events = read(history_path)
    report = judge(events, produced, finals, **STEADY)
    assert report.is_ok, report.explain()
    assert report.counts["duplicates"] == 0
    assert handled_by(history_path, first) + handled_by(history_path, second) == len(produced)
    assert len(started(events, {first.name, second.name})) == len(produced), "no call was cancelled"


def partitions_since(history_path: Path, member: Member, monotonic_ns: int) -> set[int]:
    """The partitions of which `member` has started records since then."""
    return {
        event.tp.partition
        for event in read(history_path)
        if event.kind == "start" and event.member == member.name and event.at_ns > monotonic_ns
    }


async def until_all_run_on(history_path: Path, member: Member, since_ns: int, partitions: int) -> None:
    """Wait until `member` has started records of all partitions since then."""
    await eventually(
        lambda: len(partitions_since(history_path, member, since_ns)) == partitions,
        f"member {member.pid} has all {partitions} partitions",
    )


async def test_a_member_killed_under_load_is_replaced_by_the_others(
    broker: Broker, make_topic: TopicFactory, group_id: str, members: MemberFactory, history_path: Path
) -> None:
    """After kill -9 of one of two members the other takes over; only what the dead one had not committed runs
    again.
    """
    topic = make_topic(partitions=4)
    plan = Plan(topic, str(history_path), work_ms=5)
    async with load(broker.bootstrap, topic, history_path, keys=200) as produced:
        victim = members(plan, broker.bootstrap, group_id)
        other = members(plan, broker.bootstrap, group_id)
        await until_handled_by(history_path, victim, 500)
        await until_handled_by(history_path, other, 500)
        victim.kill()
        note(history_path, "dead", victim)
        died_at = time.monotonic_ns()
        await until_all_run_on(history_path, other, died_at, 4)
    finals = await until_committed_to_end(broker.bootstrap, group_id, topic)
    assert await asyncio.to_thread(other.stop) == 0, other.log

    events = read(history_path)
    report = judge(events, produced, finals)
    assert report.is_ok, report.explain()
    again = Counter(ended(events, {victim.name, other.name}))
    twice = {place for place, times in again.items() if times > 1}
    assert twice <= set(ended(events, {victim.name})), "the survivor repeats nothing of its own"


async def test_calls_that_outlast_the_grace_are_cancelled_and_run_again_elsewhere(
    broker: Broker, make_topic: TopicFactory, group_id: str, members: MemberFactory, history_path: Path
) -> None:
    """When a member joins, calls that do not end within the grace are cancelled, not committed, and run
    again.
    """
    topic = make_topic(partitions=2)
    records = [kafka_tools.Record(b"k%d" % n, b"", partition=n % 2) for n in range(40)]
    produced = await kafka_tools.produce(broker.bootstrap, topic, records)
    plan = Plan(topic, str(history_path), work_ms=1, stuck=(3, 5))
    first = members(plan, broker.bootstrap, group_id, max_revoke_grace_ms=500, **STEADY)
    await until_ended(history_path, 36)
    second = members(plan, broker.bootstrap, group_id, max_revoke_grace_ms=500, **STEADY)
    await eventually(
        lambda: started(read(history_path), {second.name}),
        "the second member runs what the first was cancelled in",
    )
    plan.release.touch()
    finals = await until_committed_to_end(broker.bootstrap, group_id, topic)
    assert await asyncio.to_thread(first.stop) == 0, first.log
    assert await asyncio.to_thread(second.stop) == 0, second.log

    events = read(history_path)
    report = judge(events, produced, finals, max_revoke_grace_ms=500, **STEADY)
    assert report.is_ok, report.explain()
    assert report.counts["duplicates"] == 0, "a cancelled call is no success"
    cancelled = sorted(place[1:] for place in ended(events, {first.name}, "cancelled"))
    assert cancelled == [(0, 3), (0, 5), (1, 3), (1, 5)]


async def test_a_member_frozen_beyond_its_session_starts_nothing_that_others_own(
    broker: Broker, make_topic: TopicFactory, group_id: str, members: MemberFactory, history_path: Path
) -> None:
    """SIGSTOP for longer than the session, then SIGCONT: what it holds is stale, and none of that is
    started.
    """
    topic = make_topic(partitions=4)
    plan = Plan(topic, str(history_path), work_ms=5)
    async with load(broker.bootstrap, topic, history_path, keys=200) as produced:
        zombie = members(plan, broker.bootstrap, group_id)
        other = members(plan, broker.bootstrap, group_id)
        await until_handled_by(history_path, zombie, 300)
        await until_handled_by(history_path, other, 300)

        frozen_at = freeze(history_path, zombie)
        await until_all_run_on(history_path, other, frozen_at, 4)
        thawed_at = thaw(history_path, zombie)
        await eventually(
            lambda: new_life(read(history_path), zombie, thawed_at), "the zombie is a member again"
        )
        await until_handled_by(history_path, zombie, 300)
        await until_handled_by(history_path, other, 300)
    finals = await until_committed_to_end(broker.bootstrap, group_id, topic)
    assert await asyncio.to_thread(zombie.stop) == 0, zombie.log
    assert await asyncio.to_thread(other.stop) == 0, other.log

    # One loop, so one record at most can have been between the lease's check and its first line; the
    # checkers excuse no more, and of calls only those that ran when the partition went to the other.
    report = judge(history_path, produced, finals)
    assert report.is_ok, f"{report.explain()}\nit wrote:\n{zombie.log[-3000:]}"
    assert report.counts["late starts"] <= 1
    assert report.counts["stragglers"] <= plan.concurrency
    assert report.counts["unclean losses"] >= 1


async def test_a_frozen_static_member_that_was_replaced_ends_and_disturbs_nobody(
    broker: Broker, make_topic: TopicFactory, group_id: str, members: MemberFactory, history_path: Path
) -> None:
    """A member with the same group_instance_id takes over; the frozen one wakes, starts nothing and exits
    with 2.
    """
    topic = make_topic(partitions=2)
    plan = Plan(topic, str(history_path), concurrency=20)
    async with load(broker.bootstrap, topic, history_path, keys=100) as produced:
        frozen = members(plan, broker.bootstrap, group_id, group_instance_id="a")
        await until_handled_by(history_path, frozen, 200)
        frozen_at = freeze(history_path, frozen)
        heir = members(plan, broker.bootstrap, group_id, group_instance_id="a")
        await until_handled_by(history_path, heir, 300)
        session_ns = 1_500_000_000
        await eventually(lambda: time.monotonic_ns() - frozen_at > session_ns, "the session is over")
        thaw(history_path, frozen)
        assert await asyncio.to_thread(frozen.ended) == 2, frozen.log
        assert "another member has its group_instance_id" in frozen.log
        await until_handled_by(history_path, heir, 300)
    finals = await until_committed_to_end(broker.bootstrap, group_id, topic)
    assert await asyncio.to_thread(heir.stop) == 0, heir.log
    assert "lost" not in heir.log

    report = judge(history_path, produced, finals)
    assert report.is_ok, f"{report.explain()}\nit wrote:\n{frozen.log[-3000:]}"
    assert report.counts["late starts"] <= 1
    assert report.counts["stragglers"] <= plan.concurrency


def new_life(events: list[Event], member: Member, thawed_at: int) -> bool:
    """Whether `member` was given some partition since it was thawed."""
    return any(e.kind == "assign" and e.member == member.name and e.at_ns > thawed_at for e in events)


def note(history_path: Path, kind: Kind, member: Member) -> int:
    """Note what is done to a member; returns when."""
    history = HistoryFile(history_path)
    history.note(kind, member.name)
    history.close()
    return time.monotonic_ns()


def freeze(history_path: Path, member: Member) -> int:
    """SIGSTOP; returns when."""
    at_ns = note(history_path, "freeze", member)
    freezing.freeze(member.pid)
    return at_ns


def thaw(history_path: Path, member: Member) -> int:
    """SIGCONT; returns when."""
    at_ns = note(history_path, "thaw", member)
    os.kill(member.pid, signal.SIGCONT)
    return at_ns
