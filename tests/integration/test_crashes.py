"""`kill -9`: what was committed is never run again, what was not is, and no key loses its order."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from asyncpar.testing.history import HistoryFile, read
from tests import kafka_tools
from tests.conftest import Broker, TopicFactory
from tests.integration.conftest import MemberFactory
from tests.integration.coverage import done_runs, ended, not_covered, started
from tests.integration.members import Member
from tests.integration.plan import Plan
from tests.integration.waiting import (
    eventually,
    until_committed_to_end,
    until_ended,
    until_group_is_empty,
)
from tests.integration.watch import judge

pytestmark = pytest.mark.broker


def kill(member: Member, history_path: Path) -> None:
    """Kill `member` and note in the history that nothing of it runs any more."""
    member.kill()
    history = HistoryFile(history_path)
    history.note("dead", member.name)
    history.close()


async def test_a_killed_member_repeats_only_what_no_commit_covered(
    broker: Broker, make_topic: TopicFactory, group_id: str, members: MemberFactory, history_path: Path
) -> None:
    """After kill -9 under load the next member runs exactly the records that offset and metadata leave
    open.
    """
    topic = make_topic(partitions=4)
    produced = await kafka_tools.produce(broker.bootstrap, topic, kafka_tools.keyed(12_000, keys=300))
    plan = Plan(topic, str(history_path), work_ms=4)
    settings = {"max_in_flight": 1000}
    first = members(plan, broker.bootstrap, group_id, **settings)
    await until_ended(history_path, 6000)
    kill(first, history_path)

    # Once the broker has given the dead member up, no commit of it can arrive any more.
    await until_group_is_empty(broker.bootstrap, group_id)
    commits = await kafka_tools.committed(broker.bootstrap, group_id, topic)
    uncovered = not_covered(topic, commits, produced)
    assert len(uncovered) < len(produced), "the first member has committed something"

    second = members(plan, broker.bootstrap, group_id, **settings)
    finals = await until_committed_to_end(broker.bootstrap, group_id, topic)
    assert second.stop() == 0, second.log

    events = read(history_path)
    report = judge(events, produced, finals, max_in_flight=1000)
    assert report.is_ok, report.explain()
    again = started(events, {second.name})
    assert len(again) == len(set(again))
    assert set(again) == uncovered
    completed_since = set(ended(events, {first.name})) & uncovered
    assert report.counts["duplicates"] == len(completed_since)
    in_flight = set(started(events, {first.name})) - set(ended(events, {first.name}))
    assert len(in_flight) <= 1000
    assert in_flight <= uncovered


async def test_a_stuck_record_is_named_and_what_is_done_above_it_stays_done(
    broker: Broker, make_topic: TopicFactory, group_id: str, members: MemberFactory, history_path: Path
) -> None:
    """With three stuck records below 10,000 done ones status, metrics and metadata say so; kill -9 repeats
    three.
    """
    topic = make_topic(partitions=1)
    stuck = (5, 4000, 7000)
    records = [
        kafka_tools.Record(b"stuck-%d" % n if n in stuck else b"k%d" % (n % 400), b"") for n in range(10_003)
    ]
    produced = await kafka_tools.produce(broker.bootstrap, topic, records)
    plan = Plan(topic, str(history_path), work_ms=0, stuck=stuck)
    first = members(plan, broker.bootstrap, group_id, max_blocking_duration_ms=1000)
    expected = kafka_tools.Committed(5, "")

    async def commit_holds_the_gaps() -> bool:
        nonlocal expected
        commits = await kafka_tools.committed(broker.bootstrap, group_id, topic)
        expected = commits.get(0, expected)
        return expected.offset == 5 and done_runs(topic, 0, expected) == [
            (6, 4000),
            (4001, 7000),
            (7001, 10_003),
        ]

    await eventually(commit_holds_the_gaps, "the commit lists what is done above offset 5")
    await until_blocked_is_reported(first, topic, group_id)

    kill(first, history_path)
    await until_group_is_empty(broker.bootstrap, group_id)
    assert (await kafka_tools.committed(broker.bootstrap, group_id, topic))[0] == expected

    plan.release.touch()
    second = members(plan, broker.bootstrap, group_id)
    finals = await until_committed_to_end(broker.bootstrap, group_id, topic)
    assert second.stop() == 0, second.log
    events = read(history_path)
    assert sorted(place.offset for place in started(events, {second.name})) == list(stuck)
    report = judge(events, produced, finals)
    assert report.is_ok, report.explain()
    assert report.counts["duplicates"] == 0


async def until_blocked_is_reported(member: Member, topic: str, group: str) -> None:
    """Offset 5 is named with a growing duration, by /status, /metrics and, past the limit, by /readyz."""
    looked_at = time.monotonic()
    status = await asyncio.to_thread(member.partition)
    assert status is not None
    assert status["blocking_offset"] == status["hwm"] == status["committed"] == 5
    assert status["blocking_reason"] == "running"
    assert status["blocking_handler"] == "work"
    assert status["done_above_hwm"] == 10_003 - 5 - 3
    assert status["gap_count"] == 3
    assert status["in_flight"] == status["running"] == 3
    assert status["true_lag"] == 10_003 - 5

    async def has_grown() -> bool:
        now = await asyncio.to_thread(member.partition)
        grown = now["blocking_duration_seconds"] - status["blocking_duration_seconds"] if now else 0
        # A duration, not a flag: it grows as the clock does (the answer may be a little older than that).
        return bool(grown >= 0.5 * (time.monotonic() - looked_at) and grown > 0.2)

    await eventually(has_grown, "the blocking duration grows")

    async def is_not_ready() -> bool:
        reasons = await asyncio.to_thread(member.get, "/readyz")
        return reasons is not None and "offset 5 blocks the commit" in reasons

    await eventually(is_not_ready, "readiness names the blocking offset")
    labels = {"group": group, "topic": topic, "partition": "0"}
    samples = await asyncio.to_thread(member.metrics, labels)
    assert samples["asyncpar_blocking_offset"] == samples["asyncpar_hwm"] == 5
    assert samples["asyncpar_blocking_duration_seconds"] > 1
    assert samples["asyncpar_gap_count"] == 3
