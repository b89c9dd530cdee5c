"""Tests of the queues, the gate, stragglers and parked retries: named cases (the machine is beside them)."""

from __future__ import annotations

from collections.abc import Hashable

import pytest

from asyncpar.core.virtual_partitions import ANY_OFFSET, ParkingLot, ReadyQueue
from asyncpar.errors import DecodeError
from asyncpar.records import RawRecord
from tests.core.models import (
    deliver,
    key_of,
    offset_of,
    opened,
    queues_of,
    records,
    settle_success,
    take,
    take_all,
    tracker_of,
)

# -- order -----------------------------------------------------------------------------------


def test_records_of_a_key_run_one_by_one_and_others_beside_them() -> None:
    """A busy key holds up nobody else."""
    handler = ReadyQueue("bill")
    partition = opened(route=handler)
    deliver(partition, [*records(0, 1, 2, key=b"a"), *records(3, key=b"b"), *records(4, 5)])
    first = take_all(handler)
    assert [offset_of(vp) for vp in first] == [0, 3, 4, 5]
    assert settle_success(first[0])
    (second,) = take_all(handler)
    assert offset_of(second) == 1
    queues_of(partition).again(second)
    assert take(handler) is second
    assert take(handler) is None


def test_finish_forgets_a_key_that_is_empty() -> None:
    """A key costs memory only while it has records, also where keys never come back."""
    handler = ReadyQueue("bill")
    partition = opened(route=handler)
    for offset in range(100):
        deliver(partition, records(offset, key=b"%d" % offset))
        vp = take(handler)
        assert vp is not None
        assert settle_success(vp, inlined=False)
    assert queues_of(partition).by_key == {}
    assert tracker_of(partition).hwm == 100


def test_a_record_without_an_order_stops_the_intake_there() -> None:
    """The caller settles that record and goes on behind it; nothing before it is queued twice."""
    handler = ReadyQueue("bill")
    queues = queues_of(opened(route=handler))
    error = DecodeError("no tenant in the key")

    def refuse_odd(topic: str, record: RawRecord) -> Hashable:
        if record.offset % 2:
            raise error
        return record.key

    chunk = iter(queues.tracker.admit(records(0, 1, 2, 3)))
    refused = queues.enqueue(chunk, refuse_odd)
    assert refused is not None
    assert (refused.record.offset, refused.error) == (1, error)
    refused = queues.enqueue(chunk, refuse_odd)
    assert refused is not None
    assert refused.record.offset == 3
    assert queues.enqueue(chunk, refuse_odd) is None
    assert [offset_of(vp) for vp in take_all(handler)] == [0, 2]


def test_handlers_that_share_a_topic_share_the_order_of_a_key() -> None:
    """A key's records run in order also when they go to different handlers."""
    first, second = ReadyQueue("first"), ReadyQueue("second")
    queues = queues_of(opened())
    for record in queues.tracker.admit(records(0, 1, 2, key=b"a")):
        queues.enqueue_one(record, record.key, second if record.offset == 1 else first)
    for handler, offset in ((first, 0), (second, 1), (first, 2)):
        (vp,) = take_all(handler)
        assert offset_of(vp) == offset
        assert not first.ready
        assert not second.ready
        assert settle_success(vp)
    assert queues.routes == {}


def test_the_handler_of_a_blocking_offset_can_be_told() -> None:
    """Also before it runs; where no handler takes a record there is none to name."""
    first, second = ReadyQueue("first"), ReadyQueue("second")
    queues = queues_of(opened())
    for record in queues.tracker.admit(records(0, 1, key=b"a")):
        queues.enqueue_one(record, record.key, second if record.offset == 1 else first)
    assert [queues.route_at(offset) for offset in (0, 1, 2)] == [first, second, None]
    assert queues_of(opened(route=first)).route_at(0) is first


# -- the gate --------------------------------------------------------------------------------


def test_a_gate_holds_what_lies_at_or_above_it() -> None:
    """Lowering it releases nothing; raising it makes ready what was held."""
    handler = ReadyQueue("bill")
    partition = opened(route=handler)
    queues = queues_of(partition)
    deliver(partition, records(0, 1, 2))
    queues.move_gate(1)
    assert [offset_of(vp) for vp in take_all(handler)] == [0]
    assert len(queues.held) == 2
    queues.move_gate(0)
    assert not handler.ready
    queues.move_gate(2)
    assert [offset_of(vp) for vp in take_all(handler)] == [1]
    queues.move_gate(ANY_OFFSET)
    assert [offset_of(vp) for vp in take_all(handler)] == [2]


def test_close_drops_its_own_queue_only() -> None:
    """Other partitions of the same handler go on."""
    handler = ReadyQueue("bill")
    closing, staying = opened(route=handler), opened(route=handler)
    deliver(closing, records(0, 1))
    deliver(staying, records(5))
    queues_of(closing).close([handler])
    assert [vp.queues for vp in handler.ready] == [staying.queues]
    assert tracker_of(closing).unfinished == {}


# -- stragglers ------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [b"a", None])
@pytest.mark.parametrize("shared", [False, True])
def test_an_adopted_straggler_does_not_run_again(key: bytes | None, shared: bool) -> None:
    """Its record was delivered meanwhile and waited: it is dropped, and what follows runs."""
    handler = ReadyQueue("bill")
    queues = queues_of(opened(route=None if shared else handler))
    lock = queues.lock(key, 0)
    fresh = queues.tracker.admit(records(0, 1, key=key))
    if shared:
        for record in fresh:
            queues.enqueue_one(record, record.key, handler)
    else:
        queues.enqueue(fresh, key_of)
    running = take_all(handler)
    assert [offset_of(vp) for vp in running] == ([] if key else [1])
    queues.unlock(lock, 0, adopted=True)
    running += take_all(handler)
    assert [offset_of(vp) for vp in running] == [1]
    assert queues.locked_offsets == {}
    assert 0 not in queues.routes
    assert settle_success(running[0])
    assert (queues.tracker.hwm, queues.by_key) == (2, {})


