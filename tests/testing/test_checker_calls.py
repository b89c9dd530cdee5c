"""ORDER and SERIAL: hand-made histories, bad ones that must be flagged and good ones that must pass."""

from __future__ import annotations

from dataclasses import replace

import pytest

from asyncpar.records import TopicPartition
from asyncpar.testing.checkers import Rules
from asyncpar.testing.history import FAILED
from tests.testing.tale import GRACE_MS, RULES, SESSION_MS, TP, Tale, broken, fine

A, B, C = "member-a", "member-b", "member-c"
CALLS_ONLY = Rules(replays="any")


def opened(count: int = 3, key: bytes | None = b"k") -> Tale:
    """`count` records of one key, all delivered to A."""
    return Tale().sent(*range(count), key=key).given(A).polled(A, 0, count)


# -- ORDER ---------------------------------------------------------------------------------------


def test_a_plain_run_is_fine() -> None:
    """Record after record, with a failed attempt in between."""
    tale = opened().ran(A, 0).ran(A, 1, how="failed").ran(A, 1, 2).committed(A, 3)
    report = tale.judged()
    assert report.is_ok, report.explain()
    assert (report.counts["handled"], report.counts["duplicates"]) == (3, 0)


@pytest.mark.parametrize("rules", [RULES, CALLS_ONLY])
def test_overtaking_is_flagged(rules: Rules) -> None:
    """A record that starts before the one ahead of it in its key."""
    assert broken(opened().ran(A, 0, 2, 1), rules) == ["ORDER"]


@pytest.mark.parametrize("rules", [RULES, CALLS_ONLY])
def test_going_on_behind_a_failure_is_flagged(rules: Rules) -> None:
    """The record ahead failed and nobody settled it."""
    assert broken(opened().ran(A, 0).ran(A, 1, how="failed").ran(A, 2), rules) == ["ORDER"]


def test_a_skip_settles() -> None:
    """`done` lets the key go on."""
    tale = opened().ran(A, 0).ran(A, 1, how="failed").note("done", A, 1, "skipped").ran(A, 2).committed(A, 3)
    assert fine(tale)


def test_a_replay_in_the_wrong_order_is_flagged() -> None:
    """After a death the next member runs all of it again, but swaps two."""
    tale = opened().ran(A, 0, 1, 2).note("dead", A).given(B).polled(B, 0, 3)
    assert broken(tale.ran(B, 0, 2, 1)) == ["ORDER"]


def test_a_replay_by_the_same_member_needs_its_new_start() -> None:
    """Lost and given again: from the restored offset on it is a replay, one time through."""
    tale = opened().ran(A, 0, 1, 2).note("lost", A).given(A).polled(A, 0, 3).ran(A, 0, 1, 2)
    assert fine(tale)


def test_a_replay_must_not_skip() -> None:
    """What the dead one did and never committed comes again in turn; what was restored as done does not."""
    tale = opened(4).ran(A, 0, 1, 2).note("dead", A).given(B).polled(B, 0, 4)
    assert broken(tale.ran(B, 0, 2)) == ["ORDER"]
    tale = opened(4).ran(A, 0, 1, 2).note("dead", A).given(B).polled(B, 0, 4)
    assert broken(tale.ran(B, 2)) == ["ORDER"]
    tale = (
        Tale().sent(0, key=b"x").sent(1, 2, 3).given(A).polled(A, 0, 4).ran(A, 1, 2).commit_sent(A, 0, (1, 3))
    )
    assert fine(tale.note("dead", A).given(B).polled(B, 0, 4).ran(B, 0, 3).committed(B, 4))


def test_a_refused_commit_says_nothing_of_what_is_stored() -> None:
    """A zombie's lower commit after the one that C begins from: what that one lists stays done."""
    tale = Tale().sent(0, 2, 3).sent(1, key=b"x").given(A).given(B).polled(B, 0, 4).ran(B, 0, 2)
    tale.committed(B, 1, (2, 3)).commit_sent(A, 0).answered(A, "stale").note("lost", A).note("dead", B)
    assert fine(tale.given(C, 1).polled(C, 1, 4).ran(C, 1, 3).committed(C, 4))


def test_a_replay_may_skip_what_its_own_straggler_has_done_since() -> None:
    """Adopted; what it had done before its new assignment is not known any more."""
    tale = opened(4).ran(A, 0).began(A, 1).note("lost", A).given(A).ended(A, 1).polled(A, 0, 4)
    assert fine(tale.ran(A, 0, 2))
    both = opened(4).ran(A, 0).began(A, 1).note("lost", A).given(B).polled(B, 0, 4).ran(B, 0).began(B, 1)
    both.note("lost", B).given(A).ended(A, 1).ended(B, 1).polled(A, 0, 4)
    assert fine(both.ran(A, 0, 2)), "two stragglers, and the last of them was not its own"
    tale = opened(4).ran(A, 0).began(A, 1).note("lost", A).ended(A, 1).given(A).polled(A, 0, 4)
    assert broken(tale.ran(A, 0, 2)) == ["ORDER"]


