"""Records that are given up, on a real Kafka: dead letters, retry topics, and a downstream that is out."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from asyncpar import App, Breaker, Record, Retry
from asyncpar.errors import DrainIncompleteError, UnknownTopicError
from asyncpar.headers import ATTEMPTS, ERROR_TYPE, NOT_BEFORE, REASON, number, origin, text
from tests import kafka_tools
from tests.conftest import Broker, TopicFactory
from tests.integration.waiting import eventually, until_committed_to_end
from tests.integration.watch import Watch, judge

pytestmark = pytest.mark.broker

MakeApp = Callable[..., App]


@asynccontextmanager
async def reading(bootstrap: str, topic: str) -> AsyncIterator[list[Record]]:
    """Everything in `topic`, as another group reads it."""
    found: list[Record] = []
    app = App(bootstrap_servers=bootstrap, group=f"{topic}-readers", http_port=0)

    @app.topic(topic, order="partition")
    async def read(record: Record) -> None:
        found.append(record)

    async with app:
        yield found


async def test_a_record_that_is_given_up_is_in_the_dead_letter_topic_before_it_is_committed(
    broker: Broker, make_topic: TopicFactory, group_id: str, make_app: MakeApp, watch: Watch
) -> None:
    """Each of them once, in the order of their keys, with where it comes from and why."""
    topic, dead = make_topic(partitions=3), make_topic(partitions=2, name="dead")
    produced = await kafka_tools.produce(broker.bootstrap, topic, kafka_tools.keyed(600, keys=20))
    app = make_app(broker.bootstrap, watch=watch)
    retry = Retry(attempts=2, base_ms=5, max_ms=10)

    @app.topic(topic, retry=retry, dead_letter=dead, on_error={KeyError: "dead_letter"})
    async def handle(record: Record) -> None:
        with watch.handling(record):
            if record.offset % 10 == 3:
                raise KeyError("never") if record.offset % 20 == 3 else ValueError("not now")

    async with app:
        finals = await until_committed_to_end(broker.bootstrap, group_id, topic)
        given_up = {(one.partition, one.offset) for one in produced if one.offset % 10 == 3}
        name = app.handlers[0].name
        metrics = app.metrics()
        assert metrics.value("dead_letters_total", group=group_id, handler=name, result="sent") == len(
            given_up
        )
        async with reading(broker.bootstrap, dead) as letters:
            await eventually(lambda: len(letters) == len(given_up), "all dead letters are read")
    places = [origin(letter.headers) for letter in letters]
    assert {(place[0].partition, place[1]) for place in places if place} == given_up
    by_key: dict[tuple[int, bytes | None], list[int]] = defaultdict(list)
    for letter, place in zip(letters, places, strict=True):
        assert place is not None
        by_key[place[0].partition, letter.key].append(place[1])
        never = place[1] % 20 == 3
        assert text(letter.headers, REASON) == ("permanent" if never else "exhausted")
        assert text(letter.headers, ERROR_TYPE) == ("builtins.KeyError" if never else "builtins.ValueError")
        assert number(letter.headers, ATTEMPTS) == (1 if never else 2)
    assert all(offsets == sorted(offsets) for offsets in by_key.values())
    assert finals


async def test_a_dead_letter_topic_that_is_too_small_holds_its_partition_only(
    broker: Broker, make_topic: TopicFactory, group_id: str, make_app: MakeApp
) -> None:
    """It says why and for which record; the other partition goes on; nothing is committed past it."""
    topic, dead = make_topic(partitions=2), make_topic(name="dead", config={"max.message.bytes": "2000"})
    records = [
        kafka_tools.Record(b"k", b"x" * 4_000, partition=0),
        kafka_tools.Record(b"k", b"", partition=1),
    ]
    await kafka_tools.produce(broker.bootstrap, topic, [*records, *records])
    app = make_app(broker.bootstrap, shutdown_drain_timeout_ms=200)

    @app.topic(topic, retry=Retry(attempts=1), dead_letter=dead)
    async def handle(record: Record) -> None:
        if record.partition == 0:
            raise ValueError("never")

    async def other_is_done() -> bool:
        commits = await kafka_tools.committed(broker.bootstrap, group_id, topic)
        return 1 in commits and commits[1].offset == 2

    running = asyncio.create_task(app.run())
    await eventually(
        lambda: app.status().groups and app.status().groups[0].partitions, "the partitions are assigned"
    )
    await eventually(lambda: app.status().groups[0].partitions[0].hold_reason, "partition 0 is held")
    reason = app.status().groups[0].partitions[0].hold_reason
    assert reason is not None
    assert reason.startswith(f"{dead} does not take offset 0: ")
    await eventually(other_is_done, "the other partition is done")
    assert app.metrics().value("paused", group=group_id, topic=topic, partition="0") == 1
    app.stop()
    with pytest.raises(DrainIncompleteError):
        await running
    commits = await kafka_tools.committed(broker.bootstrap, group_id, topic)
    assert 0 not in commits or commits[0].offset == 0


async def test_a_missing_dead_letter_topic_is_refused_at_the_start(
    broker: Broker, make_topic: TopicFactory, make_app: MakeApp
) -> None:
    """Before anything is read, with its name; it is not created by asking."""
    topic = make_topic()
    app = make_app(broker.bootstrap)

    @app.topic(topic, dead_letter=".dlq")
    async def handle(record: Record) -> None:
        """Never called."""

    with pytest.raises(UnknownTopicError, match=rf"'{topic}.dlq' .* does not exist"):
        await app.run()
    assert f"{topic}.dlq" not in await kafka_tools.list_topics(broker.bootstrap)


async def test_a_failing_record_travels_through_its_retry_topics(
    broker: Broker, make_topic: TopicFactory, group_id: str, make_app: MakeApp
) -> None:
    """It does not hold up its key, and runs again when it is due; what fails everywhere is a dead letter."""
    topic, dead = make_topic(partitions=2), make_topic(name="dead")
    stops = [f"{topic}.retry.300ms", f"{topic}.retry.1s"]
    for stop in stops:
        await kafka_tools.create_topic(broker.bootstrap, stop, 2)
    await kafka_tools.produce(broker.bootstrap, topic, kafka_tools.keyed(40, keys=4))
    app = make_app(broker.bootstrap)
    early: list[float] = []
    runs: dict[str, int] = defaultdict(int)

    @app.topic(topic, retry_topics=stops, dead_letter=dead)
    async def handle(record: Record) -> None:
        runs[record.topic] += 1
        due = number(record.headers, NOT_BEFORE)
        if due is not None and time.time() * 1000 < due - 20:
            early.append(due)
        place = origin(record.headers)
        _, offset = place or (None, record.offset)
        if offset == 1 or (offset % 5 == 2 and record.topic == topic):
            raise ConnectionError("later")

    async with app:
        for name in (topic, *stops):
            await until_committed_to_end(broker.bootstrap, group_id, name)
        async with reading(broker.bootstrap, dead) as letters:
            await eventually(lambda: letters, "the dead letters are read")
    assert not early
    assert {origin(letter.headers)[1] for letter in letters} == {1}  # type: ignore[index]
    assert {number(letter.headers, ATTEMPTS) for letter in letters} == {3}
    assert runs[stops[0]] > runs[stops[1]] == len(letters)
    await kafka_tools.delete_topics(broker.bootstrap, stops)


async def test_a_downstream_that_is_out_costs_nothing_but_time(
    broker: Broker, make_topic: TopicFactory, group_id: str, make_app: MakeApp, watch: Watch
) -> None:
    """The breaker holds: nothing is lost, given up or reordered, and few calls are made."""
    topic, dead = make_topic(partitions=4), make_topic(name="dead")
    produced = await kafka_tools.produce(broker.bootstrap, topic, kafka_tools.keyed(4_000, keys=100))
    app = make_app(broker.bootstrap, watch=watch)
    breaker = Breaker(min_calls=10, window_ms=2_000, open_ms=200, max_open_ms=400)
    is_out, calls = False, 0

    @app.topic(topic, dead_letter=dead, breaker=breaker, retry=Retry(attempts=3, base_ms=50, max_ms=200))
    async def handle(record: Record) -> None:
        nonlocal calls
        with watch.handling(record):
            await asyncio.sleep(0.002)
            if is_out:
                calls += 1
                raise ConnectionError("the database is down")

    def is_open() -> bool:
        return app.metrics().value("breaker_state", group=group_id, handler=app.handlers[0].name) == 2

    async with app:
        await eventually(lambda: app.status().groups[0].handlers[0].succeeded > 200, "some are done")
        is_out = True
        await eventually(is_open, "the breaker opens")
        out_since, before = time.monotonic(), calls
        await eventually(lambda: time.monotonic() > out_since + 4, "the downstream was out for a while")
        assert calls - before < 60
        is_out = False
        finals = await until_committed_to_end(broker.bootstrap, group_id, topic)
        status = app.status().groups[0].handlers[0]
        assert status.dead_letters == 0
        assert app.status().ready
    report = judge(watch.history.path, produced, finals)
    assert report.is_ok, report.explain()
    assert report.counts["handled"] == 4_000
