"""Tests of the circuit breaker: the table row by row, late ends, and a machine with calls in any order."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from asyncpar.core.breaker import (
    BreakerRules,
    BreakerState,
    CircuitBreaker,
    Ticket,
    Transition,
    is_probe,
)
from asyncpar.core.window import BUCKETS
from tests.core.models import bounded

CLOSED, HALF_OPEN, OPEN = BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN


def _run(breaker: CircuitBreaker, now: float, ends: Iterable[bool]) -> list[Transition | None]:
    """Calls one after the other, each as long as it may start."""
    changes = []
    for ok in ends:
        assert breaker.may_start(now)
        changes.append(breaker.ended(now, ok, breaker.started(now)))
    return changes


def _opened(rules: BreakerRules, now: float = 100.0) -> CircuitBreaker:
    breaker = CircuitBreaker(rules)
    _run(breaker, now, [False] * rules.min_calls)
    assert breaker.state is OPEN
    return breaker


def _probe(breaker: CircuitBreaker, now: float) -> Ticket:
    assert breaker.may_start(now)
    ticket = breaker.started(now)
    assert is_probe(ticket)
    assert breaker.state is HALF_OPEN
    return ticket


# -- closed --------------------------------------------------------------------------------------


def test_it_opens_at_the_failure_that_reaches_the_share() -> None:
    """10 of 20 do, 9 of 20 do not; the answer says by what it was judged."""
    breaker = CircuitBreaker(BreakerRules())
    assert _run(breaker, 1.0, [True] * 10 + [False] * 9) == [None] * 19
    assert _run(breaker, 1.0, [False]) == [Transition(CLOSED, OPEN, 20, 10, 5.0)]
    assert not breaker.may_start(1.0)
    breaker = CircuitBreaker(BreakerRules())
    assert _run(breaker, 1.0, [True] * 11 + [False] * 9) == [None] * 20
    assert breaker.may_start(1.0)


def test_it_does_not_open_before_enough_calls_ended() -> None:
    """A handler that is hardly called is not held by one failure, however small the share."""
    breaker = CircuitBreaker(BreakerRules(failure_share=0.001, min_calls=20))
    assert _run(breaker, 1.0, [False] * 19) == [None] * 19
    assert _run(breaker, 1.0, [False])[0] is not None


def test_a_tiny_share_opens_at_one_failure_and_a_whole_one_only_when_all_fail() -> None:
    """The two ends of what may be asked for, with one call as enough."""
    breaker = CircuitBreaker(BreakerRules(failure_share=1e-9, min_calls=2))
    assert _run(breaker, 1.0, [True] * 1000 + [False])[-1] == Transition(CLOSED, OPEN, 1001, 1, 5.0)
    breaker = CircuitBreaker(BreakerRules(failure_share=1.0, min_calls=3))
    _run(breaker, 1.0, [True, False, False] * 1000)
    assert breaker.state is CLOSED
    assert CircuitBreaker(BreakerRules(failure_share=1.0, min_calls=1)).may_start(1.0)
    assert _run(CircuitBreaker(BreakerRules(failure_share=1.0, min_calls=1)), 1.0, [False])[0] is not None


def test_the_share_is_exact_where_floats_are_not() -> None:
    """0.07 * 100 is more than 7 in floats, yet 7 of 100 are that share."""
    breaker = CircuitBreaker(BreakerRules(failure_share=0.07, min_calls=100))
    assert _run(breaker, 1.0, [True] * 93 + [False] * 7)[-1] is not None


def test_a_success_never_opens_it() -> None:
    """Also not the one that makes the calls enough; the next failure does."""
    breaker = CircuitBreaker(BreakerRules(min_calls=20))
    assert _run(breaker, 1.0, [False] * 19 + [True]) == [None] * 20
    assert _run(breaker, 1.0, [False])[0] == Transition(CLOSED, OPEN, 21, 20, 5.0)


def test_failures_older_than_the_window_do_not_count() -> None:
    """Neither to the share nor to a row: a failure every eleven seconds never opens a window of ten."""
    breaker = CircuitBreaker(BreakerRules())
    for at in range(200):
        assert _run(breaker, at * 11.0, [False]) == [None]


def test_failures_in_a_row_open_it_whatever_went_well_before() -> None:
    """An outage does not have to outweigh a window of good calls; one success begins the row anew."""
    breaker = CircuitBreaker(BreakerRules(min_calls=5))
    _run(breaker, 1.0, [True] * 10_000)
    assert _run(breaker, 1.0, [False] * 4 + [True] + [False] * 4) == [None] * 9
    assert _run(breaker, 1.0, [False]) == [Transition(CLOSED, OPEN, 5, 5, 5.0)]
    slow = CircuitBreaker(BreakerRules(min_calls=5))
    assert [_run(slow, at * 9.9, [False])[0] is None for at in range(5)] == [True] * 4 + [False]


def test_a_call_that_says_nothing_counts_for_nothing() -> None:
    """Records that cannot be read, and calls that were cancelled, are no calls to the window."""
    breaker = CircuitBreaker(BreakerRules(min_calls=2))
    for _ in range(10):
        breaker.interrupted(breaker.started(1.0))
    assert _run(breaker, 1.0, [False]) == [None]


def test_a_clock_that_stands_still_changes_no_judgement() -> None:
    """All in one moment: it opens, and stays open until that moment is over."""
    breaker = _opened(BreakerRules(open_ms=1), now=1e6)
    assert not breaker.may_start(1e6)
    assert breaker.may_start(1e6 + 0.001)


# -- open, half-open -----------------------------------------------------------------------------


def test_it_stays_open_for_its_time_and_says_until_when() -> None:
    """To ask changes nothing; the first call that starts makes it half-open."""
    breaker = _opened(BreakerRules())
    assert not breaker.may_start(104.999)
    assert breaker.until(101.0) == 105.0
    assert breaker.may_start(105.0)
    assert breaker.until(107.0) == 107.0
    assert breaker.state is OPEN
    _probe(breaker, 105.0)


def test_only_so_many_probes_run_at_a_time() -> None:
    """A place is free again when one ended, or was interrupted."""
    breaker = _opened(BreakerRules(probes=2, successes=3))
    first, second = _probe(breaker, 105.0), _probe(breaker, 105.0)
    assert not breaker.may_start(105.0)
    assert breaker.ended(106.0, True, first) is None
    third = _probe(breaker, 106.0)
    assert not breaker.may_start(106.0)
    breaker.interrupted(second)
    _probe(breaker, 106.0)
    assert not breaker.may_start(106.0)
    assert breaker.ended(107.0, True, third) is None


def test_enough_successes_close_it_with_an_empty_window() -> None:
    """The failures that opened it are no part of the next judgement."""
    breaker = _opened(BreakerRules(successes=2))
    assert breaker.ended(105.0, True, _probe(breaker, 105.0)) is None
    change = breaker.ended(105.0, True, _probe(breaker, 105.0))
    assert change == Transition(HALF_OPEN, CLOSED, 2, 0, 0.0)
    assert _run(breaker, 105.0, [False] * 19) == [None] * 19
    assert _run(breaker, 105.0, [False])[0] == Transition(CLOSED, OPEN, 20, 20, 5.0)


def test_a_failed_probe_opens_it_for_twice_as_long_until_it_closed() -> None:
    """5, 10, 20, 40, 60, 60 seconds; after a success the first opening lasts 5 again."""
    breaker = _opened(BreakerRules(successes=2, max_open_ms=60_000))
    now, lengths = 105.0, []
    for _ in range(5):
        assert breaker.ended(now, True, _probe(breaker, now)) is None
        change = breaker.ended(now, False, _probe(breaker, now))
        assert change is not None
        assert change[:4] == (HALF_OPEN, OPEN, 2, 1)
        lengths.append(change.open_seconds)
        assert breaker.until(now) == now + change.open_seconds
        now = breaker.until(now)
    assert lengths == [10.0, 20.0, 40.0, 60.0, 60.0]
    _run(breaker, now, [True, True])
    assert _run(breaker, now, [False] * 20)[-1] == Transition(CLOSED, OPEN, 20, 20, 5.0)


def test_a_probe_that_is_interrupted_leaves_the_round_as_it_was() -> None:
    """A rebalance may take every probe away: the next call is one again, and nothing stays held."""
    breaker = _opened(BreakerRules())
    for _ in range(50):
        breaker.interrupted(_probe(breaker, 105.0))
    assert breaker.state is HALF_OPEN
    assert breaker.ended(105.0, True, _probe(breaker, 105.0)) is not None


def test_a_probe_that_hangs_does_not_hold_its_handler_for_ever() -> None:
    """After the longest open time another may start beside it; either one's end is a verdict."""
    breaker = _opened(BreakerRules(max_open_ms=60_000))
    hung = _probe(breaker, 105.0)
    assert not breaker.may_start(164.9)
    assert breaker.until(110.0) == 165.0
    second = _probe(breaker, 165.0)
    assert not breaker.may_start(165.0)
    assert breaker.until(165.0) == 225.0
    breaker.interrupted(second)
    third = _probe(breaker, 170.0)
    change = breaker.ended(171.0, True, hung)
    assert change == Transition(HALF_OPEN, CLOSED, 1, 0, 0.0)
    assert breaker.ended(172.0, False, third) is None


