"""The producer of loads on a real Kafka: every record is answered for, with asyncpar's errors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import errors as kafka

from asyncpar.adapters.aiokafka_config import ClientConfig
from asyncpar.adapters.aiokafka_load import AiokafkaLoadProducer, _publish_error, _tell
from asyncpar.errors import BrokerUnreachableError, PublishError
from asyncpar.records import OutgoingRecord
from tests.conftest import Broker, TopicFactory
from tests.kafka_broker import free_port
from tests.kafka_tools import end_offsets

BOUND_SECONDS = 20


@asynccontextmanager
async def loading(bootstrap: str, **settings: Any) -> AsyncIterator[AiokafkaLoadProducer]:
    one = AiokafkaLoadProducer(ClientConfig(bootstrap_servers=bootstrap, **settings))
    try:
        await one.start()
        yield one
    finally:
        await one.stop(3.0)


async def answers(one: AiokafkaLoadProducer, records: list[OutgoingRecord]) -> list[PublishError | None]:
    """What became of each of `records`, in the order of the answers."""
    found: asyncio.Queue[PublishError | None] = asyncio.Queue()
    for record in records:
        await one.send(record, found.put_nowait)
    async with asyncio.timeout(BOUND_SECONDS):
        return [await found.get() for _ in records]


async def test_each_record_is_answered_for(broker: Broker, make_topic: TopicFactory) -> None:
    """Those that the topic takes, and one that is too large for it; keys choose partitions as everywhere."""
    topic = make_topic(partitions=2, config={"max.message.bytes": "2000"})
    good = [OutgoingRecord(topic, b"k%d" % at, b"v", (("h", b"1"),)) for at in range(20)]
    keyless = [OutgoingRecord(topic, None, b"v")]
    async with loading(broker.bootstrap) as one:
        assert await answers(one, good + keyless) == [None] * 21
        [error] = await answers(one, [OutgoingRecord(topic, b"k", b"v" * 5000)])
    assert error is not None
    assert error.reason == "too_large"
    assert sum((await end_offsets(broker.bootstrap, topic)).values()) == 21


async def test_nobody_there_is_told_within_the_startup_timeout() -> None:
    """With the address, and a stop that returns."""
    one = AiokafkaLoadProducer(
        ClientConfig(bootstrap_servers=f"127.0.0.1:{free_port()}", startup_timeout_ms=300)
    )
    began = time.monotonic()
    with pytest.raises(BrokerUnreachableError, match="127.0.0.1"):
        await one.start()
    await one.stop(1.0)
    assert time.monotonic() - began < BOUND_SECONDS
    await AiokafkaLoadProducer(ClientConfig()).stop(1.0)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (kafka.TopicAuthorizationFailedError("orders"), "forbidden"),
        (kafka.UnknownTopicOrPartitionError(), "unknown_topic"),
        (kafka.MessageSizeTooLargeError(), "too_large"),
        (kafka.RequestTimedOutError(), "unreachable"),
        (kafka.NodeNotReadyError(), "unreachable"),
        (kafka.NotEnoughReplicasError(), "other"),
        (ValueError("no"), "other"),
    ],
)
def test_errors_say_what_to_do(error: Exception, reason: str) -> None:
    """On one line, with the topic."""
    found = _publish_error("orders", error)
    assert found.reason == reason
    assert "'orders'" in str(found)
    assert "\n" not in str(found)


async def test_what_is_given_up_at_the_stop_is_answered_for_too() -> None:
    """A future that the client cancelled is a record that nobody sent."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    future.cancel()
    found: list[PublishError | None] = []
    _tell("orders", found.append, future)
    [error] = found
    assert error is not None
    assert "given up" in str(error)
