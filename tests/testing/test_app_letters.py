"""`TestApp` and dead letters: what a topic holds, and whether each letter is one that should be there."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

import pytest

from asyncpar import App, Breaker, Context, PoisonKeys, Record, Retry, headers
from asyncpar.errors import UnknownTopicError
from asyncpar.records import TopicPartition
from asyncpar.testing import MemoryBroker, TestApp
from tests.conftest import Broker

LETTERS = TopicPartition("orders.dlq", 0)


def app_of(**options: Any) -> App:
    """An app that gives up what is bad; its payloads say how."""
    app = App(group="billing")
    options = {"retry": Retry(attempts=2, base_ms=1, not_on=TimeoutError), "dead_letter": ".dlq", **options}

    @app.topic("orders", name="bill", timeout_ms=20, **options)
    async def bill(order: str, context: Context) -> None:
        if order == "hangs":
            await asyncio.Event().wait()
        if order == "bad" or (order == "second" and context.attempt < 2):
            raise ValueError(order)

    return app


async def test_what_a_topic_holds_can_be_read() -> None:
    """Dead letters, and what the test has sent; also when the block has ended. Others do not exist."""
    async with TestApp(app_of(), partitions={"orders": 2}) as kafka:
        for partition in (1, 0, 1):
            await kafka.send("orders", "bad", key="k", headers={"trace": "1"}, partition=partition)
        await kafka.settled()
        (first, *others) = await kafka.records("orders.dlq")
        with pytest.raises(UnknownTopicError, match=r"no topic 'order'; there is orders, orders\.dlq"):
            await kafka.records("order")
    assert (first.key, first.value, first.header("trace")) == (b"k", b"bad", b"1")
    assert first.header(headers.REASON) == b"exhausted"
    assert len(others) == 2
    sent = await kafka.records("orders")
    assert [(one.partition, one.offset) for one in sent] == [(0, 0), (1, 0), (1, 1)]
    assert kafka.check().counts["dead letters"] == 3


async def test_what_a_topic_of_a_real_kafka_holds(broker: Broker) -> None:
    """Of topics that the apps read, and of their dead letters, only what came since the start."""
    topic = f"letters-{uuid.uuid4().hex[:8]}"
    app = App(group="billing")

    @app.topic(topic, retry=Retry(attempts=1), dead_letter=".dlq")
    async def bill(order: str) -> None:
        raise ValueError(order)

    for order in ("first", "second"):
        async with TestApp(app, bootstrap_servers=broker.bootstrap) as kafka:
            await kafka.send(topic, order, key="k")
            await kafka.settled()
            assert [one.value for one in await kafka.records(f"{topic}.dlq")] == [order.encode()]
            assert [one.value for one in await kafka.records(topic)] == [order.encode()]
            with pytest.raises(UnknownTopicError):
                await kafka.records(f"{topic}.x")
        assert kafka.check().is_ok


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {b"exhausted", b"undecodable", b"permanent"}),
        ({"poison_keys": PoisonKeys(failures=2)}, {b"exhausted", b"poison_key"}),
        ({"breaker": Breaker(min_calls=50)}, {b"exhausted", b"undecodable", b"permanent"}),
        (
            {"dead_letter_payload": "metadata_only", "concurrency": 1},
            {b"exhausted", b"undecodable", b"permanent"},
        ),
    ],
    ids=["plain", "poison", "breaker", "metadata"],
)
async def test_every_way_to_a_letter_is_right(options: dict[str, Any], expected: set[bytes]) -> None:
    """Used up, a time-out that is given up at once, undecodable, poisoned; beside what succeeds at last."""
    async with TestApp(app_of(**options), partitions={"orders": 3}) as kafka:
        for number in range(4):
            for order in ("bad", "second", "hangs", b"\xff", "good"):
                await kafka.send("orders", order, key=f"k{number}")
        await kafka.settled()
        reasons = {one.header(headers.REASON) for one in await kafka.records("orders.dlq")}
    assert reasons == expected
    assert kafka.check().counts["dead letters"] >= 12


async def test_a_thread_that_is_late_and_fails_is_right_too() -> None:
    """Its attempt ends after its time-out."""
    app = App(group="billing")

    @app.topic("orders", timeout_ms=5, retry=Retry(attempts=1), dead_letter=".dlq")
    def bill(order: str) -> None:
        time.sleep(0.02)
        raise ValueError(order)

    async with TestApp(app) as kafka:
        await kafka.send("orders", "bad", key="k")
        await kafka.settled()
    assert kafka.check().counts["dead letters"] == 1


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"value": b"other"}, "has another payload"),
        ({"key": b"other"}, "has the key b'other'"),
        (None, "no letter of it had been written"),
    ],
)
async def test_a_letter_that_is_wrong_fails_the_check(changed: dict[str, Any] | None, fault: str) -> None:
    """Another payload or key than its record's, or none at all."""
    async with TestApp(app_of()) as kafka:
        await kafka.send("orders", "bad", key="k")
        await kafka.settled()
    log = kafka.broker.log(LETTERS)
    (letter,) = log.records
    if changed is None:
        log._records.clear()
        log._offsets.clear()
    else:
        log._records[0] = letter._replace(**changed)
    with pytest.raises(AssertionError, match=f"DEAD LETTER.*(?s:.*){fault}"):
        kafka.check()