def test_a_straggler_that_failed_leaves_its_record_to_run() -> None:
    """The lock goes, the record that waited behind it runs."""
    handler = ReadyQueue("bill")
    partition = opened(route=handler)
    lock = queues_of(partition).lock(b"a", 0)
    deliver(partition, records(0, key=b"a"))
    assert take(handler) is None
    queues_of(partition).unlock(lock, 0, adopted=False)
    assert [offset_of(vp) for vp in take_all(handler)] == [0]


def test_a_straggler_with_nothing_behind_it_leaves_nothing() -> None:
    """The key is free again; an adopted record that comes later is not let in."""
    handler = ReadyQueue("bill")
    partition = opened(route=handler)
    queues = queues_of(partition)
    queues.unlock(queues.lock(b"a", 1), 1, adopted=True)
    assert queues.by_key == {}
    assert [r.offset for r in deliver(partition, records(0, 1, 2, key=b"a"))] == [0, 2]


def test_an_adopted_straggler_behind_older_records_of_its_key_leaves_no_hole_in_the_queue() -> None:
    """Older records come again after an unclean loss; its own, behind them, is dropped all the same.

    Left in the queue it would run again as a record that no tracker holds, and its key would stand still.
    """
    handler = ReadyQueue("bill")
    partition = opened(route=handler)
    queues = queues_of(partition)
    lock = queues.lock(b"a", 2)
    deliver(partition, records(0, 1, 2, 3, key=b"a"))
    queues.unlock(lock, 2, adopted=True)
    ran = []
    while (vp := take(handler)) is not None:
        ran.append(offset_of(vp))
        assert settle_success(vp)
    assert ran == [0, 1, 3]
    assert (tracker_of(partition).hwm, queues.by_key) == (4, {})


def test_a_straggler_of_a_closed_life_counts_and_starts_nothing() -> None:
    """While a partition halts or drains, an end that counts is remembered; nothing is made ready."""
    handler = ReadyQueue("bill")
    partition = opened(route=handler)
    queues = queues_of(partition)
    kept, dropped = queues.lock(b"a", 0), queues.lock(b"b", 1)
    deliver(partition, [*records(0, key=b"a"), *records(1, key=b"b")])
    queues.close([handler])
    queues.unlock(kept, 0, adopted=True)
    queues.unlock(dropped, 1, adopted=False)
    assert not handler.ready
    assert tracker_of(partition).hwm == 1


# -- retries ---------------------------------------------------------------------------------


def test_parked_records_come_back_when_due_in_the_order_of_their_times() -> None:
    """Equal times keep the order in which they were parked; nothing is due early."""
    handler, lot = ReadyQueue("bill"), ParkingLot()
    partition = opened(route=handler)
    deliver(partition, records(0, 1, 2))
    first, second, third = take_all(handler)
    assert lot.next_due() is None
    lot.park(first, 2.0)
    lot.park(second, 1.0)
    lot.park(third, 1.0)
    assert (len(lot), lot.next_due()) == (3, 1.0)
    assert lot.release(0.99) == []
    assert lot.release(1.0) == [handler, handler]
    assert take_all(handler) == [second, third]
    assert list(lot.parked()) == [first]


def test_a_parked_retry_holds_its_key_and_nobody_else() -> None:
    """While a record waits its key waits; the slot and the other keys are free."""
    handler, lot = ReadyQueue("bill"), ParkingLot()
    partition = opened(route=handler)
    deliver(partition, [*records(0, 1, key=b"a"), *records(2, key=b"b")])
    vp = take(handler)
    assert vp is not None
    lot.park(vp, 9.0)
    assert [offset_of(other) for other in take_all(handler)] == [2]
    lot.release(9.0)
    assert [offset_of(other) for other in take_all(handler)] == [0]


def test_a_parking_lot_forgets_one_partition_and_keeps_the_rest() -> None:
    """A revoke drops the parked records of that partition alone."""
    handler, lot = ReadyQueue("bill"), ParkingLot()
    leaving, staying = opened(route=handler), opened(route=handler)
    for partition in (leaving, staying):
        deliver(partition, records(0, 1, 2))
    for due, vp in enumerate(take_all(handler)):
        lot.park(vp, float(10 - due))
    lot.discard(queues_of(leaving))
    assert {vp.queues for vp in lot.parked()} == {staying.queues}
    assert lot.next_due() == 5.0


def test_one_that_waits_is_taken_out_by_its_offset() -> None:
    """It waits no longer; another partition's record at that offset, and those parked beside it, stay."""
    handler, lot = ReadyQueue("bill"), ParkingLot()
    mine, other = opened(route=handler), opened(route=handler)
    for partition in (mine, other):
        deliver(partition, records(0, 1))
    for due, vp in enumerate(take_all(handler)):
        lot.park(vp, float(due))
    taken = lot.take(queues_of(mine), 1)
    assert taken is not None
    assert (taken.queues, offset_of(taken)) == (queues_of(mine), 1)
    assert lot.take(queues_of(mine), 1) is None
    assert [offset_of(vp) for vp in sorted(lot.parked(), key=lambda vp: vp.queues is mine.queues)] == [
        0,
        1,
        0,
    ]
    assert lot.next_due() == 0.0
