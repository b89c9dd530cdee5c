"""What stands in a log, through the adapter: codecs, headers, timestamps, sizes, and what cannot be read."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time

import pytest
from aiokafka import TopicPartition as ClientPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c
from confluent_kafka import Producer

from asyncpar.errors import FetchError
from tests.adapters.aiokafka_member import member
from tests.conftest import Broker, TopicFactory
from tests.kafka_tools import Record, keyed, produce

pytestmark = pytest.mark.broker

both_ways = pytest.mark.parametrize("client_records", [False, True], ids=["direct", "client records"])


def produce_with(bootstrap: str, codec: str, topic: str, records: list[Record]) -> None:
    """Produce `records` in batches compressed with `codec`. Blocks."""
    # Idempotent: a first batch that a new leader refuses would be stored behind the second one.
    size = {"message.max.bytes": 2_000_000, "linger.ms": 20, "log_level": 0, "enable.idempotence": True}
    producer = Producer({"bootstrap.servers": bootstrap, "compression.codec": codec, **size})
    for record in records:
        producer.produce(
            topic,
            record.value,
            record.key,
            partition=record.partition or 0,
            headers=list(record.headers),
            timestamp=record.timestamp_ms or 0,
        )
    assert producer.flush(20) == 0


@both_ways
async def test_whatever_a_producer_may_send_arrives_as_it_was_sent(
    broker: Broker, make_topic: TopicFactory, group_id: str, client_records: bool
) -> None:
    """Every codec, headers without a value and twice the same, tombstones, records larger than a fetch."""
    codecs = ["none", "gzip", "lz4", "snappy", "zstd"]
    topic = make_topic(len(codecs), {"max.message.bytes": "2000000"})
    headers = (("h", None), ("h", b"1"), ("h", b"2"), ("empty", b""))
    now = int(time.time() * 1000)
    for partition, codec in enumerate(codecs):
        records = [Record(b"k", b"v" * 100, headers, partition, now + n) for n in range(20)]
        records += [
            Record(b"k", b"x" * 1_500_000, partition=partition),
            Record(b"k", None, partition=partition),
        ]
        await asyncio.to_thread(produce_with, broker.bootstrap, codec, topic, records)
    async with member(
        broker.bootstrap, group_id, topic, max_partition_fetch_bytes=50_000, client_records=client_records
    ) as m:
        partitions = await m.joined(len(codecs))
        for tp in partitions:
            m.consumer.seek(tp, 0)
        got = await m.read(partitions, 22 * len(codecs))
        for tp in partitions:
            assert [record.offset for record in got[tp]] == list(range(22))
            assert [record.timestamp - now for record in got[tp][:20]] == list(range(20))
            assert (tuple(got[tp][3].headers), got[tp][3].timestamp_type) == (headers, 0)
            assert [len(record.value or b"") for record in got[tp]] == [100] * 20 + [1_500_000, 0]
            assert got[tp][21].value is None
            assert m.consumer.position(tp) == 22


@both_ways
async def test_the_brokers_own_clock_is_told_from_the_producers(
    broker: Broker, make_topic: TopicFactory, group_id: str, client_records: bool
) -> None:
    """With LogAppendTime the timestamp is the broker's, and says so."""
    topic = make_topic(1, {"message.timestamp.type": "LogAppendTime"})
    begin = time.time() * 1000
    await produce(broker.bootstrap, topic, [Record(b"k", b"v", timestamp_ms=1_000)])
    async with member(broker.bootstrap, group_id, topic, client_records=client_records) as m:
        (p0,) = await m.joined(1)
        m.consumer.seek(p0, 0)
        (record,) = (await m.read([p0], 1))[p0]
        assert record.timestamp_type == 1
        assert begin - 1_000 < record.timestamp < time.time() * 1000 + 1_000


@both_ways
async def test_an_unreadable_record_is_named_and_what_stands_before_it_comes_out(
    broker: Broker, make_topic: TopicFactory, group_id: str, client_records: bool
) -> None:
    """A batch whose header names are no UTF-8: brokers take it, the client cannot read it."""
    topic = make_topic(1)
    await produce(broker.bootstrap, topic, keyed(2))
    await produce_unreadable(broker.bootstrap, topic)
    async with member(broker.bootstrap, group_id, topic, client_records=client_records) as m:
        (p0,) = await m.joined(1)
        m.consumer.seek(p0, 0)
        offsets: list[int] = []
        async with asyncio.timeout(15):
            while len(offsets) < 3:
                with contextlib.suppress(FetchError):  # after the first one they come one by one
                    for chunk in await m.consumer.fetch([p0], 100, 100):
                        offsets += [record.offset for record in chunk.records]
        with pytest.raises(FetchError, match=rf"{re.escape(str(p0))} at offset 3 failed: UnicodeDecodeError"):
            await m.read([p0], 1)
        assert offsets == [0, 1, 2]
        assert m.consumer.position(p0) == 3
        m.consumer.seek(p0, 5)
        await produce(broker.bootstrap, topic, keyed(1))
        assert [record.offset for record in (await m.read([p0], 1))[p0]] == [5]


async def produce_unreadable(bootstrap: str, topic: str) -> None:
    """A batch of a good record, one with a header name that is no UTF-8, and another good one."""
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, 0, 10_000)
    for number, headers in enumerate(([], [("XY", b"1")], [])):
        builder.append(number, int(time.time() * 1000), b"k", b"v", headers)
    batch = bytearray(builder.build())
    at = batch.index(b"XY")
    batch[at : at + 2] = b"\xff\xfe"
    batch[17:21] = calc_crc32c(bytes(batch[21:])).to_bytes(4, "big")
    client = AIOKafkaClient(bootstrap_servers=bootstrap)
    try:
        await client.bootstrap()
        await client._wait_on_metadata(topic)
        leader = client.cluster.leader_for_partition(ClientPartition(topic, 0))
        request = ProduceRequest(None, -1, 5_000, [(topic, [(0, bytes(batch))])])
        answer = await client.send(leader, request)
        assert answer.topics[0][1][0][1] == 0
    finally:
        await client.close()