def test_a_member_that_was_replaced_finds_what_its_successor_has_committed() -> None:
    """It asks for its place late: what was committed by then counts, what is committed later does not."""
    replaced = Tale().sent(0, key=b"x").sent(1, 2, 3).note("assign", B).given(A).polled(A, 0, 4).ran(A, 1)
    tale = replaced.committed(A, 0, (1, 2)).note("seek", B, 0).polled(B, 0, 4)
    assert fine(tale.began(B, 2, lease_ms=100).ended(B, 2))
    replaced = Tale().sent(0, key=b"x").sent(1, 2, 3).note("assign", B).given(A).polled(A, 0, 4).ran(A, 1)
    tale = replaced.note("seek", B, 0).committed(A, 0, (1, 2)).polled(B, 0, 4)
    assert broken(tale.began(B, 2, lease_ms=100).ended(B, 2)) == ["ORDER"]


def test_what_is_gone_or_passed_over_leaves_no_gap() -> None:
    """Deleted after the dead one had done it: the next one begins behind it."""
    tale = opened(4).ran(A, 0, 1, 2).note("dead", A).given(B).deleted(3).note("seek", B, 3).polled(B, 3, 4)
    assert fine(tale.ran(B, 3).committed(B, 4))


def test_equal_keys_in_two_partitions_have_no_order() -> None:
    """A key's order is a matter of its partition."""
    other = TopicPartition("orders", 1)
    tale = Tale().sent(0).note("send", offset=0, key=b"k", tp=other).given(A).note("assign", A, tp=other)
    tale.note("start", A, 0, key=b"k", tp=other).ran(A, 0).note("end", A, 0, "ok", b"k", tp=other)
    assert fine(tale)


def test_a_step_back_within_an_assignment_is_flagged() -> None:
    """What another one did before is a replay once; going back in it again is not."""
    tale = opened().ran(A, 0, 1, 2).note("dead", A).given(B).polled(B, 0, 3).ran(B, 1).ran(B, 0)
    assert broken(tale) == ["ORDER"]
    assert fine(tale, CALLS_ONLY)


def test_a_seek_back_is_a_replay() -> None:
    """The log was cut below the position: the member goes back, and so may the key."""
    tale = opened().ran(A, 0, 1, 2).truncated(1).sent(1, 2).note("seek", A, 0).polled(A, 0, 3)
    assert fine(tale.ran(A, 0, 1, 2))


def test_other_keys_do_not_wait() -> None:
    """Order is per key; keyless records have none."""
    keyed = Tale().sent(0, 2).sent(1, key=b"x").given(A).polled(A, 0, 3)
    assert fine(keyed.began(A, 0).ran(A, 1).ended(A, 0).ran(A, 2))
    assert fine(opened(key=None).began(A, 0).ran(A, 2, 1).ended(A, 0))


def test_order_by_partition() -> None:
    """With `order="partition"` all records wait for each other, with "unordered" none."""
    tale = Tale().sent(0, 2).sent(1, key=b"x").given(A).polled(A, 0, 3).ran(A, 1, 0, 2)
    assert fine(tale)
    assert broken(tale, replace(RULES, order="partition")) == ["ORDER"]
    swapped = opened().ran(A, 1, 0, 2)
    assert broken(swapped) == ["ORDER"]
    assert fine(swapped, replace(RULES, order="unordered"))


def test_followers_of_a_lost_record_are_not_to_blame() -> None:
    """A record that no handler was given is LOST at the commit that passes it, and nothing else."""
    assert broken(opened().ran(A, 0, 2).committed(A, 3)) == ["LOST"]


def test_an_adopted_straggler_is_in_order() -> None:
    """A's call outlives its revoke, A gets the partition back, and the key goes on behind it."""
    tale = opened().ran(A, 0).began(A, 1).revoked(A).wait(GRACE_MS).committed(A, 1).released(A)
    tale.given(A, 1).polled(A, 1, 3).ended(A, 1).ran(A, 2).committed(A, 3)
    assert fine(tale)


