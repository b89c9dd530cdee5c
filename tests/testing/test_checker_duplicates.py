"""DUPLICATES: hand-made histories, bad ones that must be flagged and good ones that must pass."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from asyncpar.core.offset_codec import encode
from asyncpar.records import TopicPartition
from asyncpar.testing.history import FAILED, OVERWRITE
from tests.testing.tale import GRACE_MS, RULES, TP, Tale, broken, fine

A, B, C = "member-a", "member-b", "member-c"


def opened(count: int = 4) -> Tale:
    """`count` keyless records, all delivered to A."""
    return Tale().sent(*range(count), key=None).given(A).polled(A, 0, count)


def again(tale: Tale, *offsets: int, start: int = 0, end: int = 4) -> Tale:
    """B gets the partition from `start` on and runs `offsets`."""
    return tale.given(B, start).polled(B, start, end).ran(B, *offsets)


@pytest.mark.parametrize("how", ["dead", "lost"])
def test_after_an_unclean_loss_what_was_not_committed_may_run_again(how: str) -> None:
    """Both are counted."""
    tale = again(opened().ran(A, 0, 1).note(how, A), 0, 1)  # type: ignore[arg-type]
    report = tale.judged()
    assert report.is_ok, report.explain()
    assert (report.counts["handled"], report.counts["duplicates"], report.counts["unclean losses"]) == (
        2,
        2,
        1,
    )


def test_a_displaced_member_is_an_unclean_loss() -> None:
    """B had the partition before A heard of it."""
    assert fine(again(opened().ran(A, 0, 1), 0, 1))


def test_a_restart_within_one_assignment_is_flagged() -> None:
    """It ended well and starts again for no reason."""
    assert broken(opened().ran(A, 0, 1, 0)) == ["DUPLICATES"]


def test_what_an_acknowledged_commit_covered_must_not_run_again() -> None:
    """By its offset, and by its metadata."""
    tale = opened().ran(A, 0).ran(A, 2).committed(A, 1, (2, 3)).note("dead", A)
    assert broken(again(tale, 0)) == ["DUPLICATES"]
    tale = opened().ran(A, 0).ran(A, 2).committed(A, 1, (2, 3)).note("dead", A)
    assert broken(again(tale, 2, start=1)) == ["DUPLICATES"]
    tale = opened().ran(A, 0).ran(A, 2).committed(A, 1, (2, 3)).note("dead", A)
    assert fine(again(tale, 1, 3, start=1))


def test_what_the_metadata_left_out_is_flagged() -> None:
    """It was done before the commit, and there was room."""
    tale = opened().ran(A, 0).ran(A, 2).committed(A, 1).note("dead", A)
    assert broken(again(tale, 2, start=1)) == ["DUPLICATES"]


def test_unreadable_metadata_covers_nothing_and_is_flagged() -> None:
    """Metadata of another offset: the engine would ignore it too."""
    tale = opened().ran(A, 0).ran(A, 2).committed(A, 1, text=encode(TP, 0, [(2, 3)]).text).note("dead", A)
    assert broken(again(tale, 2, start=1)) == ["DUPLICATES"]


def test_metadata_near_its_cap_may_leave_out() -> None:
    """Half of many records are done, here and there: the highest runs do not fit, the lowest must."""
    draw = random.Random(1)
    count = 60_000
    done = [offset for offset in range(1, count) if draw.random() < 0.5]
    encoded = encode(TP, 0, [(offset, offset + 1) for offset in done])
    assert encoded.truncated
    for offset, is_ok in ((done[-1], True), (done[0], False)):
        tale = Tale().sent(offset, key=None).given(A).polled(A, 0, count).ran(A, offset)
        again(tale.committed(A, 0, text=encoded.text).note("dead", A), offset, end=count)
        assert tale.judged().is_ok is is_ok


def test_what_metadata_cannot_hold_is_not_committed_by_a_clean_release_either() -> None:
    """It changes nothing in the commit, so none is sent; with no gap below the offset would say it."""
    draw = random.Random(1)
    count = 60_000
    text = encode(TP, 0, [(n, n + 1) for n in range(1, count) if draw.random() < 0.5]).text

    def full(*first: int) -> Tale:
        tale = Tale().sent(0, count, key=None).given(A).polled(A, 0, count + 1).committed(A, 0, text=text)
        return again(tale.ran(A, *first, count).revoked(A).released(A), count, end=count + 1)

    assert fine(full())
    assert broken(full(0)) == ["DUPLICATES"]


def test_after_a_refusal_metadata_may_be_short() -> None:
    """The broker's limit is lower: it was told, and committed again with less."""
    tale = opened().ran(A, 0).ran(A, 2).commit_sent(A, 1, (2, 3)).answered(A, "metadata_too_large")
    tale.committed(A, 1, text="").note("dead", A)
    assert fine(again(tale, 2, start=1))
    tale = opened().ran(A, 0).ran(A, 2).commit_sent(A, 1, (2, 3)).answered(A, "metadata_too_large")
    tale.committed(A, 1, text="").ran(A, 3).revoked(A).released(A)
    assert fine(again(tale, 3, start=1))
    tale = opened().ran(A, 2).commit_sent(A, 0, (2, 3)).answered(A, "metadata_too_large").committed(A, 0)
    assert fine(again(tale.revoked(A).released(A).deleted(2), 2, start=2)), "the gap is gone meanwhile"
    tale = opened().began(A, 0).note("lost", A).given(A).polled(A, 0, 4).ended(A, 0)
    tale.commit_sent(A, 0, (0, 1)).answered(A, "metadata_too_large").revoked(A).released(A)
    tale.given(A).polled(A, 0, 4).began(A, 0).ran(A, 1).revoked(A).wait(GRACE_MS).released(A)
    assert fine(again(tale, 1)), "the commit that listed the gap as done was refused"


