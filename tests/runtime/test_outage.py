"""An hour without the downstream, on virtual time: nothing is lost, given up or reordered."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import pytest

from asyncpar import App, Breaker, DeadLetterBudget, Record
from asyncpar.records import TopicPartition
from asyncpar.runtime.group_state import Clock
from asyncpar.testing.memory_broker import MemoryBroker
from tests.testing.virtually import loop, now, until, virtually

GROUP = "g"
HOUR = 3600.0
RECORDS = 3_000


@dataclass
class Downstream:
    """A service that may be out, and what was asked of it."""

    is_out: bool = False
    calls: int = 0
    done: dict[bytes | None, list[int]] = field(default_factory=lambda: defaultdict(list))

    async def handle(self, record: Record) -> None:
        self.calls += 1
        await asyncio.sleep(0.01)
        if self.is_out:
            raise ConnectionError("out")
        self.done[record.key].append(record.offset)

    def count(self) -> int:
        return sum(map(len, self.done.values()))


def world(downstream: Downstream, **policies: Any) -> tuple[MemoryBroker, App]:
    """A broker with the first half of the records, of 50 keys, and an app that calls `downstream`."""
    broker = MemoryBroker(wall=loop().time)
    broker.create_topic("orders", 2)
    broker.create_topic("orders.dlq", 1)
    app = App(
        group=GROUP,
        http_port=0,
        consumers=broker.consumers("m"),
        producers=broker.producers("m"),
    )
    app._clock = Clock(loop().time, loop().time, random.Random(1).random)

    @app.topic("orders", dead_letter=".dlq", **policies)
    async def handle(record: Record) -> None:
        await downstream.handle(record)

    for at in range(RECORDS // 2):
        send(broker, at)
    return broker, app


def send(broker: MemoryBroker, at: int) -> None:
    key = b"k%d" % (at % 50)
    broker.send("orders", b"%d" % at, key, partition=at % 50 % 2)


def letters(broker: MemoryBroker) -> int:
    return broker.log(TopicPartition("orders.dlq", 0)).end


def is_drained(broker: MemoryBroker) -> bool:
    committed = broker.committed(GROUP)
    return all(
        tp in committed and committed[tp].offset == broker.log(tp).end for tp in broker.partitions("orders")
    )


async def send_slowly(broker: MemoryBroker) -> None:
    """The other half, over the hour."""
    for at in range(RECORDS // 2, RECORDS):
        send(broker, at)
        await asyncio.sleep(HOUR / RECORDS)


@virtually
async def test_an_hour_long_outage_costs_nothing_but_time() -> None:
    """With a breaker as it comes: few calls, no dead letter, order kept, full speed within 10 s."""
    logging.disable()
    downstream = Downstream()
    broker, app = world(downstream, breaker=Breaker())
    running = asyncio.create_task(app.run())
    await until(lambda: downstream.count() > 100)
    downstream.is_out = True
    await asyncio.sleep(5)
    sending = asyncio.create_task(send_slowly(broker))
    calls = downstream.calls
    await asyncio.sleep(HOUR)
    assert downstream.calls - calls < HOUR / 5
    assert letters(broker) == 0
    downstream.is_out = False
    back = now()
    before = downstream.count()
    await until(lambda: downstream.count() - before > 500, seconds=10.0)
    await until(lambda: downstream.count() == RECORDS, seconds=HOUR)
    assert back < now()
    await sending
    await until(lambda: is_drained(broker))
    app.stop()
    await running
    assert all(offsets == sorted(offsets) for offsets in downstream.done.values())
    logging.disable(logging.NOTSET)


@virtually
async def test_without_a_breaker_the_budget_is_where_it_stops() -> None:
    """So many dead letters, then a hold; what was held is done when the downstream is back."""
    logging.disable()
    downstream = Downstream(is_out=True)
    budget = DeadLetterBudget(share=0.0, at_least=20, window_ms=24 * 3600 * 1000)
    broker, app = world(downstream, dead_letter_budget=budget)
    running = asyncio.create_task(app.run())
    await asyncio.sleep(HOUR)
    assert letters(broker) == 20
    assert all(one.hold_reason for one in app.status().groups[0].partitions)
    app.stop(now=True)
    with pytest.raises(Exception, match="unfinished"):
        await running
    logging.disable(logging.NOTSET)
