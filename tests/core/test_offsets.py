"""Tests of the offset tracker: a machine against a naive set model, and named cases."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from asyncpar.core.offset_codec import decode, encode
from asyncpar.core.offsets import OffsetTracker, Run, is_within, merge_runs
from tests.core.models import TP, bounded, records

GAPS = st.integers(1, 4)


def _covered(runs: list[Run]) -> set[int]:
    return {offset for first, end in runs for offset in range(first, end)}


class TrackerMachine(RuleBasedStateMachine):
    """The tracker beside a model that keeps every offset in plain sets."""

    def __init__(self) -> None:
        super().__init__()
        self.tracker = OffsetTracker(0)
        self.log: list[int] = []
        self.next_produced = 0
        self.cursor = 0
        self.position = 0
        self.held: set[int] = set()
        self.known_done: set[int] = set()
        """Done at or above `position`: restored, or of an adopted straggler."""
        self.redelivered = 0
        self.completed: set[int] = set()

    # -- the model ---------------------------------------------------------------------------

    @property
    def hwm(self) -> int:
        return min(self.held, default=self.position)

    def _is_done(self, offset: int) -> bool:
        return offset in self.known_done or (offset < self.position and offset not in self.held)

    def _advance(self, position: int) -> None:
        self.position = max(self.position, position)
        while self.position in self.known_done:
            self.position += 1
        self.known_done = {offset for offset in self.known_done if offset > self.position}

    def _receive(self, offset: int) -> bool:
        if self._is_done(offset) or offset in self.held:
            self.redelivered += 1
            self._advance(offset + 1 if offset >= self.position else self.position)
            return False
        self.held.add(offset)
        self._advance(offset + 1)
        return True

    def _restart_model(self) -> None:
        hwm, top = self.hwm, max(self.known_done, default=0)
        done = {offset for offset in range(hwm, max(self.position, top + 1)) if self._is_done(offset)}
        self.held.clear()
        self.position, self.known_done = hwm, done
        self._advance(hwm)
        self.cursor = sum(offset < self.position for offset in self.log)

    # -- what happens ------------------------------------------------------------------------

    @initialize(start=st.integers(0, 50))
    def open_somewhere(self, start: int) -> None:
        """A partition rarely begins at 0: retention, `latest`, a commit."""
        self.tracker = OffsetTracker(start)
        self.position = self.next_produced = start

    @rule(gaps=st.lists(GAPS, max_size=6), back=st.integers(0, 5), ahead=st.integers(0, 8))
    def deliver(self, gaps: list[int], back: int, ahead: int) -> None:
        """A chunk with holes, which may begin with records that were delivered before."""
        for gap in gaps:
            self.next_produced += gap
            self.log.append(self.next_produced - 1)
        end = min(len(self.log), self.cursor + ahead)
        chunk = self.log[max(0, self.cursor - back) : end]
        expected = [offset for offset in chunk if self._receive(offset)]
        fresh = self.tracker.admit(records(*chunk))
        assert [record.offset for record in fresh] == expected
        self.cursor = end

    @precondition(lambda self: self.log)
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        """Any offset completes: held, done already, or not delivered yet."""
        offset = data.draw(st.sampled_from(self.log))
        assert self.tracker.complete(offset) is (offset in self.held)
        if offset in self.held:
            self.completed.add(offset)
        self.held.discard(offset)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def complete_held(self, data: st.DataObject) -> None:
        """A record in flight completes."""
        offset = data.draw(st.sampled_from(sorted(self.held)))
        assert self.tracker.complete(offset)
        self.held.discard(offset)
        self.completed.add(offset)

    @rule(distance=st.integers(-10, 25))
    def mark_done(self, distance: int) -> None:
        """A straggler is adopted: its record was delivered here, or was not yet."""
        offset = max(0, self.position + distance)
        self.tracker.mark_done(offset)
        self.completed.add(offset)
        if offset < self.position:
            self.held.discard(offset)
        else:
            self.known_done.add(offset)
            self._advance(self.position)

    @rule(past=st.integers(0, 12))
    def skip_to(self, past: int) -> None:
        """The client stands behind markers or holes: nothing is left between."""
        if self.cursor < len(self.log):
            position = min(self.position + past, self.log[self.cursor])
        else:
            position = self.position + past
            self.next_produced = max(self.next_produced, position)
        self.tracker.skip_to(position)
        self._advance(position)

    @rule()
    def rewind(self) -> None:
        """A halt or a revoke drops what is held; it is delivered again later."""
        self.tracker.rewind()
        self._restart_model()

    @rule()
    def restart(self) -> None:
        """Another life begins from what the commit stored."""
        text = encode(TP, self.tracker.hwm, self.tracker.done_runs()).text
        runs = decode(TP, self.tracker.hwm, text)
        assert isinstance(runs, list)
        self.tracker = OffsetTracker(self.tracker.hwm, runs)
        self.redelivered = 0
        self._restart_model()

    # -- what always holds -------------------------------------------------------------------

    @invariant()
    def hwm_is_exact_and_passes_nothing_unfinished(self) -> None:
        """The HWM is the model's, and every real offset below it was completed."""
        assert self.tracker.hwm == self.hwm
        assert self.tracker.position == self.position
        assert self.tracker.blocking_offset == min(self.held, default=None)
        assert all(offset in self.completed for offset in self.log if offset < self.hwm)

    @invariant()
    def unfinished_is_what_is_held_in_order(self) -> None:
        """Memory holds the unfinished records and nothing else, ascending."""
        assert list(self.tracker.unfinished) == sorted(self.held)
        assert self.tracker.redelivered == self.redelivered

    @invariant()
    def done_runs_are_exact(self) -> None:
        """Runs cover what is done above the HWM; they are disjoint, apart from each other, and few."""
        runs = self.tracker.done_runs()
        top = max(self.position, max(self.known_done, default=0) + 1)
        assert _covered(runs) == {o for o in range(self.hwm, top) if self._is_done(o)}
        edges = [self.hwm, *(edge for run in runs for edge in run)]
        assert edges == sorted(set(edges))
        assert len(runs) <= len(self.held) + len(self.known_done)
        assert all(self.tracker.is_done(o) is self._is_done(o) for o in range(max(0, self.hwm - 3), top + 3))


