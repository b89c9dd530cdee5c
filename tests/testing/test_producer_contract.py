"""The producer's contract: the same tests on the in-memory broker and on a real one."""

from __future__ import annotations

import asyncio
import time

import pytest

from asyncpar.errors import BrokerUnreachableError, PublishError
from asyncpar.records import OutgoingRecord, TopicPartition
from tests import kafka_tools
from tests.conftest import Broker, TopicFactory
from tests.kafka_broker import KafkaBroker
from tests.testing.producer_worlds import KafkaProducerWorld, MemoryProducerWorld, ProducerWorld, insist

SECONDS = 10.0


class Contract:
    """What the runtime may rely on."""

    async def test_a_record_lies_where_it_is_said(self, world: ProducerWorld) -> None:
        """Key, value, headers and timestamp arrive as they were, tombstones and empty values included."""
        topic = await world.make_topic(2)
        headers = (("a", b"1"), ("a", b"2"), ("empty", b""))
        sent_at = round(time.time() * 1000) - 3_600_000  # not so old that the topic's retention takes it
        records = [
            OutgoingRecord(topic, b"k", b"v", headers, partition=1, timestamp=sent_at),
            OutgoingRecord(topic, b"k", None, partition=1),
            OutgoingRecord(topic, None, None, (("none", None),), partition=1),  # type: ignore[arg-type]
            OutgoingRecord(topic, b"", b"", partition=1),
        ]
        before = time.time() * 1000 - 60_000
        async with world.started() as producer:
            places = [await producer.send(record, SECONDS) for record in records]
        assert places == [(TopicPartition(topic, 1), at) for at in range(4)]
        found = await world.read(topic, 1)
        assert [(f.key, f.value) for f in found] == [(b"k", b"v"), (b"k", None), (None, None), (b"", b"")]
        assert found[0].headers == list(headers)
        assert found[0].timestamp == sent_at
        assert found[1].timestamp > before
        assert await world.read(topic, 0) == []

    async def test_a_key_goes_where_other_producers_send_it(self, world: ProducerWorld) -> None:
        """The partition of a key is that of Java's default partitioner."""
        topic = await world.make_topic(7)
        keys = [b"k%d" % (i * 7919) * (i % 5 + 1) for i in range(60)] + [b""]
        theirs = await world.send_keyed(topic, keys)
        async with world.started() as producer:
            ours = [await producer.send(OutgoingRecord(topic, key, b"x"), SECONDS) for key in keys]
        assert [tp.partition for tp, _ in ours] == theirs
        assert len(set(theirs)) == 7

    async def test_without_a_key_all_partitions_are_used(self, world: ProducerWorld) -> None:
        """Records without a key are spread."""
        topic = await world.make_topic(3)
        async with world.started() as producer:
            sent = [await producer.send(OutgoingRecord(topic, None, b"x"), SECONDS) for _ in range(3)]
        assert {tp.partition for tp, _ in sent} == {0, 1, 2}

    async def test_sends_one_after_another_lie_in_order(self, world: ProducerWorld) -> None:
        """Each awaited, they lie in that order."""
        topic = await world.make_topic(2)
        async with world.started() as producer:
            records = [OutgoingRecord(topic, b"k", b"%d" % i) for i in range(30)]
            places = [await producer.send(record, SECONDS) for record in records]
        partitions = {tp.partition for tp, _ in places}
        assert len(partitions) == 1
        assert await world.values(topic, partitions.pop()) == [b"%d" % i for i in range(30)]

    async def test_sends_at_the_same_time_are_all_there_once(self, world: ProducerWorld) -> None:
        """Each caller gets the place of its own record."""
        topic = await world.make_topic(3)
        records = [OutgoingRecord(topic, b"%d" % (i % 50), b"%d" % i) for i in range(1000)]
        async with world.started() as producer:
            places = await asyncio.gather(*(producer.send(record, 30.0) for record in records))
        there = {
            (TopicPartition(topic, partition), found.offset): found.value
            for partition in range(3)
            for found in await world.read(topic, partition)
        }
        assert there == {place: record.value for place, record in zip(places, records, strict=True)}

    async def test_an_unknown_topic_is_told_at_once_and_not_made(self, world: ProducerWorld) -> None:
        """Neither a send nor a question makes a topic; once somebody makes it, both work."""
        topic = await world.make_topic(2)
        async with world.started() as producer:
            begin = time.monotonic()
            for _ in range(2):
                with pytest.raises(PublishError, match="'no-such' does not exist") as caught:
                    await producer.send(OutgoingRecord("no-such", b"k", b"v"), 30.0)
                assert caught.value.reason == "unknown_topic"
                assert await producer.partition_count("no-such", 30.0) is None
            with pytest.raises(PublishError, match="has no partition 2") as caught:
                await producer.send(OutgoingRecord(topic, b"k", b"v", partition=2), 30.0)
            assert caught.value.reason == "unknown_topic"
            assert time.monotonic() - begin < 15.0
            assert await producer.partition_count(topic, SECONDS) == 2
            await world.add_partitions(topic, 3)
            async with asyncio.timeout(SECONDS):
                while await producer.partition_count(topic, SECONDS) != 3:
                    continue
            assert (await producer.send(OutgoingRecord(topic, b"k", b"v", partition=2), SECONDS))[1] == 0

    async def test_an_invalid_name_is_an_unknown_topic(self, world: ProducerWorld) -> None:
        """What cannot be a topic does not exist."""
        async with world.started() as producer:
            with pytest.raises(PublishError, match="does not exist"):
                await producer.send(OutgoingRecord("no good", b"k", b"v"), 30.0)
            assert await producer.partition_count("no good", 30.0) is None

    async def test_a_record_that_is_too_large_fails_alone(self, world: ProducerWorld) -> None:
        """Those sent with it, before it and after it in its partition are written once and in order."""
        topic = await world.make_small_topic(20_000)
        async with world.started() as producer:
            for round_ in range(2):
                values = [b"%d" % i for i in range(9)]
                values[4] = b"x" * 30_000
                records = [OutgoingRecord(topic, b"k", value) for value in values]
                results = await asyncio.gather(
                    *(producer.send(record, SECONDS) for record in records), return_exceptions=True
                )
                error = results.pop(4)
                assert isinstance(error, PublishError), round_
                assert error.reason == "too_large"
                assert [place[1] for place in results] == list(range(round_ * 8, round_ * 8 + 8))  # type: ignore[index]
        assert await world.values(topic) == [b"%d" % i for i in (0, 1, 2, 3, 5, 6, 7, 8)] * 2

    async def test_a_topic_that_takes_less_than_a_batch(self, world: ProducerWorld) -> None:
        """Records that fit one by one are sent in batches that fit, in order."""
        topic = await world.make_small_topic(5_000)
        records = [OutgoingRecord(topic, b"k", b"%04d" % i + b"x" * 1000) for i in range(60)]
        async with world.started() as producer:
            await asyncio.gather(*(producer.send(record, 30.0) for record in records))
        assert await world.values(topic) == [record.value for record in records]

    async def test_what_cannot_be_sent_anywhere(self, world: ProducerWorld) -> None:
        """A record beyond what any broker takes, or that is no bytes, is refused before it is sent."""
        topic = await world.make_topic()
        async with world.started() as producer:
            with pytest.raises(PublishError, match="67108864 at most") as caught:
                await producer.send(OutgoingRecord(topic, b"k", bytes(64 * 1024 * 1024)), SECONDS)
            assert caught.value.reason == "too_large"
            with pytest.raises(PublishError, match="cannot be encoded") as caught:
                await producer.send(OutgoingRecord(topic, "k", b"v"), SECONDS)  # type: ignore[arg-type]
            assert caught.value.reason == "other"
            assert (await producer.send(OutgoingRecord(topic, b"k", b"v"), SECONDS))[1] == 0

    async def test_a_send_that_is_cancelled(self, world: ProducerWorld) -> None:
        """It leaves nothing behind that those after it would feel."""
        topic = await world.make_topic()
        async with world.started() as producer:
            doomed = asyncio.create_task(producer.send(OutgoingRecord(topic, b"k", b"doomed"), SECONDS))
            await asyncio.sleep(0)
            doomed.cancel()
            await asyncio.wait([doomed])
            assert doomed.cancelled()
            await producer.send(OutgoingRecord(topic, b"k", b"v"), SECONDS)
        assert (await world.values(topic))[-1] == b"v"

    async def test_a_producer_that_does_not_run(self, world: ProducerWorld) -> None:
        """Before its start and after its end a send is refused; ends can be repeated."""
        topic = await world.make_topic()
        producer = world.producer()
        with pytest.raises(PublishError, match="not started"):
            await producer.send(OutgoingRecord(topic, b"k", b"v"), SECONDS)
        await producer.start()
        before = asyncio.all_tasks()
        await producer.send(OutgoingRecord(topic, b"k", b"v"), SECONDS)
        await producer.stop(3.0)
        await producer.stop(3.0)
        with pytest.raises(PublishError, match="stopped") as caught:
            await producer.send(OutgoingRecord(topic, b"k", b"v"), SECONDS)
        assert caught.value.reason == "other"
        with pytest.raises(PublishError, match="stopped"):
            await producer.partition_count(topic, SECONDS)
        assert asyncio.all_tasks() <= before
        await world.producer().stop(1.0)

    async def test_a_stop_waits_for_what_is_under_way(self, world: ProducerWorld) -> None:
        """Sends that began before a stop are written."""
        topic = await world.make_topic()
        producer = world.producer()
        await producer.start()
        await producer.send(OutgoingRecord(topic, b"k", b"first"), SECONDS)
        sends = [
            asyncio.create_task(producer.send(OutgoingRecord(topic, b"k", b"%d" % i), SECONDS))
            for i in range(20)
        ]
        await asyncio.sleep(0)
        await producer.stop(10.0)
        await asyncio.gather(*sends)
        assert await world.values(topic) == [b"first", *(b"%d" % i for i in range(20))]


