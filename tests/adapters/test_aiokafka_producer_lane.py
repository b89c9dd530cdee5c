"""One partition's batches and their numbers, without a broker."""

from __future__ import annotations

import asyncio

import pytest

from asyncpar.adapters.aiokafka_producer_lane import BATCH_BYTES, Entry, Lane, Numbers, Trouble
from asyncpar.errors import PublishError
from asyncpar.records import OutgoingRecord, TopicPartition

LOST = Trouble("unreachable", "the connection broke")
WRONG = PublishError("no", "other")


def lane(epoch: int = 0, sequence: int = 0) -> Lane:
    made = Lane(TopicPartition("t", 0))
    made.numbers = Numbers(7, epoch, sequence)
    return made


def put(to: Lane, *values: bytes, size: int = 100) -> list[Entry]:
    loop = asyncio.get_running_loop()
    entries = [Entry(OutgoingRecord("t", b"k", value), size, loop.create_future()) for value in values]
    for entry in entries:
        to.put(entry)
    return entries


def values(of: Lane) -> list[bytes | None]:
    batch = of.batch()
    return [] if batch is None else [record.value for record in batch.records]


async def test_numbers_go_on_after_what_was_written() -> None:
    """The next batch begins where the last one ended, and offsets are counted from its first."""
    one = lane()
    entries = put(one, b"a", b"b")
    assert one.batch() == (Numbers(7, 0, 0), [entry.record for entry in entries])
    one.was_written(41)
    assert [entry.offset.result() for entry in entries] == [41, 42]
    assert not one.is_waiting
    put(one, b"c")
    batch = one.batch()
    assert batch is not None
    assert batch.numbers == (7, 0, 2)


async def test_numbers_begin_again_where_they_end() -> None:
    """Sequences wrap as Java's do; after the last epoch, and without an id, nothing is sent."""
    one = lane(sequence=2**31 - 1)
    put(one, b"a", b"b")
    one.batch()
    one.was_written(0)
    assert one.numbers == (7, 0, 1)
    last = lane(epoch=2**15 - 1)
    put(last, b"a")
    last.batch()
    last.was_misnumbered(LOST, needs_new_id=False)
    assert last.numbers is None
    assert last.batch() is None
    assert last.is_waiting


async def test_what_may_have_arrived_is_repeated_as_it_is() -> None:
    """Neither a caller that goes nor a record that comes changes a batch whose outcome is not known."""
    one = lane()
    first, _ = put(one, b"a", b"b")
    before = one.batch()
    one.may_be_written(LOST)
    put(one, b"c")
    first.offset.cancel()
    one.drop(first)
    assert one.batch() == before
    assert one.may_have_sent(first)
    one.was_written(0)
    assert values(one) == [b"c"]


async def test_a_forsaken_batch_takes_its_epoch_with_it() -> None:
    """When all callers of a batch have gone, the next one begins a new epoch."""
    one = lane(sequence=5)
    (entry,) = put(one, b"a")
    one.batch()
    one.may_be_written(LOST)
    entry.offset.cancel()
    one.drop(entry)
    assert one.numbers == (7, 1, 0)
    put(one, b"b")
    assert values(one) == [b"b"]


async def test_a_forsaken_batch_that_is_under_way_is_waited_for() -> None:
    """Its numbers are given up only when the attempt has ended without an answer."""
    one = lane()
    (entry,) = put(one, b"a")
    one.batch()
    one.is_busy = True
    entry.offset.cancel()
    one.drop(entry)
    assert one.numbers == (7, 0, 0)
    assert one.may_have_sent(entry)
    one.was_written(0)
    assert one.numbers == (7, 0, 1)


async def test_what_was_not_sent_keeps_its_numbers() -> None:
    """It is put together anew: those who have gone are not in it, those who came are."""
    one = lane(sequence=3)
    first, second = put(one, b"a", b"b")
    one.batch()
    one.was_not_sent(LOST)
    assert not one.may_have_sent(first)
    first.offset.cancel()
    one.drop(first)
    put(one, b"c")
    batch = one.batch()
    assert batch is not None
    assert batch.numbers == (7, 0, 3)
    assert [record.value for record in batch.records] == [b"b", b"c"]
    one.may_be_written(LOST)
    one.was_not_sent(LOST)
    assert one.may_have_sent(second)
    assert one.batch() == batch


async def test_a_queue_forgets_who_has_gone() -> None:
    """A record whose caller has gone before it was sent is not kept."""
    one = lane()
    (entry,) = put(one, b"a")
    entry.offset.cancel()
    one.drop(entry)
    assert not one.is_waiting
    assert one.batch() is None
    assert one.numbers == (7, 0, 0)


