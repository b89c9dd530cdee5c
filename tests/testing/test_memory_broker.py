"""What a test asks of the in-memory broker: topics, sending, faults on request."""

from __future__ import annotations

import asyncio

import pytest

from asyncpar.errors import AuthenticationError, AuthorizationError, BrokerError, UnknownTopicError
from asyncpar.ports import Consumer
from asyncpar.records import CommitAnswer, Committed, TopicPartition
from asyncpar.testing.history import History
from asyncpar.testing.memory_broker import DISCONNECT, LOST_ANSWER, MemoryBroker
from asyncpar.testing.memory_link import RefusedError
from asyncpar.testing.memory_topics import RecordPlace
from tests.testing.memory_world import GROUP, MemoryWorld
from tests.testing.virtually import now, until, virtually


def test_records_find_their_partition() -> None:
    """A key decides, else the partition given, else turns; the place is told and timestamps are as asked."""
    broker = MemoryBroker(wall=lambda: 12.5)
    broker.create_topic("t", 3)
    assert [broker.send("t", b"v").partition for _ in range(4)] == [0, 1, 2, 0]
    same = {broker.send("t", b"v", key=b"k").partition for _ in range(3)}
    assert len(same) == 1
    place = broker.send("t", None, key=b"k", headers=[("h", b"1")], partition=2, timestamp_ms=7)
    assert place == RecordPlace("t", 2, broker.log(TopicPartition("t", 2)).end - 1)
    record = broker.log(TopicPartition("t", 2)).records[-1]
    assert record == (place.offset, b"k", None, [("h", b"1")], 7, 0)
    assert broker.log(TopicPartition("t", 0)).records[0].timestamp == 12_500


def test_topics_are_made_grown_and_deleted() -> None:
    """Partitions are never taken away; what does not exist is named with the near one."""
    broker = MemoryBroker()
    broker.create_topic("orders", 2)
    with pytest.raises(ValueError, match="exists already"):
        broker.create_topic("orders")
    broker.add_partitions("orders", 3)
    with pytest.raises(ValueError, match="takes none away"):
        broker.add_partitions("orders", 1)
    assert broker.partition_counts() == {"orders": 3}
    assert broker.partitions("orders")[-1] == TopicPartition("orders", 2)
    with pytest.raises(UnknownTopicError, match="did you mean 'orders'"):
        broker.send("order", b"v")
    with pytest.raises(UnknownTopicError, match="no partition 3"):
        broker.send("orders", b"v", partition=3)
    broker.store_offsets("g", {TopicPartition("orders", 0): Committed(1, "")})
    broker.delete_topic("orders")
    assert broker.committed("g") == {}
    with pytest.raises(UnknownTopicError, match="create_topic"):
        broker.send("orders", b"v")


def test_what_is_sent_is_recorded() -> None:
    """The history has each record that consumers will be given: not those of aborted transactions."""
    history = History()
    broker = MemoryBroker(recorder=history)
    broker.create_topic("t")
    broker.send("t", b"value", key=b"k")
    committed, aborted = broker.transaction(), broker.transaction()
    committed.send("t", b"v", key=b"c")
    aborted.send("t", b"v", key=b"a")
    aborted.abort()
    assert len(history.events) == 1
    committed.commit()
    committed.commit()
    tp = TopicPartition("t", 0)
    assert [(e.kind, e.tp, e.offset, e.key, e.detail) for e in history.events] == [
        ("send", tp, 0, b"k", "6"),
        ("send", tp, 1, b"c", "2"),
    ]
    cut = broker.transaction()
    cut.send("t", b"v")
    broker.truncate(tp, 2)
    cut.commit()
    assert len(history.events) == 2
    assert broker.log(tp).last_stable_offset == broker.log(tp).end == 2


def test_nothing_is_sent_to_a_broker_that_is_down() -> None:
    """Sending and committing raise until it is up again; a transaction can time out meanwhile."""
    broker = MemoryBroker()
    broker.create_topic("t")
    transaction = broker.transaction()
    transaction.send("t", b"v")
    broker.down()
    for act in (lambda: broker.send("t", b"v"), transaction.commit):
        with pytest.raises(BrokerError, match="down"):
            act()
    broker.up()
    transaction.commit()
    transaction = broker.transaction()
    transaction.send("t", b"v")
    broker.down()
    transaction.abort()
    broker.up()
    assert broker.send("t", b"v").offset == 4


def test_faults_are_checked() -> None:
    """An unknown request or error is refused with a suggestion."""
    broker = MemoryBroker()
    with pytest.raises(ValueError, match="unknown request 'Join'"):
        broker.fail("Join", "NOT_COORDINATOR")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="did you mean NOT_COORDINATOR"):
        broker.fail("JoinGroup", "NOT_COORDINATR")
    with pytest.raises(ValueError, match="unknown error"):
        broker.fail("JoinGroup", "12345678")


def test_it_provides_the_port() -> None:
    """A factory's consumers are those of the port; each has the name given, or one of its own."""
    broker = MemoryBroker()
    one: Consumer = broker.consumers("a")("g")
    assert one.failure() is None
    assert [broker.consumer("g").name, broker.consumer("g", "b").name] == ["consumer-2", "b"]


