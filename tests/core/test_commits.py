"""Tests of when to commit, what, and what each answer means: named cases (the machine is beside them)."""

from __future__ import annotations

import random

import pytest

from asyncpar.core.assignment import Event, Partition
from asyncpar.core.commits import (
    CommitClock,
    Consequence,
    MetadataBudget,
    by_partition,
    draft,
    drafts,
    follow_gate,
    is_stored,
    settle,
)
from asyncpar.core.offset_codec import MAX_CHARS, decode, decode_attempts
from asyncpar.core.virtual_partitions import ANY_OFFSET, NO_OFFSET, ReadyQueue
from asyncpar.records import CommitAnswer, Committed, TopicPartition
from tests.core.models import (
    TP,
    FakeRecord,
    commit_until_stored,
    deliver,
    may_fetch,
    offset_of,
    opened,
    queues_of,
    records,
    runs_of,
    settle_success,
    take,
    take_all,
    tracker_of,
)

OTHER = TopicPartition("orders", 4)


# -- when ------------------------------------------------------------------------------------


def test_a_commit_is_due_by_count_by_time_or_when_idle() -> None:
    """Whichever comes first, and never within 50 ms of the last one."""
    clock = CommitClock(commit_every=100, commit_interval_ms=1_000)
    assert clock.is_due(now=10.0, completed=0, idle=True)
    clock.committed(10.0, 0)
    assert not clock.is_due(10.049, 5_000, idle=True)
    assert clock.is_due(10.051, 0, idle=True)
    assert not clock.is_due(10.051, 99, idle=False)
    assert clock.is_due(10.051, 100, idle=False)
    assert not clock.is_due(10.9, 99, idle=False)
    assert clock.is_due(11.0, 1, idle=False)
    clock.committed(11.0, 100)
    assert not clock.is_due(11.1, 199, idle=False)


# -- what ------------------------------------------------------------------------------------


def test_a_draft_is_of_one_moment() -> None:
    """Offset and metadata are taken together; what is done afterwards is in neither."""
    handler = ReadyQueue("bill")
    partition = opened(route=handler)
    deliver(partition, records(0, 1, 2, 3))
    running = take_all(handler)
    settle_success(running[1])
    made = draft(partition, MetadataBudget())
    assert made is not None
    settle_success(running[0])
    settle_success(running[3])
    assert made.committed.offset == 0
    assert runs_of(made.committed) == [(1, 2)]


def test_what_the_broker_has_is_not_committed_again() -> None:
    """An idle partition costs no request; a new gap alone is worth one."""
    handler = ReadyQueue("bill")
    partition, budget = opened(route=handler), MetadataBudget()
    deliver(partition, records(0, 1))
    running = take_all(handler)
    assert commit_until_stored(partition, budget, MAX_CHARS) == Committed(0, "")
    assert draft(partition, budget) is None
    settle_success(running[1])
    stored = commit_until_stored(partition, budget, MAX_CHARS)
    assert stored is not None
    assert (stored.offset, runs_of(stored)) == (0, [(1, 2)])


@pytest.mark.parametrize("left_over", ["somebody's", "", None])
def test_what_others_wrote_beside_an_offset_is_replaced(left_over: str | None) -> None:
    """Also before anything is delivered; only what this member would write is left as it is."""
    partition = opened()
    partition.acknowledged = None if left_over is None else Committed(0, left_over)
    made = draft(partition, MetadataBudget())
    assert (made is None) == (left_over == "")
    assert made is None or made.committed == made.plain == Committed(0, "")


def test_a_draft_with_nothing_left_to_do_is_the_same_by_either_way() -> None:
    """The quick way of the ordinary case, and the way that looks at gaps, failures and the gate."""
    ways = []
    for is_quick in (True, False):
        handler = ReadyQueue("bill")
        partition = opened(route=handler)
        deliver(partition, records(0, 1, 2))
        for vp in take_all(handler):
            settle_success(vp)
        queues_of(partition).attempts = {} if is_quick else {1: 1}  # of a record that is done: forgotten
        partition.metadata_truncated = True
        made = draft(partition, MetadataBudget())
        assert made is not None
        assert settle(made, CommitAnswer.ACKNOWLEDGED, MetadataBudget()) is Consequence.STORED
        assert draft(partition, MetadataBudget()) is None
        assert made.generation == partition.generation
        ways.append((made.committed, made.plain, made.truncated, partition.metadata_truncated))
    assert ways[0] == ways[1] == (Committed(3, ""), Committed(3, ""), False, False)


