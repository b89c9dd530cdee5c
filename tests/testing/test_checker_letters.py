"""DEAD LETTER: hand-made histories, bad ones that must be flagged and good ones that must pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from asyncpar import headers
from asyncpar.records import TopicPartition
from asyncpar.testing.checker_letters import letter_of
from asyncpar.testing.checkers import Letter, Rules
from asyncpar.testing.history import TRUNCATE
from asyncpar.testing.memory_log import MemoryRecord
from tests.testing.tale import GRACE_MS, RULES, TP, Tale

A, B = "member-a", "member-b"
DLQ = TopicPartition("orders.dlq", 0)
ATTEMPTS = 2
SAYS = (
    (headers.TOPIC, b"orders"),
    (headers.PARTITION, b"0"),
    (headers.OFFSET, b"7"),
    (headers.ATTEMPTS, b"3"),
    (headers.REASON, b"exhausted"),
)


class LetterTale(Tale):
    """A tale with dead letters: each `wrote` is a letter, and what the topic holds at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.letters: list[Letter] = []

    def failed(self, member: str, *offsets: int, times: int = ATTEMPTS) -> LetterTale:
        """`member` runs each of `offsets` so often, and none of it ends well."""
        for offset in offsets:
            for _ in range(times):
                self.ran(member, offset, how="failed")
        return self

    def wrote(
        self,
        offset: int,
        reason: str = "exhausted",
        attempts: int = ATTEMPTS,
        key: bytes | None = b"k",
        *,
        is_intact: bool = True,
    ) -> LetterTale:
        """A letter of `offset` is written."""
        place = len(self.letters)
        self.letters.append(Letter(DLQ, place, TP, offset, key, attempts, reason, is_intact))
        self.note("send", offset=place, key=key, tp=DLQ)
        return self

    def heard(self, member: str, *offsets: int) -> LetterTale:
        """The letters of `offsets` were acknowledged to `member`."""
        for offset in offsets:
            self.note("done", member, offset, "dead_letter")
        return self

    def left(self, member: str, *offsets: int) -> LetterTale:
        """All of it, as it has to be."""
        for offset in offsets:
            self.failed(member, offset).wrote(offset).heard(member, offset)
        return self


def opened(count: int = 4) -> LetterTale:
    """`count` records of one key, all delivered to A."""
    tale = LetterTale()
    tale.sent(*range(count)).given(A).polled(A, 0, count)
    return tale


def taken(tale: LetterTale, start: int = 0) -> LetterTale:
    """B gets the partition from `start` on, before A hears of it."""
    tale.given(B, start).polled(B, start, 4)
    return tale


def faults(tale: LetterTale, **values: object) -> Sequence[str]:
    """What is told; all of it by this check."""
    rules: Rules = replace(RULES, attempts=ATTEMPTS, letters=tale.letters, **values)  # type: ignore[arg-type]
    report = tale.judged(rules)
    assert report.broken <= {"DEAD LETTER"}, report.explain()
    return [fault.text for fault in report.faults]


# -- what counts as done -------------------------------------------------------------------------


def test_a_record_that_is_given_up_and_acknowledged_is_fine() -> None:
    """It failed twice, its letter was written, its member heard of it, and the commit passes it."""
    tale = opened().left(A, 0)
    tale.ran(A, 1).committed(A, 2)
    assert not faults(tale)
    assert tale.judged(replace(RULES, letters=tale.letters)).counts["dead letters"] == 1


def test_done_before_the_letter_is_written_is_flagged() -> None:
    """Whatever becomes of the letter later: a crash in between would have lost the record."""
    tale = opened().failed(A, 0).heard(A, 0).wrote(0)
    assert faults(tale) == [f"{TP} offset 0 counted as done, but no letter of it had been written"]


def test_done_without_any_letter_is_flagged() -> None:
    """Nobody will ever see the record again."""
    assert len(faults(opened().failed(A, 0).heard(A, 0))) == 1


def test_each_done_needs_a_letter_of_its_own() -> None:
    """B has heard of nothing: what was written is A's."""
    tale = taken(opened().failed(A, 0).wrote(0).heard(A, 0)).failed(B, 0).heard(B, 0)
    assert faults(tale) == [f"{TP} offset 0 counted as done, but no letter number 2 of it had been written"]


