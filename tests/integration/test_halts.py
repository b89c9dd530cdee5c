"""A record that fails for good halts its partition, and only that one, until somebody says otherwise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from asyncpar import App, Record, Retry
from tests import kafka_tools
from tests.conftest import Broker, TopicFactory
from tests.integration.members import STEADY
from tests.integration.waiting import eventually, until_committed_to_end
from tests.integration.watch import Watch, judge

pytestmark = pytest.mark.broker

MakeApp = Callable[..., App]


async def test_a_halted_partition_holds_nobody_up_and_goes_on_when_told(
    broker: Broker, make_topic: TopicFactory, group_id: str, make_app: MakeApp, watch: Watch
) -> None:
    """After its last attempt the partition halts, others are committed to the end; retry_halted() does the
    rest once.
    """
    topic = make_topic(partitions=3)
    records = [kafka_tools.Record(b"k%d" % (n % 30), b"", partition=n % 3) for n in range(1500)]
    produced = await kafka_tools.produce(broker.bootstrap, topic, records)
    healed = False
    attempts: list[int] = []
    app = make_app(broker.bootstrap, watch=watch, **STEADY)

    @app.topic(topic, retry=Retry(attempts=3, base_ms=10, max_ms=50))
    async def handle(record: Record) -> None:
        with watch.handling(record):
            if (record.partition, record.offset) == (1, 200):
                attempts.append(record.attempt)
                if not healed:
                    raise RuntimeError("not yet")

    async def others_are_at_the_end() -> bool:
        commits = await kafka_tools.committed(broker.bootstrap, group_id, topic)
        return {number: commits[number].offset for number in (0, 2) if number in commits} == {0: 500, 2: 500}

    async with app:
        await eventually(
            lambda: any(f"{topic}[1] is halted" in why for why in app.status().not_ready), "readiness is red"
        )
        assert attempts == [1, 2, 3]
        (why,) = app.status().not_ready
        failed = f"offset 200: failed 3 times in handler {app.handlers[0].name}: RuntimeError: not yet"
        assert f"{failed} (for " in why
        await eventually(others_are_at_the_end, "the other partitions are committed to their ends")
        halted = app.status().groups[0].partitions[1]
        assert halted.state == "halted"
        assert halted.in_flight == 0, "the queue gave its budget back"
        assert app.metrics().value("partitions_halted", group=group_id) == 1

        healed = True
        with pytest.raises(ValueError, match="not halted"):
            app.retry_halted(topic, 0)
        with pytest.raises(KeyError):
            app.retry_halted(topic, 99)
        app.retry_halted(topic, 1)
        finals = await until_committed_to_end(broker.bootstrap, group_id, topic)
        assert app.status().ready

    report = judge(watch.history.path, produced, finals, **STEADY)
    assert report.is_ok, report.explain()
    assert report.counts["duplicates"] == 0


async def test_a_halted_partition_that_fails_again_halts_again(
    broker: Broker, make_topic: TopicFactory, make_app: MakeApp
) -> None:
    """retry_halted() gives the record all its attempts anew, and a second failure halts as the first did."""
    topic = make_topic()
    await kafka_tools.produce(broker.bootstrap, topic, kafka_tools.keyed(3))
    attempts: list[int] = []
    app = make_app(broker.bootstrap)

    @app.topic(topic, retry=Retry(attempts=2, base_ms=5, max_ms=10))
    async def handle(record: Record) -> None:
        if record.offset == 1:
            attempts.append(record.attempt)
            raise RuntimeError("never")

    def is_halted() -> bool:
        partitions = app.status().groups[0].partitions
        return bool(partitions) and partitions[0].state == "halted"

    async with app:
        await eventually(is_halted, "it halts")
        app.retry_halted(topic, 0)
        await eventually(lambda: len(attempts) == 4 and is_halted(), "it halts again")
    assert attempts == [1, 2, 1, 2]


async def test_retries_for_ever_end_when_the_handler_succeeds(
    broker: Broker, make_topic: TopicFactory, group_id: str, make_app: MakeApp, watch: Watch
) -> None:
    """Without attempts a failing record is retried until it succeeds; its key waits and stays in order."""
    topic = make_topic(partitions=2)
    produced = await kafka_tools.produce(broker.bootstrap, topic, kafka_tools.keyed(600, keys=20))
    failures: Counter[tuple[int, int]] = Counter()
    app = make_app(broker.bootstrap, watch=watch, retry_base_ms=5, retry_max_ms=20, **STEADY)

    @app.topic(topic, concurrency=5)
    async def handle(record: Record) -> None:
        with watch.handling(record):
            place = (record.partition, record.offset)
            if record.offset % 10 == 0 and failures[place] < 4:
                failures[place] += 1
                assert record.attempt == failures[place]
                raise RuntimeError("flaky")

    async with app:
        finals = await until_committed_to_end(broker.bootstrap, group_id, topic)
        retries = app.metrics().value("retries_total", group=group_id, handler=app.handlers[0].name)
        assert retries == sum(failures.values())
    assert failures
    assert set(failures.values()) == {4}
    report = judge(watch.history.path, produced, finals, **STEADY)
    assert report.is_ok, report.explain()
    assert report.counts["duplicates"] == 0
