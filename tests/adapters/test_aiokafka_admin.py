"""Topics and groups that the command line makes and removes, on a real Kafka."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from asyncpar.adapters.aiokafka_admin import AiokafkaAdmin, _check_creation, _check_removal
from asyncpar.adapters.aiokafka_config import ClientConfig
from asyncpar.adapters.aiokafka_reader_answers import AgainError
from asyncpar.errors import AuthorizationError, ConfigurationError
from asyncpar.records import Committed, TopicPartition
from tests.adapters.aiokafka_member import member
from tests.conftest import Broker, TopicFactory
from tests.kafka_tools import delete_topics_now, group_members


@asynccontextmanager
async def admin(bootstrap: str, **settings: Any) -> AsyncIterator[AiokafkaAdmin]:
    one = AiokafkaAdmin(ClientConfig(bootstrap_servers=bootstrap, **settings))
    try:
        await one.start()
        yield one
    finally:
        await one.stop(3.0)


async def test_a_topic_is_made_once(broker: Broker) -> None:
    """It can be written to at once; one that exists is left as it is."""
    topic = f"made-{uuid.uuid4().hex[:8]}"
    async with admin(broker.bootstrap) as one:
        try:
            assert await one.create_topic(topic, 3)
            assert len(await one.partitions(topic)) == 3
            assert not await one.create_topic(topic, 5)
            assert len(await one.partitions(topic)) == 3
        finally:
            delete_topics_now(broker.bootstrap, [topic])


async def test_a_topic_that_the_broker_refuses_is_a_clear_error(broker: Broker) -> None:
    """Its name is the user's to mend."""
    async with admin(broker.bootstrap) as one:
        with pytest.raises(ConfigurationError, match="the broker takes no such name"):
            await one.create_topic("no/name", 1)


async def test_a_group_is_removed_with_its_offsets(
    broker: Broker, make_topic: TopicFactory, group_id: str
) -> None:
    """One that does not exist is no error, and one with members is left to them."""
    topic = make_topic()
    tp = TopicPartition(topic, 0)
    async with admin(broker.bootstrap) as one:
        await one.commit(group_id, {tp: Committed(0, "")})
        assert await one.committed(group_id, [tp]) == {tp: Committed(0, "")}
        await one.delete_group(group_id)
        assert await one.committed(group_id, [tp]) == {tp: None}
        await one.delete_group(group_id)
        async with member(broker.bootstrap, group_id, topic) as m:
            await m.joined(1)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await one.delete_group(group_id)
            assert len(await group_members(broker.bootstrap, group_id)) == 1


@pytest.mark.parametrize(
    ("code", "error"),
    [(29, AuthorizationError), (31, AuthorizationError), (44, ConfigurationError), (41, AgainError)],
)
def test_answers_about_topics(code: int, error: type[Exception]) -> None:
    """Rights and policies are final, another controller is not."""
    with pytest.raises(error, match="41|orders"):
        _check_creation(code, "orders", 3)


@pytest.mark.parametrize(
    ("code", "error", "says"),
    [(30, AuthorizationError, "grant DELETE on it"), (68, AgainError, "members"), (16, AgainError, "16")],
)
def test_answers_about_groups(code: int, error: type[Exception], says: str) -> None:
    """A right that is missing is final; members may go, a coordinator may come."""
    with pytest.raises(error, match=says):
        _check_removal(code, "billing")
