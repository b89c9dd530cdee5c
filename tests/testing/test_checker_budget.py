"""BUDGET: hand-made histories, bad ones that must be flagged and good ones that must pass."""

from __future__ import annotations

from dataclasses import replace

from tests.testing.tale import GRACE_MS, RULES, Tale, broken, fine

A, B = "member-a", "member-b"
THREE = replace(RULES, max_in_flight=3)
BYTES = replace(RULES, max_in_flight_bytes=25, chunk_bytes=20)


def test_more_than_max_in_flight_is_flagged() -> None:
    """Four were delivered before one was done; the fault names the poll."""
    tale = Tale().sent(*range(4), key=None).given(A).polled(A, 0, 3).polled(A, 3, 4).ran(A, 0, 1, 2, 3)
    assert broken(tale, THREE) == ["BUDGET"]
    (fault,) = tale.judged(THREE).faults
    assert (fault.events[0].kind, fault.events[0].offset) == ("poll", 3)


def test_as_much_as_max_in_flight_is_fine() -> None:
    """One is done before the next is delivered."""
    tale = Tale().sent(*range(4), key=None).given(A).polled(A, 0, 3).ran(A, 0).polled(A, 3, 4).ran(A, 1, 2, 3)
    assert fine(tale, THREE)


def test_bytes_may_be_passed_by_one_chunk() -> None:
    """25 bytes and a chunk of 20: four records of ten bytes are within it, five are too many."""
    four = Tale().sent(*range(4), key=None).given(A).polled(A, 0, 4).ran(A, 0, 1, 2, 3)
    assert fine(four, BYTES)
    five = Tale().sent(*range(5), key=None).given(A).polled(A, 0, 5).ran(A, 0, 1, 2, 3, 4)
    assert broken(five, BYTES) == ["BUDGET"]


def test_failed_records_stay_in_flight() -> None:
    """Parked for a retry, they are held all the same."""
    tale = Tale().sent(*range(4), key=None).given(A).polled(A, 0, 3).ran(A, 0, how="failed")
    assert broken(tale.polled(A, 3, 4).ran(A, 0, 1, 2, 3), THREE) == ["BUDGET"]


def test_what_becomes_a_dead_letter_is_held_until_that_is_acknowledged() -> None:
    """Whether it failed, or was diverted and never ran; not before its last delivery."""
    polled = Tale().sent(*range(4), key=None).given(A).polled(A, 0, 3)
    polled.ran(A, 0, how="failed").polled(A, 3, 4).note("done", A, 0, "dead_letter")
    assert broken(polled.ran(A, 1, 2, 3), THREE) == ["BUDGET"]
    left = Tale().sent(*range(4), key=None).given(A).polled(A, 0, 3).ran(A, 0, how="failed")
    assert fine(left.note("done", A, 0, "dead_letter").polled(A, 3, 4).ran(A, 1, 2, 3), THREE)
    diverted = Tale().sent(*range(4), key=None).given(A).polled(A, 0, 3).polled(A, 3, 4)
    assert broken(diverted.note("done", A, 0, "dead_letter").ran(A, 1, 2, 3), THREE) == ["BUDGET"]
    dropped = Tale().sent(*range(6), key=None).given(A).polled(A, 0, 3).ran(A, 0, 1, 2, how="failed")
    dropped.polled(A, 3, 6).ran(A, 3, 4, 5).note("seek", A, 0).polled(A, 0, 3)
    assert fine(dropped.note("done", A, 0, "dead_letter").ran(A, 1, 2), THREE)


def test_what_never_starts_is_not_counted() -> None:
    """A halted partition drops its queue and gives the budget back."""
    tale = Tale().sent(*range(6), key=None).given(A).polled(A, 0, 3).ran(A, 0, how="failed").polled(A, 3, 6)
    assert fine(tale.ran(A, 3, 4, 5), THREE)


def test_a_failed_record_that_is_delivered_once_more_was_dropped() -> None:
    """Its partition halted and was told to go on: meanwhile others had the budget."""
    tale = Tale().sent(*range(6), key=None).given(A).polled(A, 0, 3).ran(A, 0, 1, 2, how="failed")
    tale.polled(A, 3, 6).ran(A, 3, 4, 5)
    assert fine(tale.note("seek", A, 0).polled(A, 0, 3).ran(A, 0, 1, 2), THREE)


def test_a_revoke_drops_the_queue() -> None:
    """What ran is not held any more when the same records are delivered again."""
    for how in ("revoke", "lost"):
        tale = Tale().sent(*range(3), key=None).given(A).polled(A, 0, 3).began(A, 0).ran(A, 1)
        if how == "revoke":
            tale.revoked(A).wait(GRACE_MS).committed(A, 0, (1, 2)).released(A)
        else:
            tale.note("lost", A)
        tale.given(A).polled(A, 0, 3).ended(A, 0).ran(A, 2)
        assert fine(tale, replace(THREE, max_in_flight=2))


def test_more_calls_than_slots_are_flagged() -> None:
    """Also of a straggler, which keeps its slot; not of the dead, nor of another member."""
    two = replace(RULES, concurrency=2)
    tale = Tale().sent(*range(4), key=None).given(A).polled(A, 0, 4).began(A, 0).began(A, 1)
    assert fine(tale.ended(A, 0, "failed").began(A, 2).ended(A, 1).ended(A, 2).began(A, 3).ended(A, 3), two)
    three = Tale().sent(*range(3), key=None).given(A).polled(A, 0, 3).began(A, 0).began(A, 1).began(A, 2)
    assert broken(three, two) == ["BUDGET"]
    assert fine(three, replace(RULES, concurrency=3))
    left = Tale().sent(*range(3), key=None).given(A).polled(A, 0, 3).began(A, 0).note("lost", A).given(A)
    assert broken(left.polled(A, 0, 3).began(A, 1).began(A, 2), two) == ["BUDGET"]
    dead = Tale().sent(*range(3), key=None).given(A).polled(A, 0, 3).began(A, 0).began(A, 1).note("dead", A)
    assert fine(dead.given(B).polled(B, 0, 3).began(B, 0).began(B, 1), two)


def test_members_have_budgets_of_their_own() -> None:
    """Three at A, then three at B while A's call still runs."""
    tale = Tale().sent(*range(3), key=None).given(A).polled(A, 0, 3).began(A, 0).note("lost", A)
    assert fine(tale.given(B).polled(B, 0, 3).ran(B, 0, 1, 2).ended(A, 0, "cancelled"), THREE)


def test_redelivery_is_held_once() -> None:
    """A seek back delivers again what is held, or was done."""
    tale = Tale().sent(*range(3), key=None).given(A).polled(A, 0, 3).ran(A, 0).note("seek", A, 0)
    assert fine(tale.polled(A, 0, 3).ran(A, 1, 2), THREE)
