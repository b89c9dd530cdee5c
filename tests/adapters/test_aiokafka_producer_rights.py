"""The producer's credentials and rights, against a broker that asks for both (SASL PLAIN, ACLs)."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from typing import Any

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)

from asyncpar.adapters.aiokafka_config import ClientConfig
from asyncpar.adapters.aiokafka_producer import AiokafkaProducer
from asyncpar.errors import AuthenticationError, AuthorizationError, ConfigurationError, PublishError
from asyncpar.records import OutgoingRecord, TopicPartition
from tests.adapters.test_aiokafka_rights import ADMIN, _admin, guarded, login
from tests.kafka_broker import KafkaBroker
from tests.testing.producer_worlds import read_all

__all__ = ["guarded"]

pytestmark = pytest.mark.broker

SECONDS = 15.0
LITERAL, ALLOW = ResourcePatternType.LITERAL, AclPermissionType.ALLOW


@pytest.fixture(scope="module")
def writable(guarded: KafkaBroker) -> KafkaBroker:
    """`reader` may also write to `mine` and `closing`, and has no right on `secret`."""
    admin = _admin(guarded)
    for future in admin.create_topics(
        [NewTopic(name, num_partitions=1) for name in ("mine", "secret")]
    ).values():
        future.result(20)
    rights = [
        AclBinding(ResourceType.TOPIC, name, LITERAL, "User:reader", "*", AclOperation.WRITE, ALLOW)
        for name in ("mine", "closing")
    ]
    for future in admin.create_acls(rights).values():
        future.result(20)
    _wait_for_writers(guarded, 2)
    return guarded


def _wait_for_writers(node: KafkaBroker, count: int) -> None:
    """Until the broker's authorizer has heard of so many rights to write."""
    admin = _admin(node)
    asked = AclBindingFilter(
        ResourceType.TOPIC, None, ResourcePatternType.ANY, "User:reader", "*", AclOperation.WRITE, ALLOW
    )
    deadline = time.monotonic() + 20
    while len(admin.describe_acls(asked).result(20)) != count:
        assert time.monotonic() < deadline, "the broker has not heard of the rights"


def producer(node: KafkaBroker, **settings: Any) -> AiokafkaProducer:
    return AiokafkaProducer(ClientConfig(bootstrap_servers=node.bootstrap, **settings))


@asynccontextmanager
async def started(node: KafkaBroker, **settings: Any) -> Any:
    one = producer(node, **settings)
    try:
        await one.start()
        yield one
    finally:
        await one.stop(3.0)


async def test_with_the_right_to_write_all_is_well(writable: KafkaBroker) -> None:
    """WRITE on the topic is all that is needed."""
    async with started(writable, **login("reader")) as one:
        record = OutgoingRecord("mine", b"k", b"v")
        assert await one.send(record, SECONDS) == (TopicPartition("mine", 0), 0)
        assert await one.partition_count("mine", SECONDS) == 1
    (found,) = read_all(writable.bootstrap, "mine", **ADMIN)
    assert found.value == b"v"


@pytest.mark.parametrize("topic", ["open", "secret"])
async def test_a_topic_that_may_not_be_written_to(writable: KafkaBroker, topic: str) -> None:
    """Whether it may be seen or not: forbidden, at once, and others are not concerned."""
    async with started(writable, **login("reader")) as one:
        for _ in range(2):
            begin = time.monotonic()
            with pytest.raises(PublishError, match=f"no right to write to topic '{topic}'") as caught:
                await one.send(OutgoingRecord(topic, b"k", b"v"), 60.0)
            assert caught.value.reason == "forbidden"
            assert time.monotonic() - begin < 10.0
            await one.send(OutgoingRecord("mine", b"k", b"v"), SECONDS)


async def test_a_topic_that_may_not_be_seen_has_no_count(writable: KafkaBroker) -> None:
    """Forbidden is not the same as not there."""
    async with started(writable, **login("reader")) as one:
        with pytest.raises(PublishError) as caught:
            await one.partition_count("secret", SECONDS)
        assert caught.value.reason == "forbidden"


async def test_a_right_that_is_lost(writable: KafkaBroker) -> None:
    """The next record is refused, and says why."""
    async with started(writable, **login("reader")) as one:
        await one.send(OutgoingRecord("closing", b"k", b"v"), SECONDS)
        lost = AclBindingFilter(
            ResourceType.TOPIC, "closing", LITERAL, "User:reader", "*", AclOperation.WRITE, ALLOW
        )
        admin = _admin(writable)
        for future in admin.delete_acls([lost]).values():
            future.result(20)
        _wait_for_writers(writable, 1)
        with pytest.raises(PublishError, match="no right to write") as caught:
            await one.send(OutgoingRecord("closing", b"k", b"v"), SECONDS)
        assert caught.value.reason == "forbidden"


async def test_who_may_write_nothing_is_told_at_the_start(writable: KafkaBroker) -> None:
    """Without any right to write there is no idempotent writing."""
    with pytest.raises(AuthorizationError, match="grant WRITE"):
        await producer(writable, **login("stranger")).start()


async def test_refused_credentials_fail_at_once(writable: KafkaBroker) -> None:
    """In the broker's words, and without secrets."""
    begin = time.monotonic()
    with pytest.raises(AuthenticationError, match="Authentication failed") as caught:
        await producer(writable, **login("reader", "wrong-hush")).start()
    assert time.monotonic() - begin < 5
    assert "hush" not in str(caught.value)


async def test_settings_that_do_not_fit() -> None:
    """They are refused before anything connects."""
    with pytest.raises(ConfigurationError, match="needs sasl_mechanism"):
        await AiokafkaProducer(ClientConfig(security_protocol="SASL_PLAINTEXT")).start()


async def test_how_the_brokers_know_it(writable: KafkaBroker) -> None:
    """The client id says that it is the producer, client options go along, and nobody asks for all topics."""
    settings = {**login("reader"), "client_id": "orders", "client_options": {"retry_backoff_ms": 77}}
    async with started(writable, **settings) as one:
        client = one._wire._client
        assert client._client_id == "orders-producer"
        assert client._retry_backoff == 0.077
        assert client._sync_task.cancelled()  # it would ask for all topics, again and again
