"""The port's contract, records and offsets: the same tests on the in-memory broker and on a real one.

What the in-memory broker is worth rests on this file and on `test_group_contract.py`: what the engine can
tell must be the same on both.
"""

from __future__ import annotations

import asyncio
import time

import pytest

from asyncpar.errors import OffsetOutOfRangeError
from asyncpar.records import CommitAnswer, Committed, GroupToken, TopicPartition
from tests.conftest import Broker, TopicFactory
from tests.testing.contract_member import eventually, offsets
from tests.testing.contract_worlds import KafkaWorld, MemoryWorld, World


class Contract:
    """What the runtime may rely on."""

    async def test_it_joins_and_gets_all(self, world: World) -> None:
        """The first assignment has every partition, with a token that commits are taken with."""
        topic = await world.make_topic(3)
        async with world.joined(topic, 3) as m:
            assert m.partitions == {TopicPartition(topic, at) for at in range(3)}
            assert m.token.generation >= 0
            assert m.token.member_id
            assert m.consumer.failure() is None
            assert m.said == ["assigned"]

    async def test_nothing_comes_before_a_seek(self, world: World) -> None:
        """A partition delivers nothing and has no position before a seek, and then only from there."""
        topic = await world.make_topic(2)
        await world.send(topic, 50)
        async with world.joined(topic, 2) as m:
            p0, p1 = sorted(m.partitions)
            assert await m.consumer.fetch([p0, p1], 100, 300) == []
            assert (m.consumer.position(p0), m.consumer.end_seen(p0)) == (None, (None, None))
            m.consumer.seek(p0, 40)
            assert m.consumer.position(p0) == 40
            got = await m.read([p0, p1], 10)
            assert offsets(got) == {p0: list(range(40, 50))}
            assert got[p0][0].value == b"40"
            assert (m.consumer.position(p0), m.consumer.position(p1)) == (50, None)
            assert m.consumer.end_seen(p0) == (50, 50)
            m.consumer.seek(p0, 48)
            assert offsets(await m.read([p0], 2)) == {p0: [48, 49]}

    async def test_only_what_is_wanted_comes(self, world: World) -> None:
        """Records of a partition that a fetch does not ask for stay where they are until one does."""
        topic = await world.make_topic(2)
        for partition in range(2):
            await world.send(topic, 20, partition)
        async with world.joined(topic, 2) as m:
            p0, p1 = sorted(m.partitions)
            m.consumer.seek(p0, 0)
            m.consumer.seek(p1, 0)
            assert offsets(await m.read([p0], 20)) == {p0: list(range(20))}
            for _ in range(3):
                assert await m.consumer.fetch([p0], 100, 50) == []
            assert m.consumer.position(p1) == 0
            assert offsets(await m.read([p1], 20)) == {p1: list(range(20))}

    async def test_a_fetch_brings_no_more_than_asked_for(self, world: World) -> None:
        """`max_records` bounds all partitions together, and the position follows what was delivered."""
        topic = await world.make_topic(2)
        for partition in range(2):
            await world.send(topic, 30, partition)
        async with world.joined(topic, 2) as m:
            partitions = sorted(m.partitions)
            for tp in partitions:
                m.consumer.seek(tp, 0)
            left = 60
            async with asyncio.timeout(10):
                while left:
                    chunks = await m.consumer.fetch(partitions, 7, 100)
                    count = sum(len(chunk.records) for chunk in chunks)
                    assert count <= 7
                    for chunk in chunks:
                        position = m.consumer.position(TopicPartition(chunk.topic, chunk.partition))
                        assert position == chunk.records[-1].offset + 1
                    left -= count

    async def test_a_fetch_brings_no_more_of_a_partition_than_its_share(self, world: World) -> None:
        """`max_per_partition` bounds each of them, and nothing of the rest is lost."""
        topic = await world.make_topic(2)
        for partition in range(2):
            await world.send(topic, 30, partition)
        async with world.joined(topic, 2) as m:
            partitions = sorted(m.partitions)
            for tp in partitions:
                m.consumer.seek(tp, 0)
            got: dict[int, list[int]] = {0: [], 1: []}
            async with asyncio.timeout(10):
                while sum(map(len, got.values())) < 60:
                    for chunk in await m.consumer.fetch(partitions, 500, 100, 4):
                        assert len(chunk.records) <= 4
                        got[chunk.partition] += [record.offset for record in chunk.records]
            assert got == {0: list(range(30)), 1: list(range(30))}

    async def test_an_empty_fetch_keeps_its_time(self, world: World) -> None:
        """With nothing wanted, or nothing there, a fetch returns [] after about its timeout."""
        topic = await world.make_topic()
        async with world.joined(topic, 1) as m:
            (p0,) = m.partitions
            m.consumer.seek(p0, 0)
            for wanted in ([], [p0]):
                begun = time.monotonic()
                assert await m.consumer.fetch(wanted, 10, 300) == []
                assert 0.25 < time.monotonic() - begun < 1.5

    async def test_a_waiting_fetch_gets_what_is_sent(self, world: World) -> None:
        """A fetch that waits returns when a record arrives, long before its time is over."""
        topic = await world.make_topic()
        async with world.joined(topic, 1) as m:
            (p0,) = m.partitions
            m.consumer.seek(p0, 0)
            fetching = asyncio.create_task(m.consumer.fetch([p0], 10, 10_000))
            await asyncio.sleep(0)
            await world.send(topic, 1)
            (chunk,) = await asyncio.wait_for(fetching, 5)
            assert [record.offset for record in chunk.records] == [0]

    async def test_keys_decide_the_partition(self, world: World) -> None:
        """The default partitioner is Kafka's: the same key goes to the same partition in both worlds."""
        topic = await world.make_topic(8)
        sent = await world.send_keyed(topic, [b"k%d" % i for i in range(20)])
        assert sent == [1, 1, 1, 0, 0, 4, 1, 0, 6, 4, 6, 2, 1, 0, 3, 2, 5, 1, 3, 0]

    async def test_positions_pass_holes(self, world: World) -> None:
        """Aborted records and markers are never delivered, and passed once the partition is asked for."""
        topic = await world.make_topic()
        await world.send(topic, 5)
        await world.send_aborted(topic, 5)
        async with world.joined(topic, 1) as m:
            (p0,) = m.partitions
            m.consumer.seek(p0, 0)
            assert offsets(await m.read([p0], 5)) == {p0: [0, 1, 2, 3, 4]}
            assert await m.consumer.end([p0]) == {p0: 11}
            async with asyncio.timeout(10):
                while m.consumer.position(p0) != 11:
                    assert await m.consumer.fetch([p0], 100, 100) == []
            await world.send(topic, 1)
            assert offsets(await m.read([p0], 1)) == {p0: [11]}

    async def test_an_open_transaction_holds_the_end_back(self, world: World) -> None:
        """Nothing behind the first open transaction comes, and the end is there, until it is committed."""
        topic = await world.make_topic()
        await world.send(topic, 3)
        commit = await world.open_transaction(topic, 2)
        await world.send(topic, 2)
        async with world.joined(topic, 1) as m:
            (p0,) = m.partitions
            m.consumer.seek(p0, 0)
            assert offsets(await m.read([p0], 3)) == {p0: [0, 1, 2]}
            assert await m.consumer.end([p0]) == {p0: 3}
            assert m.consumer.end_seen(p0) == (7, 3)
            assert await m.consumer.fetch([p0], 10, 300) == []
            assert m.consumer.position(p0) == 3
            await commit()
            assert offsets(await m.read([p0], 4)) == {p0: [3, 4, 5, 6]}
            async with asyncio.timeout(10):
                while m.consumer.position(p0) != 8:
                    assert await m.consumer.fetch([p0], 10, 100) == []
            assert await m.consumer.end([p0]) == {p0: 8}

    async def test_read_uncommitted_sees_aborted_records(self, world: World) -> None:
        """Without read_committed the aborted records come, markers still do not."""
        topic = await world.make_topic()
        await world.send_aborted(topic, 3)
        await world.send(topic, 1)
        async with world.joined(topic, 1, isolation_level="read_uncommitted") as m:
            (p0,) = m.partitions
            m.consumer.seek(p0, 0)
            assert offsets(await m.read([p0], 4)) == {p0: [0, 1, 2, 4]}
            assert m.consumer.end_seen(p0) == (5, 5)
            commit = await world.open_transaction(topic, 2)
            assert offsets(await m.read([p0], 2)) == {p0: [5, 6]}
            assert await m.consumer.end([p0]) == {p0: 7}
            await commit()

    async def test_out_of_range_is_told(self, world: World) -> None:
        """A position that does not exist raises with its offset, others go on, and a seek mends it."""
        topic = await world.make_topic(2)
        for partition in range(2):
            await world.send(topic, 10, partition)
        await world.delete_before(topic, 4)
        async with world.joined(topic, 2) as m:
            p0, p1 = sorted(m.partitions)
            assert await m.consumer.beginning([p0, p1]) == {p0: 4, p1: 0}
            assert await m.consumer.end([p0, p1]) == {p0: 10, p1: 10}
            for wrong in (0, 1_000):
                m.consumer.seek(p0, wrong)
                for _ in range(2):
                    with pytest.raises(OffsetOutOfRangeError) as caught:
                        await m.read([p0], 1)
                    assert caught.value.offsets == {p0: wrong}
            m.consumer.seek(p1, 0)
            assert len((await m.read([p1], 10))[p1]) == 10
            m.consumer.seek(p0, 4)
            assert offsets(await m.read([p0], 6)) == {p0: list(range(4, 10))}

    async def test_commits_are_read_back(self, world: World) -> None:
        """Nothing committed reads as None; a commit keeps its string, and the next member finds it."""
        topic = await world.make_topic(2)
        p0, p1 = TopicPartition(topic, 0), TopicPartition(topic, 1)
        async with world.joined(topic, 2) as m:
            assert not await m.consumer.has_commits()
            assert await m.consumer.committed([p0, p1]) == {p0: None, p1: None}
            assert await m.consumer.committed([]) == {}
            answers = await m.consumer.commit(m.token, {p0: Committed(7, "漢字" * 2048)}, 5.0)
            assert answers == {p0: CommitAnswer.ACKNOWLEDGED}
            assert await m.consumer.has_commits()
        async with world.joined(topic, 2) as m:
            assert await m.consumer.committed([p0, p1]) == {p0: Committed(7, "漢字" * 2048), p1: None}

    async def test_one_partitions_metadata_too_large(self, world: World) -> None:
        """The partition whose string is too long says so, the other one is committed."""
        topic = await world.make_topic(3)
        async with world.joined(topic, 3) as m:
            p0, p1, p2 = sorted(m.partitions)
            asked = {p0: Committed(7, "x" * 4097), p1: Committed(8, "ok"), p2: Committed(9, "\ud800")}
            assert await m.consumer.commit(m.token, asked, 5.0) == {
                p0: CommitAnswer.METADATA_TOO_LARGE,
                p1: CommitAnswer.ACKNOWLEDGED,
                p2: CommitAnswer.METADATA_TOO_LARGE,
            }
            assert await m.consumer.committed([p0, p1]) == {p0: None, p1: Committed(8, "ok")}

    async def test_a_stale_commit_harms_nobody(self, world: World) -> None:
        """A refused commit changes nothing: the member stays, and the token at hand still commits."""
        topic = await world.make_topic()
        async with world.joined(topic, 1) as m:
            (p0,) = m.partitions
            generation, member_id = m.token
            for stale in (
                GroupToken(generation - 1, member_id),
                GroupToken(generation + 1, member_id),
                GroupToken(generation, "somebody-else"),
                GroupToken(-1, ""),
            ):
                assert await m.consumer.commit(stale, {p0: Committed(3, "")}, 5.0) == {p0: CommitAnswer.STALE}
            heard = m.consumer.lease_from()
            await eventually(lambda: m.consumer.lease_from() > heard)
            assert await m.consumer.committed([p0]) == {p0: None}
            assert await m.consumer.commit(m.token, {p0: Committed(10, "")}, 5.0) == {
                p0: CommitAnswer.ACKNOWLEDGED
            }
            assert m.said == ["assigned"]


class TestMemoryConsumer(Contract):
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