async def test_what_a_test_sends_to_the_letters_itself_is_not_judged() -> None:
    """A test of a reader of dead letters makes some; and a broker may have had some before."""
    app, read = app_of(), []

    @app.topic("orders.dlq", name="read")
    async def look(letter: Record) -> None:
        read.append(letter.header(headers.REASON))

    broker, made_up = (
        MemoryBroker(),
        {
            headers.TOPIC: "orders",
            headers.PARTITION: "0",
            headers.OFFSET: "7",
            headers.GROUP: "billing",
            headers.REASON: "exhausted",
            headers.ATTEMPTS: "5",
        },
    )
    for topic in ("orders", "orders.dlq"):
        broker.create_topic(topic, 1)
    broker.send("orders.dlq", b"bad", b"k", [(name, value.encode()) for name, value in made_up.items()])
    async with TestApp(app, broker=broker) as kafka:
        await kafka.send("orders.dlq", "bad", key="k", headers=made_up)
        await kafka.send("orders", "bad", key="k")
        await kafka.settled()
    assert read == [b"exhausted"] * 3
    assert kafka.check().counts["dead letters"] == 1


async def test_letters_of_several_runs_on_one_broker_are_judged_together() -> None:
    """Each run judges what all have done."""
    broker = MemoryBroker()
    for _ in range(2):
        async with TestApp(app_of(), broker=broker) as kafka:
            await kafka.send("orders", "bad", key="k")
            await kafka.settled()
    assert kafka.check().counts["dead letters"] == 2


def verdict(kafka: TestApp) -> str:
    """What `check` says, raised or not."""
    try:
        return str(kafka.check())
    except AssertionError as error:
        return str(error)


async def test_what_nobody_can_know_is_not_judged() -> None:
    """Payloads of a log that was cut, deleted letters, and those of a pattern whose topic nobody made."""
    app = app_of()

    @app.topic(pattern="audit-.*", name="audit", dead_letter=".gone")
    async def audit(line: str) -> None: ...

    async with TestApp(app) as kafka:
        await kafka.send("orders", "bad", key="k")
        await kafka.send("audit-1", "fine")
        await kafka.settled()
    assert kafka.check().counts["dead letters"] == 1
    kafka.broker.truncate(TopicPartition("orders", 0), 0)
    kafka.broker.send("orders", b"other", b"j")
    assert "another payload" not in verdict(kafka)
    kafka.broker.delete_records(LETTERS, 1)
    assert "no letter of it" not in verdict(kafka)
