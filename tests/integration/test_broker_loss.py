"""The broker goes and comes back under load: the app stays up, says that it is not ready, and goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from asyncpar import App, Record
from asyncpar.testing.history import read
from tests import kafka_tools
from tests.conftest import TopicFactory
from tests.integration.waiting import ended_calls, eventually, until_committed_to_end, until_ended
from tests.integration.watch import Watch, judge
from tests.kafka_broker import KafkaBroker

pytestmark = pytest.mark.broker

MakeApp = Callable[..., App]


def stop(broker: KafkaBroker) -> None:
    """In order: the broker writes everything to its log and says goodbye."""
    broker.stop()


def kill(broker: KafkaBroker) -> None:
    """Without a word."""
    broker.kill()


@pytest.mark.parametrize("away", [stop, kill], ids=["stopped", "killed"])
async def test_a_broker_that_goes_and_comes_back_costs_no_record(
    private_broker: KafkaBroker,
    make_topic: TopicFactory,
    group_id: str,
    make_app: MakeApp,
    watch: Watch,
    away: Callable[[KafkaBroker], None],
) -> None:
    """Readiness turns red and liveness stays green while it is away; then all is handled, in order, and
    committed.
    """
    topic = make_topic(partitions=4)
    bootstrap = private_broker.bootstrap
    produced = await kafka_tools.produce(bootstrap, topic, kafka_tools.keyed(8000, keys=200))
    app = make_app(bootstrap, watch=watch, max_in_flight=1000)

    @app.topic(topic, concurrency=50)
    async def handle(record: Record) -> None:
        with watch.handling(record):
            await asyncio.sleep(0.005)

    async with app:
        await until_ended(watch.history.path, 1000)
        assert app.status().ready
        await asyncio.to_thread(away, private_broker)
        assert ended_calls(watch.history.path) < 8000, "the broker went under load"
        await eventually(lambda: is_live_and_not_ready(app), "readiness is red")
        await asyncio.to_thread(private_broker.start)
        await eventually(lambda: app.status().ready, "readiness is green again")
        produced += await kafka_tools.produce(bootstrap, topic, kafka_tools.keyed(1000, keys=200))
        finals = await until_committed_to_end(bootstrap, group_id, topic)
        assert app.status().live
        assert app.status().groups[0].in_flight == 0

    report = judge(watch.history.path, produced, finals, max_in_flight=1000)
    assert report.is_ok, report.explain()


def is_live_and_not_ready(app: App) -> bool:
    """Not ready, and never anything but live: restarting this process would not bring the broker back."""
    status = app.status()
    assert status.live, status.not_live
    return not status.ready


async def test_a_frozen_broker_stops_new_calls_and_costs_no_record(
    private_broker: KafkaBroker,
    make_topic: TopicFactory,
    group_id: str,
    make_app: MakeApp,
    watch: Watch,
) -> None:
    """When heartbeats are no longer answered nothing starts (another member may own it all); later all is
    done.
    """
    topic = make_topic(partitions=2)
    bootstrap = private_broker.bootstrap
    produced = await kafka_tools.produce(bootstrap, topic, kafka_tools.keyed(4000, keys=100))
    app = make_app(bootstrap, watch=watch)

    @app.topic(topic, concurrency=10)
    async def handle(record: Record) -> None:
        with watch.handling(record):
            await asyncio.sleep(0.01)

    async with app:
        await until_ended(watch.history.path, 100)
        private_broker.pause()
        await eventually(lambda: app.status().groups[0].lease_closed, "the lease has run out")
        assert "heartbeats are not answered" in " ".join(app.status().not_ready)
        closed_at = time.monotonic_ns()
        # That nothing happens can only be seen by watching for a while: ten times what a call takes.
        await eventually(lambda: time.monotonic_ns() - closed_at > 100_000_000, "a while has passed")
        assert app.status().groups[0].handlers[0].ready > 0, "there is work that could start"
        resumed_at = time.monotonic_ns()
        private_broker.resume()
        finals = await until_committed_to_end(bootstrap, group_id, topic, timeout_seconds=60)

    report = judge(watch.history.path, produced, finals)
    assert report.is_ok, report.explain()
    starts = [event.at_ns for event in read(watch.history.path) if event.kind == "start"]
    assert not [at for at in starts if closed_at < at < resumed_at]