def test_is_stored_compares_what_is_known_with_what_the_broker_has() -> None:
    """Also for a partition that was released meanwhile; one that never opened has nothing to store."""
    budget = MetadataBudget()
    assert is_stored(Partition(TP, 1), budget)
    handler = ReadyQueue("bill")
    partition = opened(route=handler)
    deliver(partition, records(0, 1))
    running = take_all(handler)
    commit_until_stored(partition, budget, MAX_CHARS)
    assert is_stored(partition, budget)
    settle_success(running[1])
    assert not is_stored(partition, budget)
    settle_success(running[0])
    assert not is_stored(partition, budget)
    commit_until_stored(partition, budget, MAX_CHARS)
    partition.apply(Event.LOSE)
    assert is_stored(partition, budget)


def test_only_partitions_with_offsets_of_their_own_are_committed() -> None:
    """Not while opening, halted without a position, or gone; halted and draining ones are."""
    budget = MetadataBudget()
    opening, gone, halted, draining = Partition(TP, 1), opened(), opened(), opened(tp=OTHER)
    gone.apply(Event.LOSE)
    halted.apply(Event.HALT)
    draining.apply(Event.REVOKE)
    halted_at_birth = Partition(TP, 1)
    halted_at_birth.apply(Event.HALT)
    made = drafts([opening, gone, halted, draining, halted_at_birth], budget)
    assert [one.partition for one in made] == [halted, draining]
    assert by_partition(made) == {TP: Committed(0, ""), OTHER: Committed(0, "")}
    reopening = opened()
    reopening.apply(Event.REOPEN)
    assert draft(reopening, budget) is None


def test_a_halted_partition_commits_what_ended_after_its_halt() -> None:
    """The queue is dropped, the running record ends and counts, its gap is in the metadata."""
    handler = ReadyQueue("bill")
    partition, budget = opened(route=handler), MetadataBudget()
    deliver(partition, records(0, 1, 2))
    running = take_all(handler)
    settle_success(running[1])
    partition.apply(Event.HALT)
    queues_of(partition).close([handler])
    assert not settle_success(running[2])
    tracker_of(partition).mark_done(2)
    stored = commit_until_stored(partition, budget, MAX_CHARS)
    assert stored is not None
    assert (stored.offset, runs_of(stored)) == (0, [(1, 3)])
    assert queues_of(partition).start_below == NO_OFFSET


# -- answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer", [answer for answer in CommitAnswer if answer is not CommitAnswer.ACKNOWLEDGED]
)
def test_only_an_acknowledgement_counts(answer: CommitAnswer) -> None:
    """A commit that was sent is not a commit: any other answer leaves it to be sent again."""
    partition, budget = opened(start=5), MetadataBudget()
    made = draft(partition, budget)
    assert made is not None
    assert settle(made, answer, budget) is not Consequence.STORED
    assert partition.acknowledged is None
    assert draft(partition, budget) == made


def test_an_acknowledgement_of_an_older_generation_is_dropped() -> None:
    """The partition began anew while the answer was under way: it says nothing about the new life."""
    partition, budget = opened(start=5), MetadataBudget()
    made = draft(partition, budget)
    assert made is not None
    partition.generation += 1
    assert settle(made, CommitAnswer.ACKNOWLEDGED, budget) is Consequence.STORED
    assert partition.acknowledged is None


def test_refusals_learn_the_brokers_limit() -> None:
    """Each refusal halves; one of a longer text than is sent now teaches nothing; little room is none."""
    budget = MetadataBudget()
    assert budget.max_chars == MAX_CHARS
    budget.refused(1_000)
    assert budget.max_chars == 500
    budget.refused(900)
    assert budget.max_chars == 500
    budget.refused(150)
    assert budget.max_chars == 75
    budget.refused(75)
    assert budget.max_chars == 0
    assert budget.is_clear(0, truncated=True)
    assert not budget.is_near_cap(0, truncated=True)