def test_a_call_that_was_not_allowed_is_a_defect_of_the_caller() -> None:
    """It would be a probe that nobody counted."""
    breaker = _opened(BreakerRules())
    with pytest.raises(AssertionError, match="may_start"):
        breaker.started(101.0)
    _probe(breaker, 105.0)
    with pytest.raises(AssertionError, match="may_start"):
        breaker.started(106.0)


# -- late ends -----------------------------------------------------------------------------------


def test_late_ends_change_nothing_while_it_is_open_or_half_open() -> None:
    """Of calls that began before: no success closes it, no failure opens it for longer."""
    breaker = CircuitBreaker(BreakerRules())
    late = [breaker.started(99.0) for _ in range(4)]
    _run(breaker, 100.0, [False] * 20)
    assert breaker.ended(101.0, True, late[0]) is None
    assert breaker.ended(101.0, False, late[1]) is None
    assert breaker.until(101.0) == 105.0
    _probe(breaker, 105.0)
    assert breaker.ended(106.0, True, late[2]) is None
    breaker.interrupted(late[3])
    assert breaker.state is HALF_OPEN
    assert not breaker.may_start(106.0)


def test_failures_of_the_last_outage_do_not_open_it_again() -> None:
    """200 calls hang until after it closed, and then all fail: they tell of what is over."""
    breaker = CircuitBreaker(BreakerRules())
    hung = [breaker.started(99.0) for _ in range(200)]
    _run(breaker, 100.0, [False] * 20)
    _run(breaker, 105.0, [True])
    assert {breaker.ended(106.0, False, ticket) for ticket in hung} == {None}
    assert breaker.state is CLOSED