async def test_pauses_grow_and_begin_again() -> None:
    """A tenth of a second, doubled up to one second; back to none after a success."""
    one = lane()
    put(one, b"a")
    one.batch()
    pauses = []
    for _ in range(6):
        one.may_be_written(LOST)
        pauses.append(one.pause_seconds)
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    troubles = [one.trouble]
    one.was_written(0)
    troubles.append(one.trouble)
    assert troubles == [LOST, None]
    put(one, b"b")
    one.batch()
    one.may_be_written(LOST)
    assert one.pause_seconds == 0.1


async def test_a_batch_holds_what_fits() -> None:
    """Its size is bounded, but for a record that is larger by itself; order is kept."""
    one = lane()
    put(one, b"a", b"b", b"c", size=BATCH_BYTES // 2 - 61)
    assert values(one) == [b"a", b"b"]
    assert one.size_bytes() <= BATCH_BYTES
    one.was_written(0)
    put(one, b"d", size=10 * BATCH_BYTES)
    assert values(one) == [b"c"]
    one.was_written(2)
    assert values(one) == [b"d"]


async def test_a_wrong_record_is_found_by_halves() -> None:
    """Only the one that is refused alone fails; afterwards batches may grow again, with new numbers."""
    one = lane()
    entries = put(one, *(b"%d" % i for i in range(8)))
    attempts = 0
    written: list[bytes | None] = []
    while (batch := one.batch()) is not None:
        attempts += 1
        assert attempts < 20
        records = [record.value for record in batch.records]
        if b"5" in records:
            one.was_found_wrong(WRONG, is_size=False)
        else:
            one.was_written(len(written))
            written += records
    assert written == [b"%d" % i for i in range(8) if i != 5]
    assert isinstance(entries[5].offset.exception(), PublishError)
    put(one, *(b"x" for _ in range(1000)))
    for _ in range(12):
        one.batch()
        one.was_written(0)
    put(one, *(b"x" for _ in range(1000)))
    assert len(values(one)) == 1000


async def test_what_a_topic_takes_is_remembered() -> None:
    """After a batch that was too large they stay below it, and above half of what fits."""
    one = lane()
    takes = 40_000
    refused = 0
    put(one, *(b"x" for _ in range(3000)))
    while one.batch() is not None:
        if one.size_bytes() > takes:
            refused += 1
            one.was_found_wrong(WRONG, is_size=True)
        else:
            one.was_written(0)
    assert refused == 3
    put(one, *(b"x" for _ in range(1000)))
    one.batch()
    assert takes / 2 < one.size_bytes() <= takes


async def test_a_refused_batch_fails_alone() -> None:
    """Those behind it go on, with numbers that never stood for anything else."""
    one = lane()
    first = put(one, b"a", b"b")
    one.batch()
    put(one, b"c")
    one.was_refused(WRONG)
    errors = [entry.offset.exception() for entry in first]
    assert [type(error) for error in errors] == [PublishError, PublishError]
    assert errors[0] is not errors[1]
    batch = one.batch()
    assert batch is not None
    assert batch.numbers == (7, 1, 0)


async def test_a_refused_batch_that_may_be_there_is_repeated_as_it_is() -> None:
    """The right to write was taken away between two attempts: new numbers might write it twice."""
    one = lane()
    (first,) = put(one, b"a")
    one.batch()
    one.may_be_written(LOST)
    one.was_refused(WRONG)
    assert not first.offset.done()
    assert one.trouble == Trouble("other", "no")
    assert one.pause_seconds > 0
    batch = one.batch()
    assert batch is not None
    assert batch.numbers == (7, 0, 0)
    one.was_written(5)
    assert first.offset.result() == 5


async def test_one_record_that_is_too_large_fails_although_its_answer_was_lost_once() -> None:
    """Its size is as wrong as it was at the first attempt: it never was written."""
    one = lane()
    (first,) = put(one, b"a")
    one.batch()
    one.may_be_written(LOST)
    one.was_found_wrong(WRONG, is_size=True)
    assert isinstance(first.offset.exception(), PublishError)
    assert one.batch() is None


@pytest.mark.parametrize("needs_new_id", [False, True])
async def test_a_misnumbered_batch_is_sent_with_other_numbers(needs_new_id: bool) -> None:
    """Nobody fails, and the order stays."""
    one = lane(sequence=4)
    put(one, b"a")
    one.batch()
    put(one, b"b")
    one.was_misnumbered(LOST, needs_new_id=needs_new_id)
    assert one.numbers == (None if needs_new_id else (7, 1, 0))
    one.numbers = Numbers(8, 0, 0)
    assert values(one) == [b"a", b"b"]


async def test_all_that_waits_can_fail() -> None:
    """The open batch and what is behind it."""
    one = lane()
    put(one, b"a")
    one.batch()
    one.may_be_written(LOST)
    put(one, b"b")
    waiting = one.waiting()
    one.fail(WRONG)
    assert [entry.record.value for entry in waiting] == [b"a", b"b"]
    assert all(entry.offset.exception() is not None for entry in waiting)
    assert not one.is_waiting
    assert one.numbers == (7, 1, 0)