def test_a_clock_may_be_behind() -> None:
    """By as much as the rules allow."""
    tale = opened().failed(A, 0).heard(A, 0).wrote(0)
    assert not faults(tale, tolerance_ns=1_000_000)


def test_without_a_time_of_writing_it_is_not_judged() -> None:
    """A real topic is read at the end: the letters are there, and nobody knows since when."""
    tale = opened().failed(A, 0).heard(A, 0).wrote(0)
    tale.events = [event for event in tale.events if event.tp != DLQ]
    assert not faults(tale)


def test_without_the_letters_nothing_is_judged() -> None:
    """A `done` alone says that the record is settled."""
    tale = opened().failed(A, 0).heard(A, 0)
    tale.committed(A, 1)
    assert tale.judged(RULES).is_ok


# -- what a letter says --------------------------------------------------------------------------


def test_a_letter_of_another_key_or_payload_is_flagged() -> None:
    """Both would go to the wrong place, or replay something else."""
    tale = opened().failed(A, 0, 1).wrote(0, key=b"other").wrote(1, is_intact=False)
    told = faults(tale, order="unordered")
    assert [text.partition(": its letter at ")[2] for text in told] == [
        f"{DLQ} 0 has the key b'other', not b'k'",
        f"{DLQ} 1 has another payload",
    ]


def test_a_letter_of_what_nobody_sent_is_flagged() -> None:
    """Or that does not say of what it is."""
    assert len(faults(opened().wrote(9))) == 1
    tale = opened()
    tale.letters.append(letter_of(DLQ, MemoryRecord(0, b"k", b"v")))
    assert "is of a record that nobody sent" in faults(tale)[0]


def test_a_letter_of_what_succeeded_is_flagged() -> None:
    """No call of it failed."""
    tale = opened()
    tale.ran(A, 0)
    assert (
        "(permanent) says 1 attempts, and 0 of its calls had failed"
        in (faults(tale.wrote(0, "permanent", attempts=1))[0])
    )


def test_a_letter_before_its_last_failure_is_flagged() -> None:
    """It was written while an attempt was still to come."""
    tale = opened().failed(A, 0, times=1).wrote(0).failed(A, 0, times=1)
    assert "says 2 attempts, and 1 of its calls had failed by then" in faults(tale.heard(A, 0))[0]


def test_giving_up_too_early_or_too_late_is_flagged() -> None:
    """`exhausted` means that all attempts were made, and no more."""
    early = opened().failed(A, 0, times=1).wrote(0, attempts=1).heard(A, 0)
    assert "says that 1 attempts used it up, and it has 2" in faults(early)[0]
    late = opened().failed(A, 0, times=3).wrote(0, attempts=3).heard(A, 0)
    assert "says 3 attempts, and it has 2 in each assignment" in faults(late)[0]


def test_an_attempt_may_be_made_again_after_an_unclean_end() -> None:
    """B knows of two attempts from the metadata, and not that a letter was on its way: it makes a third."""
    tale = taken(opened().failed(A, 0)).failed(B, 0, times=1).wrote(0, attempts=3).heard(B, 0)
    assert not faults(tale)


@pytest.mark.parametrize("reason", ["permanent", "too_old", "blocked"])
def test_other_reasons_need_not_use_up_the_attempts(reason: str) -> None:
    """One failed call is enough."""
    assert not faults(opened().failed(A, 0, times=1).wrote(0, reason, attempts=1).heard(A, 0))


def test_what_could_not_be_read_need_not_have_run() -> None:
    """Its key could not be found: it never reached a handler."""
    assert not faults(opened().wrote(0, "undecodable", attempts=0).heard(A, 0))


# -- how many, and in which order ----------------------------------------------------------------


def test_a_second_letter_within_an_assignment_is_flagged() -> None:
    """A producer's repeat is recognised by the broker: it must not become another record."""
    tale = opened().failed(A, 0).wrote(0).wrote(0).heard(A, 0)
    (told,) = faults(tale)
    assert told.startswith(f"{TP} offset 0: its letter at {DLQ} 1 is number 2 of it")


def test_without_assignments_doubles_are_not_judged() -> None:
    """A history that tells of calls only does not say who gave the record up."""
    assert not faults(opened().failed(A, 0).wrote(0).wrote(0).heard(A, 0), replays="any")


