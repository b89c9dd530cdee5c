"""The port's contract, membership: the same tests on the in-memory broker and on a real one."""

from __future__ import annotations

import asyncio
import time

import pytest

from asyncpar.errors import BrokerError, ConfigurationError, UnknownTopicError
from asyncpar.records import CommitAnswer, Committed, TopicPartition
from tests.conftest import Broker, TopicFactory
from tests.kafka_broker import KafkaBroker
from tests.testing.contract_member import eventually, moved_on, offsets
from tests.testing.contract_worlds import KafkaWorld, MemoryWorld, World


class Contract:
    """What the runtime may rely on as a member of its group."""

    async def test_a_rebalance_revokes_commits_and_shares(self, world: World) -> None:
        """A revoke may drain and commit with the old token before anybody else is given the partitions."""
        topic = await world.make_topic(4)
        async with world.joined(topic, 4) as a:
            every, old = a.partitions, a.token
            answers: list[CommitAnswer] = []
            other = world.member()
            left: list[float] = []

            async def drain(revoked: frozenset[TopicPartition]) -> None:
                left.append(a.consumer.drain_deadline() - time.monotonic())
                await asyncio.sleep(0.5)  # what a handler takes to end
                stored = await a.consumer.commit(old, dict.fromkeys(revoked, Committed(3, "")), 5.0)
                answers.extend(stored.values())
                assert other.said == []

            a.on_revoked = drain
            try:
                await other.start(topic)
                await asyncio.gather(a.joined(2), other.joined(2))
                assert a.partitions | other.partitions == every
                assert answers == [CommitAnswer.ACKNOWLEDGED] * 4
                assert left[0] >= 3.0
                assert (a.said, other.said) == (["assigned", "revoked", "assigned"], ["assigned"])
                mine = dict.fromkeys(a.partitions, Committed(9, ""))
                assert set((await a.consumer.commit(old, mine, 5.0)).values()) == {CommitAnswer.STALE}
                assert set((await a.consumer.commit(a.token, mine, 5.0)).values()) == {
                    CommitAnswer.ACKNOWLEDGED
                }
                assert set((await other.consumer.committed(a.partitions)).values()) == {Committed(9, "")}
            finally:
                await other.consumer.stop(6.0)
            await a.joined(4)

    async def test_a_rebalance_forgets_positions(self, world: World) -> None:
        """After a rebalance nothing comes of a partition before a new seek, although it stayed with us."""
        topic = await world.make_topic(2)
        await world.send(topic, 10)
        await world.send(topic, 10, 1)
        async with world.joined(topic, 2) as a:
            for tp in a.partitions:
                a.consumer.seek(tp, 0)
            await a.read(sorted(a.partitions), 20)
            async with world.joined(topic, 1) as b:
                await a.joined(1)
                (mine,), (theirs,) = a.partitions, b.partitions
                assert a.consumer.position(mine) is None
                assert await a.consumer.fetch([mine, theirs], 100, 200) == []
                a.consumer.seek(theirs, 0)
                a.consumer.seek(mine, 8)
                assert offsets(await a.read([mine, theirs], 2)) == {mine: [8, 9]}

    async def test_a_fetch_waits_out_a_rebalance(self, world: World) -> None:
        """While a revoke drains a fetch delivers nothing, and goes on with the next assignment."""
        topic = await world.make_topic(2)
        await world.send(topic, 10)
        async with world.joined(topic, 2) as a:
            p0 = TopicPartition(topic, 0)
            drained = asyncio.Event()

            async def drain(_: frozenset[TopicPartition]) -> None:
                await asyncio.wait_for(drained.wait(), 10)

            a.on_revoked = drain
            b = world.member()
            try:
                await b.start(topic)
                await a.until(lambda: "revoked" in a.said)
                fetching = asyncio.create_task(a.consumer.fetch([p0], 10, 10))
                done, _ = await asyncio.wait({fetching}, timeout=0.4)
                assert not done
                drained.set()
                assert await asyncio.wait_for(fetching, 10) == []
                await asyncio.gather(a.joined(1), b.joined(1))
            finally:
                await b.consumer.stop(6.0)

    async def test_the_lease_follows_the_heartbeats(self, world: World) -> None:
        """Each good heartbeat moves the lease and the drain's deadline to the moment it was sent."""
        topic = await world.make_topic()
        one = world.member(heartbeat_interval_ms=100)
        assert one.consumer.lease_from() == float("-inf")
        await one.consumer.stop(1.0)
        async with world.joined(topic, 1, heartbeat_interval_ms=100) as m:
            for _ in range(3):
                lease, deadline = m.consumer.lease_from(), m.consumer.drain_deadline()
                assert time.monotonic() - 2 < lease <= time.monotonic()
                await eventually(moved_on(m.consumer.lease_from, lease))
                assert m.consumer.drain_deadline() > deadline
            # grace + heartbeat + 2 s of slack, less 1 s for the JoinGroup
            ahead = m.consumer.drain_deadline() - m.consumer.lease_from()
            assert ahead == pytest.approx(3.0 + 0.1 + 2.0 - 1.0)

    async def test_a_kicked_member_has_lost_its_partitions(self, world: World) -> None:
        """A loop that stood still for longer than the session finds its partitions lost, and joins again."""
        topic = await world.make_topic(2)
        async with world.joined(topic, 2, session_timeout_ms=1_000) as m:
            old = m.token
            time.sleep(2.5)  # noqa: ASYNC251 - the fault itself: no heartbeats for more than a session
            await m.until(lambda: m.said == ["assigned", "lost", "assigned"])
            assert m.token != old
            p0 = TopicPartition(topic, 0)
            assert await m.consumer.commit(old, {p0: Committed(1, "")}, 5.0) == {p0: CommitAnswer.STALE}

    async def test_a_revoke_that_takes_too_long_costs_the_membership(self, world: World) -> None:
        """Who drains for longer than the rebalance timeout is removed, and its commits are stale."""
        topic = await world.make_topic(2)
        slow = {"max_revoke_grace_ms": 500, "session_timeout_ms": 6_000}  # a rebalance timeout of 2.7 s
        async with world.joined(topic, 2, **slow) as a:
            old, drained = a.token, asyncio.Event()

            async def drain(_: frozenset[TopicPartition]) -> None:
                await asyncio.wait_for(drained.wait(), 20)

            a.on_revoked = drain
            async with world.joined(topic, 2, **slow) as b:
                p0 = TopicPartition(topic, 0)
                assert await a.consumer.commit(old, {p0: Committed(5, "")}, 5.0) == {p0: CommitAnswer.STALE}
                assert "lost" not in a.said
                drained.set()
                await asyncio.gather(a.joined(1), b.joined(1))

    async def test_leaving_is_noticed_at_once(self, world: World) -> None:
        """A member that stops leaves the group: the next one has everything well before a session is over."""
        topic = await world.make_topic(2)
        async with world.joined(topic, 2, session_timeout_ms=30_000):
            pass
        begun = time.monotonic()
        async with world.joined(topic, 2):
            assert time.monotonic() - begun < 8

    async def test_static_members_keep_their_partitions(self, world: World) -> None:
        """With a group_instance_id a restart causes no rebalance, and new partitions are still seen."""
        topic = await world.make_topic(2)
        static = {"metadata_max_age_ms": 300, "session_timeout_ms": 6_000}
        async with (
            world.joined(topic, 2, group_instance_id="a", **static) as a,
            world.joined(topic, 1, group_instance_id="b", **static) as b,
        ):
            await a.joined(1)
            held, told = a.partitions, len(b.said)
            await a.consumer.stop(6.0)
            async with world.joined(topic, 1, group_instance_id="a", **static) as again:
                assert again.partitions == held
                assert len(b.said) == told
                await world.add_partitions(topic, 4)
                await asyncio.gather(again.joined(2), b.joined(2))

    async def test_a_second_holder_of_a_static_id_wins(self, world: World) -> None:
        """Who joins last with a group_instance_id has it; the other one is told for good, and loses all."""
        topic = await world.make_topic(2)
        async with world.joined(topic, 2, group_instance_id="a") as first:
            old = first.token
            async with world.joined(topic, 2, group_instance_id="a") as second:
                await first.until(lambda: first.said == ["assigned", "lost"])
                for _ in range(2):
                    with pytest.raises(ConfigurationError, match="group_instance_id"):
                        await asyncio.wait_for(first.consumer.fetch([], 10, 5_000), 10)
                p0 = TopicPartition(topic, 0)
                assert await first.consumer.commit(old, {p0: Committed(1, "")}, 5.0) == {
                    p0: CommitAnswer.STALE
                }
                assert await second.consumer.commit(second.token, {p0: Committed(2, "")}, 5.0) == {
                    p0: CommitAnswer.ACKNOWLEDGED
                }
                assert second.said == ["assigned"]

    async def test_new_partitions_are_noticed(self, world: World) -> None:
        """A topic that grows is shared out anew at the next metadata refresh."""
        topic = await world.make_topic(1)
        async with world.joined(topic, 1, metadata_max_age_ms=300) as m:
            with pytest.raises(BrokerError):
                await m.consumer.end([TopicPartition(topic, 1)])
            await world.add_partitions(topic, 3)
            await m.joined(3)
            assert await m.consumer.end(m.partitions) == dict.fromkeys(m.partitions, 0)

    async def test_an_unknown_topic_is_named(self, world: World) -> None:
        """A topic that does not exist ends the start, with a hint to the near one."""
        topic = await world.make_topic()
        m = world.member()
        with pytest.raises(UnknownTopicError, match=f"did you mean '{topic}'"):
            await m.start(topic + "s")
        await m.consumer.stop(1.0)

    async def test_stopping_twice_leaves_nothing(self, world: World) -> None:
        """A stop ends a waiting fetch and every task; a second one, and later fetches, do nothing."""
        before = asyncio.all_tasks()
        topic = await world.make_topic()
        await world.send(topic, 5)
        async with world.joined(topic, 1) as m:
            (p0,) = m.partitions
            m.consumer.seek(p0, 5)
            fetching = asyncio.create_task(m.consumer.fetch([p0], 10, 1_000))
            await asyncio.sleep(0)
            await m.consumer.stop(6.0)
            assert await asyncio.wait_for(fetching, 6) == []
            m.consumer.seek(p0, 0)
            assert await m.consumer.fetch([p0], 10, 1) == []
            await m.consumer.stop(6.0)
            assert m.consumer.failure() is None
        await eventually(lambda: asyncio.all_tasks() == before)

    async def test_a_stop_ends_a_fetch_that_waits_for_the_group(self, world: World) -> None:
        """A member that waits to join, because another one drains, stops at once."""
        topic = await world.make_topic()
        async with world.joined(topic, 1) as a:
            drained = asyncio.Event()

            async def drain(_: frozenset[TopicPartition]) -> None:
                await asyncio.wait_for(drained.wait(), 10)

            a.on_revoked = drain
            b = world.member()
            await b.start(topic)
            fetching = asyncio.create_task(b.consumer.fetch([], 10, 50))
            await a.until(lambda: "revoked" in a.said)
            begun = time.monotonic()
            await b.consumer.stop(6.0)
            assert time.monotonic() - begun < 3.5
            assert await asyncio.wait_for(fetching, 2) == []
            drained.set()
            await a.joined(1)