def test_an_overtaken_straggler_is_flagged() -> None:
    """A gets the partition back and starts the key's next record while its straggler still runs."""
    tale = opened().ran(A, 0).began(A, 1).revoked(A).wait(GRACE_MS).committed(A, 1).released(A)
    assert broken(tale.given(A, 1).polled(A, 1, 3).began(A, 2)) == ["ORDER", "SERIAL"]


THREE_ATTEMPTS = replace(RULES, attempts=3)


def test_a_partition_halts_when_the_attempts_are_used_up() -> None:
    """Neither the record nor another one starts behind the last attempt; what runs may end."""
    tale = Tale().sent(0).sent(1, 2, key=b"x").given(A).polled(A, 0, 3).began(A, 1)
    tale.ran(A, 0, 0, 0, how="failed").ended(A, 1)
    assert fine(tale, THREE_ATTEMPTS)
    assert fine(opened().ran(A, 0, 0, how="failed").ran(A, 0), THREE_ATTEMPTS)
    for offset in (0, 2):
        halted = Tale().sent(0).sent(1, 2, key=b"x").given(A).polled(A, 0, 3).ran(A, 1)
        halted.ran(A, 0, 0, 0, how="failed").ran(A, offset)
        assert broken(halted, THREE_ATTEMPTS) == ["ORDER"]
        assert fine(halted)


def test_what_has_halted_goes_on_behind_a_seek_or_elsewhere() -> None:
    """Somebody let it run again, or another member has it: attempts are counted anew."""
    tale = opened().ran(A, 0, 0, 0, how="failed").note("seek", A, 0).polled(A, 0, 3)
    assert fine(tale.ran(A, 0, 0, how="failed").ran(A, 0, 1, 2), THREE_ATTEMPTS)
    tale = opened().ran(A, 0, 0, 0, how="failed").revoked(A).released(A).given(B).polled(B, 0, 3)
    assert fine(tale.ran(B, 0, how="failed").ran(B, 0, 1, 2), THREE_ATTEMPTS)
    late = opened().began(A, 0).ran(A, 1, 1, how="failed").note("seek", A, 0).polled(A, 0, 3)
    late.ended(A, 0, "failed").ran(A, 0, 0, how="failed").ran(A, 0)
    assert fine(late, replace(THREE_ATTEMPTS, order="unordered")), "a straggler's failure is not its attempt"


def test_unknown_records_are_flagged() -> None:
    """An offset that nobody sent, and a key that it was not sent with."""
    assert broken(opened().ran(A, 7)) == ["UNKNOWN"]
    assert broken(opened().note("start", A, 0, key=b"other")) == ["UNKNOWN"]


# -- SERIAL: overlaps ----------------------------------------------------------------------------


@pytest.mark.parametrize("rules", [RULES, CALLS_ONLY])
def test_a_record_that_runs_twice_at_once_is_flagged(rules: Rules) -> None:
    """Also without a key."""
    assert broken(opened().began(A, 0).began(A, 0).ended(A, 0, "failed").ended(A, 0), rules) == ["SERIAL"]
    keyless = opened(key=None).began(A, 0).began(A, 0).ended(A, 0, "failed").ended(A, 0)
    assert broken(keyless, rules) == ["SERIAL"]


def test_two_members_at_once_are_flagged() -> None:
    """B runs what A runs, though A was never told to stop (here: B has no assignment of its own)."""
    tale = opened().began(A, 0).began(B, 0).ended(A, 0).ended(B, 0)
    assert broken(tale) == ["SERIAL"]
    assert broken(tale, CALLS_ONLY) == ["SERIAL"]


def test_a_short_call_inside_a_long_one_hides_nothing() -> None:
    """Each call is compared with all that run."""
    tale = opened().began(A, 0).began(A, 0).ended(A, 0, "failed").began(A, 0)
    assert len(tale.judged().faults) == 2


def test_calls_of_the_dead_have_ended() -> None:
    """What ran at the death overlaps with nothing."""
    tale = opened().began(A, 0).note("dead", A).given(B).polled(B, 0, 3).ran(B, 0, 1, 2).committed(B, 3)
    assert fine(tale)
    assert fine(tale, CALLS_ONLY)


def test_a_straggler_that_outlived_the_grace_is_excused() -> None:
    """B may run the record while A's call goes on; it is counted."""
    tale = opened().began(A, 0).revoked(A).wait(GRACE_MS).released(A)
    tale.given(B).polled(B, 0, 3).began(B, 0).ended(A, 0).ended(B, 0).ran(B, 1, 2).committed(B, 3)
    assert fine(tale)
    assert tale.judged().counts["stragglers"] == 1