def test_an_unclean_end_may_double_a_letter() -> None:
    """A was kicked, or died, before it had committed; and B wrote one as well."""
    for how in ("displaced", "dead"):
        tale = opened().left(A, 0)
        if how == "dead":
            tale.note("dead", A)
        assert not faults(taken(tale).left(B, 0))


@pytest.mark.parametrize("how", ["revoke", "stop"])
def test_a_drain_waits_for_letters(how: str) -> None:
    """Who gives a partition back in time, or stops well, has heard of what was on its way."""

    def ended(tale: LetterTale) -> LetterTale:
        if how == "stop":
            tale.committed(A, 0).note("leave", A)
        else:
            tale.revoked(A).committed(A, 0).released(A)
        return tale

    assert "when member-a " in faults(ended(opened().failed(A, 0)).wrote(0))[0]
    assert len(faults(ended(opened().failed(A, 0).wrote(0)))) == 1
    assert not faults(ended(opened().left(A, 0)))


def test_a_letter_from_behind_a_cut_is_not_waited_for() -> None:
    """Its log was truncated while it was on its way: the partition began again without it."""
    cut = opened().failed(A, 0).truncated(0).note("seek", A, 0)
    assert not faults(cut.revoked(A).released(A).wrote(0))


def test_a_record_may_be_given_up_later_by_another() -> None:
    """It failed, its partition was given back, and the next owner diverts it without a call."""
    tale = opened().failed(A, 0, times=1)
    tale.revoked(A).committed(A, 0).released(A)
    taken(tale).wrote(0, "poison_key", attempts=1).heard(B, 0)
    assert not faults(tale, poison_failures=1)


def test_a_drain_that_ran_out_of_time_may_leave_letters_behind() -> None:
    """The next owner gives the record up again."""
    tale = opened().failed(A, 0)
    tale.revoked(A).wait(GRACE_MS).committed(A, 0).released(A)
    assert not faults(taken(tale.wrote(0)).left(B, 0))
    stopped = opened().failed(A, 0)
    stopped.committed(A, 0).note("leave", A).note("dead", A)
    assert not faults(stopped.wrote(0))


def test_after_a_commit_that_covers_it_a_record_is_not_given_up_again() -> None:
    """That is a duplicate, as with one that succeeded."""
    tale = opened().left(A, 0)
    tale.committed(A, 1).note("dead", A)
    taken(tale).left(B, 0)
    report = tale.judged(replace(RULES, attempts=ATTEMPTS, letters=tale.letters))
    assert report.broken == {"DUPLICATES"}


def test_a_truncated_log_begins_anew() -> None:
    """The member goes on at a lower offset, within its assignment."""
    tale = opened().left(A, 0)
    tale.note("fault", offset=2, detail=TRUNCATE).note("seek", A, 0).polled(A, 0, 2)
    assert not faults(tale.left(A, 0))


def test_an_offset_that_two_records_had_is_not_judged() -> None:
    """The log was cut and grew again: nobody can tell which of them a letter is about."""
    tale = opened().failed(A, 3).wrote(3).heard(A, 3)
    tale.note("fault", offset=3, detail=TRUNCATE).sent(3, key=b"other")
    assert not faults(tale.wrote(3, key=b"other", attempts=9), order="unordered")


def test_letters_of_a_key_ascend() -> None:
    """A later record's letter is not written first."""
    tale = opened().failed(A, 0, 1).wrote(1).wrote(0).heard(A, 0, 1)
    rules = replace(RULES, attempts=ATTEMPTS, letters=tale.letters)
    report = tale.judged(rules)
    assert report.broken == {"ORDER", "DEAD LETTER"}
    (fault,) = (fault for fault in report.faults if fault.check == "DEAD LETTER")
    assert fault.text.endswith("comes after that of offset 1 of its key")
    assert not faults(tale, order="unordered")


def test_doubles_and_what_succeeded_elsewhere_may_come_late() -> None:
    """Only first letters are in order, and a record that succeeded meanwhile has no place in it."""
    assert not faults(taken(opened().left(A, 0, 1)).left(B, 0, 1))
    tale = taken(opened().failed(A, 0))
    tale.ran(B, 0)
    assert not faults(tale.left(B, 1).wrote(0))