def given_up(tale: Tale, offset: int) -> Tale:
    """Its last call failed, and its dead letter was acknowledged."""
    return tale.ran(A, offset, how="failed").note("done", A, offset, "dead_letter")


def test_what_was_given_up_is_done() -> None:
    """It starts again where a record that succeeded may: after an unclean loss that no commit covered."""
    assert broken(given_up(opened(), 0).ran(A, 0)) == ["DUPLICATES"]
    assert broken(again(given_up(opened(), 0).revoked(A).released(A), 0)) == ["DUPLICATES"]
    assert broken(again(given_up(opened(), 0).committed(A, 1).note("dead", A), 0)) == ["DUPLICATES"]
    assert fine(again(given_up(opened(), 0).note("dead", A), 0))


def test_what_was_given_up_is_no_gap() -> None:
    """A clean release has to commit what lies above it, however full the metadata is."""
    count = 60_000
    draw = random.Random(1)
    text = encode(TP, 0, [(n, n + 1) for n in range(1, count) if draw.random() < 0.5]).text
    tale = Tale().sent(0, count, key=None).given(A).polled(A, 0, count + 1).committed(A, 0, text=text)
    given_up(tale, 0).ran(A, count).revoked(A).released(A)
    assert broken(again(tale, count, end=count + 1)) == ["DUPLICATES"]


def test_behind_a_truncation_a_gap_is_what_was_not_done_again() -> None:
    """What it had done of the longer log is no longer done."""
    refused = opened().ran(A, 0).ran(A, 2).commit_sent(A, 1, (2, 3)).answered(A, "metadata_too_large")
    tale = refused.ran(A, 1, 3).committed(A, 4).truncated(3).note("seek", A, 0).polled(A, 0, 3)
    tale.ran(A, 0, how="failed").committed(A, 0).wait(10).ran(A, 1, 2).revoked(A).released(A)
    assert fine(again(tale, 0, 1, 2, end=3))


def test_a_refusal_does_not_excuse_what_lies_below_every_gap() -> None:
    """The offset alone says that it is done; also when the refusal was about another partition."""
    tale = opened().ran(A, 0).commit_sent(A, 1, (2, 3)).answered(A, "metadata_too_large").ran(A, 1, 2, 3)
    assert "DUPLICATES" in broken(again(tale.revoked(A).released(A), 0))
    other = TopicPartition("orders", 1)
    tale = opened().note("assign", A, tp=other).note("seek", A, 0, tp=other)
    tale.note("commit", A, 0, "x" * 200, tp=other)
    tale.note("answer", A, detail="metadata_too_large", tp=other).ran(A, 0, 1).revoked(A).released(A)
    assert broken(again(tale, 0)) == ["DUPLICATES"]


