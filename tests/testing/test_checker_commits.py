"""LOST, COMMIT and STUCK: hand-made histories, bad ones that must be flagged and good ones that must pass."""

from __future__ import annotations

from dataclasses import replace

import pytest

from asyncpar.testing.checkers import Final, Rules
from tests.testing.tale import GRACE_MS, RULES, TP, Tale, broken, fine

A, B = "member-a", "member-b"
LATEST = replace(RULES, offset_reset="latest")


def opened(count: int = 4) -> Tale:
    """`count` keyless records, all delivered to A."""
    return Tale().sent(*range(count), key=None).given(A).polled(A, 0, count)


# -- LOST ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["failed", "cancelled"])
def test_a_commit_past_what_did_not_succeed_is_flagged(how: str) -> None:
    """Whatever the broker answered."""
    tale = opened().ran(A, 0, 2, 3).ran(A, 1, how=how)
    assert broken(tale.commit_sent(A, 4).answered(A, "retry")) == ["LOST"]


def test_a_commit_past_what_runs_is_flagged_although_it_succeeds_later() -> None:
    """At the commit it was not done: a crash would have lost it."""
    tale = opened().ran(A, 0, 2).began(A, 1).committed(A, 3).ended(A, 1).ran(A, 3).committed(A, 4)
    assert broken(tale) == ["LOST"]
    assert len(tale.judged().faults) == 1


def test_metadata_that_lists_what_is_not_done_is_flagged() -> None:
    """Nobody is given it again; named once, and done by then is fine."""
    tale = opened().began(A, 0).ran(A, 1).began(A, 2).committed(A, 0, (1, 3)).committed(A, 0, (1, 3))
    report = tale.ended(A, 2).ran(A, 3).committed(A, 0, (1, 4)).ended(A, 0).committed(A, 4).judged()
    assert [fault.text for fault in report.faults] == [
        f"{TP}: offset 2 not done when the commit of 0 by {A} listed them as done"
    ]
    grown = opened().ran(A, 1).committed(A, 0, (1, 2)).commit_sent(A, 0, (1, 4))
    assert broken(grown) == ["LOST"], "only the run that has grown is looked at again"
    assert fine(opened().ran(A, 1, 3).committed(A, 0, (1, 2), (3, 4)).ran(A, 0, 2).committed(A, 4))


def test_lost_records_are_named_once() -> None:
    """Later commits do not name them again; more than a few are counted."""
    report = opened(9).ran(A, 8).committed(A, 9).committed(A, 9).judged()
    assert [fault.text for fault in report.faults] == [
        f"{TP}: offsets 0, 1, 2, 3, 4 and 3 more not done when 9 was committed by {A}"
    ]


def test_done_ahead_of_the_commit_is_fine() -> None:
    """The commit stays below the lowest unfinished record."""
    tale = opened().began(A, 0).ran(A, 1, 2).committed(A, 0, (1, 3)).ended(A, 0).committed(A, 3)
    assert fine(tale.ran(A, 3).committed(A, 4))


def test_holes_and_markers_never_block() -> None:
    """Only what was sent must be done; a position past trailing markers may be committed."""
    tale = Tale().sent(2, 5, key=None).given(A).polled(A, 2, 6).ran(A, 2, 5).committed(A, 6)
    assert fine(tale.polled(A, 6, 8).committed(A, 8))


def test_what_is_settled_by_a_skip_or_another_member_counts() -> None:
    """A `done`, and a success of the member before."""
    tale = opened().ran(A, 0, 1).committed(A, 1, (1, 2)).note("dead", A).given(B, 1).polled(B, 1, 4)
    assert fine(tale.ran(B, 2).note("done", B, 3, "skipped").committed(B, 4))


def test_a_producer_may_hear_of_its_offset_late() -> None:
    """A `send` noted after its record was handled is as good as one before."""
    tale = Tale().given(A).polled(A, 0, 1).ran(A, 0).committed(A, 1).sent(0, key=None)
    assert fine(tale)


