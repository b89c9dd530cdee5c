"""What a letter says, where a topic of letters begins and ends, and what counts as a double."""

from __future__ import annotations

import pytest

from asyncpar import headers
from asyncpar.admin.dead_letters import Doubles, Span, letter_at, letters, passages, spans
from asyncpar.errors import ConfigurationError, OffsetOutOfRangeError, UnknownTopicError
from asyncpar.records import TopicPartition
from tests.admin.letters import DLQ, Cluster, letter, read_back, stray

TP = TopicPartition(DLQ, 0)


async def offsets(cluster: Cluster, *partitions: int) -> list[tuple[int, int]]:
    found = await spans(cluster.log, DLQ, partitions)
    return [(one.tp.partition, one.offset) async for one in letters(cluster.log, found)]


async def test_all_letters_of_all_partitions_come_in_order() -> None:
    """One partition after another, each in the order of its offsets; or the chosen ones only."""
    cluster = Cluster(partitions=2)
    cluster.put(*map(letter, range(4)), partition=1)
    cluster.put(letter(9), partition=0)
    assert await offsets(cluster) == [(0, 0), (1, 0), (1, 1), (1, 2), (1, 3)]
    assert await offsets(cluster, 1) == [(1, 0), (1, 1), (1, 2), (1, 3)]


async def test_what_is_written_meanwhile_is_not_read() -> None:
    """The end is the one of the start."""
    cluster = Cluster()
    cluster.put(letter(0), letter(1))
    found = await spans(cluster.log, DLQ)
    cluster.put(letter(2))
    assert [one.offset async for one in letters(cluster.log, found)] == [0, 1]


async def test_what_is_deleted_meanwhile_is_passed_over() -> None:
    """Retention moves the beginning past the position: reading goes on where the log begins now."""
    cluster = Cluster()
    cluster.put(*map(letter, range(8)))
    found = await spans(cluster.log, DLQ)
    read: list[int] = []
    async for passage in passages(cluster.log, TP, found[TP]):
        read += [one.offset for one in passage.letters]
        cluster.broker.log(TP).delete_before(6)
    assert read == [0, 1, 2, 6, 7]


async def test_a_position_above_the_log_is_an_error() -> None:
    """A log that was cut off is not waited for."""
    cluster = Cluster()
    cluster.put(letter(0))
    with pytest.raises(OffsetOutOfRangeError):
        await anext(passages(cluster.log, TP, Span(5, 9)))


async def test_a_partition_or_topic_that_is_not_there_is_named() -> None:
    """With what there is."""
    cluster = Cluster(partitions=2)
    with pytest.raises(ConfigurationError, match=r"'orders.dlq' has no partition 2: it has 2, from 0 to 1"):
        await spans(cluster.log, DLQ, [2])
    with pytest.raises(UnknownTopicError):
        await spans(cluster.log, "orders.dql")


async def test_one_letter_is_found_by_its_place() -> None:
    """Or it is said why it is not there: outside of the log, or a hole."""
    cluster = Cluster()
    cluster.put(letter(0), letter(1))
    cluster.broker.log(TP).skip(1)
    cluster.put(letter(3))
    assert (await letter_at(cluster.log, DLQ, 0, 1)).record.value == b"value-1"
    with pytest.raises(ConfigurationError, match=r"has no offset 4: its offsets go from 0 to 3"):
        await letter_at(cluster.log, DLQ, 0, 4)
    with pytest.raises(ConfigurationError, match="no record at offset 2"):
        await letter_at(cluster.log, DLQ, 0, 2)
    cluster.broker.log(TP).delete_before(4)
    with pytest.raises(ConfigurationError, match="it is empty"):
        await letter_at(cluster.log, DLQ, 0, 1)


def test_a_letter_says_where_it_came_from_and_when_it_failed() -> None:
    """From its headers; a foreign record falls back on its own time and has no origin."""
    found = read_back(letter(7, failed_ms=4_000))
    assert found.place == "orders.dlq[0]@0"
    assert found.origin == (TopicPartition("orders", 0), 7)
    assert found.when_ms == 4_000
    foreign = read_back(stray(), timestamp=5_000)
    assert (foreign.origin, foreign.when_ms, foreign.identity) == (None, 5_000, None)


@pytest.mark.parametrize(
    "other",
    [
        letter(8),
        letter(7, handler="mail"),
        letter(7, group="audit"),
        letter(7, key=b"other"),
        letter(7, source="returns"),
        letter(7)._replace(headers=headers.with_values(letter(7).headers, [(headers.TIMESTAMP, 1)])),
    ],
)
def test_a_double_has_the_same_origin_group_handler_time_and_key(other: object) -> None:
    """Any difference makes it another letter; attempts and error do not."""
    doubles = Doubles()
    first = read_back(letter(7))
    doubles.note(first)
    assert doubles.first_of(read_back(other, offset=1)) is None  # type: ignore[arg-type]
    same = read_back(letter(7, attempts=9, error=None), offset=1)
    assert doubles.first_of(same) == (TP, 0)
    assert doubles.first_of(first) is None


def test_letters_without_origin_are_never_doubles() -> None:
    """They do not say what they are."""
    doubles = Doubles()
    doubles.note(read_back(stray()))
    assert doubles.first_of(read_back(stray(), offset=1)) is None