def test_what_completed_since_the_last_acknowledged_commit_may_run_again() -> None:
    """The commit sent after it was not acknowledged, or none was sent."""
    tale = opened().ran(A, 0).committed(A, 1).ran(A, 1).commit_sent(A, 2).answered(A, "retry").note("dead", A)
    assert fine(again(tale, 1, start=1))


def test_a_clean_release_leaves_nothing_behind() -> None:
    """Done before the drain was over and never committed: flagged. Committed: fine."""
    assert broken(again(opened().ran(A, 0).revoked(A).released(A), 0)) == ["DUPLICATES"]
    tale = opened().ran(A, 0).revoked(A).committed(A, 1).released(A)
    assert fine(again(tale, 1, start=1))


def test_a_member_frozen_through_its_drain_cannot_commit() -> None:
    """It wakes up when the time is over, and gives back at once; woken in time, it has to commit."""
    for asleep_ms, is_ok in ((GRACE_MS, True), (GRACE_MS - 100, False)):
        tale = opened().began(A, 0).revoked(A).ended(A, 0)
        tale.note("freeze", A).wait(asleep_ms).note("thaw", A).released(A)
        assert again(tale, 0).judged().is_ok is is_ok


def test_a_call_that_ends_within_the_grace_must_be_committed() -> None:
    """The revoke waited for it, and then committed too early."""
    tale = (
        opened().began(A, 0).revoked(A).commit_sent(A, 0).answered(A, "acknowledged").ended(A, 0).released(A)
    )
    assert broken(again(tale, 0)) == ["DUPLICATES"]


def test_a_call_that_outlived_the_grace_may_run_again() -> None:
    """It swallowed its cancellation and ended after the last commit was taken."""
    tale = opened().began(A, 0).revoked(A).wait(GRACE_MS).committed(A, 0).ended(A, 0).released(A)
    assert fine(again(tale, 0))
    tale = opened().began(A, 0).revoked(A).wait(GRACE_MS).committed(A, 0).ended(A, 0).released(A)
    assert fine(again(tale, 0), replace(RULES, max_revoke_grace_ms=None))


@pytest.mark.parametrize("answer", ["retry", "stale", "forbidden"])
def test_a_release_whose_commit_failed_is_unclean(answer: str) -> None:
    """It tried until its time was up, or was told that it need not try again."""
    tale = opened().ran(A, 0).revoked(A).commit_sent(A, 1).answered(A, answer)
    assert fine(again(tale.wait(GRACE_MS if answer == "retry" else 0).released(A), 0))


def test_a_release_that_gives_up_early_is_flagged() -> None:
    """One try failed, or another partition's commit was on its way, and seconds were left."""
    tale = opened().ran(A, 0).revoked(A).commit_sent(A, 1).answered(A, "retry").released(A)
    assert broken(again(tale, 0)) == ["DUPLICATES"]
    assert fine(again(tale, 0), replace(RULES, max_revoke_grace_ms=None)), "nobody knows how long it had"
    other = TopicPartition("orders", 1)
    tale = opened().note("assign", A, tp=other).note("seek", A, 0, tp=other).ran(A, 0)
    assert broken(again(tale.note("commit", A, 0, tp=other).revoked(A).released(A), 0)) == ["DUPLICATES"]


def test_a_release_with_a_commit_stuck_on_its_way_is_unclean() -> None:
    """Nobody answered until the time was up."""
    tale = opened().ran(A, 0).commit_sent(A, 1).ran(A, 1).revoked(A).wait(6_500).released(A)
    assert fine(again(tale, 0, 1))


def test_a_release_without_time_is_unclean() -> None:
    """The deadline had passed when the revoke began."""
    assert fine(again(opened().ran(A, 0).revoked(A, within_ms=-5).wait(10).released(A), 0))


def test_a_member_that_was_removed_is_unclean_whatever_it_did_since() -> None:
    """A commit was answered stale; what was done after it was never sent."""
    tale = opened().ran(A, 0).commit_sent(A, 1).answered(A, "stale").ran(A, 1).revoked(A).released(A)
    assert fine(again(tale, 0, 1))


def test_a_clean_stop_leaves_nothing_behind() -> None:
    """Done and not committed at the leave: flagged, unless that failed or came too late, and it says so."""
    assert broken(again(opened().ran(A, 0).note("leave", A), 0)) == ["DUPLICATES"]
    assert broken(again(opened().ran(A, 0).committed(A, 1).ran(A, 1).note("leave", A), 1)) == ["DUPLICATES"]
    tale = opened().ran(A, 0).commit_sent(A, 1).answered(A, "retry").note("leave", A)
    assert fine(again(tale.note("dead", A), 0))
    assert fine(again(opened().began(A, 0).committed(A, 0).ended(A, 0).note("leave", A).note("dead", A), 0))
    assert broken(again(opened().ran(A, 0).note("leave", A).note("dead", A), 0)) == ["DUPLICATES"]


