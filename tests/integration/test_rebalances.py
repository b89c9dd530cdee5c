"""Members come, go and freeze under load: nothing is lost, and no key runs in two places."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from tests import kafka_tools
from tests.conftest import Broker, TopicFactory
from tests.integration.conftest import MemberFactory
from tests.integration.load import load
from tests.integration.members import Member
from tests.integration.plan import Plan
from tests.integration.waiting import ended_calls, eventually, until_committed_to_end, until_ended
from tests.ledger import Event, Ledger, Place, check, read

pytestmark = pytest.mark.broker


def handled_by(ledger_path: Path, member: Member) -> int:
    """How many calls of `member` have ended well."""
    return ended_calls(ledger_path, member.pid)


async def until_handled_by(ledger_path: Path, member: Member, more: int) -> None:
    """Wait until `member` has handled `more` records beyond those of now."""
    before = handled_by(ledger_path, member)
    await eventually(
        lambda: handled_by(ledger_path, member) >= before + more, f"member {member.pid} handled {more} more"
    )


async def test_a_member_that_joins_and_leaves_under_load_causes_no_duplicate(
    broker: Broker, make_topic: TopicFactory, group_id: str, members: MemberFactory, ledger_path: Path
) -> None:
    """Handlers that end within the grace make both rebalances clean: each record runs once, keys never
    overlap.
    """
    topic = make_topic(partitions=4)
    plan = Plan(topic, str(ledger_path), work_ms=5)
    async with load(broker.bootstrap, topic, ledger_path, keys=200) as produced:
        first = members(plan, broker.bootstrap, group_id)
        await until_ended(ledger_path, 1000)
        second = members(plan, broker.bootstrap, group_id)
        await until_handled_by(ledger_path, second, 1000)
        await until_handled_by(ledger_path, first, 500)
        assert await asyncio.to_thread(second.stop) == 0, second.log
        left_at = time.monotonic_ns()
        await eventually(
            lambda: len(partitions_since(ledger_path, first, left_at)) == 4,
            "the first member has all partitions again",
        )
    await until_committed_to_end(broker.bootstrap, group_id, topic)
    assert await asyncio.to_thread(first.stop) == 0, first.log

    report = check(ledger_path, produced)
    assert report.is_ok, report.explain()
    assert report.duplicates == 0
    assert handled_by(ledger_path, first) + handled_by(ledger_path, second) == len(produced)
    assert not [event for event in read(ledger_path) if event.kind == "fail"], "no call was cancelled"


def partitions_since(ledger_path: Path, member: Member, monotonic_ns: int) -> set[int]:
    """The partitions of which `member` has started records since then."""
    return {
        event.place.partition
        for event in read(ledger_path)
        if event.kind == "start" and event.writer.pid == member.pid and event.monotonic_ns > monotonic_ns
    }


async def test_a_member_killed_under_load_is_replaced_by_the_others(
    broker: Broker, make_topic: TopicFactory, group_id: str, members: MemberFactory, ledger_path: Path
) -> None:
    """After kill -9 of one of two members the other takes over; only what the dead one had not committed runs
    again.
    """
    topic = make_topic(partitions=4)
    plan = Plan(topic, str(ledger_path), work_ms=5)
    async with load(broker.bootstrap, topic, ledger_path, keys=200) as produced:
        victim = members(plan, broker.bootstrap, group_id)
        other = members(plan, broker.bootstrap, group_id)
        await until_handled_by(ledger_path, victim, 500)
        await until_handled_by(ledger_path, other, 500)
        victim.kill()
        ledger = Ledger(ledger_path)
        ledger.dead(victim.pid)
        ledger.close()
        died_at = time.monotonic_ns()
        await eventually(
            lambda: len(partitions_since(ledger_path, other, died_at)) == 4, "the other has all partitions"
        )
    await until_committed_to_end(broker.bootstrap, group_id, topic)
    assert await asyncio.to_thread(other.stop) == 0, other.log

    events = read(ledger_path)
    report = check(events, produced)
    assert report.is_ok, report.explain()
    by_victim = {event.place for event in events if event.kind == "end" and event.writer.pid == victim.pid}
    assert set(report.duplicated) <= by_victim, "the survivor repeats nothing of its own"


async def test_calls_that_outlast_the_grace_are_cancelled_and_run_again_elsewhere(
    broker: Broker, make_topic: TopicFactory, group_id: str, members: MemberFactory, ledger_path: Path
) -> None:
    """When a member joins, calls that do not end within the grace are cancelled, not committed, and run
    again.
    """
    topic = make_topic(partitions=2)
    records = [kafka_tools.Record(b"k%d" % n, b"", partition=n % 2) for n in range(40)]
    produced = await kafka_tools.produce(broker.bootstrap, topic, records)
    plan = Plan(topic, str(ledger_path), work_ms=1, stuck=(3, 5))
    first = members(plan, broker.bootstrap, group_id, max_revoke_grace_ms=500)
    await until_ended(ledger_path, 36)
    second = members(plan, broker.bootstrap, group_id, max_revoke_grace_ms=500)
    await eventually(
        lambda: any(e.kind == "start" and e.writer.pid == second.pid for e in read(ledger_path)),
        "the second member runs what the first was cancelled in",
    )
    plan.release.touch()
    await until_committed_to_end(broker.bootstrap, group_id, topic)
    assert await asyncio.to_thread(first.stop) == 0, first.log
    assert await asyncio.to_thread(second.stop) == 0, second.log

    events = read(ledger_path)
    report = check(events, produced)
    assert report.is_ok, report.explain()
    assert report.duplicates == 0, "a cancelled call is no success"
    cancelled = sorted((e.place.partition, e.place.offset) for e in events if e.kind == "fail")
    assert cancelled == [(0, 3), (0, 5), (1, 3), (1, 5)]


async def test_a_member_frozen_beyond_its_session_starts_nothing_that_others_own(
    broker: Broker, make_topic: TopicFactory, group_id: str, members: MemberFactory, ledger_path: Path
) -> None:
    """SIGSTOP for longer than the session, then SIGCONT: what it holds is stale, and none of that is
    started.
    """
    topic = make_topic(partitions=4)
    plan = Plan(topic, str(ledger_path), work_ms=5)
    async with load(broker.bootstrap, topic, ledger_path, keys=200) as produced:
        zombie = members(plan, broker.bootstrap, group_id)
        other = members(plan, broker.bootstrap, group_id)
        await until_handled_by(ledger_path, zombie, 300)
        await until_handled_by(ledger_path, other, 300)

        os.kill(zombie.pid, signal.SIGSTOP)
        frozen_at = time.monotonic_ns()
        await eventually(
            lambda: len(partitions_since(ledger_path, other, frozen_at)) == 4,
            "the other member has all partitions",
        )
        thawed_at = time.monotonic_ns()
        os.kill(zombie.pid, signal.SIGCONT)
        await eventually(
            lambda: new_life(read(ledger_path), zombie.pid, thawed_at), "the zombie is a member again"
        )
        await until_handled_by(ledger_path, zombie, 300)
        await until_handled_by(ledger_path, other, 300)
    await until_committed_to_end(broker.bootstrap, group_id, topic)
    assert await asyncio.to_thread(zombie.stop) == 0, zombie.log
    assert await asyncio.to_thread(other.stop) == 0, other.log

    events = read(ledger_path)
    running = running_at(events, zombie.pid, frozen_at)
    assert len(running) <= plan.concurrency
    # One loop, so one record at most can have been between the lease's check and its first line.
    stale = stale_starts(events, zombie.pid, thawed_at)
    assert len(stale) <= 1, f"{len(stale)} stale starts, first {stale[:3]}; it wrote:\n{zombie.log[-3000:]}"
    # The owner's next record of that key would be blamed for what stands before it.
    events = [event for event in events if event not in stale]
    report = check(events, produced, stragglers=running | {event.place for event in stale})
    assert report.is_ok, report.explain()


async def test_a_frozen_static_member_that_was_replaced_ends_and_disturbs_nobody(
    broker: Broker, make_topic: TopicFactory, group_id: str, members: MemberFactory, ledger_path: Path
) -> None:
    """A member with the same group_instance_id takes over; the frozen one wakes, starts nothing and exits
    with 2.
    """
    topic = make_topic(partitions=2)
    plan = Plan(topic, str(ledger_path), concurrency=20)
    async with load(broker.bootstrap, topic, ledger_path, keys=100) as produced:
        frozen = members(plan, broker.bootstrap, group_id, group_instance_id="a")
        await until_handled_by(ledger_path, frozen, 200)
        os.kill(frozen.pid, signal.SIGSTOP)
        frozen_at = time.monotonic_ns()
        heir = members(plan, broker.bootstrap, group_id, group_instance_id="a")
        await until_handled_by(ledger_path, heir, 300)
        session_ns = 1_500_000_000
        await eventually(lambda: time.monotonic_ns() - frozen_at > session_ns, "the session is over")
        thawed_at = time.monotonic_ns()
        os.kill(frozen.pid, signal.SIGCONT)
        assert await asyncio.to_thread(frozen.ended) == 2, frozen.log
        assert "another member has its group_instance_id" in frozen.log
        await until_handled_by(ledger_path, heir, 300)
    await until_committed_to_end(broker.bootstrap, group_id, topic)
    assert await asyncio.to_thread(heir.stop) == 0, heir.log
    assert "lost" not in heir.log

    events = read(ledger_path)
    running = running_at(events, frozen.pid, frozen_at)
    stale = stale_starts(events, frozen.pid, thawed_at)
    assert len(stale) <= 1, f"{len(stale)} stale starts; it wrote:\n{frozen.log[-3000:]}"
    # The owner's next record of that key would be blamed for what stands before it.
    events = [event for event in events if event not in stale]
    report = check(events, produced, stragglers=running | {event.place for event in stale})
    assert report.is_ok, report.explain()


def running_at(events: list[Event], pid: int, monotonic_ns: int) -> set[Place]:
    """The calls of process `pid` that had started and not ended at that moment."""
    running: set[Place] = set()
    for event in events:
        if event.writer.pid == pid and event.monotonic_ns < monotonic_ns:
            if event.kind == "start":
                running.add(event.place)
            elif event.kind in ("end", "fail"):
                running.discard(event.place)
    return running


def new_life(events: list[Event], pid: int, thawed_at: int) -> bool:
    """Whether process `pid` has begun a new generation of some partition since it was thawed."""
    return any(e.kind == "assign" and e.writer.pid == pid and e.monotonic_ns > thawed_at for e in events)


def stale_starts(events: list[Event], pid: int, thawed_at: int) -> list[Event]:
    """What `pid` started after the thaw in partitions that it had not been given again."""
    given: set[int] = set()
    stale: list[Event] = []
    for event in events:
        if event.writer.pid != pid or event.monotonic_ns < thawed_at:
            continue
        if event.kind == "assign":
            given.add(event.place.partition)
        elif event.kind == "start" and event.place.partition not in given:
            stale.append(event)
    return stale