def test_what_is_gone_from_the_log_is_not_lost() -> None:
    """Deleted before it was delivered; and the offsets that were used again after a truncation."""
    assert fine(opened().deleted(3).note("seek", A, 3).ran(A, 3).committed(A, 4))
    tale = opened().ran(A, 0, 1, 2, 3).committed(A, 4).truncated(2).sent(2, 3, 4, key=None)
    assert fine(tale.polled(A, 4, 5).ran(A, 4).committed(A, 5))
    assert broken(tale.sent(5, key=None).polled(A, 5, 6).committed(A, 6)) == ["LOST"]


def test_a_start_at_the_end_passes_over_records_once() -> None:
    """With `latest`, before the first commit, or after the log was cut; never else."""
    late = Tale().sent(0, 1, 2, 3, key=None).given(A, 2).committed(A, 2).polled(A, 2, 4).ran(A, 2, 3)
    assert fine(late.committed(A, 4), LATEST)
    assert broken(late, RULES) == ["LOST"]
    again = late.sent(4, 5, key=None).note("seek", A, 6).committed(A, 6)
    assert broken(again, LATEST) == ["LOST"]
    cut = opened().ran(A, 0).committed(A, 1).deleted(3).note("seek", A, 4).committed(A, 4)
    assert fine(cut, LATEST)
    assert broken(cut, RULES) == ["LOST"]
    passed = opened().ran(A, 0, 1).committed(A, 2).deleted(1).note("seek", A, 4).committed(A, 4)
    assert broken(passed, LATEST) == ["LOST"], "what was deleted was behind all that is stored"


def test_the_final_commit_counts_as_a_commit() -> None:
    """Where commits were not recorded it is the only one."""
    rules = Rules(replays="any", finals={TP: Final(3, 3)})
    assert broken(Tale().sent(0, 1, 2).ran(A, 0, 1), rules) == ["LOST"]
    assert fine(Tale().sent(0, 1, 2).ran(A, 0, 1, 2), rules)


# -- COMMIT --------------------------------------------------------------------------------------


def test_a_commit_beyond_the_position_is_flagged() -> None:
    """Past all that the member was delivered: what is written there later would be lost."""
    assert broken(opened().ran(A, 0, 1, 2, 3).committed(A, 5)) == ["COMMIT"]
    assert broken(Tale().note("assign", A).committed(A, 1)) == ["COMMIT"]


def test_restored_runs_move_the_position() -> None:
    """Delivered up to 1, done from 1 to 3 by the metadata it began from: 3 may be committed."""
    tale = opened().ran(A, 1, 2).committed(A, 0, (1, 3)).note("dead", A).given(B, 0).polled(B, 0, 1)
    assert fine(tale.ran(B, 0).committed(B, 3))
    assert broken(tale.ran(A, 3).committed(B, 4)) == ["COMMIT", "SERIAL"]


def test_an_adopted_straggler_moves_the_position() -> None:
    """Its record is done before it is delivered again."""
    tale = opened().began(A, 0).revoked(A).wait(GRACE_MS).committed(A, 0).released(A).given(A, 0)
    assert fine(tale.ended(A, 0).committed(A, 1))


def test_a_commit_that_goes_back_is_flagged() -> None:
    """Within an assignment; whether or not the higher one was acknowledged."""
    tale = opened().ran(A, 0, 1).commit_sent(A, 2).answered(A, "retry").committed(A, 1, (1, 2))
    assert broken(tale) == ["COMMIT"]


def test_a_commit_below_the_start_is_flagged() -> None:
    """The assignment began at 2."""
    tale = opened().ran(A, 0, 1).committed(A, 2).note("dead", A).given(B, 2).committed(B, 1)
    assert broken(tale) == ["COMMIT"]


def test_after_a_truncation_commits_may_go_back() -> None:
    """The position lay beyond the log: the member began anew."""
    tale = opened().ran(A, 0, 1, 2, 3).committed(A, 4).truncated(1).note("seek", A, 0).polled(A, 0, 1)
    assert fine(tale.ran(A, 0).committed(A, 1))