def test_the_deadline_of_the_group_cuts_the_grace_short() -> None:
    """The drain's time is the deadline less 1.5 s for the commit, when that is before the grace."""
    assert fine(opened().began(A, 0).revoked(A, within_ms=3_000).wait(1_600).released(A))
    assert broken(opened().began(A, 0).revoked(A, within_ms=3_000).wait(1_300).released(A)) == ["SERIAL"]


def test_a_revoke_that_does_not_wait_is_flagged() -> None:
    """It returned with a call running, long before its time was up."""
    assert broken(opened().began(A, 0).revoked(A).wait(500).released(A)) == ["SERIAL"]


def test_a_revoke_waits_once_for_a_straggler() -> None:
    """It outlived the grace of the revoke before; and one of before a truncation belongs to no offset."""
    tale = opened().began(A, 0).revoked(A).wait(GRACE_MS).released(A).given(A).revoked(A).released(A)
    assert fine(tale)
    assert fine(opened().began(A, 0).truncated(0).note("seek", A, 0).revoked(A).released(A))
    tale = opened().truncated(1).note("seek", A, 0).began(A, 0).revoked(A).released(A)
    assert broken(tale) == ["SERIAL"]


def test_nobody_waits_for_a_record_that_was_deleted() -> None:
    """The handler of 0 may go on beyond the end of revoke and stop; that of 1 is still in the log."""
    rules = replace(RULES, shutdown_drain_timeout_ms=3_000)
    assert fine(opened().began(A, 0).deleted(1).revoked(A).released(A))
    assert fine(opened().began(A, 0).deleted(1).note("leave", A), rules)
    assert broken(opened().ran(A, 0).began(A, 1).deleted(1).revoked(A).released(A)) == ["SERIAL"]
    assert broken(opened().ran(A, 0).began(A, 1).deleted(1).note("leave", A), rules) == ["SERIAL"]


def test_a_revoke_that_returns_after_its_deadline_is_flagged() -> None:
    """Unless the member was frozen meanwhile."""
    assert broken(opened().ran(A, 0).revoked(A, within_ms=3_000).wait(4_000).released(A)) == ["SERIAL"]
    frozen = opened().ran(A, 0).revoked(A, within_ms=3_000).note("freeze", A).wait(4_000).note("thaw", A)
    assert fine(frozen.released(A))


def test_a_revoke_without_time_may_return_late() -> None:
    """Its deadline had passed when it began: it cancels what runs and returns."""
    assert fine(opened().began(A, 0).revoked(A, within_ms=-10).wait(500).released(A))


def test_a_stop_that_does_not_wait_is_flagged() -> None:
    """A call that runs at the leave must have run for the whole drain timeout."""
    rules = replace(RULES, shutdown_drain_timeout_ms=3_000)
    assert broken(opened().began(A, 0).wait(2_000).note("leave", A), rules) == ["SERIAL"]
    assert fine(opened().began(A, 0).wait(3_000).note("leave", A), rules)
    assert fine(opened().began(A, 0).wait(2_000).note("leave", A))
    failed = opened().began(A, 0).wait(2_000).note("leave", A)
    assert broken(failed.note("dead", A), rules) == ["SERIAL"]
    failed = opened().began(A, 0).wait(2_000).note("leave", A)
    assert fine(failed.note("dead", A, detail=FAILED), rules), "it had no time to wait"
    cut = opened().truncated(1).note("seek", A, 0).began(A, 0).wait(2_000).note("leave", A)
    assert broken(cut, rules) == ["SERIAL"]
    assert fine(opened().began(A, 0).truncated(1).note("seek", A, 0).note("leave", A), rules)


def test_calls_of_a_member_that_lost_its_partition_are_excused() -> None:
    """Lost, then run elsewhere while the old call still goes on."""
    tale = opened().began(A, 0).note("lost", A).given(B).polled(B, 0, 3).began(B, 0).ended(B, 0)
    assert fine(tale.ended(A, 0, "cancelled").ran(B, 1, 2).committed(B, 3))


def test_calls_of_a_member_that_was_cut_off_are_excused() -> None:
    """B has the partition before A heard of anything."""
    tale = opened().began(A, 0).given(B).polled(B, 0, 3).began(B, 0).ended(B, 0).ended(A, 0)
    assert fine(tale.note("lost", A).ran(B, 1, 2).committed(B, 3))


def test_a_frozen_call_is_excused_where_only_calls_are_known() -> None:
    """Without assignments the freeze itself tells of the straggler."""
    tale = opened().began(A, 0).note("freeze", A).began(B, 0).ended(B, 0).note("thaw", A).ended(A, 0)
    assert fine(tale, CALLS_ONLY)
    before = opened().note("freeze", A).note("thaw", A).began(A, 0).began(B, 0).ended(B, 0).ended(A, 0)
    assert broken(before, CALLS_ONLY) == ["SERIAL"]


