"""Logs with holes and moved bounds: compaction, transactions, deleted records, `latest`, new topics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
from confluent_kafka import Consumer, TopicPartition

from asyncpar import App, Record
from tests import kafka_tools
from tests.conftest import Broker, TopicFactory
from tests.integration import outside
from tests.integration.waiting import eventually, until_committed_to_end

pytestmark = pytest.mark.broker

MakeApp = Callable[..., App]


def offsets_left(bootstrap: str, topic: str, end: int, timeout_seconds: float = 10.0) -> list[int]:
    """The offsets that partition 0 still holds below `end`, by an independent client that skips what is
    gone.
    """
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "looks-only",
            "enable.auto.commit": False,
            "log_level": 0,
        }
    )
    found: list[int] = []
    deadline = time.monotonic() + timeout_seconds
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        while (not found or found[-1] < end - 1) and time.monotonic() < deadline:
            for message in consumer.consume(500, timeout=0.2):
                assert message.error() is None, message.error()
                offset = message.offset()
                assert offset is not None
                found.append(offset)
    finally:
        consumer.close()
    return found


async def test_a_compacted_topic_is_read_over_its_holes(
    broker: Broker, make_topic: TopicFactory, group_id: str, make_app: MakeApp
) -> None:
    """What compaction left is handled once, in order per key, and the commit goes past all holes to the
    end.
    """
    config = {
        "cleanup.policy": "compact",
        "segment.ms": "100",
        "min.cleanable.dirty.ratio": "0.001",
        "min.compaction.lag.ms": "0",
    }
    topic = make_topic(config=config)
    for _ in range(3):
        await kafka_tools.produce(broker.bootstrap, topic, kafka_tools.keyed(100, keys=10))
    total = 300
    left: list[int] = []

    async def is_compacted() -> bool:
        nonlocal left, total
        # Another record closes the segment, which alone may be compacted.
        await kafka_tools.produce(broker.bootstrap, topic, [kafka_tools.Record(b"roll", b"")])
        total += 1
        left = await asyncio.to_thread(offsets_left, broker.bootstrap, topic, total)
        return len(left) < 100

    await eventually(is_compacted, "compaction has made holes", timeout_seconds=45)
    handled: list[int] = []
    app = make_app(broker.bootstrap)

    @app.topic(topic)
    async def handle(record: Record) -> None:
        handled.append(record.offset)

    async with app:
        await until_committed_to_end(broker.bootstrap, group_id, topic)
    # Compaction goes on meanwhile: what is left now is handled for sure, what was left before may be.
    now_left = await asyncio.to_thread(offsets_left, broker.bootstrap, topic, total)
    assert len(handled) == len(set(handled))
    assert set(now_left) <= set(handled) <= set(left)


async def test_aborted_transactions_are_neither_handled_nor_in_the_way(
    broker: Broker, make_topic: TopicFactory, group_id: str, make_app: MakeApp
) -> None:
    """Under read_committed only committed records are handled, and no lag stays behind trailing markers."""
    topic = make_topic(partitions=2)
    kept: list[kafka_tools.Produced] = []
    for number, commit in enumerate((True, False, True, False)):
        records = kafka_tools.keyed(40, keys=10)
        where = await kafka_tools.produce_transaction(
            broker.bootstrap, topic, records, f"{topic}-{number}", commit=commit
        )
        kept += where if commit else []
    handled: list[tuple[int, int]] = []
    app = make_app(broker.bootstrap)

    @app.topic(topic)
    async def handle(record: Record) -> None:
        handled.append((record.partition, record.offset))

    async with app:
        await until_committed_to_end(broker.bootstrap, group_id, topic)
        (group,) = app.status().groups
        assert [partition.true_lag for partition in group.partitions] == [0, 0]
    assert sorted(handled) == sorted((where.partition, where.offset) for where in kept)


async def test_read_uncommitted_handles_aborted_records_too(
    broker: Broker, make_topic: TopicFactory, group_id: str, make_app: MakeApp
) -> None:
    """isolation_level=read_uncommitted hands out what was aborted, and commits past the markers as well."""
    topic = make_topic()
    await kafka_tools.produce_transaction(
        broker.bootstrap, topic, kafka_tools.keyed(10), f"{topic}-1", commit=False
    )
    handled: list[int] = []
    app = make_app(broker.bootstrap, isolation_level="read_uncommitted")

    @app.topic(topic)
    async def handle(record: Record) -> None:
        handled.append(record.offset)

    async with app:
        await until_committed_to_end(broker.bootstrap, group_id, topic)
    assert sorted(handled) == list(range(10))


async def test_a_log_that_starts_above_zero_is_read_from_its_start(
    broker: Broker, make_topic: TopicFactory, group_id: str, make_app: MakeApp
) -> None:
    """With records deleted below 50 a new group handles 50 to 99 and commits the end."""
    topic = make_topic()
    await kafka_tools.produce(broker.bootstrap, topic, kafka_tools.keyed(100, keys=10))
    await kafka_tools.delete_records(broker.bootstrap, topic, {0: 50})
    handled: list[int] = []
    app = make_app(broker.bootstrap)

    @app.topic(topic)
    async def handle(record: Record) -> None:
        handled.append(record.offset)

    async with app:
        await until_committed_to_end(broker.bootstrap, group_id, topic)
    assert sorted(handled) == list(range(50, 100))


async def test_a_commit_below_the_log_start_is_reset_and_counted(
    broker: Broker,
    make_topic: TopicFactory,
    group_id: str,
    make_app: MakeApp,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A position that retention has passed goes on at the log's start, is counted, and the skipped range is
    told.
    """
    topic = make_topic()
    await kafka_tools.produce(broker.bootstrap, topic, kafka_tools.keyed(100, keys=10))
    await outside.commit(broker.bootstrap, group_id, topic, 10)
    await kafka_tools.delete_records(broker.bootstrap, topic, {0: 60})
    handled: list[int] = []
    app = make_app(broker.bootstrap)

    @app.topic(topic)
    async def handle(record: Record) -> None:
        handled.append(record.offset)

    async with app:
        await until_committed_to_end(broker.bootstrap, group_id, topic)
        assert app.metrics().value("offset_resets_total", group=group_id, reason="out_of_range") == 1
    assert sorted(handled) == list(range(60, 100))
    told = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(told) == 1
    assert "offset 10 is outside of the log (60 to 100)" in told[0]


