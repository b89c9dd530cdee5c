"""Commits as a state machine: one partition, and a broker that stores, refuses, loses or answers late."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from asyncpar.core.commits import Consequence, Draft, MetadataBudget, draft, settle
from asyncpar.core.offset_codec import MAX_CHARS
from asyncpar.core.virtual_partitions import ANY_OFFSET, ReadyQueue, VirtualPartition
from asyncpar.records import CommitAnswer, Committed
from tests.core.models import (
    FakeRecord,
    bounded,
    commit_until_stored,
    deliver,
    may_fetch,
    offset_of,
    opened,
    queues_of,
    runs_of,
    settle_success,
    take,
    take_all,
    tracker_of,
)


class CommitMachine(RuleBasedStateMachine):
    """One partition, its committer, and a broker that stores, refuses or loses."""

    def __init__(self) -> None:
        super().__init__()
        self.handler = ReadyQueue("bill")
        self.partition = opened(route=self.handler)
        self.budget = MetadataBudget()
        self.broker_limit = MAX_CHARS
        self.stored: Committed | None = None
        self.pending: tuple[Draft, frozenset[int]] | None = None
        self.running: list[VirtualPartition] = []
        self.done: set[int] = set()
        self.last = -1

    @initialize(limit=st.sampled_from([MAX_CHARS, 300, 100, 64, 40, 21, 15, 0]), learned=st.booleans())
    def meet_broker(self, limit: int, learned: bool) -> None:
        """The broker's limit is known already, or is learned from refusals."""
        self.broker_limit = limit
        if learned:
            self.budget.max_chars = limit

    # -- what happens ------------------------------------------------------------------------

    @rule(
        gaps=st.lists(st.one_of(st.integers(1, 3), st.integers(1, 5_000)), min_size=1, max_size=12),
        keys=st.sampled_from([[None], [None, b"a"], [b"a", b"b", b"c"]]),
        in_flight_before=st.booleans(),
    )
    def fetch(self, gaps: list[int], keys: list[bytes | None], in_flight_before: bool) -> None:
        """A chunk arrives; with `in_flight_before` it was asked for before the gate closed."""
        if not (in_flight_before or may_fetch(self.partition)):
            return
        chunk = []
        for number, gap in enumerate(gaps):
            self.last += gap
            chunk.append(FakeRecord(self.last, keys[number % len(keys)]))
        deliver(self.partition, chunk)

    @rule(count=st.integers(1, 10))
    def start(self, count: int) -> None:
        """Workers take what the gate lets through."""
        for _ in range(count):
            vp = take(self.handler)
            if vp is None:
                return
            assert offset_of(vp) < queues_of(self.partition).start_below
            self.running.append(vp)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        """A running record succeeds."""
        vp = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.done.add(offset_of(vp))
        assert settle_success(vp)

    @precondition(lambda self: self.pending is None)
    @rule()
    def take_draft(self) -> None:
        """A commit is taken and sent: what it says is done at this moment."""
        tracker = tracker_of(self.partition)
        made = draft(self.partition, self.budget)
        if made is None:
            assert self.partition.acknowledged is not None
            assert self.partition.acknowledged.offset == tracker.hwm
            return
        assert made.committed.offset <= min(tracker.unfinished, default=tracker.position)
        assert len(made.committed.metadata) <= self.budget.max_chars
        runs = runs_of(made.committed)
        assert runs == tracker.done_runs()[: len(runs)]
        assert made.truncated is (len(runs) < len(tracker.done_runs()))
        self.pending = (made, frozenset(tracker.unfinished))

    @precondition(lambda self: self.pending is not None)
    @rule(answer=st.sampled_from(CommitAnswer), lost_answer=st.booleans())
    def answer(self, answer: CommitAnswer, lost_answer: bool) -> None:
        """The broker answers, after more was finished; a lost answer may have been stored."""
        assert self.pending is not None
        (made, unfinished_then), self.pending = self.pending, None
        if len(made.committed.metadata) > self.broker_limit:
            answer = CommitAnswer.METADATA_TOO_LARGE
        elif answer is CommitAnswer.METADATA_TOO_LARGE:
            answer = CommitAnswer.ACKNOWLEDGED
        before = self.partition.acknowledged
        consequence = settle(made, answer, self.budget)
        if answer is CommitAnswer.ACKNOWLEDGED or (answer is CommitAnswer.RETRY and lost_answer):
            self._store(made.committed, unfinished_then)
        assert (consequence is Consequence.STORED) is (answer is CommitAnswer.ACKNOWLEDGED)
        expected = made.committed if answer is CommitAnswer.ACKNOWLEDGED else before
        assert self.partition.acknowledged == expected

    def _store(self, committed: Committed, unfinished_then: frozenset[int]) -> None:
        assert self.stored is None or committed.offset >= self.stored.offset
        assert all(offset >= committed.offset for offset in unfinished_then)
        for first, end in runs_of(committed):
            assert not any(first <= offset < end for offset in unfinished_then)
        self.stored = committed

    # -- what always holds -------------------------------------------------------------------

    @invariant()
    def the_broker_never_has_more_than_is_done(self) -> None:
        """What is stored passes nothing unfinished, and its runs list nothing unfinished."""
        tracker = tracker_of(self.partition)
        if self.stored is not None:
            assert self.stored.offset <= tracker.hwm
            assert all(tracker.is_done(first) for first, _ in runs_of(self.stored))

    def teardown(self) -> None:
        """From wherever this stands: run, commit, run; the gate opens and everything gets done."""
        self.pending = None
        tracker = tracker_of(self.partition)
        for _ in range(2 * len(tracker.unfinished) + 4):
            self.running += take_all(self.handler)
            while self.running:
                self.finish_last()
            commit_until_stored(self.partition, self.budget, self.broker_limit)
        assert tracker.unfinished == {}
        assert queues_of(self.partition).start_below == ANY_OFFSET
        assert self.partition.acknowledged == Committed(tracker.position, "")

    def finish_last(self) -> None:
        """The record that was taken last succeeds first."""
        vp = self.running.pop()
        self.done.add(offset_of(vp))
        assert settle_success(vp)


CommitMachine.TestCase.settings = bounded(45, 30)
TestCommits = CommitMachine.TestCase
