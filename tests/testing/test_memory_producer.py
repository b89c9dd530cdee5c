"""The producer on the in-memory broker, in virtual time: what is lost, late, refused or never answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from asyncpar.adapters.aiokafka_config import ClientConfig
from asyncpar.adapters.aiokafka_producer_lane import Batch, Numbers
from asyncpar.errors import AuthenticationError, BrokerUnreachableError, PublishError
from asyncpar.ports import Producer
from asyncpar.records import OutgoingRecord, TopicPartition
from asyncpar.testing.history import History
from asyncpar.testing.memory_broker import DISCONNECT, LOST_ANSWER, MemoryBroker
from asyncpar.testing.memory_link import LinkError
from tests.testing.memory_world import Troubles
from tests.testing.virtually import now, until, virtually

T = TypeVar("T")
P0 = TopicPartition("t", 0)


class Late:
    """A link that breaks under each Produce while `is_bad`, and keeps what it carried for later."""

    def __init__(self) -> None:
        self.is_bad = False
        self.kept: list[Callable[[], Any]] = []

    async def __call__(self, request: str, member: str, serve: Callable[[], T]) -> T:
        await asyncio.sleep(0)
        if self.is_bad and request == "Produce":
            self.kept.append(serve)
            raise LinkError("the connection broke")
        return serve()


class Rig:
    """A broker with topic `t`, and a producer."""

    def __init__(self, link: Any = None, partitions: int = 1, **settings: Any) -> None:
        self.link = link or Troubles()
        self.broker = MemoryBroker(link=self.link, wall=lambda: 0.0)
        self.broker.create_topic("t", partitions)
        self.producer = self.broker.producer("p", ClientConfig(**settings))

    async def send(self, value: bytes, timeout_s: float = 10.0, partition: int = 0) -> int:
        record = OutgoingRecord("t", b"k", value, partition=partition)
        return (await self.producer.send(record, timeout_s))[1]

    async def error(self, value: bytes, timeout_s: float = 10.0, partition: int = 0) -> PublishError:
        with pytest.raises(PublishError) as caught:
            await self.send(value, timeout_s, partition)
        return caught.value

    def values(self, partition: int = 0) -> list[bytes | None]:
        return [record.value for record in self.broker.log(TopicPartition("t", partition)).records]

    def requests(self) -> int:
        return self.link.log.count(("p", "Produce"))


async def rig(link: Any = None, partitions: int = 1, **settings: Any) -> Rig:
    made = Rig(link, partitions, **settings)
    await made.producer.start()
    return made


def test_it_provides_the_port() -> None:
    """A factory's producers are those of the port; each has the name given, or one of its own."""
    broker = MemoryBroker()
    one: Producer = broker.producers()()
    assert one is not None
    assert [broker.producer().name, broker.producer("b").name] == ["producer-2", "b"]


@pytest.mark.parametrize("fault", [LOST_ANSWER, DISCONNECT])
def test_a_lost_answer_makes_no_second_record(fault: str) -> None:
    """A request or its answer is lost: it is sent again, and the record is there once."""

    @virtually
    async def run() -> None:
        r = await rig()
        r.broker.fail("Produce", fault, times=3)
        assert await r.send(b"a") == 0
        assert await r.send(b"b") == 1
        assert r.values() == [b"a", b"b"]
        assert r.requests() == 5

    run()


@virtually
async def test_what_may_be_there_is_not_given_up_by_who_can_wait() -> None:
    """Told every second why it takes so long; then it is there once, and so is what was sent behind it."""
    r = await rig()
    r.broker.fail("Produce", LOST_ANSWER, times=8)
    heard: list[PublishError] = []
    first = asyncio.create_task(r.producer.send(OutgoingRecord("t", b"k", b"a"), 1.0, heard.append))
    await until(lambda: len(heard) == 3)
    assert await r.send(b"b", timeout_s=60.0) == 1
    assert await first == (P0, 0)
    assert r.values() == [b"a", b"b"]
    assert {error.reason for error in heard} == {"unreachable"}
    assert "may be there, but was not acknowledged within 3.0 s" in str(heard[2])


@virtually
async def test_what_was_never_sent_is_given_up_by_who_can_wait_as_well() -> None:
    """It can be sent anew without a double."""
    r = await rig()
    r.broker.down()
    record, heard = OutgoingRecord("t", b"k", b"a"), list[PublishError]()
    with pytest.raises(PublishError, match="was not sent within 1.0 s"):
        await r.producer.send(record, 1.0, heard.append)
    assert not heard