@pytest.mark.parametrize("limit", [0, 1, 16])
def test_a_broker_that_takes_no_metadata_does_not_slow_the_group(limit: int) -> None:
    """Where no run fits there is nothing to keep short: the gate stays open."""
    handler = ReadyQueue("bill")
    partition, budget = opened(route=handler), MetadataBudget()
    deliver(partition, records(*range(40)))
    running = take_all(handler)
    for done in (1, 3, 5, 7, 9, 11, 13, 30):
        settle_success(running[done])
        assert commit_until_stored(partition, budget, limit) in {Committed(0, ""), None}
        assert partition.metadata_truncated
    assert queues_of(partition).start_below == ANY_OFFSET


# -- the cap ---------------------------------------------------------------------------------


def test_near_the_cap_only_records_below_the_highest_done_offset_start() -> None:
    """The gate closes there, is visible as `metadata_truncated`, and opens again when there is room."""
    handler = ReadyQueue("bill")
    partition, budget = opened(route=handler), MetadataBudget()
    budget.max_chars = 64
    queues = queues_of(partition)
    deliver(partition, [FakeRecord(offset, b"%d" % (offset % 300)) for offset in range(600)])
    running = {offset_of(vp): vp for vp in take_all(handler)}
    assert sorted(running) == list(range(300))
    chosen = random.Random(3).sample(range(1, 300), 150)
    for offset in chosen:
        settle_success(running.pop(offset))
    assert draft(partition, budget) is not None
    assert queues.start_below == max(chosen) + 1
    assert take(handler) is None
    assert len(queues.held) == len(chosen)
    for offset in sorted(running):
        settle_success(running.pop(offset))
    assert commit_until_stored(partition, budget, MAX_CHARS) is not None
    assert queues.start_below == ANY_OFFSET
    assert take(handler) is not None


def test_the_gate_stays_closed_until_there_is_room_again() -> None:
    """Hysteresis: closed above three quarters of the limit, open again at half of it."""
    handler = ReadyQueue("bill")
    partition, budget = opened(route=handler), MetadataBudget()
    deliver(partition, records(*range(800)))
    running = take_all(handler)
    lengths = []
    for done in random.Random(6).sample(range(1, 800), 400):
        settle_success(running[done])
    longest = draft(partition, budget)
    assert longest is not None
    budget.max_chars = len(longest.committed.metadata) + 1
    for vp in running:
        settle_success(vp)
        made = draft(partition, budget)
        assert made is not None
        lengths.append((len(made.committed.metadata), queues_of(partition).start_below == ANY_OFFSET))
    closed = [length for length, is_open in lengths if not is_open]
    opened_at = next(length for length, is_open in lengths if is_open)
    assert max(closed) > budget.max_chars * 0.75
    assert budget.max_chars * 0.4 < opened_at <= budget.max_chars * 0.5 < min(closed)


def test_the_gate_follows_when_what_lies_above_it_is_too_long_by_itself() -> None:
    """Holes in what was fetched before the gate closed may fill the metadata with nothing done at all.

    Everything below the gate is done then and everything above it held: were the gate to stay, nothing
    would run again and no commit would move.
    """
    handler = ReadyQueue("bill")
    partition, budget = opened(route=handler), MetadataBudget()
    budget.max_chars = 100
    offsets = sorted(random.Random(4).sample(range(1_000_000), 300))
    deliver(partition, records(*offsets[:100]))
    assert draft(partition, budget) is not None
    assert queues_of(partition).start_below == offsets[99]
    deliver(partition, records(*offsets[100:]))
    drafts_taken = 0
    while tracker_of(partition).unfinished:
        running = take_all(handler)
        for vp in running:
            settle_success(vp)
        commit_until_stored(partition, budget, MAX_CHARS)
        drafts_taken += 1
        assert drafts_taken < 10
    assert queues_of(partition).start_below == ANY_OFFSET
    assert partition.acknowledged == Committed(offsets[-1] + 1, "")