def test_a_stop_that_ends_well_has_no_excuse() -> None:
    """Its process said that all is done and stored: then neither a refusal nor a late end counts."""
    tale = opened().ran(A, 0).commit_sent(A, 1).answered(A, "retry").note("leave", A)
    assert broken(again(tale, 0)) == ["DUPLICATES"]
    tale = opened().began(A, 0).committed(A, 0).ended(A, 0).note("leave", A)
    assert broken(again(tale, 0)) == ["DUPLICATES"]


def test_a_consumer_that_was_replaced_did_not_stop_cleanly() -> None:
    """The same member joins again: its partitions were lost."""
    assert fine(again(opened().ran(A, 0).note("leave", A), 0).note("join", A))
    assert fine(again(opened().ran(A, 0).note("leave", A).note("dead", A, detail=FAILED), 0)), (
        "nor a failed one"
    )


def test_a_straggler_counts_for_nobody() -> None:
    """What ends well after the release runs again at the next owner, adopted or not at its own."""
    released = opened().began(A, 0).revoked(A).wait(GRACE_MS).committed(A, 0).released(A)
    assert fine(again(released, 1).ended(A, 0).ran(B, 0))
    released = opened().began(A, 0).revoked(A).wait(GRACE_MS).committed(A, 0).released(A)
    assert fine(released.given(A).polled(A, 0, 4).ended(A, 0).ran(A, 0))


def test_what_was_adopted_and_stored_must_not_run_again() -> None:
    """A's straggler ended in A's next assignment, and A's commit says that it is done."""

    def adopted() -> Tale:
        return opened().began(A, 0).note("lost", A).given(A).polled(A, 0, 4).ended(A, 0)

    assert broken(again(adopted().committed(A, 1).note("dead", A), 0)) == ["DUPLICATES"]
    assert broken(again(adopted().committed(A, 1).revoked(A).released(A), 0)) == ["DUPLICATES"]
    assert fine(again(adopted().commit_sent(A, 1).answered(A, "retry").note("dead", A), 0))
    assert fine(again(adopted().ran(A, 1).note("dead", A), 0))
    passed_on = opened().began(A, 1).note("lost", A).given(A).polled(A, 0, 4).ended(A, 1)
    passed_on.committed(A, 0, (1, 2)).note("dead", A).given(B).polled(B, 0, 4)
    assert fine(passed_on.committed(B, 0).note("dead", B).given(C).polled(C, 0, 4).ran(C, 1))


def test_a_zombie_that_starts_what_others_did_is_no_matter_of_duplicates() -> None:
    """A was frozen past its session: its one late start is SERIAL's concern."""
    tale = opened().note("freeze", A).wait(15_000)
    again(tale, 0, 1).committed(B, 2).note("thaw", A)
    assert fine(tale.began(A, 0, lease_ms=15_100).ended(A, 0))


def test_restored_as_done_is_not_run_again_by_the_third_either() -> None:
    """B read A's metadata, committed without it, and died: C runs what A had stored."""
    tale = opened().ran(A, 2).committed(A, 0, (2, 3)).note("dead", A)
    again(tale, 0).committed(B, 1).note("dead", B)
    assert broken(tale.given(C, 1).polled(C, 1, 4).ran(C, 2)) == ["DUPLICATES"]


def test_restored_as_done_and_delivered_but_not_handled_is_fine() -> None:
    """The broker delivers it again; the engine does not hand it out."""
    tale = opened().ran(A, 2).committed(A, 0, (2, 3)).note("dead", A)
    assert fine(again(tale, 0, 1, 3).committed(B, 4))


def test_what_somebody_else_overwrote_may_run_again() -> None:
    """A tool wrote other metadata beside the offset: what was listed above it is not known any more."""
    tale = opened().ran(A, 0).ran(A, 2).committed(A, 1, (2, 3)).note("dead", A)
    assert fine(again(tale.note("fault", offset=1, detail=OVERWRITE), 2, start=1))
    tale = opened().ran(A, 0).ran(A, 2).committed(A, 1, (2, 3)).note("dead", A)
    assert broken(again(tale.note("fault", offset=1, detail=OVERWRITE), 0)) == ["DUPLICATES"]