def test_behind_a_truncation_the_laws_hold_again() -> None:
    """Once it has begun anew it goes neither back nor beyond what it was delivered."""

    def anew() -> Tale:
        tale = opened().ran(A, 0, 1, 2, 3).committed(A, 4).truncated(3).note("seek", A, 0).polled(A, 0, 2)
        return tale.ran(A, 0, 1).committed(A, 2)

    assert fine(anew())
    assert broken(anew().committed(A, 1, (1, 2))) == ["COMMIT"]
    assert broken(anew().committed(A, 3)) == ["COMMIT"]


def test_a_truncation_far_above_takes_no_position_away() -> None:
    """The partition was halted, and is tried again from below: what it was delivered is still there."""

    def tried_again() -> Tale:
        tale = opened().ran(A, 0, 2).ran(A, 1, how="failed").truncated(4).note("seek", A, 1).polled(A, 1, 2)
        return tale.ran(A, 1)

    assert fine(tried_again().committed(A, 3))
    assert broken(tried_again().committed(A, 5)) == ["COMMIT", "LOST"]
    beyond = opened().ran(A, 0, 2).ran(A, 1, how="failed").truncated(3).note("seek", A, 1).polled(A, 1, 2)
    assert broken(beyond.ran(A, 1).committed(A, 3)) == ["COMMIT"], "it stood at 4: it has begun anew"


def test_two_commits_on_their_way_are_flagged() -> None:
    """One at a time: the answer of the first may be lost, but somebody has to have waited for it."""
    tale = opened().ran(A, 0).commit_sent(A, 1).ran(A, 1).commit_sent(A, 2).answered(A, "acknowledged")
    assert broken(tale) == ["COMMIT"]
    assert fine(opened().ran(A, 0).commit_sent(A, 1).answered(A, "retry").committed(A, 1))


def test_a_commit_with_the_token_of_an_older_assignment_is_flagged() -> None:
    """Also when nothing else is wrong with it, and whatever it is answered."""
    tale = opened().ran(A, 0).note("outdated", A, 1)
    assert broken(tale.commit_sent(A, 1).answered(A, "stale")) == ["COMMIT"]


def test_what_a_displaced_member_commits_must_not_be_stored() -> None:
    """B's commit was stored, so A was removed before; A's may have been first, or be refused."""
    tale = opened().ran(A, 0, 1).given(B).polled(B, 0, 4).ran(B, 0, 1, 2).committed(B, 3)
    assert fine(tale.commit_sent(A, 2).answered(A, "stale"))
    tale = opened().ran(A, 0, 1).given(B).polled(B, 0, 4).ran(B, 0, 1, 2).committed(B, 3)
    assert broken(tale.committed(A, 2)) == ["COMMIT"]
    assert fine(tale, replace(RULES, rebalancing="cooperative"))
    early = opened().ran(A, 0, 1).given(B).polled(B, 0, 4).ran(B, 0, 1, 2).commit_sent(A, 2)
    assert fine(early.committed(B, 3).answered(A, "acknowledged"))
    woken = opened().given(B).polled(B, 0, 4).given(A).polled(A, 0, 4).ran(A, 0).committed(A, 1)
    assert fine(woken.commit_sent(B, 0).answered(B, "stale").ran(A, 1).committed(A, 2))


@pytest.mark.parametrize("end", ["released", "lost", "leave", "dead"])
def test_a_commit_after_the_end_of_its_assignment_is_flagged(end: str) -> None:
    """Whatever it is answered."""
    tale = opened().ran(A, 0).committed(A, 1)
    tale = tale.revoked(A).released(A) if end == "released" else tale.note(end, A)  # type: ignore[arg-type]
    assert broken(tale.commit_sent(A, 1).answered(A, "stale")) == ["COMMIT"]


def test_a_commit_without_an_assignment_is_flagged() -> None:
    """Nobody gave B the partition."""
    assert broken(opened().ran(A, 0).committed(B, 1)) == ["COMMIT"]


