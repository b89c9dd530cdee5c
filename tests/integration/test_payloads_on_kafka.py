"""Records of unusual shape: a megabyte, no value, headers, no key where one is required."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated

import pytest

from asyncpar import App, Header, Key, Record
from tests import kafka_tools
from tests.conftest import Broker, TopicFactory
from tests.integration.waiting import eventually, until_committed_to_end

pytestmark = pytest.mark.broker

MakeApp = Callable[..., App]

MEGABYTE = 990_000  # With its frame this is just below what a broker takes by default.


async def test_records_of_a_megabyte_are_held_within_the_byte_limit(
    broker: Broker, make_topic: TopicFactory, group_id: str, make_app: MakeApp
) -> None:
    """Large records all arrive whole, and never more bytes are held than the limit and one fetched chunk."""
    topic = make_topic(partitions=2)
    values = [bytes([n]) * MEGABYTE for n in range(24)]
    records = [kafka_tools.Record(b"k%d" % n, value, partition=n % 2) for n, value in enumerate(values)]
    await kafka_tools.produce(broker.bootstrap, topic, records)
    limit = 4 * MEGABYTE
    app = make_app(broker.bootstrap, max_in_flight_bytes=limit)
    handled: list[bytes] = []
    most_held = 0

    @app.topic(topic, concurrency=3)
    async def handle(value: bytes) -> None:
        nonlocal most_held
        most_held = max(most_held, app.status().groups[0].bytes_in_flight)
        await asyncio.sleep(0.01)
        handled.append(value)

    async with app:
        await until_committed_to_end(broker.bootstrap, group_id, topic)
    assert sorted(handled) == values
    # One chunk is what one fetch answer may hold: 1 MiB of each partition, and never less than one record.
    assert 0 < most_held <= limit + 2 * 2**20


async def test_a_tombstone_reaches_a_handler_that_allows_none(
    broker: Broker, make_topic: TopicFactory, group_id: str, make_app: MakeApp
) -> None:
    """`value: bytes | None` gets None for a record without a value; one with an empty value is no
    tombstone.
    """
    topic = make_topic()
    records = [kafka_tools.Record(b"a", b"1"), kafka_tools.Record(b"a", None), kafka_tools.Record(b"a", b"")]
    await kafka_tools.produce(broker.bootstrap, topic, records)
    handled: list[bytes | None] = []
    app = make_app(broker.bootstrap)

    @app.topic(topic)
    async def handle(value: bytes | None) -> None:
        handled.append(value)

    async with app:
        await until_committed_to_end(broker.bootstrap, group_id, topic)
    assert handled == [b"1", None, b""]


async def test_tombstones_skip_passes_over_them(
    broker: Broker, make_topic: TopicFactory, group_id: str, make_app: MakeApp
) -> None:
    """With tombstones="skip" they count as done and as skipped, and the handler never sees one."""
    topic = make_topic()
    records = [kafka_tools.Record(b"k%d" % (n % 3), None if n % 2 else b"1") for n in range(20)]
    await kafka_tools.produce(broker.bootstrap, topic, records)
    handled: list[bytes] = []
    app = make_app(broker.bootstrap)

    @app.topic(topic, tombstones="skip")
    async def handle(value: bytes) -> None:
        handled.append(value)

    async with app:
        await until_committed_to_end(broker.bootstrap, group_id, topic)
        assert app.status().groups[0].handlers[0].skipped == 10
    assert handled == [b"1"] * 10


async def test_a_tombstone_halts_by_default(
    broker: Broker, make_topic: TopicFactory, group_id: str, make_app: MakeApp
) -> None:
    """Where the annotation has no None a tombstone is undecodable: the partition halts, and readiness says
    at which.
    """
    topic = make_topic(partitions=2)
    records = [kafka_tools.Record(b"a", b"1", partition=0), kafka_tools.Record(b"a", None, partition=0)]
    records += [kafka_tools.Record(b"b", b"2", partition=1)] * 5
    await kafka_tools.produce(broker.bootstrap, topic, records)
    handled: list[bytes] = []
    app = make_app(broker.bootstrap)

    @app.topic(topic)
    async def handle(value: bytes) -> None:
        handled.append(value)

    async with app:
        await eventually(
            lambda: any(
                f"{topic}[0] is halted: offset 1: could not be decoded" in why
                for why in app.status().not_ready
            ),
            "readiness names the tombstone",
        )

        async def others_go_on() -> bool:
            commits = await kafka_tools.committed(broker.bootstrap, group_id, topic)
            return {number: commit.offset for number, commit in commits.items()} == {0: 1, 1: 5}

        await eventually(others_go_on, "the other partition is committed, the halted one below the tombstone")
    assert sorted(handled) == [b"1", *[b"2"] * 5]


async def test_undecodable_payloads_are_skipped_or_halt_as_declared(
    broker: Broker, make_topic: TopicFactory, group_id: str, make_app: MakeApp
) -> None:
    """JSON that is none is passed over and counted with on_decode_error="skip", and never retried without."""
    skipping, halting = make_topic(name="skipping"), make_topic(name="halting")
    records = [kafka_tools.Record(b"k", value) for value in (b'{"n": 1}', b"{", b'{"n": 2}')]
    await kafka_tools.produce(broker.bootstrap, skipping, records)
    await kafka_tools.produce(broker.bootstrap, halting, records)
    handled: list[tuple[str, int]] = []
    app = make_app(broker.bootstrap)

    @app.topic(skipping, name="skips", on_decode_error="skip")
    async def skips(body: dict[str, int]) -> None:
        handled.append(("skips", body["n"]))

    @app.topic(halting, name="halts")
    async def halts(body: dict[str, int]) -> None:
        handled.append(("halts", body["n"]))

    async with app:
        await until_committed_to_end(broker.bootstrap, group_id, skipping)
        await eventually(lambda: app.metrics().value("partitions_halted", group=group_id) == 1, "it halts")

        def undecodable(topic: str, handler: str) -> object:
            labels = {"group": group_id, "topic": topic, "handler": handler, "outcome": "undecodable"}
            return app.metrics().value("records_processed_total", **labels)

        assert undecodable(skipping, "skips") == 1
        assert undecodable(halting, "halts") == 1, "permanent: it was not tried again"
    assert sorted(handled) == [("halts", 1), ("skips", 1), ("skips", 2)]
    commits = await kafka_tools.committed(broker.bootstrap, group_id, halting)
    assert commits[0].offset == 1


async def test_keys_and_headers_arrive_decoded(
    broker: Broker, make_topic: TopicFactory, group_id: str, make_app: MakeApp
) -> None:
    """A handler gets its key and headers by annotation; of a header that occurs twice the last value
    counts.
    """
    topic = make_topic()
    headers = [("trace", b"first"), ("trace", b"last"), ("size", b"7")]
    await kafka_tools.produce(broker.bootstrap, topic, [kafka_tools.Record(b"42", b'"x"', headers=headers)])
    handled: list[tuple[object, ...]] = []
    app = make_app(broker.bootstrap)

    @app.topic(topic)
    async def handle(
        body: str,
        customer: Annotated[int, Key],
        trace: Annotated[str, Header("trace")],
        size: Annotated[int, Header("size")],
        missing: Annotated[str | None, Header("missing")],
        record: Record,
    ) -> None:
        handled.append((body, customer, trace, size, missing, record.offset))

    async with app:
        await until_committed_to_end(broker.bootstrap, group_id, topic)
    assert handled == [('"x"', 42, "last", 7, None, 0)]


async def test_keyless_error_halts_at_a_record_without_a_key(
    broker: Broker, make_topic: TopicFactory, group_id: str, make_app: MakeApp
) -> None:
    """With keyless="error" a record without a key is undecodable: nothing after it is handled."""
    topic = make_topic()
    records = [kafka_tools.Record(b"k", b"1"), kafka_tools.Record(None, b"2"), kafka_tools.Record(b"k", b"3")]
    await kafka_tools.produce(broker.bootstrap, topic, records)
    app = make_app(broker.bootstrap)

    @app.topic(topic, keyless="error")
    async def handle(value: bytes) -> None: ...

    async with app:
        await eventually(
            lambda: any("has no key, and keyless='error'" in why for why in app.status().not_ready),
            "it halts",
        )
    # The halt drops what waits, and the first record may have been waiting still.
    commits = await kafka_tools.committed(broker.bootstrap, group_id, topic)
    assert commits.get(0, kafka_tools.Committed(0, "")).offset <= 1