def test_a_commit_in_the_moment_of_the_end_proves_nothing() -> None:
    """Noted in one moment: the commit may have been taken before."""
    tale = opened().ran(A, 0).ran(A, 2)
    tale.now_ms -= 1
    tale.committed(A, 1).note("dead", A)
    assert fine(again(tale, 2, start=1))


def test_after_a_truncation_all_may_run_again() -> None:
    """The member went back to where the log ends now."""
    tale = opened().ran(A, 0, 1, 2, 3).committed(A, 4).truncated(2).sent(2, 3, key=None)
    assert fine(tale.note("seek", A, 0).polled(A, 0, 4).ran(A, 0, 1, 2, 3))


def test_behind_a_truncation_nothing_runs_again_twice() -> None:
    """Once it has begun anew what ends well counts, for itself and for the next owner."""

    def anew() -> Tale:
        tale = opened().ran(A, 0, 1, 2, 3).committed(A, 4).truncated(2).note("seek", A, 0).polled(A, 0, 2)
        return tale.ran(A, 0, 1)

    assert broken(anew().ran(A, 0)) == ["DUPLICATES"]
    assert broken(again(anew().committed(A, 2).note("dead", A), 0, end=2)) == ["DUPLICATES"]
    assert fine(again(anew().note("dead", A), 0, 1, end=2))
    hung = opened().began(A, 0).truncated(2).note("seek", A, 0).polled(A, 0, 2).ended(A, 0)
    assert fine(hung.ran(A, 0)), "a call of before belongs to no offset"
    late = anew().committed(A, 2).note("dead", A).given(B, 4).note("seek", B, 0).polled(B, 0, 2)
    assert fine(late.ran(B, 0, 1)), "an older commit was stored late: it is found beyond the end"
    grown = opened().ran(A, 0, 1, 2, 3).committed(A, 4).truncated(2).note("seek", A, 0).polled(A, 0, 2)
    grown.ran(A, 0, 1).committed(A, 2).sent(*range(2, 8), key=None).note("seek", A, 2).polled(A, 2, 8)
    grown.ran(A, *range(2, 8)).committed(A, 8).revoked(A).released(A).given(B, 8).sent(8, key=None)
    assert broken(grown.polled(B, 8, 9).ran(B, 8).committed(B, 9).ran(B, 8)) == ["DUPLICATES"]


def test_a_commit_in_the_moment_of_the_end_counts_when_it_covers_the_record() -> None:
    """A clean stop committed it; a later owner had to drop the metadata, so it may run again."""
    tale = opened().ran(A, 0).ran(A, 2)
    ended = tale.events[-1]
    tale.commit_sent(A, 1, (2, 3))
    tale.events[-1] = tale.events[-1]._replace(at_ns=ended.at_ns + 3_000)
    tale.answered(A, "acknowledged").note("leave", A).given(B, 1).polled(B, 1, 4).ran(B, 3)
    tale.commit_sent(B, 1, (2, 4)).answered(B, "metadata_too_large").committed(B, 1).note("dead", B)
    assert fine(tale.given(C, 1).polled(C, 1, 4).ran(C, 1, 2, 3))


def test_a_release_while_another_commit_hangs_could_not_commit() -> None:
    """One commit at a time: that of another partition had no answer until the time was up."""
    other = TopicPartition("orders", 1)
    tale = opened().note("send", offset=0, tp=other).note("assign", A, tp=other).note("seek", A, 0, tp=other)
    tale.committed(A, 0).ran(A, 0).note("commit", A, 0, tp=other)
    tale.revoked(A, within_ms=8_000).wait(6_400).released(A)
    assert fine(again(tale, 0))
    slow = opened().note("send", offset=0, tp=other).note("assign", A, tp=other).note("seek", A, 0, tp=other)
    slow.note("commit", A, 0, tp=other).ran(A, 0).wait(6_000)
    assert fine(again(slow.revoked(A, within_ms=8_000).wait(6_400).released(A), 0)), "and of long before"
    clean = opened().committed(A, 0).ran(A, 0).revoked(A, within_ms=8_000).wait(6_400).released(A)
    assert broken(again(clean, 0)) == ["DUPLICATES"]