class OutageContract:
    """What the runtime may rely on while there is no broker."""

    async def test_sends_fail_in_time_and_go_on_afterwards(self, world: ProducerWorld) -> None:
        """With the broker down a send ends at its bound; what was not sent is not there later."""
        topic = await world.make_topic(2)
        async with world.started() as producer:
            await producer.send(OutgoingRecord(topic, b"k", b"before", partition=0), SECONDS)
            await world.down()
            begin = time.monotonic()
            lost = [OutgoingRecord(topic, b"k", b"lost", partition=at % 2) for at in range(20)]
            results = await asyncio.gather(
                *(producer.send(record, 1.0) for record in lost),
                producer.partition_count(topic, 1.0),
                return_exceptions=True,
            )
            assert 0.9 < time.monotonic() - begin < 5.0
            assert {type(one) for one in results} == {PublishError}
            assert {one.reason for one in results if isinstance(one, PublishError)} == {"unreachable"}
            await world.up()
            for partition in (0, 1):
                await producer.send(OutgoingRecord(topic, b"k", b"after", partition=partition), 30.0)
        assert await world.values(topic, 0) == [b"before", b"after"]
        assert await world.values(topic, 1) == [b"after"]

    async def test_order_and_no_duplicates_over_an_outage(self, world: ProducerWorld) -> None:
        """What is sent again until it is acknowledged lies in order; twice only where that was foretold."""
        topic = await world.make_topic()
        values = [b"%d" % i for i in range(12)]
        copies: dict[bytes, int] = {}
        async with world.started() as producer:
            for value in values:
                if value == b"4":
                    await world.down()
                coming = asyncio.create_task(world.up()) if value == b"4" else None
                copies[value] = 1 + await insist(producer, OutgoingRecord(topic, b"k", value), 0.2)
                if coming is not None:
                    await coming
        there = await world.values(topic)
        assert list(dict.fromkeys(there)) == values
        assert there == sorted(there, key=lambda value: int(value or b""))
        assert all(there.count(value) <= copies[value] for value in values)

    async def test_a_stop_without_a_broker_is_bounded(self, world: ProducerWorld) -> None:
        """What is under way fails, and nothing is left."""
        topic = await world.make_topic()
        before = asyncio.all_tasks()
        producer = world.producer()
        await producer.start()
        await producer.send(OutgoingRecord(topic, b"k", b"v"), SECONDS)
        await world.down()
        sends = [
            asyncio.create_task(producer.send(OutgoingRecord(topic, b"k", b"v"), 60.0)) for _ in range(5)
        ]
        asking = asyncio.create_task(producer.partition_count("another", 60.0))
        await asyncio.wait(sends, timeout=0.5)
        begin = time.monotonic()
        await producer.stop(2.0)
        assert time.monotonic() - begin < 4.0
        results = await asyncio.wait_for(asyncio.gather(*sends, asking, return_exceptions=True), 2.0)
        assert {str(one).rsplit(": ", 1)[-1] for one in results} == {"the producer was stopped"}
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == before

    async def test_a_start_without_a_broker_fails_in_time(self, world: ProducerWorld) -> None:
        """The bound is startup_timeout_ms, and nothing is left."""
        await world.down()
        before = asyncio.all_tasks()
        begin = time.monotonic()
        with pytest.raises(BrokerUnreachableError):
            await world.producer(startup_timeout_ms=800).start()
        assert time.monotonic() - begin < 5.0
        assert asyncio.all_tasks() == before