TrackerMachine.TestCase.settings = bounded(45, 30)
TestTracker = TrackerMachine.TestCase


def test_a_start_above_zero_commits() -> None:
    """The first offset of a log is seldom 0 (retention, latest); that must not stop the commit."""
    tracker = OffsetTracker(1_000)
    tracker.admit(records(1_000, 1_001))
    assert tracker.complete(1_000)
    assert tracker.hwm == 1_001


def test_holes_never_block() -> None:
    """Offsets that do not exist are done as soon as a later one is delivered."""
    tracker = OffsetTracker(0)
    tracker.admit(records(5, 90, 4_000))
    for offset in (5, 90, 4_000):
        assert tracker.hwm == offset
        tracker.complete(offset)
    assert tracker.hwm == 4_001
    assert tracker.blocking_offset is None


def test_an_empty_chunk_changes_nothing() -> None:
    """A fetch may deliver nothing."""
    tracker = OffsetTracker(7)
    assert tracker.admit([]) == []
    assert (tracker.hwm, tracker.position) == (7, 7)


def test_restored_done_offsets_do_not_run_again() -> None:
    """What the commit metadata lists as done is not let in."""
    tracker = OffsetTracker(10, [(12, 14), (16, 18)])
    fresh = tracker.admit(records(10, 11, 12, 13, 14, 15, 16, 17, 18))
    assert [record.offset for record in fresh] == [10, 11, 14, 15, 18]
    assert tracker.redelivered == 4
    assert tracker.done_runs() == [(12, 14), (16, 18)]


def test_a_restored_run_at_the_start_moves_the_hwm() -> None:
    """A run that touches the start is swallowed at once."""
    assert OffsetTracker(10, [(8, 12), (12, 15), (20, 21)]).hwm == 15