def test_the_next_assignment_may_commit_again() -> None:
    """Also lower than the last one of the assignment before, which was not stored."""
    tale = opened().ran(A, 0, 1).commit_sent(A, 2).answered(A, "stale").note("lost", A).given(A, 0)
    assert fine(tale.polled(A, 0, 4).ran(A, 0).committed(A, 1))


def test_a_revoke_waits_for_the_commit_on_its_way() -> None:
    """Returned at once: flagged; answered first, or the time was up: fine."""
    tale = opened().ran(A, 0).commit_sent(A, 1).revoked(A)
    assert broken(tale.released(A)) == ["COMMIT"]
    assert fine(opened().ran(A, 0).commit_sent(A, 1).revoked(A).answered(A, "acknowledged").released(A))
    assert fine(opened().ran(A, 0).commit_sent(A, 1).revoked(A).wait(6_500).released(A))


def test_a_commit_that_was_on_its_way_at_a_loss_is_fine() -> None:
    """Its answer comes when the member knows already that it was removed."""
    tale = opened().ran(A, 0).commit_sent(A, 1).note("lost", A)
    assert fine(tale.answered(A, "acknowledged").given(B, 1).polled(B, 1, 4).ran(B, 1).committed(B, 2))


def test_commits_are_retried() -> None:
    """At least as high, with the outcome of the one before unknown."""
    tale = opened().ran(A, 0).commit_sent(A, 1).answered(A, "retry").ran(A, 1).committed(A, 2)
    assert fine(tale)


def test_metadata_that_was_too_large_is_not_sent_again_as_long() -> None:
    """Shorter is fine; as long is not. Another member has to learn for itself."""

    def refused() -> Tale:
        return opened().ran(A, 0, 2).commit_sent(A, 1, (2, 3)).answered(A, "metadata_too_large")

    assert fine(refused().committed(A, 1, text=""))
    assert broken(refused().committed(A, 1, (2, 3))) == ["COMMIT"]
    handed_over = refused().committed(A, 1, text="").revoked(A).released(A).given(B, 1).polled(B, 1, 4)
    assert fine(handed_over.committed(B, 1, (2, 3)))


# -- STUCK ---------------------------------------------------------------------------------------


def finals(committed: int | None, end: int) -> Rules:
    return replace(RULES, finals={TP: Final(committed, end)})


def test_a_lag_at_the_end_is_flagged() -> None:
    """It names the first record that is not done."""
    report = opened().ran(A, 0, 1).committed(A, 2).judged(finals(2, 4))
    assert sorted(report.broken) == ["STUCK"]
    assert "offset 2 is the first" in report.faults[0].text


def test_a_call_that_runs_at_the_end_is_flagged() -> None:
    """Of the living; the dead run nothing."""
    tale = opened(2).ran(A, 0).began(A, 1).ended(A, 1).began(A, 1)
    assert broken(tale, finals(2, 2)) == ["DUPLICATES", "STUCK"]
    tale = opened(1).began(A, 0).note("dead", A).given(B).polled(B, 0, 1).ran(B, 0).committed(B, 1)
    assert fine(tale, finals(1, 1))


def test_a_call_that_outlived_the_stop_of_its_member_is_not_stuck() -> None:
    """It ends with its process, unless the member joined again."""
    tale = opened(1).began(A, 0).note("leave", A).given(B).polled(B, 0, 1).ran(B, 0).committed(B, 1)
    assert fine(tale, finals(1, 1))
    assert broken(tale.note("join", A), finals(1, 1)) == ["STUCK"]


def test_markers_behind_the_last_record_must_be_committed() -> None:
    """Lag 0 means committed = end."""
    tale = opened(2).ran(A, 0, 1).committed(A, 2)
    assert broken(tale, finals(2, 3)) == ["STUCK"]
    assert fine(tale.polled(A, 2, 3).committed(A, 3), finals(3, 3))


def test_a_partition_that_was_always_empty_needs_no_commit() -> None:
    """Also one whose end moved by markers only counts as untouched."""
    assert fine(Tale().given(A), finals(None, 0))
    assert broken(opened(1), finals(None, 1)) == ["STUCK"]