def test_a_probe_of_an_earlier_round_neither_closes_nor_opens_a_later_one() -> None:
    """It also gives back no place there, as it holds none."""
    breaker = _opened(BreakerRules(probes=4))
    stale = [_probe(breaker, 105.0) for _ in range(3)]
    assert breaker.ended(105.0, False, _probe(breaker, 105.0)) is not None
    assert breaker.ended(106.0, True, stale[0]) is None
    assert breaker.state is OPEN
    for _ in range(4):
        _probe(breaker, 115.0)
    assert breaker.ended(116.0, True, stale[1]) is None
    breaker.interrupted(stale[2])
    assert not breaker.may_start(116.0)
    assert breaker.state is HALF_OPEN


def test_failures_with_the_cause_of_the_opening_are_spared() -> None:
    """The one that opened it, those that ran then, and failed probes; an ordinary failure is not."""
    breaker = CircuitBreaker(BreakerRules(min_calls=2))
    ordinary, opening, running = (breaker.started(1.0) for _ in range(3))
    breaker.ended(1.0, False, ordinary)
    assert not breaker.spares(ordinary)
    breaker.ended(1.0, False, opening)
    assert breaker.spares(opening)
    breaker.ended(2.0, False, running)
    assert breaker.spares(running)
    probe = _probe(breaker, 6.0)
    breaker.ended(7.0, False, probe)
    assert breaker.spares(probe)
    _run(breaker, 20.0, [True])
    after = breaker.started(21.0)
    breaker.ended(21.0, False, after)
    assert not breaker.spares(after)


# -- any order -----------------------------------------------------------------------------------