def test_the_gate_opens_without_a_commit() -> None:
    """While no draft is made, because one waits for its answer; an open or a shut one stays as it is."""
    handler = ReadyQueue("bill")
    partition, budget = opened(route=handler), MetadataBudget()
    budget.max_chars = 100
    offsets = sorted(random.Random(4).sample(range(1_000_000), 100))
    deliver(partition, records(*offsets))
    assert not follow_gate(partition, budget)
    assert draft(partition, budget) is not None
    queues = queues_of(partition)
    assert queues.start_below == offsets[99]
    assert not follow_gate(partition, budget)
    for vp in take_all(handler):
        settle_success(vp)
    assert follow_gate(partition, budget)
    assert queues.start_below == ANY_OFFSET
    assert not partition.metadata_truncated
    queues.move_gate(NO_OFFSET)
    assert not follow_gate(partition, budget)


def test_a_restored_gap_near_the_cap_lets_the_fetch_fill_it() -> None:
    """After a restart the gate may lie beyond what was delivered: records up to it are fetched and run."""
    handler = ReadyQueue("bill")
    done = [(offset, offset + 1) for offset in random.Random(5).sample(range(1, 600), 200)]
    partition, budget = opened(done=done, route=handler), MetadataBudget()
    budget.max_chars = 80
    assert draft(partition, budget) is not None
    assert partition.metadata_truncated
    assert may_fetch(partition)
    deliver(partition, records(*range(700)))
    for _ in range(3):
        for vp in take_all(handler):
            settle_success(vp)
        commit_until_stored(partition, budget, MAX_CHARS)
    assert partition.acknowledged == Committed(700, "")
    assert not partition.metadata_truncated


def test_offsets_without_queues_are_committed_too() -> None:
    """The gate is steered only where there are queues."""
    partition = opened(start=3)
    partition.queues = None
    made = draft(partition, MetadataBudget())
    assert made is not None
    assert made.committed == Committed(3, "")


# -- attempts --------------------------------------------------------------------------------


def test_failures_alone_are_committed_at_the_end_of_an_assignment_only() -> None:
    """They go along with whatever is committed, and with the last commit; stale ones are dropped."""
    handler, budget = ReadyQueue("bill"), MetadataBudget()
    partition = opened(route=handler)
    deliver(partition, records(0, 1, 2))
    queues, running = queues_of(partition), take_all(handler)
    settle_success(running[1])
    queues.attempts.update({0: 3, 2: 0})
    first = draft(partition, budget)
    assert first is not None
    assert decode_attempts(TP, 0, first.committed.metadata) == {0: 3}
    assert decode(TP, 0, first.plain.metadata) == [(1, 2)]
    settle(first, CommitAnswer.ACKNOWLEDGED, budget)
    queues.attempts[0] = 4
    assert draft(partition, budget) is None
    assert is_stored(partition, budget)
    queues.unfinished.pop(0)
    moved = draft(partition, budget)
    assert moved is not None
    assert moved.committed == moved.plain
    assert 0 not in queues.attempts
    settle(moved, CommitAnswer.ACKNOWLEDGED, budget)
    queues.attempts[2] = 5
    assert draft(partition, budget) is None
    partition.apply(Event.REVOKE)
    last = draft(partition, budget)
    assert last is not None
    assert decode_attempts(TP, 2, last.committed.metadata) == {2: 5}


def test_failures_that_were_given_back_are_committed_by_themselves() -> None:
    """Else a process that is killed now leaves them to the next one as used up."""
    handler, budget = ReadyQueue("bill"), MetadataBudget()
    partition = opened(route=handler)
    deliver(partition, records(0, 1, 2))
    queues, running = queues_of(partition), take_all(handler)
    settle_success(running[1])
    queues.attempts.update({0: 3, 2: 1})
    first = draft(partition, budget)
    assert first is not None
    settle(first, CommitAnswer.ACKNOWLEDGED, budget)
    queues.attempts[0] = 2
    given_back = draft(partition, budget)
    assert given_back is not None
    assert decode_attempts(TP, 0, given_back.committed.metadata) == {0: 2, 2: 1}
    settle(given_back, CommitAnswer.RETRY, budget)
    assert draft(partition, budget) is not None
    settle(given_back, CommitAnswer.ACKNOWLEDGED, budget)
    queues.attempts[2] = 2
    assert draft(partition, budget) is None
    queues.attempts.clear()
    last = draft(partition, budget)
    assert last is not None
    assert last.committed == last.plain
