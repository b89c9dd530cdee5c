"""The adapter against a real broker: records, commits, bounds, topics, patterns, transactions."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid

import pytest

from asyncpar.adapters.aiokafka_network import METADATA_SPACING_SECONDS
from asyncpar.errors import OffsetOutOfRangeError, UnknownTopicError
from asyncpar.ports import Consumer
from asyncpar.records import CommitAnswer, Committed, GroupToken, TopicPartition
from tests import kafka_tools
from tests.adapters.aiokafka_member import Member, eventually, member
from tests.conftest import Broker, TopicFactory
from tests.kafka_tools import Record, keyed, produce

pytestmark = pytest.mark.broker


async def test_it_provides_the_port(broker: Broker, group_id: str) -> None:
    """The adapter has everything that the runtime asks of a consumer."""
    consumer: Consumer = Member(broker.bootstrap, group_id).consumer
    assert consumer.failure() is None
    await consumer.stop(1.0)


async def test_records_come_from_where_we_seek(
    broker: Broker, make_topic: TopicFactory, group_id: str
) -> None:
    """A partition delivers nothing and has no position before a seek, and then only from there."""
    topic = make_topic(2)
    await produce(broker.bootstrap, topic, [Record(b"k", b"%d" % i, partition=i % 2) for i in range(200)])
    async with member(broker.bootstrap, group_id, topic) as m:
        p0, p1 = await m.joined(2)
        assert await m.consumer.fetch([p0, p1], 100, 300) == []
        assert (m.consumer.position(p0), m.consumer.end_seen(p0)) == (None, (None, None))
        m.consumer.seek(p0, 40)
        got = await m.read([p0, p1], 60)
        assert {tp: [record.offset for record in records] for tp, records in got.items()} == {
            p0: list(range(40, 100))
        }
        assert got[p0][0].value == b"80"
        assert (m.consumer.position(p0), m.consumer.position(p1)) == (100, None)
        assert m.consumer.end_seen(p0) == (100, 100)
        m.consumer.seek(TopicPartition(topic, 9), 0)
        m.consumer.seek(p0, 98)
        assert [r.offset for r in (await m.read([p0], 2))[p0]] == [98, 99]


async def test_no_partition_starves(broker: Broker, make_topic: TopicFactory, group_id: str) -> None:
    """Partitions with much buffered take turns."""
    topic = make_topic(4)
    await produce(broker.bootstrap, topic, [Record(None, b"x", partition=i % 4) for i in range(8_000)])
    async with member(broker.bootstrap, group_id, topic) as m:
        partitions = await m.joined(4)
        for tp in partitions:
            m.consumer.seek(tp, 0)
        inside = m.consumer._inside
        async with asyncio.timeout(10):
            while len(inside.buffered(partitions)) < 4:
                await m.consumer.fetch([], 1, 20)
        served = [chunk.partition for _ in range(8) for chunk in await m.consumer.fetch(partitions, 100, 100)]
        assert sorted(served[:4]) == [0, 1, 2, 3]
        assert served[4:8] == served[:4]


async def test_a_partition_without_a_leader_causes_no_storm_of_questions(
    broker: Broker, make_topic: TopicFactory, group_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While metadata names no leader the client asks again with a pause, not as fast as it is answered."""
    topic = make_topic(1)
    async with member(broker.bootstrap, group_id, topic) as m:
        (p0,) = await m.joined(1)
        m.consumer.seek(p0, 0)
        answers: list[float] = []
        cluster = m.consumer._inside._client.cluster
        cluster.add_listener(lambda _: answers.append(time.monotonic()))
        monkeypatch.setattr(cluster, "leader_for_partition", lambda tp: -1)
        for _ in range(3):
            await m.consumer.fetch([p0], 10, 250)
        assert len(answers) >= 2  # it does ask
        pauses = [later - earlier for earlier, later in itertools.pairwise(answers)]
        assert min(pauses) >= 0.9 * METADATA_SPACING_SECONDS


async def test_out_of_range_is_told(broker: Broker, make_topic: TopicFactory, group_id: str) -> None:
    """A position that does not exist raises with its offset, others go on, and a seek mends it."""
    topic = make_topic(2)
    await produce(broker.bootstrap, topic, [Record(None, b"x", partition=i % 2) for i in range(20)])
    async with member(broker.bootstrap, group_id, topic) as m:
        p0, p1 = await m.joined(2)
        m.consumer.seek(p0, 1_000)
        for _ in range(2):
            with pytest.raises(OffsetOutOfRangeError) as caught:
                await m.read([p0], 1)
            assert caught.value.offsets == {p0: 1_000}
        m.consumer.seek(p1, 0)
        assert len((await m.read([p1], 10))[p1]) == 10
        m.consumer.seek(p0, (await m.consumer.beginning([p0]))[p0])
        assert len((await m.read([p0], 10))[p0]) == 10
        assert m.consumer._inside.fetch_count() == 0


