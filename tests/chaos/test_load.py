"""The load and the truth about it, on a real broker."""

from __future__ import annotations

import asyncio

from asyncpar.records import TopicPartition
from tests import kafka_tools
from tests.chaos.load import Load, read_log
from tests.conftest import Broker, TopicFactory


async def test_the_log_holds_what_was_acknowledged(broker: Broker, make_topic: TopicFactory) -> None:
    """Every acknowledged record is read back at its place, with its key; a few have none."""
    topics = [make_topic(2), make_topic(2)]
    load = Load(broker.bootstrap, topics, per_second=2000, keys=10, seed="1")
    running = asyncio.create_task(load.run())
    async with asyncio.timeout(20):
        while len(load.acknowledged) < 500:  # noqa: ASYNC110 - the producer tells nobody
            await asyncio.sleep(0.05)
        await load.finish()
        await running
    ends = {
        TopicPartition(topic, number): end
        for topic in topics
        for number, end in (await kafka_tools.end_offsets(broker.bootstrap, topic)).items()
    }
    log = await asyncio.to_thread(read_log, broker.bootstrap, ends)
    assert {(sent.tp, sent.offset) for sent in log} == load.acknowledged
    assert load.refused == []
    assert len({sent.key for sent in log}) == 11
    assert all(20 <= sent.size < 200 for sent in log)