async def test_latest_commits_the_first_position_at_once(
    broker: Broker, make_topic: TopicFactory, group_id: str, make_app: MakeApp
) -> None:
    """With offset_reset=latest a new group commits the end before any record, and a restart misses nothing
    after.
    """
    topic = make_topic(partitions=2)
    old = [kafka_tools.Record(b"k", b"old", partition=n % 2) for n in range(20)]
    await kafka_tools.produce(broker.bootstrap, topic, old)
    handled: list[bytes] = []

    def listening() -> App:
        app = make_app(broker.bootstrap, offset_reset="latest")

        @app.topic(topic)
        async def handle(value: bytes) -> None:
            handled.append(value)

        return app

    async with listening():
        await until_committed_to_end(broker.bootstrap, group_id, topic)
    assert handled == []
    between = [kafka_tools.Record(b"k", b"new %d" % n, partition=n % 2) for n in range(10)]
    await kafka_tools.produce(broker.bootstrap, topic, between)
    async with listening():
        await until_committed_to_end(broker.bootstrap, group_id, topic)
    assert sorted(handled) == sorted(b"new %d" % n for n in range(10))


async def test_offset_reset_error_halts_a_partition_without_a_commit(
    broker: Broker, make_topic: TopicFactory, make_app: MakeApp
) -> None:
    """With offset_reset=error a new group handles nothing, says why, and is not ready."""
    topic = make_topic()
    await kafka_tools.produce(broker.bootstrap, topic, kafka_tools.keyed(5))
    handled: list[bytes] = []
    app = make_app(broker.bootstrap, offset_reset="error")

    @app.topic(topic)
    async def handle(value: bytes) -> None:
        handled.append(value)

    async with app:
        await eventually(
            lambda: any("no committed offset" in why for why in app.status().not_ready), "it says why"
        )
        (partition,) = app.status().groups[0].partitions
        assert partition.state == "halted"
    assert handled == []


async def test_a_topic_made_after_the_start_is_read_from_its_first_record(
    broker: Broker, make_topic: TopicFactory, group_id: str, make_app: MakeApp
) -> None:
    """A pattern takes in a topic that appears later, from its beginning although the policy is latest."""
    prefix = f"seen-{group_id}"
    first = make_topic(name=f"{prefix}-a")
    await kafka_tools.produce(broker.bootstrap, first, kafka_tools.keyed(5))
    handled: list[tuple[str, int]] = []
    app = make_app(broker.bootstrap, offset_reset="latest", metadata_max_age_ms=300)

    @app.topic(pattern=rf"{prefix}-.*")
    async def handle(record: Record) -> None:
        handled.append((record.topic, record.offset))

    async with app:
        await until_committed_to_end(broker.bootstrap, group_id, first)
        later = make_topic(name=f"{prefix}-b", partitions=2)
        unrelated = make_topic(name="unseen")
        await kafka_tools.produce(broker.bootstrap, later, kafka_tools.keyed(20))
        await kafka_tools.produce(broker.bootstrap, unrelated, kafka_tools.keyed(20))
        await until_committed_to_end(broker.bootstrap, group_id, later)
        await kafka_tools.produce(broker.bootstrap, first, kafka_tools.keyed(3))
        await until_committed_to_end(broker.bootstrap, group_id, first)
    assert sorted(offset for topic, offset in handled if topic == first) == [5, 6, 7]
    assert len([offset for topic, offset in handled if topic == later]) == 20
    assert {topic for topic, _ in handled} == {first, later}


async def test_partitions_added_while_running_are_read_from_their_first_record(
    broker: Broker, make_topic: TopicFactory, group_id: str, make_app: MakeApp
) -> None:
    """A topic that grows from one partition to three is read in all of them, also under latest."""
    topic = make_topic()
    handled: list[tuple[int, int]] = []
    app = make_app(broker.bootstrap, offset_reset="latest", metadata_max_age_ms=300)

    @app.topic(topic)
    async def handle(record: Record) -> None:
        handled.append((record.partition, record.offset))

    async with app:
        await eventually(lambda: app.status().ready, "it has joined")
        await kafka_tools.add_partitions(broker.bootstrap, topic, 3)
        records = [kafka_tools.Record(b"k", b"", partition=n % 3) for n in range(30)]
        await kafka_tools.produce(broker.bootstrap, topic, records)
        await until_committed_to_end(broker.bootstrap, group_id, topic)
    assert sorted(handled) == [(partition, offset) for partition in range(3) for offset in range(10)]
