"""Commit metadata at a restart: ours is believed, anybody else's or a copied one is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from asyncpar import App, Record
from asyncpar.core.offset_codec import encode
from asyncpar.records import TopicPartition
from tests import kafka_tools
from tests.conftest import Broker, TopicFactory
from tests.integration import outside
from tests.integration.waiting import until_committed_to_end

pytestmark = pytest.mark.broker

MakeApp = Callable[..., App]


async def offsets_handled_after(
    broker: Broker, topic: str, group: str, make_app: MakeApp, ignored: dict[str, int]
) -> list[int]:
    """Run an app over `topic` to the end, check the counters of ignored metadata; what it handled."""
    handled: list[int] = []
    app = make_app(broker.bootstrap)

    @app.topic(topic)
    async def handle(record: Record) -> None:
        handled.append(record.offset)

    async with app:
        await until_committed_to_end(broker.bootstrap, group, topic)
        found = {
            sample.labels[1]: sample.value
            for family in app.metrics()
            if family.metric.name == "commit_metadata_ignored_total"
            for sample in family.samples
        }
        assert found == ignored
    return sorted(handled)


async def test_what_our_metadata_lists_is_not_run_again(
    broker: Broker, make_topic: TopicFactory, group_id: str, make_app: MakeApp
) -> None:
    """Offset 2 committed with 4, 5 and 8 listed as done: the others above it run, these do not."""
    topic = make_topic()
    await kafka_tools.produce(broker.bootstrap, topic, kafka_tools.keyed(10))
    ours = encode(TopicPartition(topic, 0), 2, [(4, 6), (8, 9)]).text
    await outside.commit(broker.bootstrap, group_id, topic, 2, ours)
    assert await offsets_handled_after(broker, topic, group_id, make_app, {}) == [2, 3, 6, 7, 9]


@pytest.mark.parametrize(
    ("metadata", "reason"), [("checkpointed by another tool", "foreign"), ("ap1:00000000:!!!", "damaged")]
)
async def test_foreign_and_damaged_metadata_is_ignored_and_counted(
    broker: Broker,
    make_topic: TopicFactory,
    group_id: str,
    make_app: MakeApp,
    metadata: str,
    reason: str,
) -> None:
    """Only the offset beside it counts: everything from there on runs."""
    topic = make_topic()
    await kafka_tools.produce(broker.bootstrap, topic, kafka_tools.keyed(10))
    await outside.commit(broker.bootstrap, group_id, topic, 5, metadata)
    handled = await offsets_handled_after(broker, topic, group_id, make_app, {reason: 1})
    assert handled == [5, 6, 7, 8, 9]


@pytest.mark.parametrize("moved", ["topic", "offset"])
async def test_metadata_copied_to_another_place_is_ignored_and_counted(
    broker: Broker, make_topic: TopicFactory, group_id: str, make_app: MakeApp, moved: str
) -> None:
    """A tool that copies offsets keeps the string; of another topic or offset it says nothing about this
    one.
    """
    topic = make_topic()
    await kafka_tools.produce(broker.bootstrap, topic, kafka_tools.keyed(10))
    source, offset = (f"{topic}-source", 2) if moved == "topic" else (topic, 3)
    copied = encode(TopicPartition(source, 0), offset, [(5, 8)]).text
    await outside.commit(broker.bootstrap, group_id, topic, 2, copied)
    handled = await offsets_handled_after(broker, topic, group_id, make_app, {"misplaced": 1})
    assert handled == list(range(2, 10))