class LossContract:
    """What the runtime may rely on while the cluster goes away and comes back."""

    async def test_a_restart_costs_no_membership(self, world: World) -> None:
        """Requests fail while the broker is down; afterwards the same token commits, and records flow."""
        topic = await world.make_topic()
        await world.send(topic, 5)
        async with world.joined(topic, 1, session_timeout_ms=30_000) as m:
            (p0,) = m.partitions
            m.consumer.seek(p0, 0)
            await m.read([p0], 5)
            await world.down()
            assert await m.consumer.commit(m.token, {p0: Committed(5, "")}, 0.5) == {p0: CommitAnswer.RETRY}
            begun = time.monotonic()
            assert await m.consumer.fetch([p0], 10, 300) == []
            assert time.monotonic() - begun < 1.5
            asked = asyncio.gather(m.consumer.committed([p0]), m.consumer.end([p0]), return_exceptions=True)
            assert all(isinstance(answer, BrokerError) for answer in await asyncio.wait_for(asked, 30))
            assert m.consumer.failure() is None
            back = time.monotonic()
            await world.up()
            await world.send(topic, 5)
            await eventually(moved_on(m.consumer.lease_from, back))
            assert offsets(await m.read([p0], 5)) == {p0: list(range(5, 10))}
            assert await m.consumer.commit(m.token, {p0: Committed(6, "")}, 5.0) == {
                p0: CommitAnswer.ACKNOWLEDGED
            }
            assert await m.consumer.committed([p0]) == {p0: Committed(6, "")}
            assert m.said == ["assigned"]

    async def test_a_stop_without_a_broker_is_bounded(self, world: World) -> None:
        """With the broker down a stop takes seconds, raises nothing and leaves nothing."""
        before = asyncio.all_tasks()
        topic = await world.make_topic()
        async with world.joined(topic, 1) as m:
            (p0,) = m.partitions
            m.consumer.seek(p0, 0)
            await world.down()
            assert await m.consumer.fetch([p0], 10, 50) == []
            begun = time.monotonic()
            await m.consumer.stop(6.0)
            assert time.monotonic() - begun < 7.0
        await eventually(lambda: asyncio.all_tasks() == before)


class TestMemoryConsumer(Contract, LossContract):
    """The contract over the in-memory broker."""

    @pytest.fixture
    def world(self) -> World:
        """A broker of one's own."""
        return MemoryWorld()


class TestAiokafkaConsumer(Contract):
    """The contract over the adapter and a real broker."""

    @pytest.fixture
    def world(self, broker: Broker, make_topic: TopicFactory, group_id: str) -> World:
        """The run's broker."""
        return KafkaWorld(broker.bootstrap, make_topic, group_id)


class TestAiokafkaConsumerLoss(LossContract):
    """The same for a broker that may be killed."""

    @pytest.fixture
    def world(self, own_broker: KafkaBroker, make_topic: TopicFactory, group_id: str) -> World:
        """The run's broker, brought back afterwards."""
        return KafkaWorld(own_broker.bootstrap, make_topic, group_id, own_broker)
