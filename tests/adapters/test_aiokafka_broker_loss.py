"""The adapter while its broker dies, freezes and comes back."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from asyncpar.errors import BrokerError
from asyncpar.records import CommitAnswer, Committed
from tests.adapters.aiokafka_member import Member, eventually, member
from tests.conftest import TopicFactory
from tests.kafka_broker import KafkaBroker
from tests.kafka_tools import keyed, produce

pytestmark = pytest.mark.broker


@pytest.mark.parametrize("fault", ["kill", "pause"])
@pytest.mark.parametrize("instance", [None, "static"])
async def test_stop_is_bounded(
    own_broker: KafkaBroker, make_topic: TopicFactory, group_id: str, fault: str, instance: str | None
) -> None:
    """With the broker killed or frozen a stop takes seconds, raises nothing and leaves nothing."""
    before = asyncio.all_tasks()
    m = Member(own_broker.bootstrap, group_id, group_instance_id=instance)
    await m.start(make_topic(1))
    (p0,) = await m.joined(1)
    m.consumer.seek(p0, 0)
    assert await m.consumer.fetch([p0], 10, 50) == []
    getattr(own_broker, fault)()
    assert await m.consumer.fetch([p0], 10, 50) == []
    begin = time.monotonic()
    await m.consumer.stop(6.0)
    assert time.monotonic() - begin < 7.0
    await eventually(lambda: asyncio.all_tasks() == before)
    connections = m.consumer._consumer._client._conns.values()
    assert not [connection for connection in connections if connection.connected()]


async def test_a_commit_to_a_frozen_broker_is_unknown(
    own_broker: KafkaBroker, make_topic: TopicFactory, group_id: str
) -> None:
    """A commit nobody answers is RETRY within its bound, reading is a BrokerError, and later both work."""
    async with member(own_broker.bootstrap, group_id, make_topic(1), session_timeout_ms=30_000) as m:
        (p0,) = await m.joined(1)
        own_broker.pause()
        lease = m.consumer.lease_from()
        begin = time.monotonic()
        assert await m.consumer.commit(m.token, {p0: Committed(5, "")}, 0.5) == {p0: CommitAnswer.RETRY}
        assert time.monotonic() - begin < 1.5
        assert m.consumer.lease_from() - lease < 0.5  # an answer may have been on its way
        own_broker.resume()
        await eventually(lambda: m.consumer.lease_from() > begin + 0.5)
        assert await m.consumer.commit(m.token, {p0: Committed(6, "")}, 5.0) == {
            p0: CommitAnswer.ACKNOWLEDGED
        }
        assert await m.consumer.committed([p0]) == {p0: Committed(6, "")}


async def test_a_restarted_broker_is_found_again(
    own_broker: KafkaBroker, make_topic: TopicFactory, group_id: str
) -> None:
    """A broker that dies and comes back costs errors that may pass: no task dies, and records flow again."""
    topic = make_topic(1)
    async with member(own_broker.bootstrap, group_id, topic, session_timeout_ms=30_000) as m:
        (p0,) = await m.joined(1)
        m.consumer.seek(p0, 0)
        await produce(own_broker.bootstrap, topic, keyed(10))
        await m.read([p0], 10)
        own_broker.kill()
        assert await m.consumer.commit(m.token, {p0: Committed(5, "")}, 0.5) == {p0: CommitAnswer.RETRY}
        with pytest.raises(BrokerError):
            await asyncio.wait_for(m.consumer.end([p0]), 30)
        assert m.consumer.failure() is None
        await asyncio.to_thread(own_broker.start)
        await produce(own_broker.bootstrap, topic, keyed(10))
        await m.until(lambda: p0 in m.partitions, 30)
        m.consumer.seek(p0, 10)
        got = await m.read([p0], 10, timeout_seconds=30)
        assert [record.offset for record in got[p0]] == list(range(10, 20))
        assert m.consumer.failure() is None


async def test_a_broker_that_is_just_starting(
    own_broker: KafkaBroker, make_topic: TopicFactory, group_id: str
) -> None:
    """Within startup_timeout_ms a broker may still be starting."""
    topic = make_topic(1)
    own_broker.stop()
    starter = threading.Thread(target=own_broker.start)
    m = Member(own_broker.bootstrap, group_id, startup_timeout_ms=40_000)
    starting = asyncio.create_task(m.start(topic))
    try:
        starter.start()
        await starting
        await m.joined(1)
    finally:
        await asyncio.to_thread(starter.join, 60)
        await m.consumer.stop(6.0)
