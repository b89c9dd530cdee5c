"""The producer while the network fails, the broker freezes and leaders die: real brokers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from asyncpar.adapters.aiokafka_config import ClientConfig
from asyncpar.adapters.aiokafka_producer import AiokafkaProducer
from asyncpar.adapters.aiokafka_producer_lane import Batch, Numbers
from asyncpar.adapters.aiokafka_producer_wire import KafkaWire
from asyncpar.errors import PublishError
from asyncpar.records import OutgoingRecord, TopicPartition
from tests import kafka_tools
from tests.adapters.aiokafka_member import eventually
from tests.chaos.cluster import ChaosBroker
from tests.chaos.tcp_proxy import Weather
from tests.conftest import Broker, TopicFactory
from tests.kafka_broker import KafkaBroker, KafkaCluster
from tests.testing.producer_worlds import insist, read_all

pytestmark = pytest.mark.broker

SECONDS = 30.0
NO_ANSWERS = Weather(stalled=frozenset({"answers"}))


def record(topic: str, value: bytes, key: bytes = b"k") -> OutgoingRecord:
    return OutgoingRecord(topic, key, value, partition=0)


@contextlib.asynccontextmanager
async def started(bootstrap: str, **settings: Any) -> AsyncIterator[AiokafkaProducer]:
    one = AiokafkaProducer(ClientConfig(bootstrap_servers=bootstrap, **settings))
    try:
        await one.start()
        yield one
    finally:
        await one.stop(3.0)


def sockets(producer: AiokafkaProducer) -> list[Any]:
    """The sockets of its connections, to be looked at later."""
    wire: Any = producer._wire
    found = [one._writer for one in wire._client._conns.values() if one._writer is not None]
    return [writer.transport.get_extra_info("socket") for writer in found]


@pytest.fixture(scope="module")
def far() -> Iterator[ChaosBroker]:
    """A broker whose clients come through a proxy."""
    one = ChaosBroker(1)
    try:
        one.node.start()
        yield one
    finally:
        one.remove()


@pytest.fixture
async def topic(far: ChaosBroker) -> AsyncIterator[str]:
    """A topic there, with the proxy at work."""
    await far.proxy.start()
    name = f"topic-{time.monotonic_ns()}"
    await kafka_tools.create_topic(far.node.bootstrap, name)
    yield name
    await far.proxy.heal()
    await far.proxy.stop()


def outside(far: ChaosBroker) -> str:
    return f"127.0.0.1:{far.proxy.port}"


async def values(far: ChaosBroker, topic: str) -> list[bytes | None]:
    return [found.value for found in await asyncio.to_thread(read_all, far.node.bootstrap, topic)]


async def arrived(far: ChaosBroker, topic: str, count: int) -> None:
    """Wait until the log has `count` records."""
    async with asyncio.timeout(SECONDS):
        while (await kafka_tools.end_offsets(far.node.bootstrap, topic))[0] < count:
            continue


async def test_a_lost_answer_makes_no_second_record(far: ChaosBroker, topic: str) -> None:
    """The record is there, its answer is lost with the connection: the caller gets its place, once."""
    async with started(outside(far)) as producer:
        assert (await producer.send(record(topic, b"a"), SECONDS))[1] == 0
        far.proxy.turn(NO_ANSWERS)
        sending = asyncio.create_task(producer.send(record(topic, b"b"), SECONDS))
        await arrived(far, topic, 2)
        await far.proxy.heal()
        far.proxy.cut()
        assert (await sending)[1] == 1
        assert (await producer.send(record(topic, b"c"), SECONDS))[1] == 2
    assert await values(far, topic) == [b"a", b"b", b"c"]


async def test_a_caller_that_gives_up_before_the_answer(far: ChaosBroker, topic: str) -> None:
    """It is told that the record may be there, what it sends next lies behind it, and nothing twice."""
    async with started(outside(far)) as producer:
        await producer.send(record(topic, b"a"), SECONDS)
        far.proxy.turn(NO_ANSWERS)
        begin = time.monotonic()
        with pytest.raises(PublishError, match="may be there") as caught:
            await producer.send(record(topic, b"b"), 1.0)
        assert caught.value.reason == "unreachable"
        with pytest.raises(PublishError, match="was not sent"):
            await producer.send(record(topic, b"behind"), 1.0)
        assert time.monotonic() - begin < 4.0
        await far.proxy.heal()
        far.proxy.cut()
        await producer.send(record(topic, b"c"), SECONDS)
    assert await values(far, topic) == [b"a", b"b", b"c"]


async def test_connections_that_break_all_the_time(far: ChaosBroker, topic: str) -> None:
    """While connections are cut again and again all is written once, and each key in order."""

    async def cut() -> None:
        while True:
            await asyncio.sleep(0.7)
            far.proxy.cut()

    async def one_key(producer: AiokafkaProducer, key: bytes) -> None:
        for i in range(20):
            await producer.send(record(topic, b"%s-%d" % (key, i), key), SECONDS)

    async with started(outside(far)) as producer:
        far.proxy.turn(Weather(delay_seconds=0.05))  # so that cuts meet requests on their way
        cutting = asyncio.create_task(cut())
        try:
            await asyncio.gather(*(one_key(producer, b"%d" % key) for key in range(5)))
        finally:
            cutting.cancel()
    found = await asyncio.to_thread(read_all, far.node.bootstrap, topic)
    for key in range(5):
        of_key = [one.value for one in found if one.key == b"%d" % key]
        assert of_key == [b"%d-%d" % (key, i) for i in range(20)]


@pytest.mark.parametrize("fault", ["dark", "refuse", "stalled"])
async def test_a_stop_leaves_nothing_when_the_network_is_gone(
    far: ChaosBroker, topic: str, fault: str
) -> None:
    """Bounded, and no task or socket is left."""
    before = asyncio.all_tasks()
    producer = AiokafkaProducer(ClientConfig(bootstrap_servers=outside(far)))
    await producer.start()
    await producer.send(record(topic, b"a"), SECONDS)
    before_fault = sockets(producer)
    assert before_fault
    if fault == "dark":
        far.proxy.turn(Weather(is_dark=True))
    elif fault == "refuse":
        await far.proxy.refuse()
    else:
        far.proxy.turn(Weather(stalled=frozenset({"requests"})))
    with pytest.raises(PublishError):
        # More than the buffers on the way take: a socket that waits to get rid of it would stay open.
        await producer.send(record(topic, bytes(16 * 1024 * 1024)), 0.5)
    sending = asyncio.create_task(producer.send(record(topic, b"c"), 60.0))
    await asyncio.wait([sending], timeout=0.3)
    begin = time.monotonic()
    await producer.stop(2.0)
    assert time.monotonic() - begin < 3.5
    with pytest.raises(PublishError, match="stopped"):
        await sending
    await eventually(lambda: [one.fileno() for one in before_fault] == [-1] * len(before_fault))
    await far.proxy.heal()
    far.proxy.cut()
    await eventually(lambda: not [t for t in asyncio.all_tasks() - before if "aiokafka" in repr(t)])
    await eventually(lambda: not [t for t in asyncio.all_tasks() - before if "asyncpar" in t.get_name()])


async def test_a_frozen_broker(own_broker: KafkaBroker, make_topic: TopicFactory) -> None:
    """Sends fail in time while it is frozen, and go on in order afterwards without a second copy."""
    topic = make_topic()
    async with started(own_broker.bootstrap) as producer:
        await producer.send(record(topic, b"0"), SECONDS)
        own_broker.pause()
        begin = time.monotonic()
        with pytest.raises(PublishError):
            await producer.send(record(topic, b"1"), 1.0)
        assert time.monotonic() - begin < 3.0
        own_broker.resume()
        for i in range(2, 6):
            await insist(producer, record(topic, b"%d" % i))
    found = [one.value for one in await asyncio.to_thread(read_all, own_broker.bootstrap, topic)]
    assert found in ([b"0", b"1", b"2", b"3", b"4", b"5"], [b"0", b"2", b"3", b"4", b"5"])


async def test_what_the_numbers_of_batches_do(broker: Broker, make_topic: TopicFactory) -> None:
    """What all rests on: a repeat is written once, and a new epoch shuts the old one out."""
    tp = TopicPartition(make_topic(), 0)
    wire = KafkaWire(ClientConfig(bootstrap_servers=broker.bootstrap))
    try:
        await wire.connect()
        mine = await wire.producer_id()
        node = (await wire.describe([tp.topic]))[tp.topic].leaders[0]

        async def write(epoch: int, sequence: int, *values: bytes) -> tuple[int, int]:
            records = [record(tp.topic, value) for value in values]
            answers = await wire.produce(node, {tp: Batch(Numbers(mine, epoch, sequence), records)})
            return answers[tp]

        assert await write(0, 0, b"a", b"b") == (0, 0)
        assert await write(0, 0, b"a", b"b") == (0, 0)
        assert await write(0, 3, b"gap") == (45, -1)
        assert await write(0, 2, b"c") == (0, 2)
        assert await write(1, 1, b"not at 0") == (45, -1)
        assert await write(1, 0, b"d") == (0, 3)
        assert await write(0, 3, b"late") == (47, -1)
        assert await write(1, 1, b"e") == (0, 4)
    finally:
        await wire.close()
        wire.abort()
    found = await asyncio.to_thread(read_all, broker.bootstrap, tp.topic)
    assert [one.value for one in found] == [b"a", b"b", b"c", b"d", b"e"]


@pytest.mark.timeout(180)
async def test_leaders_that_die() -> None:
    """Two of three brokers die one after the other: all is written once and in order, with all replicas."""
    cluster = KafkaCluster(3)
    try:
        await asyncio.to_thread(cluster.start)
        await kafka_tools.create_topic(cluster.bootstrap, "t")
        async with started(cluster.bootstrap, metadata_max_age_ms=1_000) as producer:
            wire: Any = producer._wire
            for i in range(30):
                if i in (10, 20):
                    leader = (await wire.describe(["t"]))["t"].leaders[0]
                    cluster.nodes[leader - 1].kill()
                if i == 20:
                    await asyncio.to_thread(cluster.start)
                await producer.send(record("t", b"%d" % i), 60.0)
        found = await asyncio.to_thread(read_all, cluster.bootstrap, "t")
    finally:
        await asyncio.to_thread(cluster.remove)
    assert [one.value for one in found] == [b"%d" % i for i in range(30)]