@virtually
async def test_a_copy_that_comes_late_is_refused() -> None:
    """A record whose caller was told that it failed never lands behind one that was sent after it."""
    link = Late()
    r = await rig(link)
    await r.send(b"first")
    link.is_bad = True
    error = await r.error(b"given up", 1.0)
    assert error.reason == "unreachable"
    assert str(error) == (
        "record for t[0] may be there, but was not acknowledged within 1.0 s: the connection broke"
    )
    link.is_bad = False
    await r.send(b"next")
    for serve in link.kept:
        ((code, _),) = serve().values()
        assert code == 47
    assert r.values() == [b"first", b"next"]


@virtually
async def test_a_copy_that_comes_in_between() -> None:
    """A copy that arrives before what is sent next lies before it, once, however many copies there are."""
    link = Late()
    r = await rig(link)
    link.is_bad = True
    await r.error(b"given up", 1.0)
    assert len(link.kept) > 2
    for serve in link.kept:
        serve()
    link.is_bad = False
    await r.send(b"next")
    assert r.values() == [b"given up", b"next"]


@virtually
async def test_one_outage_leaves_one_batch_in_doubt() -> None:
    """What waits behind a batch without an answer fails in time, is not sent then, and not later either."""
    r = await rig()
    await r.send(b"first")
    r.link.mute.add("Produce")
    begin = now()
    a = asyncio.create_task(r.error(b"a", 2.0))
    await asyncio.sleep(1.0)
    b = asyncio.create_task(r.error(b"b", 2.0))
    assert "may be there" in str(await a)
    assert now() - begin == pytest.approx(2.0, abs=0.01)
    assert str(await b) == ("record for t[0] was not sent within 2.0 s: the broker has not answered yet")
    r.link.mute.clear()
    await r.send(b"next", 30.0)  # behind the attempt that nobody answers
    assert r.values() == [b"first", b"next"]
    assert r.requests() == 3


@pytest.mark.parametrize(
    "code", ["OUT_OF_ORDER_SEQUENCE_NUMBER", "UNKNOWN_PRODUCER_ID", "INVALID_PRODUCER_EPOCH"]
)
def test_wrong_numbers_are_nobodys_failure(code: str, caplog: pytest.LogCaptureFixture) -> None:
    """The batch gets new numbers and is written; nobody fails, but it is said."""

    @virtually
    async def run() -> None:
        r = await rig(partitions=2)
        await r.send(b"a")
        r.broker.fail("Produce", code, times=2)
        assert await r.send(b"b") == 1
        assert await r.send(b"c") == 2
        assert r.values() == [b"a", b"b", b"c"]
        assert await r.send(b"d", partition=1) == 0
        numbers = r.producer._lanes[P0].numbers
        assert numbers is not None
        assert numbers.producer_id == (3 if code == "INVALID_PRODUCER_EPOCH" else 1)

    run()
    assert "which is sent with new ones" in caplog.text


@virtually
async def test_a_wrong_record_fails_alone() -> None:
    """A batch that is refused for a record of it is sent in parts."""
    r = await rig()
    r.broker.fail("Produce", "INVALID_RECORD", times=2)
    results = await asyncio.gather(*(r.send(b"%d" % i) for i in range(3)), return_exceptions=True)
    assert isinstance(results[0], PublishError)
    assert results[0].reason == "other"
    assert results[1:] == [0, 1]
    assert r.values() == [b"1", b"2"]


@virtually
async def test_sends_at_the_same_time_share_a_request() -> None:
    """Whatever the partitions, one request carries what is there; the next one what came meanwhile."""
    r = await rig(partitions=4)
    await asyncio.gather(*(r.send(b"x", partition=i % 4) for i in range(400)))
    assert r.requests() == 1
    first = asyncio.create_task(r.send(b"x"))
    await until(lambda: r.requests() == 2)
    await asyncio.gather(first, *(r.send(b"x", partition=i % 4) for i in range(400)))
    assert r.requests() == 3


@virtually
async def test_a_request_has_a_bound() -> None:
    """Large records for several partitions go in several requests."""
    r = Rig()
    r.broker.create_topic("large", 4, max_message_bytes=2**24)
    await r.producer.start()
    value = bytes(5 * 1024 * 1024)
    records = [OutgoingRecord("large", None, value, partition=i) for i in range(4)]
    await asyncio.gather(*(r.producer.send(record, 10.0) for record in records))
    assert r.requests() == 2


