"""How `orders.py` is tested: the whole engine in memory, or on a real Kafka by a flag.

pytest examples/test_orders.py
pytest examples/test_orders.py --asyncpar-bootstrap=localhost:9092
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from asyncpar.errors import DecodeError
from asyncpar.testing import DISCONNECT, HaltedError, MemoryBroker
from asyncpar.testing.plugin import KafkaApp
from examples.orders import Order, app


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the handler leaves its lines."""
    path = tmp_path / "orders.jsonl"
    monkeypatch.setenv("ORDERS_LEDGER", str(path))
    return path


def billed(ledger: Path) -> list[str]:
    """The customers that were billed, in that order."""
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    return [line["key"] for line in lines if line["event"] == "end"]


async def test_an_order_is_billed(kafka_app: KafkaApp, ledger: Path) -> None:
    """The handler gets the object that was sent, and its offset is committed."""
    async with kafka_app(app) as kafka:
        place = await kafka.send("orders", Order(order_id=7, customer="ada", cents=250), key="ada")
        await kafka.settled()
        assert kafka.committed("orders", place.partition) == place.offset + 1
    assert billed(ledger) == ["ada"]


async def test_orders_of_a_customer_keep_their_order(kafka_app: KafkaApp, ledger: Path) -> None:
    """Many orders of a few customers: nothing lost, nothing twice, nobody's orders change places."""
    async with kafka_app(app) as kafka:
        for number in range(100):
            customer = f"c-{number % 7}"
            await kafka.send("orders", Order(order_id=number, customer=customer), key=customer)
        await kafka.settled()
    report = kafka.check()
    assert (report.counts["handled"], report.counts["duplicates"]) == (100, 0)
    assert len(billed(ledger)) == 100


async def test_what_is_no_order_halts(kafka_app: KafkaApp, ledger: Path) -> None:
    """It is not retried, and what is behind it waits."""
    async with kafka_app(app) as kafka:
        await kafka.send("orders", {"customer": "ada"}, key="ada")
        with pytest.raises(HaltedError, match="could not be decoded") as halt:
            await kafka.settled()
    assert isinstance(halt.value.__cause__, DecodeError)
    assert billed(ledger) == []


async def test_a_bad_day_of_kafka(kafka_app: KafkaApp, memory_broker: MemoryBroker, ledger: Path) -> None:
    """Connections break and the coordinator moves: every order is billed all the same."""
    memory_broker.fail("Fetch", DISCONNECT, times=3)
    async with kafka_app(app) as kafka:
        await kafka.send("orders", Order(order_id=1, customer="ada"), key="ada")
        memory_broker.move_coordinator("billing")
        await kafka.send("orders", Order(order_id=2, customer="bob"), key="bob")
        await kafka.settled()
    assert sorted(billed(ledger)) == ["ada", "bob"]
