"""One partition's log in memory: what a read sees of holes, transactions, retention and truncation."""

from __future__ import annotations

import pytest

from asyncpar.records import TopicPartition
from asyncpar.testing.memory_log import LogSlice, PartitionLog

TP = TopicPartition("t", 0)


def log_of(count: int) -> PartitionLog:
    """A log with `count` plain records."""
    log = PartitionLog(TP)
    for _ in range(count):
        log.append(None, b"v")
    return log


def seen(found: LogSlice) -> tuple[list[int], int]:
    """Offsets and where the next read goes on."""
    return [record.offset for record in found.records], found.next_offset


def test_reads_go_on_where_they_stopped() -> None:
    """A read is cut at its bound; the next one begins behind the last record."""
    log = log_of(5)
    assert seen(log.read(1, 2, committed=True)) == ([1, 2], 3)
    assert seen(log.read(3, 9, committed=True)) == ([3, 4], 5)
    assert seen(log.read(5, 9, committed=True)) == ([], 5)


def test_holes_are_passed() -> None:
    """Offsets without records are jumped over, at the end of the log as well."""
    log = log_of(2)
    log.skip(3)
    assert seen(log.read(0, 9, committed=True)) == ([0, 1], 5)
    assert seen(log.read(0, 2, committed=True)) == ([0, 1], 5)
    log.append(None, b"v")
    assert seen(log.read(0, 2, committed=True)) == ([0, 1], 2)
    assert seen(log.read(2, 9, committed=True)) == ([5], 6)


def test_an_open_transaction_hides_what_follows() -> None:
    """read_committed sees nothing from the first open transaction on; read_uncommitted sees everything."""
    log = log_of(1)
    log.append(None, b"v", transaction=1)
    log.append(None, b"v")
    assert (log.last_stable_offset, log.end) == (1, 3)
    assert seen(log.read(0, 9, committed=True)) == ([0], 1)
    assert seen(log.read(2, 9, committed=True)) == ([], 2)
    assert seen(log.read(0, 9, committed=False)) == ([0, 1, 2], 3)
    log.end_transaction(1, commit=True)
    assert (log.last_stable_offset, log.end) == (4, 4)
    assert seen(log.read(0, 9, committed=True)) == ([0, 1, 2], 4)


def test_aborted_records_are_hidden_for_good() -> None:
    """An abort leaves its records for read_uncommitted only; ending what wrote nothing does nothing."""
    log = log_of(1)
    log.append(None, b"v", transaction=1)
    log.append(None, b"v", transaction=2)
    log.end_transaction(1, commit=False)
    assert log.last_stable_offset == 2
    log.end_transaction(2, commit=True)
    log.end_transaction(3, commit=False)
    log.append(None, b"v")
    assert log.end == 6
    assert seen(log.read(0, 9, committed=True)) == ([0, 2, 5], 6)
    assert seen(log.read(0, 2, committed=True)) == ([0, 2], 5)
    assert seen(log.read(0, 9, committed=False)) == ([0, 1, 2, 5], 6)


def test_retention_moves_the_start() -> None:
    """What is deleted is out of range, the end is not, and nothing beyond the end can be deleted."""
    log = log_of(4)
    first = log.records[0]
    log.delete_before(3)
    assert (log.start, log.end, len(log)) == (3, 4, 1)
    assert [log.has(at) for at in (2, 3, 4, 5)] == [False, True, True, False]
    assert not log.holds(first)
    log.delete_before(1)
    assert log.start == 3
    with pytest.raises(ValueError, match="ends at 4"):
        log.delete_before(5)


def test_truncation_gives_offsets_to_other_records() -> None:
    """The tail is gone with its transactions; the next records take its offsets."""
    log = log_of(2)
    log.append(None, b"old", transaction=1)
    log.append(None, b"old", transaction=2)
    log.end_transaction(2, commit=False)
    lost = log.records[2]
    log.truncate(2)
    assert (log.end, log.last_stable_offset) == (2, 2)
    log.append(None, b"new")
    log.append(None, b"new")
    assert [record.value for record in log.read(2, 9, committed=True).records] == [b"new", b"new"]
    assert not log.holds(lost)
    log.truncate(9)
    assert log.end == 4
    log.delete_before(3)
    log.truncate(0)
    assert (log.start, log.end) == (3, 3)


def test_watchers_hear_of_each_change() -> None:
    """Append, hole, retention and truncation are told, with the partition."""
    heard: list[TopicPartition] = []
    log = PartitionLog(TP, [heard.append])
    log.append(None, b"v")
    log.skip(1)
    log.delete_before(1)
    log.truncate(1)
    assert heard == [TP] * 4
