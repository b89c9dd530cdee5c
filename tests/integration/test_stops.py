"""Stopping: under load nothing runs twice, and whatever hangs, the process ends in time with a code that
says so.
"""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import pytest

from asyncpar.testing.history import read
from tests import kafka_tools
from tests.conftest import Broker, TopicFactory
from tests.integration.conftest import MemberFactory
from tests.integration.coverage import Place, ended, not_covered, started
from tests.integration.members import STEADY
from tests.integration.plan import Plan
from tests.integration.waiting import (
    eventually,
    until_committed_to_end,
    until_ended,
)
from tests.integration.watch import judge
from tests.kafka_broker import KafkaBroker

pytestmark = pytest.mark.broker

# What a stop may take beyond its drain: last commit, leaving, closing (3 s each at most), the interpreter.
STOP_SECONDS = 12.0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
async def test_a_stop_under_load_repeats_nothing(
    broker: Broker,
    make_topic: TopicFactory,
    group_id: str,
    members: MemberFactory,
    history_path: Path,
    number: signal.Signals,
) -> None:
    """The first signal lets what runs end and commits it: code 0, and the next member continues without
    overlap.
    """
    topic = make_topic(partitions=4)
    produced = await kafka_tools.produce(broker.bootstrap, topic, kafka_tools.keyed(6000, keys=200))
    plan = Plan(topic, str(history_path), work_ms=4)
    first = members(plan, broker.bootstrap, group_id, **STEADY)
    await until_ended(history_path, 2000)
    first.send(number)
    assert await asyncio.to_thread(first.ended) == 0, first.log
    done_by_first = len(ended(read(history_path), {first.name}))
    assert done_by_first < 6000, "the stop came under load"

    second = members(plan, broker.bootstrap, group_id, **STEADY)
    finals = await until_committed_to_end(broker.bootstrap, group_id, topic)
    assert await asyncio.to_thread(second.stop) == 0, second.log

    events = read(history_path)
    report = judge(events, produced, finals, **STEADY)
    assert report.is_ok, report.explain()
    assert report.counts["duplicates"] == 0
    assert len(started(events, {first.name, second.name})) == 6000, "no call was cancelled either"


async def test_a_stop_in_the_middle_of_a_rebalance_is_clean(
    broker: Broker, make_topic: TopicFactory, group_id: str, members: MemberFactory, history_path: Path
) -> None:
    """When the revoke commits what the stop was waiting for, nothing is unfinished: code 0, no record
    twice.
    """
    topic = make_topic(partitions=2)
    records = [kafka_tools.Record(b"k%d" % n, b"", partition=n % 2) for n in range(40)]
    produced = await kafka_tools.produce(broker.bootstrap, topic, records)
    plan = Plan(topic, str(history_path), work_ms=1, stuck=(3,))
    leaving = members(plan, broker.bootstrap, group_id, max_revoke_grace_ms=15_000, **STEADY)
    await until_ended(history_path, 38)
    staying = members(plan, broker.bootstrap, group_id, max_revoke_grace_ms=15_000, **STEADY)

    async def drains_for_the_other() -> bool:
        status = await asyncio.to_thread(leaving.partition)
        return status is not None and status["state"] == "draining"

    await eventually(drains_for_the_other, "the revoke waits for the stuck calls")
    leaving.send(signal.SIGTERM)
    await eventually(lambda: "SIGTERM: stopping" in leaving.log, "the signal was heard")
    plan.release.touch()
    assert await asyncio.to_thread(leaving.ended) == 0, leaving.log
    finals = await until_committed_to_end(broker.bootstrap, group_id, topic)
    assert await asyncio.to_thread(staying.stop) == 0, staying.log
    report = judge(history_path, produced, finals, max_revoke_grace_ms=15_000, **STEADY)
    assert report.is_ok, report.explain()
    assert report.counts["duplicates"] == 0


