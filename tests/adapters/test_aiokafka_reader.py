"""The reader against a real Kafka: what it reads, commits and deletes, and how it fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from asyncpar.adapters.aiokafka_config import ClientConfig
from asyncpar.adapters.aiokafka_reader import AiokafkaReader
from asyncpar.adapters.aiokafka_reader_answers import (
    AgainError,
    check_commit,
    check_deletion,
    check_group,
    check_partition,
)
from asyncpar.errors import (
    AuthenticationError,
    AuthorizationError,
    BrokerError,
    BrokerUnreachableError,
    ConfigurationError,
    OffsetOutOfRangeError,
    UnknownTopicError,
)
from asyncpar.records import Committed, TopicPartition
from tests.adapters.aiokafka_member import member
from tests.adapters.test_aiokafka_rights import guarded, login
from tests.conftest import Broker, TopicFactory
from tests.kafka_broker import KafkaBroker, free_port
from tests.kafka_tools import Record, delete_records, list_topics, produce, produce_transaction, start_offsets

__all__ = ["guarded"]

TP = TopicPartition("orders.dlq", 0)


@asynccontextmanager
async def reading(bootstrap: str, **settings: Any) -> AsyncIterator[AiokafkaReader]:
    one = AiokafkaReader(ClientConfig(bootstrap_servers=bootstrap, **settings))
    try:
        await one.start()
        yield one
    finally:
        await one.stop(3.0)


async def read_all(reader: AiokafkaReader, tp: TopicPartition) -> list[bytes | None]:
    ((first, end),) = (await reader.bounds([tp])).values()
    values: list[bytes | None] = []
    while first < end:
        records, first = await reader.read(tp, first)
        values += [one.value for one in records]
    return values


def numbered(count: int, **more: Any) -> list[Record]:
    return [Record(b"k", b"%d" % number, **more) for number in range(count)]


# -- topics and records --------------------------------------------------------------------------


async def test_partitions_and_bounds(broker: Broker, make_topic: TopicFactory) -> None:
    """Each partition's first offset and end."""
    topic = make_topic(partitions=3)
    await produce(broker.bootstrap, topic, numbered(5, partition=1))
    await delete_records(broker.bootstrap, topic, {1: 2})
    async with reading(broker.bootstrap) as reader:
        partitions = await reader.partitions(topic)
        assert partitions == tuple(TopicPartition(topic, number) for number in range(3))
        assert list((await reader.bounds(partitions)).values()) == [(0, 0), (2, 5), (0, 0)]


async def test_a_topic_that_is_not_there_is_not_made(broker: Broker, make_topic: TopicFactory) -> None:
    """It is named with a similar one; a name that cannot be one, too."""
    right = make_topic(name="letters")
    async with reading(broker.bootstrap) as reader:
        with pytest.raises(
            UnknownTopicError, match=f"'{right}x' does not exist at .*; did you mean '{right}'"
        ):
            await reader.partitions(f"{right}x")
        with pytest.raises(UnknownTopicError, match="check its name"):
            await reader.partitions("no/topic/at/all")
    assert f"{right}x" not in await list_topics(broker.bootstrap)


async def test_records_come_whole_and_in_order_over_many_reads(
    broker: Broker, make_topic: TopicFactory
) -> None:
    """Key, value, headers, time; a small `max_partition_fetch_bytes` makes the reads small, not less."""
    topic = make_topic()
    now_ms = round(time.time() * 1000)
    sent = numbered(300, headers=(("a", b"1"), ("b", None)), timestamp_ms=now_ms)
    await produce(broker.bootstrap, topic, sent[:150])
    await produce(broker.bootstrap, topic, sent[150:])
    tp = TopicPartition(topic, 0)
    async with reading(broker.bootstrap, max_partition_fetch_bytes=1024) as reader:
        await reader.partitions(topic)
        assert await read_all(reader, tp) == [one.value for one in sent]
        records, going_on = await reader.read(tp, 120)
    assert (records[0].offset, records[0].key, records[0].timestamp) == (120, b"k", now_ms)
    assert list(records[0].headers) == [("a", b"1"), ("b", None)]
    assert going_on == records[-1].offset + 1