@virtually
async def test_a_right_that_is_missing() -> None:
    """It fails at once for that topic only, and comes back with the right."""
    r = await rig()
    r.broker.create_topic("u")
    r.broker.forbid_writing("t")
    forbidden, fine = await asyncio.gather(
        r.error(b"a", 1e6), r.producer.send(OutgoingRecord("u", b"k", b"v"), 10.0)
    )
    assert forbidden.reason == "forbidden"
    assert "grant WRITE" in str(forbidden)
    assert fine == (TopicPartition("u", 0), 0)
    r.broker.allow_writing("t")
    assert await r.send(b"b") == 0


@virtually
async def test_a_right_to_look_that_is_missing() -> None:
    """Refused metadata is a missing right; other refusals of it may pass."""
    r = await rig()
    r.broker.fail("Metadata", "TOPIC_AUTHORIZATION_FAILED", times=2)
    assert (await r.error(b"a", 1e6)).reason == "forbidden"
    with pytest.raises(PublishError, match="no right"):
        await r.producer.partition_count("t", 1e6)
    r.broker.fail("Metadata", "LEADER_NOT_AVAILABLE", times=3)
    assert await r.producer.partition_count("t", 1e6) == 1
    r.broker.fail("Metadata", "LEADER_NOT_AVAILABLE", times=1000)
    with pytest.raises(PublishError, match="looking topic 't' up: the broker answered 5") as caught:
        await r.producer.partition_count("t", 1.0)
    assert caught.value.reason == "unreachable"


@virtually
async def test_a_topic_that_goes_while_it_is_written_to() -> None:
    """What waits for it fails as soon as metadata says so; made again, it is written to again."""
    r = await rig()
    await r.send(b"a")
    r.broker.delete_topic("t")
    begin = now()
    assert (await r.error(b"b", 60.0)).reason == "unknown_topic"
    assert now() - begin < 2.0
    r.broker.create_topic("t")
    assert await r.send(b"c") == 0


@virtually
async def test_what_may_pass_is_tried_until_the_end() -> None:
    """An answer that asks for patience is not a failure before the time is over, and says why then."""
    r = await rig()
    r.broker.fail("Produce", "NOT_ENOUGH_REPLICAS", times=3)
    assert await r.send(b"a") == 0
    r.broker.fail("Produce", "NOT_ENOUGH_REPLICAS", times=1000)
    begin = now()
    error = await r.error(b"b", 20.0)
    assert now() - begin == pytest.approx(20.0, abs=0.01)
    assert error.reason == "other"
    assert "answered 19" in str(error)
    assert r.requests() < 35


@virtually
async def test_a_broker_that_is_down_is_not_stormed() -> None:
    """Attempts and questions have pauses in between; a moment after it is back all goes on."""
    r = await rig()
    await r.send(b"a")
    r.broker.down()
    before = len(r.link.log)
    waiting = asyncio.create_task(r.send(b"b", 60.0))
    await asyncio.sleep(30.0)
    assert len(r.link.log) - before < 100
    r.broker.up()
    begin = now()
    assert await waiting == 1
    assert now() - begin < 1.1


@virtually
async def test_new_partitions_are_used_after_a_while() -> None:
    """Metadata is asked for again, in the background, when it is old and somebody sends."""
    r = await rig(metadata_max_age_ms=5_000)
    record = OutgoingRecord("t", b"key", b"v")
    await r.producer.send(record, 10.0)
    r.broker.add_partitions("t", 64)
    assert (await r.producer.send(record, 10.0))[0] == P0
    asked = r.link.log.count(("p", "Metadata"))
    await asyncio.sleep(3600.0)
    assert r.link.log.count(("p", "Metadata")) == asked
    await r.producer.send(record, 10.0)
    await asyncio.sleep(1.0)
    partition = (await r.producer.send(record, 10.0))[0].partition
    assert partition == r.broker.send("t", b"v", key=b"key").partition != 0


@virtually
async def test_many_who_ask_share_a_question() -> None:
    """A thousand sends to a topic that nobody knew cost one request for metadata."""
    r = await rig()
    await asyncio.gather(*(r.send(b"x") for _ in range(1000)))
    assert r.link.log.count(("p", "Metadata")) == 1