@virtually
async def test_faults_strike_as_often_as_asked() -> None:
    """A scripted answer is given that many times, to the member named only."""
    world = MemoryWorld(1)
    a = await world.start("a")
    await a.joined(1)
    world.broker.fail("OffsetCommit", "KAFKA_STORAGE_ERROR", times=2, member="a")
    world.broker.fail("OffsetCommit", "GROUP_AUTHORIZATION_FAILED", member="b")
    world.broker.fail("OffsetCommit", "INVALID_COMMIT_OFFSET_SIZE", member="a")
    said = [await a.commit(1) for _ in range(4)]
    retry, large, stored = CommitAnswer.RETRY, CommitAnswer.METADATA_TOO_LARGE, CommitAnswer.ACKNOWLEDGED
    assert said == [{retry}, {retry}, {large}, {stored}]
    world.broker.fail("OffsetCommit", DISCONNECT)
    assert await a.commit(2) == {retry}
    assert world.broker.committed(GROUP) == {world.tp(0): Committed(1, "")}
    world.broker.fail("OffsetCommit", LOST_ANSWER)
    assert await a.commit(3) == {retry}
    assert world.broker.committed(GROUP) == {world.tp(0): Committed(3, "")}
    await a.consumer.stop(3)


@virtually
async def test_the_metadata_limit_counts_utf16_units() -> None:
    """A string of as many units passes, one more does not, and one emoji counts as two."""
    world = MemoryWorld(1)
    world.broker.metadata_max_bytes = 4
    a = await world.start("a")
    await a.joined(1)
    assert await a.commit(1, "漢字漢字") == {CommitAnswer.ACKNOWLEDGED}
    assert await a.commit(1, "👍👍") == {CommitAnswer.ACKNOWLEDGED}
    for long in ("12345", "👍👍1"):
        assert await a.commit(2, long) == {CommitAnswer.METADATA_TOO_LARGE}
    await a.consumer.stop(3)


@virtually
async def test_offsets_from_outside() -> None:
    """Tools may set a group's offsets while it is empty; its members find them."""
    world = MemoryWorld(1)
    offsets = {world.tp(0): Committed(5, "m")}
    world.broker.store_offsets(GROUP, offsets)
    a = await world.start("a")
    await a.joined(1)
    assert await a.consumer.committed([world.tp(0)]) == offsets
    assert await a.consumer.has_commits()
    with pytest.raises(ValueError, match="has members"):
        world.broker.store_offsets(GROUP, offsets)
    await a.consumer.stop(3)


@virtually
async def test_a_kick_takes_all_at_once() -> None:
    """A kicked member has lost its partitions, its commits are stale, and it joins again as another one."""
    world = MemoryWorld(1)
    a = await world.start("a")
    await a.joined(1)
    old = a.token
    with pytest.raises(RefusedError, match="UNKNOWN_MEMBER_ID"):
        world.broker.kick(GROUP, "nobody")
    world.broker.kick(GROUP, a.consumer.member_id)
    assert await a.commit(1) == {CommitAnswer.STALE}
    await a.until(lambda: a.said == ["assigned", "lost", "assigned"], 30)
    assert a.token.member_id != old.member_id
    await a.consumer.stop(3)


@virtually
async def test_a_coordinator_moves() -> None:
    """The old one refuses, the new one is looked up, and nobody loses anything by it."""
    world = MemoryWorld(2)
    a = await world.start("a")
    await a.joined(2)
    world.broker.move_coordinator(GROUP)
    assert await a.commit(1) == {CommitAnswer.RETRY}
    assert await a.commit(1) == {CommitAnswer.ACKNOWLEDGED}
    world.broker.move_coordinator(GROUP, loading=True)
    assert await a.commit(2) == {CommitAnswer.RETRY}  # looks it up
    assert await a.commit(2) == {CommitAnswer.RETRY}  # it loads
    with pytest.raises(BrokerError, match="COORDINATOR_LOAD_IN_PROGRESS"):
        await a.consumer.committed([world.tp(0)])
    world.broker.loaded(GROUP)
    assert await a.commit(2) == {CommitAnswer.ACKNOWLEDGED}
    begun = now()
    await until(lambda: a.consumer.lease_from() > begun)
    assert a.said == ["assigned"]
    await a.consumer.stop(3)


@virtually
async def test_a_coordinator_moves_within_a_rebalance() -> None:
    """Who waits to join is sent to the new one, and the rebalance begins again there."""
    world = MemoryWorld(2)
    a = await world.start("a")
    await a.joined(2)
    world.link.slow["Heartbeat"] = 0.5
    b = await world.start("b")
    await until(lambda: world.broker.group(GROUP).state == "PreparingRebalance")
    world.broker.move_coordinator(GROUP)
    assert set(world.broker.group(GROUP).members) == {a.token.member_id}
    await asyncio.gather(a.joined(1), b.joined(1))
    await asyncio.gather(a.consumer.stop(3), b.consumer.stop(3))


@virtually
async def test_rights_and_credentials() -> None:
    """Refused credentials and missing rights end a start with the error that says so."""
    world = MemoryWorld(1)
    world.broker.fail("Connect", "SASL_AUTHENTICATION_FAILED")
    with pytest.raises(AuthenticationError, match="credentials"):
        await world.start("a")
    for request, error, text in (
        ("FindCoordinator", "GROUP_AUTHORIZATION_FAILED", "group 'g'"),
        ("Metadata", "TOPIC_AUTHORIZATION_FAILED", "topic 't'"),
    ):
        world.broker.fail(request, error)  # type: ignore[arg-type]
        with pytest.raises(AuthorizationError, match=text):
            await world.start("a")