async def test_commits_with_metadata(broker: Broker, make_topic: TopicFactory, group_id: str) -> None:
    """A commit is stored with its string, and both come back; nothing committed reads as None."""
    topic = make_topic(2)
    async with member(broker.bootstrap, group_id, topic) as m:
        p0, p1 = await m.joined(2)
        assert not await m.consumer.has_commits()
        assert await m.consumer.committed([p0, p1]) == {p0: None, p1: None}
        answers = await m.consumer.commit(m.token, {p0: Committed(7, "漢字" * 2048)}, 5.0)
        assert answers == {p0: CommitAnswer.ACKNOWLEDGED}
        assert await m.consumer.committed([p0, p1]) == {p0: Committed(7, "漢字" * 2048), p1: None}
        assert await m.consumer.has_commits()
        assert await kafka_tools.committed(broker.bootstrap, group_id, topic) == {0: (7, "漢字" * 2048)}


async def test_one_partitions_metadata_too_large(
    broker: Broker, make_topic: TopicFactory, group_id: str
) -> None:
    """The partition whose string is too long says so, the other one is committed."""
    topic = make_topic(2)
    async with member(broker.bootstrap, group_id, topic) as m:
        p0, p1 = await m.joined(2)
        answers = await m.consumer.commit(
            m.token, {p0: Committed(7, "x" * 4097), p1: Committed(8, "ok")}, 5.0
        )
        assert answers == {p0: CommitAnswer.METADATA_TOO_LARGE, p1: CommitAnswer.ACKNOWLEDGED}
        assert await m.consumer.committed([p0, p1]) == {p0: None, p1: Committed(8, "ok")}


async def test_a_stale_commit_harms_nobody(broker: Broker, make_topic: TopicFactory, group_id: str) -> None:
    """A refused commit changes nothing: the member stays, and the token at hand still commits."""
    topic = make_topic(1)
    async with member(broker.bootstrap, group_id, topic) as m:
        (p0,) = await m.joined(1)
        assert (await m.consumer.commit(m.token, {p0: Committed(9, "")}, 5.0))[
            p0
        ] is CommitAnswer.ACKNOWLEDGED
        for stale in (
            GroupToken(m.token.generation - 1, m.token.member_id),
            GroupToken(m.token.generation + 1, m.token.member_id),
            GroupToken(m.token.generation, "somebody-else"),
            GroupToken(-1, ""),
        ):
            assert await m.consumer.commit(stale, {p0: Committed(3, "")}, 5.0) == {p0: CommitAnswer.STALE}
        heard = m.consumer.lease_from()
        await eventually(lambda: m.consumer.lease_from() > heard)
        assert await m.consumer.committed([p0]) == {p0: Committed(9, "")}
        assert (await m.consumer.commit(m.token, {p0: Committed(10, "")}, 5.0))[
            p0
        ] is CommitAnswer.ACKNOWLEDGED
        assert m.said == ["assigned"]


async def test_the_lease_follows_the_heartbeats(
    broker: Broker, make_topic: TopicFactory, group_id: str
) -> None:
    """Each good heartbeat moves the lease and the drain's deadline to the moment it was sent."""
    topic = make_topic(1)
    async with member(broker.bootstrap, group_id, topic, heartbeat_interval_ms=100) as m:
        await m.joined(1)
        for _ in range(3):
            lease, deadline = m.consumer.lease_from(), m.consumer.drain_deadline()
            assert time.monotonic() - 2 < lease <= time.monotonic()
            await eventually(lambda lease=lease: m.consumer.lease_from() > lease)
            assert m.consumer.drain_deadline() > deadline
        assert m.consumer.drain_deadline() - m.consumer.lease_from() == pytest.approx(
            m.config.rebalance_timeout_ms / 1000 - 1.0
        )


async def test_bounds_of_partitions(broker: Broker, make_topic: TopicFactory, group_id: str) -> None:
    """Beginning and end are those of the log, under read_committed those of finished transactions."""
    topic = make_topic(2)
    await produce(broker.bootstrap, topic, [Record(None, b"x", partition=0) for _ in range(10)])
    await kafka_tools.delete_records(broker.bootstrap, topic, {0: 4})
    async with member(broker.bootstrap, group_id, topic) as m:
        p0, p1 = await m.joined(2)
        assert await m.consumer.beginning([p0, p1]) == {p0: 4, p1: 0}
        assert await m.consumer.end([p0, p1]) == {p0: 10, p1: 0}