async def test_a_second_signal_ends_a_stuck_stop_at_once(
    broker: Broker, make_topic: TopicFactory, group_id: str, members: MemberFactory, history_path: Path
) -> None:
    """While a call holds up the drain, a second signal cancels it: code 130, and the record stays
    uncommitted.
    """
    topic = make_topic()
    await kafka_tools.produce(broker.bootstrap, topic, kafka_tools.keyed(3, keys=3))
    plan = Plan(topic, str(history_path), stuck=(1,))
    member = members(plan, broker.bootstrap, group_id, shutdown_drain_timeout_ms=60_000)
    await until_ended(history_path, 2)
    await eventually(
        lambda: len(started(read(history_path), {member.name})) == 3, "the stuck one has started"
    )
    member.send(signal.SIGINT)
    await eventually(lambda: "SIGINT: stopping" in member.log, "the first signal was heard")
    signalled = time.monotonic()
    # Another one than the first: the same one at once is taken for its echo.
    member.send(signal.SIGTERM)
    assert await asyncio.to_thread(member.ended) == 130, member.log
    assert time.monotonic() - signalled < STOP_SECONDS
    commit = (await kafka_tools.committed(broker.bootstrap, group_id, topic))[0]
    assert commit.offset == 1
    assert ended(read(history_path), {member.name}, "cancelled") == [(topic, 0, 1)]


@pytest.mark.parametrize("where", ["loop", "thread"])
async def test_a_call_that_never_ends_is_named_and_does_not_hold_up_the_end(
    broker: Broker,
    make_topic: TopicFactory,
    group_id: str,
    members: MemberFactory,
    history_path: Path,
    where: str,
) -> None:
    """After the drain's bound the process ends with code 1, names handler, partition and offset, commits
    below it.
    """
    topic = make_topic()
    await kafka_tools.produce(broker.bootstrap, topic, kafka_tools.keyed(3, keys=3))
    if where == "loop":
        plan = Plan(topic, str(history_path), deaf=(1,))
    else:
        plan = Plan(topic, str(history_path), sleepers=(1,), threads=True, concurrency=3)
    member = members(plan, broker.bootstrap, group_id, shutdown_drain_timeout_ms=500)
    await until_ended(history_path, 2)
    signalled = time.monotonic()
    assert await asyncio.to_thread(member.stop) == 1, member.log
    assert time.monotonic() - signalled < STOP_SECONDS
    last = member.log.splitlines()[-1]
    assert last == f"asyncpar: ending without waiting for: work on {topic}[0] offset 1"
    commit = (await kafka_tools.committed(broker.bootstrap, group_id, topic))[0]
    assert commit.offset == 1


async def test_a_stop_without_a_broker_ends_in_time(
    private_broker: KafkaBroker,
    make_topic: TopicFactory,
    group_id: str,
    members: MemberFactory,
    history_path: Path,
) -> None:
    """With the broker dead a stop ends within its bounds, with 1 because the last commit cannot be stored."""
    topic = make_topic()
    await kafka_tools.produce(private_broker.bootstrap, topic, kafka_tools.keyed(500, keys=50))
    plan = Plan(topic, str(history_path), stuck=(450,), work_ms=1)
    member = members(plan, private_broker.bootstrap, group_id)
    await until_ended(history_path, 499)
    await until_commit_is(private_broker.bootstrap, group_id, topic, 450)
    private_broker.kill()
    plan.release.touch()
    await until_ended(history_path, 500)
    signalled = time.monotonic()
    assert await asyncio.to_thread(member.stop) == 1, member.log
    assert time.monotonic() - signalled < STOP_SECONDS
    assert "the last commit was not acknowledged" in member.log


