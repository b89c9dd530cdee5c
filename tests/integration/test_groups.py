"""Several groups and several handlers in one app, each with its own commits."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from asyncpar import App, RawRecord, Record
from tests import kafka_tools
from tests.conftest import Broker, TopicFactory
from tests.integration.waiting import eventually, until_committed_to_end

pytestmark = pytest.mark.broker

MakeApp = Callable[..., App]


async def test_two_groups_of_one_app_each_handle_everything(
    broker: Broker, make_topic: TopicFactory, group_id: str, make_app: MakeApp
) -> None:
    """Two groups on one topic run side by side in one app: each gets all records and commits for itself."""
    topic = make_topic(partitions=2)
    await kafka_tools.produce(broker.bootstrap, topic, kafka_tools.keyed(500))
    app = make_app(broker.bootstrap)
    other_group = f"{group_id}-other"
    handled: dict[str, list[tuple[int, int]]] = {"one": [], "other": []}

    @app.topic(topic, name="one")
    async def one(record: Record) -> None:
        handled["one"].append((record.partition, record.offset))

    @app.topic(topic, name="other", group=other_group)
    async def other(record: Record) -> None:
        handled["other"].append((record.partition, record.offset))

    async with app:
        await until_committed_to_end(broker.bootstrap, group_id, topic)
        await until_committed_to_end(broker.bootstrap, other_group, topic)
        assert {group.group for group in app.status().groups} == {group_id, other_group}
    assert len(handled["one"]) == len(set(handled["one"])) == 500
    assert sorted(handled["one"]) == sorted(handled["other"])


async def test_a_group_that_halts_leaves_the_other_alone(
    broker: Broker, make_topic: TopicFactory, group_id: str, make_app: MakeApp
) -> None:
    """A partition halted in one group goes on in the other, and retry_halted() finds the group that is
    meant.
    """
    topic = make_topic()
    await kafka_tools.produce(broker.bootstrap, topic, kafka_tools.keyed(20))
    app = make_app(broker.bootstrap, retry_attempts=1)
    other_group = f"{group_id}-other"
    healed = False

    @app.topic(topic, name="fails")
    async def fails(record: Record) -> None:
        if record.offset == 7 and not healed:
            raise RuntimeError("not yet")

    @app.topic(topic, name="works", group=other_group)
    async def works(record: Record) -> None: ...

    async with app:
        await until_committed_to_end(broker.bootstrap, other_group, topic)
        await eventually(lambda: app.metrics().value("partitions_halted", group=group_id) == 1, "one halts")
        assert app.metrics().value("partitions_halted", group=other_group) == 0
        healed = True
        app.retry_halted(topic, 0, group=group_id)
        await until_committed_to_end(broker.bootstrap, group_id, topic)


async def test_match_decides_which_handler_of_a_topic_gets_a_record(
    broker: Broker, make_topic: TopicFactory, group_id: str, make_app: MakeApp
) -> None:
    """Two handlers with match= on one topic share its records; what neither takes is skipped as declared."""
    topic = make_topic(partitions=2)
    records = [
        kafka_tools.Record(b"k%d" % (n % 7), b"%d" % n, headers=[("type", (b"a", b"b", b"c")[n % 3])])
        for n in range(300)
    ]
    await kafka_tools.produce(broker.bootstrap, topic, records)
    app = make_app(broker.bootstrap)
    handled: dict[str, list[int]] = {"a": [], "b": []}

    def is_type(name: bytes) -> Callable[[str, RawRecord], bool]:
        return lambda topic, raw: ("type", name) in raw.headers

    @app.topic(topic, name="a", match=is_type(b"a"), unmatched="skip")
    async def handle_a(value: bytes) -> None:
        handled["a"].append(int(value))

    @app.topic(topic, name="b", match=is_type(b"b"), unmatched="skip")
    def handle_b(value: bytes) -> None:
        handled["b"].append(int(value))

    async with app:
        await until_committed_to_end(broker.bootstrap, group_id, topic)
    assert sorted(handled["a"]) == list(range(0, 300, 3))
    assert sorted(handled["b"]) == list(range(1, 300, 3))


async def test_a_record_that_no_match_takes_halts_by_default(
    broker: Broker, make_topic: TopicFactory, group_id: str, make_app: MakeApp
) -> None:
    """Without unmatched="skip" a record for nobody halts its partition and is not committed."""
    topic = make_topic()
    await kafka_tools.produce(broker.bootstrap, topic, [kafka_tools.Record(b"k", b"for nobody")])
    app = make_app(broker.bootstrap)

    @app.topic(topic, name="first", match=lambda topic, raw: raw.value == b"first")
    async def first(value: bytes) -> None: ...

    @app.topic(topic, name="second", match=lambda topic, raw: raw.value == b"second")
    async def second(value: bytes) -> None: ...

    async with app:
        await eventually(
            lambda: any(
                "offset 0: no match= of its handlers (first, second) takes it" in why
                for why in app.status().not_ready
            ),
            "it halts",
        )
    commits = await kafka_tools.committed(broker.bootstrap, group_id, topic)
    assert commits.get(0, kafka_tools.Committed(0, "")).offset == 0