class BreakerMachine(RuleBasedStateMachine):
    """Many calls that start, end and are interrupted in any order, on a clock that may stand still.

    The model keeps every end since the last closing, and to every call the round that it began in.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self._configure(BreakerRules())

    @initialize(
        share=st.sampled_from([1e-9, 0.1, 0.5, 1.0]),
        min_calls=st.integers(1, 6),
        window_ms=st.sampled_from([10, 1000, 10_000]),
        open_ms=st.sampled_from([1, 1000, 5000]),
        probes=st.integers(1, 3),
        successes=st.integers(1, 3),
    )
    def configure(
        self, share: float, min_calls: int, window_ms: int, open_ms: int, probes: int, successes: int
    ) -> None:
        """Any small rules."""
        self._configure(BreakerRules(share, min_calls, window_ms, open_ms, probes, successes, 16_000))

    def _configure(self, rules: BreakerRules) -> None:
        self.rules = rules
        self.breaker = CircuitBreaker(rules)
        self.round = 0
        self.running: list[tuple[int, Ticket]] = []
        self.ends: list[tuple[int, bool]] = []
        self.successes = 0
        self.openings = 0
        self.row = 0
        self.failed_at = 0.0

    @rule(share_of_window=st.sampled_from([0.0, 0.0, 0.01, 0.05, 0.3, 1.0]))
    def time_passes(self, share_of_window: float) -> None:
        """Or stands still."""
        self.now += share_of_window * self.rules.window_ms / 1000

    @rule()
    def sleep_until_it_may_start(self) -> None:
        """What a runtime does that has nothing else to do: exactly then, never later."""
        until = self.breaker.until(self.now)
        assert until >= self.now
        self.now = until
        assert self.breaker.may_start(self.now)

    @rule(count=st.integers(1, 4))
    def start(self, count: int) -> None:
        """As many as may, of those that want to."""
        for _ in range(count):
            if not self.breaker.may_start(self.now):
                return
            before = self.breaker.state
            if before is OPEN:
                self.round += 1
                self.successes = 0
            ticket = self.breaker.started(self.now)
            assert is_probe(ticket) == (before is not CLOSED)
            self.running.append((self.round, ticket))

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 20), ok=st.booleans())
    def end(self, which: int, ok: bool) -> None:
        """Any of them, old or new."""
        round_of_it, ticket = self.running.pop(which % len(self.running))
        before = self.breaker.state
        change = self.breaker.ended(self.now, ok, ticket)
        expected = self._judge(before, ok) if round_of_it == self.round else before
        assert self.breaker.state is expected
        assert (change is not None) == (before is not expected)
        assert self.breaker.spares(ticket) == (round_of_it != self.round or change is not None)
        if change is not None:
            self._changed(change)

    def _judge(self, before: BreakerState, ok: bool) -> BreakerState:
        """What the table says of an end that counts."""
        if before is HALF_OPEN:
            self.successes += ok
            return OPEN if not ok else CLOSED if self.successes >= self.rules.successes else HALF_OPEN
        assert before is CLOSED
        newest = int(self.now * (BUCKETS * 1000 / self.rules.window_ms))
        self.ends.append((newest, ok))
        lately = [good for bucket, good in self.ends if bucket > newest - BUCKETS]
        share = lately.count(False) / len(lately)
        is_over = len(lately) >= self.rules.min_calls and share >= self.rules.failure_share
        if ok:
            self.row = 0
            return CLOSED
        self.row = self.row + 1 if self.now - self.failed_at <= self.rules.window_ms / 1000 else 1
        self.failed_at = self.now
        return OPEN if is_over or self.row >= self.rules.min_calls else CLOSED

    def _changed(self, change: Transition) -> None:
        self.round += 1
        self.row = 0
        self.ends.clear()
        if change.after is CLOSED:
            self.openings = 0
            return
        longest = min(self.rules.open_ms << self.openings, self.rules.max_open_ms) / 1000
        assert change.open_seconds == pytest.approx(longest)
        self.openings += 1

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 20))
    def interrupt(self, which: int) -> None:
        """A rebalance takes one away."""
        before = self.breaker.state
        self.breaker.interrupted(self.running.pop(which % len(self.running))[1])
        assert self.breaker.state is before

    @invariant()
    def probes_that_do_not_hang_are_few(self) -> None:
        """One more than `probes` for each time that the longest open time passed without a start."""
        if self.breaker.state is HALF_OPEN:
            running = sum(of == self.round for of, _ in self.running)
            assert running == self.breaker._running <= self.breaker._places
            assert self.breaker.may_start(self.now) or running >= self.rules.probes

    def teardown(self) -> None:
        """From wherever this stands: when what it depends on is well again, it closes."""
        for _ in range(self.rules.successes):
            self.now = self.breaker.until(self.now)
            self.breaker.ended(self.now, True, self.breaker.started(self.now))
        assert self.breaker.state is CLOSED


BreakerMachine.TestCase.settings = bounded(25, 40)
TestBreaker = BreakerMachine.TestCase