async def test_a_stop_without_a_broker_and_nothing_to_commit_is_clean(
    private_broker: KafkaBroker,
    make_topic: TopicFactory,
    group_id: str,
    members: MemberFactory,
    history_path: Path,
) -> None:
    """With the broker frozen or dead, and all committed before, a stop ends within its bounds with 0."""
    topic = make_topic()
    await kafka_tools.produce(private_broker.bootstrap, topic, kafka_tools.keyed(100, keys=10))
    member = members(Plan(topic, str(history_path)), private_broker.bootstrap, group_id)
    await until_committed_to_end(private_broker.bootstrap, group_id, topic)

    async def knows_it() -> bool:
        status = await asyncio.to_thread(member.partition)
        return status is not None and status["committed"] == 100

    await eventually(knows_it, "the member got the commit's answer")
    private_broker.pause()
    signalled = time.monotonic()
    assert await asyncio.to_thread(member.stop) == 0, member.log
    assert time.monotonic() - signalled < STOP_SECONDS


async def until_commit_is(bootstrap: str, group: str, topic: str, offset: int) -> None:
    """Wait until partition 0 is committed at `offset`."""

    async def is_there() -> bool:
        commit = (await kafka_tools.committed(bootstrap, group, topic)).get(0)
        return commit is not None and commit.offset == offset

    await eventually(is_there, f"the commit is {offset}")


async def test_drain_and_exit_does_what_is_there_and_ends(
    broker: Broker, make_topic: TopicFactory, group_id: str, members: MemberFactory, history_path: Path
) -> None:
    """--drain-and-exit runs all records that are there at start, commits them and ends with 0."""
    topic = make_topic(partitions=3)
    produced = await kafka_tools.produce(broker.bootstrap, topic, kafka_tools.keyed(1000, keys=50))
    member = members(Plan(topic, str(history_path)), broker.bootstrap, group_id, "--drain-and-exit", **STEADY)
    assert await asyncio.to_thread(member.ended) == 0, member.log
    finals = await until_committed_to_end(broker.bootstrap, group_id, topic)
    report = judge(history_path, produced, finals, **STEADY)
    assert report.is_ok, report.explain()
    assert report.counts["duplicates"] == 0


async def test_drain_and_exit_of_an_empty_topic_ends_at_once(
    broker: Broker, make_topic: TopicFactory, group_id: str, members: MemberFactory, history_path: Path
) -> None:
    """--drain-and-exit on a topic without records ends with 0."""
    topic = make_topic(partitions=2)
    member = members(Plan(topic, str(history_path)), broker.bootstrap, group_id, "--drain-and-exit")
    assert await asyncio.to_thread(member.ended) == 0, member.log


async def test_drain_and_exit_with_a_halted_partition_ends_with_one(
    broker: Broker, make_topic: TopicFactory, group_id: str, members: MemberFactory, history_path: Path
) -> None:
    """--drain-and-exit does all other partitions, names the halted one and ends with 1; a rerun does the
    rest.
    """
    topic = make_topic(partitions=2)
    records = [kafka_tools.Record(b"k%d" % (n % 20), b"", partition=n % 2) for n in range(400)]
    produced = await kafka_tools.produce(broker.bootstrap, topic, records)
    longer = await kafka_tools.produce(
        broker.bootstrap, topic, [kafka_tools.Record(b"bad", b"", partition=1)] * 20
    )
    plan = Plan(topic, str(history_path), failing=(205,), attempts=3)
    member = members(plan, broker.bootstrap, group_id, "--drain-and-exit", **STEADY)
    assert await asyncio.to_thread(member.ended) == 1, member.log
    assert f"{topic}[1] (offset 205: failed 3 times in handler work" in member.log
    commits = await kafka_tools.committed(broker.bootstrap, group_id, topic)
    assert commits[0].offset == 200
    assert Place(topic, 1, 205) in not_covered(topic, commits, longer)

    plan.release.touch()
    again = members(plan, broker.bootstrap, group_id, "--drain-and-exit", **STEADY)
    assert await asyncio.to_thread(again.ended) == 0, again.log
    finals = await until_committed_to_end(broker.bootstrap, group_id, topic)
    report = judge(history_path, produced + longer, finals, **STEADY)
    assert report.is_ok, report.explain()
    assert report.counts["duplicates"] == 0