@pytest.mark.parametrize(
    ("isolation", "expected"), [("read_committed", [b"0"]), ("read_uncommitted", [b"0", b"0", b"0"])]
)
async def test_aborted_records_are_read_only_uncommitted(
    broker: Broker, make_topic: TopicFactory, isolation: str, expected: list[bytes]
) -> None:
    """Markers and aborted records are passed, also where nothing else is left."""
    topic = make_topic()
    for number, commits in enumerate((False, True, False)):
        await produce_transaction(broker.bootstrap, topic, numbered(1), f"{topic}-{number}", commit=commits)
    async with reading(broker.bootstrap, isolation_level=isolation) as reader:
        await reader.partitions(topic)
        assert await read_all(reader, TopicPartition(topic, 0)) == expected


async def test_an_offset_that_was_deleted_is_out_of_range(broker: Broker, make_topic: TopicFactory) -> None:
    """At once, with its place."""
    topic = make_topic()
    await produce(broker.bootstrap, topic, numbered(5))
    await delete_records(broker.bootstrap, topic, {0: 3})
    async with reading(broker.bootstrap) as reader:
        await reader.partitions(topic)
        with pytest.raises(OffsetOutOfRangeError):
            await reader.read(TopicPartition(topic, 0), 1)


async def test_offsets_by_time(broker: Broker, make_topic: TopicFactory) -> None:
    """The first record of that time or later; None after the last."""
    topic = make_topic()
    now_ms = round(time.time() * 1000)
    await produce(
        broker.bootstrap, topic, [Record(timestamp_ms=now_ms + moment) for moment in (0, 1000, 2000)]
    )
    tp = TopicPartition(topic, 0)
    async with reading(broker.bootstrap) as reader:
        await reader.partitions(topic)
        found = [(await reader.offsets_at([tp], now_ms + moment))[tp] for moment in (-1, 1000, 1001, 2001)]
    assert found == [0, 1, 2, None]


async def test_deletion(broker: Broker, make_topic: TopicFactory) -> None:
    """All below the offset goes, of the partitions named."""
    topic = make_topic(partitions=2)
    for partition in (0, 1):
        await produce(broker.bootstrap, topic, numbered(5, partition=partition))
    tp = TopicPartition(topic, 1)
    async with reading(broker.bootstrap) as reader:
        await reader.partitions(topic)
        assert await reader.delete_before({tp: 4}) == {tp: 4}
        with pytest.raises(ConfigurationError, match="has no offset 9"):
            await reader.delete_before({tp: 9})
    assert await start_offsets(broker.bootstrap, topic) == {0: 0, 1: 4}


# -- offsets of a group --------------------------------------------------------------------------


async def test_a_group_without_members_remembers(
    broker: Broker, make_topic: TopicFactory, group_id: str
) -> None:
    """Offset and metadata come back; nothing committed is None."""
    topic = make_topic(partitions=2)
    first, second = TopicPartition(topic, 0), TopicPartition(topic, 1)
    async with reading(broker.bootstrap) as reader:
        assert await reader.committed(group_id, [first, second]) == {first: None, second: None}
        await reader.commit(group_id, {first: Committed(7, "ap1:x")})
        found = await reader.committed(group_id, [first, second])
    assert found == {first: Committed(7, "ap1:x"), second: None}


async def test_a_group_with_members_keeps_its_offsets(
    broker: Broker, make_topic: TopicFactory, group_id: str
) -> None:
    """A consumer's group is not written to."""
    topic = make_topic()
    tp = TopicPartition(topic, 0)
    async with member(broker.bootstrap, group_id, topic) as one:
        await one.joined(1)
        async with reading(broker.bootstrap) as reader:
            with pytest.raises(ConfigurationError, match="has members, so its offsets are theirs"):
                await reader.commit(group_id, {tp: Committed(7, "")})
            assert await reader.committed(group_id, [tp]) == {tp: None}


async def test_metadata_that_the_broker_refuses_is_named(
    broker: Broker, make_topic: TopicFactory, group_id: str
) -> None:
    """With the broker's setting."""
    async with reading(broker.bootstrap) as reader:
        with pytest.raises(ConfigurationError, match=r"offset\.metadata\.max\.bytes"):
            await reader.commit(group_id, {TopicPartition(make_topic(), 0): Committed(7, "x" * 4097)})


