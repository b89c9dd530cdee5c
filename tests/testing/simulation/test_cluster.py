"""What the brokers of a simulated world hold in the end, and what faults may hit."""

from __future__ import annotations

from asyncpar import headers
from asyncpar.records import TopicPartition
from asyncpar.testing.checkers import Final, Letter
from asyncpar.testing.history import History
from asyncpar.testing.memory_broker import MemoryBroker
from asyncpar.testing.simulation.cluster import Cluster
from asyncpar.testing.simulation.plan import Plan, PlannedFault
from tests.testing.simulation.test_life import letter_plan, small_plan
from tests.testing.virtually import loop, virtually

SOURCE, DLQ = TopicPartition("orders", 1), TopicPartition("orders.dlq", 0)


def make(plan: Plan) -> Cluster:
    cluster = Cluster(plan, History(), lambda seconds, act: loop().call_later(seconds, act), loop().time)
    cluster.create_topics()
    return cluster


def write_letter(broker: MemoryBroker, offset: int, value: bytes) -> None:
    """A dead letter of `offset`, by hand."""
    says: dict[str, str | int] = {
        headers.TOPIC: SOURCE.topic,
        headers.PARTITION: SOURCE.partition,
        headers.OFFSET: offset,
        headers.ATTEMPTS: 3,
        headers.REASON: "exhausted",
    }
    broker.send(DLQ.topic, value, b"k", headers.with_values((), says.items()), partition=0)


@virtually
async def test_without_dead_letters_there_is_no_topic_for_them() -> None:
    """And nothing to be judged."""
    cluster = make(small_plan())
    assert cluster.broker.partition_counts() == {"orders": 3}
    assert cluster.letters() is None


@virtually
async def test_letters_are_read_and_compared_with_their_records() -> None:
    """What says another payload is not intact; what was deleted meanwhile cannot be compared."""
    cluster = make(letter_plan())
    for offset in range(3):
        cluster.broker.send("orders", b"v%d" % offset, b"k", partition=1)
    write_letter(cluster.broker, 0, b"v0")
    write_letter(cluster.broker, 1, b"v2")
    cluster.broker.delete_records(SOURCE, 1)
    assert cluster.letters() == [
        Letter(DLQ, 0, SOURCE, 0, b"k", 3, "exhausted"),
        Letter(DLQ, 1, SOURCE, 1, b"k", 3, "exhausted", is_intact=False),
    ]


@virtually
async def test_behind_a_truncation_payloads_are_not_compared() -> None:
    """Another record may have the offset by now."""
    cluster = make(letter_plan())
    cluster.broker.send("orders", b"before", b"k", partition=1)
    write_letter(cluster.broker, 0, b"before")
    assert cluster.truncate(SOURCE, share=0.0)
    cluster.broker.send("orders", b"after", b"k", partition=1)
    assert cluster.letters() == [Letter(DLQ, 0, SOURCE, 0, b"k", 3, "exhausted")]


@virtually
async def test_only_what_is_read_comes_to_rest_and_is_struck() -> None:
    """A log of dead letters is nobody's to read, and losing it would prove nothing."""
    cluster = make(letter_plan())
    cluster.broker.send(DLQ.topic, b"v", partition=0)
    assert cluster.finals() == {TopicPartition("orders", number): Final(None, 0) for number in range(3)}
    picks = (number / 100 for number in range(100))
    faults = (PlannedFault(at=1.0, kind="any", seconds=1.0, pick=pick, share=0.5) for pick in picks)
    assert {cluster.pick_partition(fault).topic for fault in faults} == {"orders"}
