"""Nothing is lost and every key stays in order, over many records and keys of very different weight."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from asyncpar import App, Record
from tests import kafka_tools
from tests.conftest import Broker, TopicFactory
from tests.integration.members import STEADY
from tests.integration.waiting import eventually, until_committed_to_end
from tests.integration.watch import Watch, judge

pytestmark = pytest.mark.broker

MakeApp = Callable[..., App]


def skewed(count: int, keys: int) -> list[kafka_tools.Record]:
    """Records whose n-th key is n times rarer than the first; values number them."""
    draw = random.Random(7)
    names = [b"key-%d" % number for number in range(keys)]
    weights = [1 / (number + 1) for number in range(keys)]
    chosen = draw.choices(names, weights, k=count)
    return [kafka_tools.Record(key, b"%d" % number) for number, key in enumerate(chosen)]


async def test_100_000_records_with_skewed_keys_are_all_handled_once_and_in_order(
    broker: Broker, make_topic: TopicFactory, group_id: str, make_app: MakeApp, watch: Watch
) -> None:
    """Over 8 partitions each record runs once, each key in order and alone, and the commits reach the
    ends.
    """
    topic = make_topic(partitions=8)
    produced = await kafka_tools.produce(broker.bootstrap, topic, skewed(100_000, keys=1000))
    app = make_app(broker.bootstrap, watch=watch, **STEADY)

    @app.topic(topic, concurrency=200)
    async def handle(record: Record) -> None:
        with watch.handling(record):
            # Several ways to yield, so that records overtake each other where they may.
            if record.offset % 50 == 0:
                await asyncio.sleep(0.002)
            elif record.offset % 3 == 0:
                await asyncio.sleep(0)

    async with app:
        finals = await until_committed_to_end(broker.bootstrap, group_id, topic, timeout_seconds=90)
        status = app.status()

    report = judge(watch.history.path, produced, finals, **STEADY)
    assert report.is_ok, report.explain()
    assert report.counts["duplicates"] == 0
    assert report.counts["handled"] == 100_000
    (group,) = status.groups
    assert group.in_flight == 0
    assert sum(handler.succeeded for handler in group.handlers) == 100_000


async def test_order_partition_runs_one_record_of_a_partition_at_a_time(
    broker: Broker, make_topic: TopicFactory, group_id: str, make_app: MakeApp
) -> None:
    """With order="partition" all keys of a partition form one line, while partitions run side by side."""
    topic = make_topic(partitions=2)
    records = [kafka_tools.Record(b"k%d" % (n % 20), b"", partition=n % 2) for n in range(200)]
    await kafka_tools.produce(broker.bootstrap, topic, records)
    app = make_app(broker.bootstrap)
    running: set[tuple[int, int]] = set()
    most_together = 0
    started: dict[int, list[int]] = {0: [], 1: []}

    @app.topic(topic, order="partition")
    async def handle(record: Record) -> None:
        nonlocal most_together
        assert not [one for one in running if one[0] == record.partition]
        running.add((record.partition, record.offset))
        most_together = max(most_together, len(running))
        started[record.partition].append(record.offset)
        await asyncio.sleep(0.001)
        running.discard((record.partition, record.offset))

    async with app:
        await until_committed_to_end(broker.bootstrap, group_id, topic)

    assert started == {0: list(range(100)), 1: list(range(100))}
    assert most_together == 2


@pytest.mark.parametrize("key", [b"same", None], ids=["one key unordered", "no key"])
async def test_records_that_nothing_orders_run_at_the_same_time(
    broker: Broker, make_topic: TopicFactory, group_id: str, make_app: MakeApp, key: bytes | None
) -> None:
    """order="unordered", and records without a key under order="key", run in parallel inside one
    partition.
    """
    topic = make_topic(partitions=1)
    await kafka_tools.produce(broker.bootstrap, topic, [kafka_tools.Record(key, b"") for _ in range(30)])
    app = make_app(broker.bootstrap)
    together = asyncio.Barrier(30)

    @app.topic(topic, order="key" if key is None else "unordered", concurrency=30)
    async def handle(record: Record) -> None:
        # Passes only when all 30 are inside at once; else the test's bound ends the wait.
        await together.wait()

    async with app:
        await until_committed_to_end(broker.bootstrap, group_id, topic)


async def test_plain_functions_run_in_threads_in_order_per_key(
    broker: Broker, make_topic: TopicFactory, group_id: str, make_app: MakeApp, watch: Watch
) -> None:
    """A `def` handler runs in several threads at once, each key still in order and alone."""
    topic = make_topic(partitions=4)
    produced = await kafka_tools.produce(broker.bootstrap, topic, kafka_tools.keyed(2000, keys=50))
    app = make_app(broker.bootstrap, watch=watch, **STEADY)

    @app.topic(topic, concurrency=8)
    def handle(record: Record) -> None:
        with watch.handling(record):
            pass

    async with app:
        finals = await until_committed_to_end(broker.bootstrap, group_id, topic)

    report = judge(watch.history.path, produced, finals, slots=8, **STEADY)
    assert report.is_ok, report.explain()
    assert report.counts["duplicates"] == 0


async def test_a_slow_key_holds_up_only_itself(
    broker: Broker, make_topic: TopicFactory, group_id: str, make_app: MakeApp
) -> None:
    """While the first record of one key runs, the second of that key waits and all other keys are done."""
    topic = make_topic(partitions=1)
    keys = [b"slow", *(b"k%d" % (n % 10) for n in range(100)), b"slow"]
    await kafka_tools.produce(broker.bootstrap, topic, [kafka_tools.Record(key) for key in keys])
    app = make_app(broker.bootstrap)
    done: list[int] = []
    release = asyncio.Event()

    @app.topic(topic)
    async def handle(record: Record) -> None:
        if record.key == b"slow":
            await release.wait()
        done.append(record.offset)

    async with app:
        await eventually(lambda: len(done) == 100, "the other keys are done")
        assert set(done) == set(range(1, 101))
        release.set()
        await until_committed_to_end(broker.bootstrap, group_id, topic)
    assert done[-2:] == [0, 101]
