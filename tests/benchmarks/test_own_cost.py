"""Workloads without a client, P8 and P11: every record is seen to, and growth is what they say it is."""

from __future__ import annotations

import pytest

from asyncpar.records import TopicPartition
from benchmarks import p8, p11
from benchmarks.clientless import MadeConsumer, MadeRecord


@pytest.mark.parametrize("name", list(p8.FLIGHTS))
def test_memory_in_flight_is_that_of_all_records(name: str):
    """In whichever state they are: it takes something, and less than ten times the target."""
    found = p8.held_in_flight(p8.FLIGHTS[name], 300)
    assert found.in_flight == 300
    assert 0 < found.bytes_per_record < 10 * p8.TARGET_BYTES


def test_memory_of_bare_tasks_is_measured_alike():
    """The comparison takes something, too."""
    assert 0 < p8.held_by_tasks(300).bytes_per_record < 10 * p8.TARGET_BYTES


def test_growth_of_memory_leaves_the_beginning_out():
    """The first fifth warms up; of the others the second one is compared with the last one, by medians."""
    assert p8.grown([1, 50, 100, 102, 100, 100, 105, 105, 110, 900]) == 404.0
    assert p8.grown([10, 90, 100, 100, 120, 100, 100, 100, 110, 110]) == 10.0
    assert p8.grown([1, 2]) == 0.0
    assert p8.Resident(records=1_000, grown_mb=0.06).bytes_per_key == pytest.approx(100)


def test_every_record_of_the_million_has_a_key_of_its_own():
    """Also in the sizes of a small run."""
    load = p8.DistinctKeys(50, 50)
    assert sorted(load.sequence) == [*range(50)]
    assert load.per_key == (1,) * 50


@pytest.mark.parametrize(
    "point",
    [
        p11.Point(),
        p11.Point(partitions=3, keys=50),
        p11.Point(keys=1),
        p11.Point(gap=6_000),
        p11.Point(gap=0),
    ],
    ids=["plain", "partitions", "one key", "gap", "gap from 0 on"],
)
def test_a_point_handles_and_commits_all_records(point: p11.Point):
    """And has a cost."""
    found = p11.cost_of(point, 500)
    assert found.faults == []
    assert found.handled >= point.before + 500
    assert found.cpu_us > 0


def test_records_of_a_point_have_its_keys():
    """Each key comes before the measured records; the first record is the one that waits."""
    source = p11.Records(p11.Point(partitions=2, keys=20_000))
    made = [source.make(1, 0, 10_000), source.make(1, 10_000, 500), source.make(0, 0, 2)]
    assert source.before == 10_000
    assert len({record.key for record in made[0]}) == 10_000
    assert {record.key for record in made[1]} < {record.key for record in made[0]}
    assert [record.offset for record in made[1]] == [*range(10_000, 10_500)]
    assert [record.value == p11._WAITS for record in made[2]] == [True, False]
    gap = p11.Records(p11.Point(gap=4_000))
    values = [record.value for record in gap.make(0, 900, 200)]
    assert [at for at, value in enumerate(values, 900) if value == p11._STUCK] == [1_000]
    assert made[0][0].value == p11._VALUE


def costs(**changed: float) -> dict[str, list[p11.Measured]]:
    points = [f"{row} {name}" for row, found in p11.ROWS.items() for name in found]
    return {name: [p11.Cost(cpu_us=changed.get(name, 2.0))] * 3 for name in points}


def test_growth_is_judged_from_1_000_keys_on():
    """Few keys are shown and not judged; the worst point of a row decides."""
    grown = {"keys 1": 9.0, "keys 1,000": 2.0, "keys 100,000": 2.6, "keys 1,000,000": 2.2}
    found = p11.result(costs(**grown))
    rows, targets = found["rows"], found["targets"]
    assert isinstance(rows, dict)
    assert isinstance(targets, dict)
    assert rows["keys"]["growth"]["1"] == 4.5
    assert targets["growth of keys, worst at 100,000"] == {"at_most": 1.2, "measured": 1.3, "is_met": False}
    assert [one["is_met"] for one in targets.values()] == [True, False, True]


async def test_a_made_consumer_hands_out_what_is_wanted_in_turn():
    """One partition after the other, no more than the fetch may bring, and nothing before a seek."""
    tps = [TopicPartition("t", number) for number in range(3)]
    consumer = MadeConsumer(
        dict.fromkeys(tps, 5),
        lambda _, offset, count: [MadeRecord(at, None, b"") for at in range(offset, offset + count)],
    )
    assert await consumer.fetch(tps, 4, 1) == []
    for tp in tps[:2]:
        consumer.seek(tp, 0)
    taken = [await consumer.fetch(wanted, 4, 1) for wanted in (tps[1:], tps, tps, tps)]
    assert [[(chunk.partition, len(chunk.records)) for chunk in chunks] for chunks in taken] == [
        [(1, 4)],
        [(0, 4)],
        [(1, 1), (0, 1)],
        [],
    ]
    assert await consumer.fetch(tps[2:], 4, 1) == []