class TestMemoryProducer(Contract, OutageContract):
    """The contract over the in-memory broker."""

    @pytest.fixture
    def world(self) -> ProducerWorld:
        """A broker of one's own."""
        return MemoryProducerWorld()


class TestAiokafkaProducer(Contract):
    """The contract over the adapter and a real broker."""

    @pytest.fixture
    def world(self, broker: Broker, make_topic: TopicFactory, group_id: str) -> ProducerWorld:
        """The run's broker."""
        return KafkaProducerWorld(broker.bootstrap, make_topic, group_id)

    async def test_no_topic_was_made(self, world: ProducerWorld, broker: Broker) -> None:
        """A broker that makes topics for whoever asks was never asked to."""
        async with world.started() as producer:
            assert await producer.partition_count("never-made", SECONDS) is None
            with pytest.raises(PublishError):
                await producer.send(OutgoingRecord("never-made", b"k", b"v"), SECONDS)
        assert "never-made" not in await kafka_tools.list_topics(broker.bootstrap)


class TestAiokafkaProducerOutage(OutageContract):
    """The same over a real broker that dies and comes back."""

    @pytest.fixture
    def world(self, own_broker: KafkaBroker, make_topic: TopicFactory, group_id: str) -> ProducerWorld:
        """The run's broker, to be killed."""
        return KafkaProducerWorld(own_broker.bootstrap, make_topic, group_id, own_broker)