async def test_an_aborted_tail_moves_the_position(
    broker: Broker, make_topic: TopicFactory, group_id: str
) -> None:
    """Aborted records and markers are passed once the partition is asked for."""
    topic = make_topic(1)
    await produce(broker.bootstrap, topic, keyed(5))
    await kafka_tools.produce_transaction(broker.bootstrap, topic, keyed(5), f"tx-{group_id}", commit=False)
    async with member(broker.bootstrap, group_id, topic) as m:
        (p0,) = await m.joined(1)
        m.consumer.seek(p0, 0)
        got = await m.read([p0], 5)
        assert [record.offset for record in got[p0]] == [0, 1, 2, 3, 4]
        end = (await m.consumer.end([p0]))[p0]
        assert end == 11
        async with asyncio.timeout(10):
            while m.consumer.position(p0) != end:
                assert await m.consumer.fetch([p0], 100, 100) == []


async def test_an_unknown_topic_is_not_created(
    broker: Broker, make_topic: TopicFactory, group_id: str
) -> None:
    """A misspelt topic is named with the near one, and nobody creates it."""
    topic = make_topic(1, name="orders")
    misspelt = topic.replace("orders", "oders")
    m = Member(broker.bootstrap, group_id)
    with pytest.raises(UnknownTopicError) as caught:
        await m.start(misspelt)
    assert f"'{misspelt}' does not exist" in str(caught.value)
    assert f"did you mean '{topic}'" in str(caught.value)
    assert misspelt not in await kafka_tools.list_topics(broker.bootstrap)


async def test_an_invalid_topic_name_is_named(broker: Broker, group_id: str) -> None:
    """A name that Kafka does not allow is called invalid, not unknown."""
    with pytest.raises(UnknownTopicError, match="no valid name"):
        await Member(broker.bootstrap, group_id).start("what a name")


async def test_waiting_for_a_topic(broker: Broker, group_id: str, caplog: pytest.LogCaptureFixture) -> None:
    """With wait_for_topics the start waits, says so once and creates nothing."""
    topic = f"later-{uuid.uuid4().hex[:12]}"
    m = Member(broker.bootstrap, group_id, wait_for_topics=True)
    starting = asyncio.create_task(m.start(topic))
    try:
        await eventually(lambda: "waiting for" in caplog.text)
        assert topic not in await kafka_tools.list_topics(broker.bootstrap)
        await kafka_tools.create_topic(broker.bootstrap, topic, partitions=2)
        await m.joined(2)
        await starting
        assert caplog.text.count("waiting for") == 1
    finally:
        starting.cancel()
        await m.consumer.stop(5.0)
        await kafka_tools.delete_topics(broker.bootstrap, [topic])


async def test_a_deleted_topic_is_not_created_again(
    broker: Broker, make_topic: TopicFactory, group_id: str
) -> None:
    """Metadata requests of a running member do not bring a deleted topic back."""
    keep, gone = make_topic(1), make_topic(1)
    async with member(broker.bootstrap, group_id, keep, gone, metadata_max_age_ms=200) as m:
        await m.joined(2)
        await kafka_tools.delete_topics(broker.bootstrap, [gone])
        await m.joined(1)
        for _ in range(3):
            await m.consumer._inside.network.refresh_metadata()
        assert gone not in await kafka_tools.list_topics(broker.bootstrap)


async def test_a_pattern_sees_new_topics(broker: Broker, make_topic: TopicFactory, group_id: str) -> None:
    """A topic that matches as a whole is taken at the next metadata refresh; a mere prefix is not."""
    stem = uuid.uuid4().hex[:8]
    first = make_topic(1, name=f"audit.{stem}")
    make_topic(1, name=f"audit.{stem}-0")  # the pattern matches its beginning
    pattern = rf"audit\.{stem}-[0-9a-f]+"
    async with member(broker.bootstrap, group_id, pattern=pattern, metadata_max_age_ms=300) as m:
        assert await m.joined(1) == [TopicPartition(first, 0)]
        second = make_topic(2, name=f"audit.{stem}")
        found = await m.joined(3)
        assert {tp.topic for tp in found} == {first, second}
        assert await m.consumer.end(found) == dict.fromkeys(found, 0)


async def test_a_pattern_without_topics_joins(
    broker: Broker, make_topic: TopicFactory, group_id: str
) -> None:
    """A pattern that matches nothing yet is a member with no partitions."""
    stem = uuid.uuid4().hex
    async with member(broker.bootstrap, group_id, pattern=rf"{stem}-.*", metadata_max_age_ms=300) as m:
        assert await m.joined(0) == []
        topic = make_topic(1, name=stem)
        assert await m.joined(1) == [TopicPartition(topic, 0)]
        assert "revoked" not in m.said
