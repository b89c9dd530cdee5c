"""The adapter as a member of a group on a real broker: rebalances, loss, leaving, static members."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from asyncpar.errors import BrokerError, ConfigurationError, EngineError
from asyncpar.ports import Subscription
from asyncpar.records import CommitAnswer, Committed, TopicPartition
from tests import kafka_tools
from tests.adapters.aiokafka_member import Member, eventually, member
from tests.conftest import Broker, TopicFactory

pytestmark = pytest.mark.broker


async def test_revoked_drains_and_commits(broker: Broker, make_topic: TopicFactory, group_id: str) -> None:
    """While another member joins, revoked may drain and commit with the old token; then both share."""
    topic = make_topic(4)
    async with member(broker.bootstrap, group_id, topic) as a:
        partitions = await a.joined(4)
        old = a.token
        answers: list[CommitAnswer] = []
        left: list[float] = []

        async def drain(revoked: frozenset[TopicPartition]) -> None:
            left.append(a.consumer.drain_deadline() - time.monotonic())
            await asyncio.sleep(1.0)  # what a handler takes to end
            answers.extend(
                (await a.consumer.commit(old, dict.fromkeys(revoked, Committed(3, "")), 5.0)).values()
            )

        a.on_revoked = drain
        async with member(broker.bootstrap, group_id, topic) as b:
            await asyncio.gather(a.joined(2), b.joined(2))
            assert a.partitions | b.partitions == set(partitions)
            assert answers == [CommitAnswer.ACKNOWLEDGED] * 4
            assert left[0] >= a.config.max_revoke_grace_ms / 1000
            assert a.said == ["assigned", "revoked", "assigned"]
            assert b.said == ["assigned"]
            mine = dict.fromkeys(a.partitions, Committed(9, ""))
            assert set((await a.consumer.commit(old, mine, 5.0)).values()) == {CommitAnswer.STALE}
            assert set((await a.consumer.commit(a.token, mine, 5.0)).values()) == {CommitAnswer.ACKNOWLEDGED}
        await a.joined(4)


async def test_a_kicked_member_has_lost_its_partitions(
    broker: Broker, make_topic: TopicFactory, group_id: str
) -> None:
    """A loop that stood still for longer than the session finds its partitions lost, and joins again."""
    topic = make_topic(2)
    async with member(broker.bootstrap, group_id, topic, session_timeout_ms=1_000) as m:
        await m.joined(2)
        old = m.token
        time.sleep(2.5)  # noqa: ASYNC251 - the fault itself: no heartbeats for more than a session
        await m.until(lambda: m.said == ["assigned", "lost", "assigned"])
        assert m.token != old
        assert await m.consumer.commit(old, {TopicPartition(topic, 0): Committed(1, "")}, 5.0) == {
            TopicPartition(topic, 0): CommitAnswer.STALE
        }


async def test_leaving_is_noticed_at_once(broker: Broker, make_topic: TopicFactory, group_id: str) -> None:
    """A member that stops leaves the group: the next one has everything well before a session is over."""
    topic = make_topic(2)
    async with member(broker.bootstrap, group_id, topic, session_timeout_ms=30_000) as a:
        await a.joined(2)
    async with member(broker.bootstrap, group_id, topic) as b:
        await b.joined(2, timeout_seconds=5)


async def test_stop_while_another_member_drains(
    broker: Broker, make_topic: TopicFactory, group_id: str
) -> None:
    """A member that waits to join stops at once, and costs the others no session timeout."""
    topic = make_topic(2)
    async with member(broker.bootstrap, group_id, topic) as a:
        await a.joined(2)
        drained = asyncio.Event()

        async def drain(_: frozenset[TopicPartition]) -> None:
            await asyncio.wait_for(drained.wait(), 10)

        a.on_revoked = drain
        b = Member(broker.bootstrap, group_id)
        await b.start(topic)
        await a.until(lambda: "revoked" in a.said)
        begin = time.monotonic()
        await b.consumer.stop(6.0)
        assert time.monotonic() - begin < 3.5
        drained.set()
        await a.joined(2, timeout_seconds=5)


async def test_static_members_keep_their_partitions(
    broker: Broker, make_topic: TopicFactory, group_id: str
) -> None:
    """With a group_instance_id a restart causes no rebalance, and new partitions are still seen."""
    topic = make_topic(2)
    static = {"metadata_max_age_ms": 300, "session_timeout_ms": 6_000}
    async with member(broker.bootstrap, group_id, topic, group_instance_id="a", **static) as a:
        await a.joined(2)
        async with member(broker.bootstrap, group_id, topic, group_instance_id="b", **static) as b:
            await asyncio.gather(a.joined(1), b.joined(1))
            held, told = a.partitions, len(b.said)
            await a.consumer.stop(6.0)
            async with member(broker.bootstrap, group_id, topic, group_instance_id="a", **static) as again:
                await again.joined(1)
                assert again.partitions == held
                assert len(b.said) == told
                await kafka_tools.add_partitions(broker.bootstrap, topic, 4)
                await asyncio.gather(again.joined(2), b.joined(2))


@pytest.mark.parametrize("notices_by", ["heartbeat", "join"])
async def test_a_second_member_with_the_same_static_id_ends_the_first(
    broker: Broker, make_topic: TopicFactory, group_id: str, notices_by: str
) -> None:
    """The older one is told and does not steal the id back; its commits are refused, the newer one stays."""
    topic = make_topic(1)
    static = {"group_instance_id": "same", "session_timeout_ms": 6_000}
    static["heartbeat_interval_ms"] = 200 if notices_by == "heartbeat" else 1_900
    async with member(broker.bootstrap, group_id, topic, **static) as older:
        (p0,) = await older.joined(1)
        async with member(broker.bootstrap, group_id, topic, **static) as newer:
            await newer.joined(1)
            stale = await older.consumer.commit(older.token, {p0: Committed(9, "")}, 5.0)
            assert stale == {p0: CommitAnswer.STALE}
            if notices_by == "join":
                older.consumer._inside._coordinator.request_rejoin()
            with pytest.raises(ConfigurationError, match="another member has its group_instance_id"):
                await fetch_until_fatal(older)
            heard = newer.consumer.lease_from()
            await eventually(lambda: newer.consumer.lease_from() > heard + 0.5)
            assert newer.said == ["assigned"]
            assert older.said == ["assigned", "lost" if notices_by == "heartbeat" else "revoked"]
            assert set((await newer.consumer.commit(newer.token, {p0: Committed(1, "")}, 5.0)).values()) == {
                CommitAnswer.ACKNOWLEDGED
            }


async def fetch_until_fatal(m: Member) -> None:
    """Fetch as the poller does: an error that may pass is no reason to end."""
    async with asyncio.timeout(15):
        while True:
            with contextlib.suppress(BrokerError):
                await m.consumer.fetch([], 10, 50)
            await asyncio.sleep(0.01)


async def test_a_dead_task_is_a_failure(broker: Broker, make_topic: TopicFactory, group_id: str) -> None:
    """A fetch task that ended is told, though heartbeats go on; stopping is no failure."""
    topic = make_topic(1)
    async with member(broker.bootstrap, group_id, topic) as m:
        await m.joined(1)
        assert m.consumer.failure() is None
        m.consumer._consumer._fetcher._fetch_task.cancel()
        await eventually(lambda: m.consumer.failure() is not None)
        failure = m.consumer.failure()
        assert isinstance(failure, EngineError)
        assert "fetch task" in str(failure)
        await m.consumer.stop(6.0)
        assert m.consumer.failure() is None


async def test_nothing_is_left_after_stop(broker: Broker, make_topic: TopicFactory, group_id: str) -> None:
    """A stopped consumer leaves no task behind, delivers nothing, and a second stop does nothing."""
    before = asyncio.all_tasks()
    async with member(broker.bootstrap, group_id, make_topic(1)) as m:
        (p0,) = await m.joined(1)
        m.consumer.seek(p0, 0)
        fetching = asyncio.create_task(m.consumer.fetch([p0], 10, 5_000))
        await asyncio.sleep(0)
        await m.consumer.stop(6.0)
        assert await asyncio.wait_for(fetching, 6) == []
        assert await m.consumer.fetch([p0], 10, 1) == []
        await m.consumer.stop(6.0)
    await eventually(lambda: asyncio.all_tasks() == before)


async def test_a_fetch_that_waits_for_the_group_ends_with_stop(
    broker: Broker, make_topic: TopicFactory, group_id: str
) -> None:
    """A fetch blocked by a rebalance that another member holds up returns [] when the consumer stops."""
    topic = make_topic(1)
    async with member(broker.bootstrap, group_id, topic) as a:
        await a.joined(1)
        drained = asyncio.Event()

        async def drain(_: frozenset[TopicPartition]) -> None:
            await asyncio.wait_for(drained.wait(), 10)

        a.on_revoked = drain
        b = Member(broker.bootstrap, group_id)
        await b.consumer.start(Subscription(frozenset({topic})), b)
        fetching = asyncio.create_task(b.consumer.fetch([], 10, 50))
        await a.until(lambda: "revoked" in a.said)
        await b.consumer.stop(6.0)
        assert await asyncio.wait_for(fetching, 2) == []
        drained.set()