@virtually
async def test_nobody_answers_a_question() -> None:
    """Also before anything is known of a topic a send ends in time."""
    r = await rig()
    r.link.mute.add("Metadata")
    assert str(await r.error(b"a", 3.0)) == (
        "record for topic 't' was not sent within 3.0 s: the brokers have not answered yet"
    )
    await asyncio.sleep(30.0)
    assert str(await r.error(b"a", 1.0)).endswith("no answer in time")
    r.link.mute.clear()
    assert await r.send(b"b", 60.0) == 0


@virtually
async def test_refused_credentials_and_other_refusals() -> None:
    """A start says what the broker said."""
    r = Rig()
    r.broker.fail("Connect", "SASL_AUTHENTICATION_FAILED")
    with pytest.raises(AuthenticationError):
        await r.producer.start()
    r.broker.fail("Connect", "KAFKA_STORAGE_ERROR")
    with pytest.raises(BrokerUnreachableError, match="56"):
        await r.broker.producer().start()


def test_a_fault_of_our_own_is_logged_and_survived(caplog: pytest.LogCaptureFixture) -> None:
    """An exception that nobody foresaw costs attempts, not the producer, and not a storm of them."""

    @virtually
    async def run() -> None:
        r = await rig()
        carry, asked, begin = r.producer._wire.produce, [], now()

        async def broken(node: int, batches: Any) -> Any:
            asked.append(node)
            if now() < begin + 10.0:
                raise RuntimeError("unforeseen")
            return await carry(node, batches)

        r.producer._wire.produce = broken  # type: ignore[method-assign]
        assert await r.send(b"a", 30.0) == 0
        assert len(asked) < 20

    run()
    assert "unforeseen" in caplog.text
    assert "sending to node 0 failed" in caplog.text


@virtually
async def test_a_stop_that_nobody_answers() -> None:
    """It takes its time and no more, and leaves no task behind."""
    r = await rig()
    await r.send(b"a")
    before = asyncio.all_tasks()
    r.link.mute |= {"Produce", "Metadata"}
    waiting = [asyncio.create_task(r.error(b"b", 60.0)) for _ in range(3)]
    asking = asyncio.create_task(r.producer.partition_count("u", 60.0))
    await asyncio.sleep(1.0)
    begin = now()
    await r.producer.stop(4.0)
    assert now() - begin <= 4.0
    assert {str(error) for error in await asyncio.gather(*waiting)} == {
        "record for t[0] given up: the producer was stopped"
    }
    with pytest.raises(PublishError, match="stopped"):
        await asking
    await asyncio.sleep(10.0)
    assert asyncio.all_tasks() == before


@virtually
async def test_a_start_that_is_given_up() -> None:
    """Cancelled, it leaves nothing; the producer cannot be used."""
    r = Rig()
    r.broker.down()
    starting = asyncio.create_task(r.producer.start())
    await asyncio.sleep(1.0)
    starting.cancel()
    await asyncio.wait([starting])
    assert starting.cancelled()
    assert "stopped" in str(await r.error(b"a"))


def batch(epoch: int, sequence: int, *values: bytes) -> Batch:
    return Batch(Numbers(9, epoch, sequence), [OutgoingRecord("t", b"k", value) for value in values])


def test_the_broker_knows_batches_by_their_numbers() -> None:
    """A repeated one is answered as before; a gap, an old epoch and a new epoch not at 0 are refused."""
    history = History()
    broker = MemoryBroker(recorder=history, wall=lambda: 5.0)
    broker.create_topic("t")
    assert broker.write(P0, batch(0, 0, b"a", b"b")) == (0, 0)
    assert broker.write(P0, batch(0, 0, b"a", b"b")) == (0, 0)
    assert broker.write(P0, batch(0, 3, b"c")) == (45, -1)
    assert broker.write(P0, batch(0, 2, b"c")) == (0, 2)
    assert broker.write(P0, batch(0, 0, b"a", b"b")) == (45, -1)
    assert broker.write(P0, batch(1, 1, b"d")) == (45, -1)
    assert broker.write(P0, batch(1, 0, b"d")) == (0, 3)
    assert broker.write(P0, batch(0, 3, b"e")) == (47, -1)
    assert [event.offset for event in history.events] == [0, 1, 2, 3]
    assert broker.log(P0).records[0].timestamp == 5000
    broker.delete_topic("t")
    assert broker.write(P0, batch(1, 1, b"e")) == (3, -1)
    broker.create_topic("t")
    assert broker.write(P0, batch(1, 1, b"e")) == (0, 0)