def test_what_was_skipped_once_may_leave_late() -> None:
    """Passed over, read again by the next one and given up then: behind a later letter of the first time."""
    tale = opened().failed(A, 0, times=1).note("done", A, 0, "skipped", b"k").left(A, 1)
    assert not faults(taken(tale).left(B, 0, 1))


# -- poison and budget ---------------------------------------------------------------------------


def test_a_poisoned_key_was_poisoned() -> None:
    """By that many failed calls in a row of one member; its later records leave without having run."""
    tale = opened().left(A, 0).wrote(1, "poison_key", attempts=0).heard(A, 1)
    assert not faults(tale, poison_failures=2)
    assert (
        "says that its key b'k' was poisoned, which it was not by then"
        in (faults(tale, poison_failures=3)[0])
    )


def test_a_success_begins_the_row_anew() -> None:
    """Two failures with a success in between are no row of two."""
    tale = opened().failed(A, 0, times=1)
    tale.ran(A, 0)
    tale.failed(A, 1, times=1).wrote(1, "poison_key", attempts=1).heard(A, 1)
    assert len(faults(tale, poison_failures=2)) == 1


def test_neighbours_of_a_poisoned_key_are_not_diverted() -> None:
    """A row of one key says nothing about another."""
    tale = opened().left(A, 0)
    tale.sent(4, key=b"other")
    tale.wrote(4, "poison_key", attempts=0, key=b"other").heard(A, 4)
    assert len(faults(tale, poison_failures=2)) == 1


def test_failures_of_different_keys_make_no_row() -> None:
    """Each key has its own."""
    tale = opened(1)
    tale.sent(4, key=b"other")
    tale.failed(A, 0, times=1).failed(A, 4, times=1).wrote(4, "poison_key", attempts=1, key=b"other")
    assert len(faults(tale.heard(A, 4), poison_failures=2)) == 1


def test_a_diverted_record_leaves_once_in_each_assignment() -> None:
    """As any other."""
    twice = opened().left(A, 0).wrote(1, "poison_key", attempts=0).wrote(1, "poison_key", attempts=0)
    assert len(faults(twice.heard(A, 1), poison_failures=2)) == 1
    again = taken(opened().left(A, 0).wrote(1, "poison_key", attempts=0)).left(B, 0)
    assert not faults(again.wrote(1, "poison_key", attempts=0).heard(B, 1), poison_failures=2)


def test_what_was_diverted_is_not_left_out() -> None:
    """A later record may run although this one, which ran in another life, did not run in this one."""
    tale = opened()
    tale.ran(A, 0, 1)
    taken(tale).left(B, 0).wrote(1, "poison_key", attempts=0).heard(B, 1)
    tale.ran(B, 2)
    assert not faults(tale, poison_failures=2)


def test_a_budget_is_kept() -> None:
    """At most two letters of one member within the window; later, or of another member, there may be more."""
    values = {"letter_budget": 2, "letter_window_ms": 100}
    assert not faults(opened().left(A, 0, 1), **values)
    assert (
        "had 3 letters written within 100 ms, at most 2 may be"
        in faults(opened().left(A, 0, 1, 2), **values)[0]
    )
    late = opened().left(A, 0, 1)
    late.wait(100)
    assert not faults(late.left(A, 2), **values)
    waited = opened().failed(A, 0, 1, 2)
    waited.wait(100)
    for offset in (0, 1, 2):
        waited.wrote(offset).heard(A, offset)
    assert not faults(waited, order="unordered", **values), "they may have been let go long ago"


def test_a_budget_has_a_window() -> None:
    """One without the other says nothing."""
    with pytest.raises(ValueError, match="go together"):
        Rules(letter_budget=3)


# -- reading letters -----------------------------------------------------------------------------


def test_a_letter_is_read_from_its_headers() -> None:
    """Where it comes from, how often it ran, and why it was given up."""
    record = MemoryRecord(5, b"k", b"v", SAYS)
    assert letter_of(DLQ, record) == Letter(DLQ, 5, TopicPartition("orders", 0), 7, b"k", 3, "exhausted")


@pytest.mark.parametrize("letters", [7, [7], [("orders.dlq", 0)], "letters"])
def test_anything_else_is_no_letter(letters: object) -> None:
    """One line that says so, instead of a check that passes."""
    with pytest.raises(TypeError, match=r"give Letter\(...\) for each"):
        Rules(letters=letters)  # type: ignore[arg-type]
