"""What a purge deletes: a beginning of each partition, and never more than was asked for."""

from __future__ import annotations

import pytest

from asyncpar.admin.filters import LetterFilter
from asyncpar.admin.purge import Cut, PurgeRequest, carry_out, plan
from asyncpar.errors import ConfigurationError
from asyncpar.records import Committed, TopicPartition
from tests.admin.letters import DLQ, Cluster, letter

TP0, TP1 = TopicPartition(DLQ, 0), TopicPartition(DLQ, 1)


def filled(partitions: int = 1) -> Cluster:
    """Five letters in each partition, written at 1000, 2000, ... ms."""
    cluster = Cluster(partitions)
    for partition in range(partitions):
        for number in range(5):
            cluster.put(
                letter(number + 10 * partition), partition=partition, timestamp_ms=1_000 * (number + 1)
            )
    return cluster


@pytest.mark.parametrize(
    ("request_", "cut"),
    [
        (PurgeRequest(DLQ, "offset", 3), Cut(0, 3, 5)),
        (PurgeRequest(DLQ, "offset", 0), Cut(0, 0, 5)),
        (PurgeRequest(DLQ, "offset", 99), Cut(0, 5, 5)),
        (PurgeRequest(DLQ, "time", 2_000), Cut(0, 1, 5)),
        (PurgeRequest(DLQ, "time", 9_000), Cut(0, 5, 5)),
        (PurgeRequest(DLQ, "all"), Cut(0, 5, 5)),
        (PurgeRequest(DLQ, "replayed", group="replays"), Cut(0, 0, 5)),
    ],
)
async def test_each_bound_is_one_offset(request_: PurgeRequest, cut: Cut) -> None:
    """Never below the beginning, never above the end."""
    assert await plan(filled().log, request_) == {TP0: cut}


async def test_what_was_replayed_goes_up_to_the_first_gap() -> None:
    """Replayed letters behind one that was not stay, and are counted."""
    cluster = filled()
    await cluster.replay(limit=2)
    cluster.put(letter(20, handler="mail"), letter(21, handler="mail"))
    await cluster.replay(wanted=LetterFilter(handler="mail"))
    asked = PurgeRequest(DLQ, "replayed", group="replays")
    assert await plan(cluster.log, asked) == {TP0: Cut(0, 2, 7, stays=2)}


async def test_what_was_replayed_of_an_earlier_topic_of_that_name_deletes_nothing() -> None:
    """The group remembers letters beyond the end: those that are there now were never replayed."""
    cluster = filled()
    cluster.broker.store_offsets("replays", {TP0: Committed(10, "")})
    with pytest.raises(
        ConfigurationError, match="up to offset 10, but it ends at 5: the topic was made anew"
    ):
        await plan(cluster.log, PurgeRequest(DLQ, "replayed", group="replays"))


async def test_an_offset_needs_one_partition() -> None:
    """Offsets of several partitions have nothing to do with each other."""
    cluster = filled(partitions=2)
    with pytest.raises(ConfigurationError, match="say which one with --partition"):
        await plan(cluster.log, PurgeRequest(DLQ, "offset", 3))
    assert await plan(cluster.log, PurgeRequest(DLQ, "offset", 3, partitions=(1,))) == {TP1: Cut(0, 3, 5)}


async def test_only_what_was_planned_is_deleted() -> None:
    """Partitions of which nothing goes are not asked."""
    cluster = filled(partitions=2)
    cuts = await plan(cluster.log, PurgeRequest(DLQ, "offset", 3, partitions=(1,)))
    assert await carry_out(cluster.log, {**cuts, TP0: Cut(0, 0, 5)}) == {TP1: 3}
    assert cluster.broker.log(TP0).start == 0
    assert cluster.broker.log(TP1).start == 3