def test_a_record_at_an_offset_held_already_is_not_let_in_twice() -> None:
    """A stale entry never hides a fresh record, and a second delivery never replaces the first."""
    tracker = OffsetTracker(0)
    (first,) = tracker.admit(records(0))
    assert tracker.admit(records(0, 1)) == records(1)
    assert tracker.unfinished[0] is first
    tracker.rewind()
    assert tracker.admit(records(0, 1)) == records(0, 1)


def test_a_gap_of_a_million_offsets_costs_one_run() -> None:
    """Memory follows what is unfinished, not the range of offsets."""
    tracker = OffsetTracker(0)
    tracker.admit(records(0))
    for base in range(1, 1_000_001, 100_000):
        tracker.admit(records(base, base + 99_999))
        tracker.complete(base)
        tracker.complete(base + 99_999)
    assert list(tracker.unfinished) == [0]
    assert tracker.done_runs() == [(1, 1_000_001)]
    text = encode(TP, tracker.hwm, tracker.done_runs()).text
    assert len(text) < 32
    restored = OffsetTracker(0, [(1, 1_000_001)])
    assert not restored.is_done(0)
    assert restored.is_done(999_999)
    restored.mark_done(0)
    assert restored.hwm == 1_000_001


def test_rewind_keeps_what_is_done_and_late_ends_count() -> None:
    """After a halt the tracker holds nothing, and a record that ends later still counts."""
    tracker = OffsetTracker(0)
    tracker.admit(records(0, 1, 2, 3))
    tracker.complete(1)
    held = tracker.unfinished
    tracker.rewind()
    assert held == {}
    assert held is tracker.unfinished
    assert not tracker.complete(2)
    tracker.mark_done(2)
    assert (tracker.hwm, tracker.done_runs()) == (0, [(1, 3)])
    tracker.mark_done(0)
    assert (tracker.hwm, tracker.done_runs()) == (3, [])
    tracker.mark_done(0)
    assert tracker.hwm == 3


def test_skip_to_never_goes_back_and_meets_restored_runs() -> None:
    """A position behind ours means nothing; one before a restored run takes that run in."""
    tracker = OffsetTracker(5, [(9, 12)])
    tracker.skip_to(3)
    assert tracker.position == 5
    tracker.skip_to(9)
    assert tracker.position == tracker.hwm == 12


def test_blocked_for_counts_from_when_an_offset_became_the_lowest() -> None:
    """The clock of the blocking offset starts anew with each one, and rests when there is none."""
    tracker = OffsetTracker(0)
    assert tracker.blocked_for(1.0) == 0.0
    tracker.admit(records(0, 1))
    assert tracker.blocked_for(2.0) == 0.0
    assert tracker.blocked_for(5.0) == 3.0
    tracker.complete(0)
    assert tracker.blocked_for(6.0) == 0.0
    assert tracker.blocked_for(8.5) == 2.5
    tracker.complete(1)
    assert tracker.blocked_for(9.0) == 0.0


@bounded(50)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=12))
def test_merge_runs_covers_the_same_offsets_with_the_fewest_runs(runs: list[Run]) -> None:
    """Merged runs ascend, do not touch, and cover exactly what was given."""
    merged = merge_runs(runs)
    assert _covered(merged) == _covered(runs)
    edges = [edge for run in merged for edge in run]
    assert edges == sorted(set(edges))


@pytest.mark.parametrize("offset", [3, 4, 5])
def test_mark_done_at_any_distance_is_remembered(offset: int) -> None:
    """An adopted record is not let in when its delivery comes later."""
    tracker = OffsetTracker(3)
    tracker.mark_done(offset)
    assert tracker.is_done(offset)
    fresh = tracker.admit(records(3, 4, 5, 6))
    assert offset not in [record.offset for record in fresh]


def test_an_offset_lies_within_runs() -> None:
    """Their ends are not part of them; no runs hold nothing."""
    runs = [(2, 4), (7, 8)]
    assert [offset for offset in range(10) if is_within(runs, offset)] == [2, 3, 7]
    assert not is_within([], 0)