# -- failing -------------------------------------------------------------------------------------


async def test_nobody_there() -> None:
    """Within the time to start."""
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(BrokerUnreachableError, match="within 300 ms"):
        async with reading(address, startup_timeout_ms=300):
            pass


async def test_wrong_credentials_and_missing_rights(guarded: KafkaBroker) -> None:
    """Refused credentials, topic and group are told apart."""
    with pytest.raises(AuthenticationError):
        async with reading(guarded.bootstrap, **{**login("reader"), "sasl_password": "wrong"}):
            pass
    tp = TopicPartition("open", 0)
    async with reading(guarded.bootstrap, **login("stranger")) as reader:
        with pytest.raises(AuthorizationError, match="no right on topic 'open'"):
            await reader.partitions("open")
        with pytest.raises(AuthorizationError, match="no right on group 'mine'"):
            await reader.committed("mine", [tp])
    async with reading(guarded.bootstrap, **login("reader")) as reader:
        await reader.partitions("open")
        with pytest.raises(AuthorizationError, match="grant DELETE"):
            await reader.delete_before({tp: 0})
        with pytest.raises(AuthorizationError, match="no right on group 'other'"):
            await reader.commit("other", {tp: Committed(0, "")})


async def test_a_broker_that_goes_ends_a_read_in_time(
    own_broker: KafkaBroker, make_topic: TopicFactory
) -> None:
    """After `request_timeout_ms`, and the reader still stops."""
    topic = make_topic()
    await produce(own_broker.bootstrap, topic, numbered(3))
    tp = TopicPartition(topic, 0)
    quick = {"max_revoke_grace_ms": 1000, "heartbeat_interval_ms": 300}
    async with reading(own_broker.bootstrap, **quick) as reader:
        await reader.partitions(topic)
        own_broker.kill()
        began = time.monotonic()
        with pytest.raises(BrokerUnreachableError, match=r"reading .* failed for 8300 ms .* check that the"):
            await reader.read(tp, 0)
        assert time.monotonic() - began < 12.0
        began = time.monotonic()
    assert time.monotonic() - began < 4.0


async def test_a_broker_that_comes_back_is_read_on(own_broker: KafkaBroker, make_topic: TopicFactory) -> None:
    """What failed in between is not told."""
    topic = make_topic()
    await produce(own_broker.bootstrap, topic, numbered(3))
    tp = TopicPartition(topic, 0)
    async with reading(own_broker.bootstrap) as reader:
        await reader.partitions(topic)
        own_broker.kill()
        waiting = asyncio.create_task(read_all(reader, tp))
        await asyncio.to_thread(own_broker.start)
        assert len(await waiting) == 3


# -- what answers mean ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "code", "kind"),
    [
        (lambda code: check_partition(code, TP, "reading it"), 6, AgainError),
        (lambda code: check_partition(code, TP, "reading it"), 29, AuthorizationError),
        (lambda code: check_partition(code, TP, "reading it"), 42, BrokerError),
        (lambda code: check_deletion(code, TP, 5), 44, ConfigurationError),
        (lambda code: check_deletion(code, TP, 5), 1, ConfigurationError),
        (lambda code: check_deletion(code, TP, 5), 29, AuthorizationError),
        (lambda code: check_group(code, "g", TP), 16, AgainError),
        (lambda code: check_group(code, "g", TP), 29, AuthorizationError),
        (lambda code: check_group(code, "g", None), 30, AuthorizationError),
        (lambda code: check_commit(code, "g", TP), 14, AgainError),
        (lambda code: check_commit(code, "g", TP), 25, ConfigurationError),
        (lambda code: check_commit(code, "g", TP), 12, ConfigurationError),
        (lambda code: check_commit(code, "g", TP), 3, UnknownTopicError),
        (lambda code: check_commit(code, "g", TP), 30, AuthorizationError),
    ],
)
def test_each_code_of_an_answer_has_its_error(check: Any, code: int, kind: type[Exception]) -> None:
    """What may pass is asked again, the rest ends; no error is none."""
    check(0)
    with pytest.raises(kind):
        check(code)