def test_a_straggler_excuses_no_overlap_within_its_own_member() -> None:
    """A gets the partition back and runs the record a second time beside its straggler."""
    tale = opened().began(A, 0).note("lost", A).given(A).polled(A, 0, 3).began(A, 0)
    assert broken(tale) == ["SERIAL"]


# -- SERIAL: who may start -----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["revoke", "lost"])
def test_a_start_after_the_end_of_its_assignment_is_flagged(how: str) -> None:
    """The gate is closed in the same breath."""
    tale = opened().ran(A, 0)
    tale = tale.revoked(A) if how == "revoke" else tale.note("lost", A)
    assert broken(tale.ran(A, 1)) == ["SERIAL"]


def test_a_start_in_the_breath_of_the_revoke_is_fine() -> None:
    """What a thread notes a little later is within the tolerance."""
    tale = opened().ran(A, 0).revoked(A).ran(A, 1).released(A)
    assert fine(tale, replace(RULES, tolerance_ns=5_000_000))


def test_a_start_without_an_assignment_is_flagged() -> None:
    """Nobody gave B the partition."""
    assert broken(opened().ran(A, 0).ran(B, 1)) == ["SERIAL"]


def test_a_start_past_the_lease_is_flagged() -> None:
    """The last sign of membership is older than the session timeout."""
    assert fine(opened().began(A, 0, lease_ms=SESSION_MS - 500).ended(A, 0))
    assert broken(opened().began(A, 0, lease_ms=SESSION_MS + 500).ended(A, 0)) == ["SERIAL"]


def woken(starts: int) -> Tale:
    """A is frozen past its session, B takes over, A thaws and starts `starts` records of one sign."""
    tale = Tale().sent(*range(6), key=None).given(A).polled(A, 0, 6).note("freeze", A).wait(15_000)
    tale.given(B).polled(B, 0, 6).note("thaw", A)
    for offset in range(starts):
        tale.began(A, offset, lease_ms=15_100)
    return tale


def test_one_late_start_per_slot_of_a_freeze_is_excused() -> None:
    """Its check came before the freeze; a second one on the same slot had none."""
    assert fine(woken(1))
    assert woken(1).judged().counts["late starts"] == 1
    assert broken(woken(2)) == ["SERIAL"]
    assert fine(woken(2), replace(RULES, slots=2))
    assert broken(woken(3), replace(RULES, slots=2)) == ["SERIAL"]


def test_a_late_start_comes_at_once_after_the_freeze() -> None:
    """What was about to start when the member froze starts as soon as it runs on, and not a second later."""
    for awake_ms, is_ok in ((40, True), (1_000, False)):
        tale = opened().note("freeze", A).wait(15_000).note("thaw", A).wait(awake_ms)
        assert tale.began(A, 0, lease_ms=15_100 + awake_ms).ended(A, 0).judged().is_ok is is_ok
    again = opened().note("freeze", A).wait(15_000).note("thaw", A).note("freeze", A).wait(5_000)
    assert fine(again.note("thaw", A).began(A, 0, lease_ms=20_100).ended(A, 0)), "it stood still once more"
    told = opened().note("freeze", A).wait(15_000).note("thaw", A).note("lost", A).given(B).wait(60_000)
    assert broken(told.began(A, 0, lease_ms=75_100)) == ["SERIAL"]


def test_a_freeze_long_ago_excuses_nothing() -> None:
    """The member ran on well before its lease ended."""
    tale = opened().note("freeze", A).wait(100).note("thaw", A).wait(20_000)
    assert broken(tale.began(A, 0, lease_ms=SESSION_MS + 5_000).ended(A, 0)) == ["SERIAL"]


def test_a_displaced_member_may_start_only_within_its_lease() -> None:
    """It was removed by somebody else's hand and does not know yet."""
    tale = opened(6).ran(A, 0).given(B).polled(B, 0, 6)
    assert fine(tale.began(A, 1, lease_ms=100).ended(A, 1).note("lost", A))
    assert broken(opened(6).ran(A, 0).given(B).ran(A, 1)) == ["SERIAL"]


def test_a_fault_shows_what_led_to_it() -> None:
    """Its text names the place, its events the culprits; the report counts and shows the first."""
    report = opened().began(A, 0).began(A, 0).judged()
    (fault,) = report.faults
    assert str(TP) in fault.text
    assert [event.kind for event in fault.events] == ["start", "start"]
    assert "1 SERIAL" in report.explain()
    assert f"{A} start {TP} 0" in report.explain()
