"""Tests of the dead-letter budget: what leaves, when it is held, and that every hold ends."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncpar.core.dead_letter_budget import BudgetRules, DeadLetterBudget
from tests.core.models import bounded


def _flood(budget: DeadLetterBudget, now: float, asked: int) -> int:
    """How many of `asked` dead letters leave at `now`."""
    return sum(budget.take(now) == 0.0 for _ in range(asked))


def test_so_many_leave_in_any_case_and_then_it_is_held() -> None:
    """An outage in an idle topic: 50 leave, whether or not they were acknowledged yet."""
    budget = DeadLetterBudget(BudgetRules())
    assert _flood(budget, 1000.0, 300) == 50
    assert budget.is_held
    assert not budget.may_send(1000.0)


def test_a_busy_handler_may_send_its_share() -> None:
    """A tenth of 10,000 that finished; a lot counts like as many single ones."""
    lots, single = DeadLetterBudget(BudgetRules()), DeadLetterBudget(BudgetRules())
    lots.ended(1000.0, 10_000)
    for _ in range(10_000):
        single.ended(1000.0)
    assert _flood(lots, 1001.0, 1500) == _flood(single, 1001.0, 1500) == 1000


def test_a_question_and_a_refusal_count_nothing() -> None:
    """However often somebody asks while it is held or open."""
    budget = DeadLetterBudget(BudgetRules(at_least=3))
    assert all(budget.may_send(1000.0) for _ in range(100))
    assert _flood(budget, 1000.0, 100) == 3
    assert budget._window.marked == 3


def test_a_whole_share_is_no_limit() -> None:
    """All may fail: those on their way are records too, though none of them has finished yet."""
    budget = DeadLetterBudget(BudgetRules(share=1.0, at_least=1))
    assert _flood(budget, 1000.0, 500) == 500


def test_no_share_leaves_the_fixed_number() -> None:
    """Whatever finishes beside them."""
    budget = DeadLetterBudget(BudgetRules(share=0.0, at_least=1))
    budget.ended(1000.0, 10**6)
    assert _flood(budget, 1000.0, 10) == 1


def test_an_outage_lets_the_fixed_number_leave_per_window() -> None:
    """Nothing finishes, everything waits: an hour costs 60 times 50 dead letters and not the topic."""
    budget = DeadLetterBudget(BudgetRules())
    now, left, wakeups = 1000.0, 0, 0
    while now < 4600.0:
        left += _flood(budget, now, 100)
        wait = budget.take(now)
        assert wait > 0.0
        now += wait
        wakeups += 1
    assert left == pytest.approx(60 * 50, rel=0.12)
    assert wakeups < 70


def test_once_held_it_stays_so_until_there_is_room_again() -> None:
    """At the edge each finished record would open it for one dead letter: a log line for each of them."""
    budget = DeadLetterBudget(BudgetRules())
    budget.ended(1000.0, 1000)
    assert _flood(budget, 1000.0, 200) == 100
    changes, was_held = 0, True
    for _ in range(1000):
        budget.ended(1001.0)
        budget.take(1001.0)
        changes += budget.is_held is not was_held
        was_held = budget.is_held
    assert changes == 2
    assert 100 < budget._window.marked < 200


def test_old_dead_letters_leave_the_window_with_the_records_of_their_time() -> None:
    """Until says the moment at which enough of them have, and not merely the next edge."""
    budget = DeadLetterBudget(BudgetRules(share=0.1, at_least=10, window_ms=10_000))
    budget.ended(100.0, 5)
    assert _flood(budget, 103.5, 2) == 2
    assert _flood(budget, 104.5, 20) == 8
    assert budget.until(105.0) == 114.0
    assert budget.take(105.0) == pytest.approx(9.0)
    assert _flood(budget, 114.0, 20) == 10


def test_one_sent_by_hand_is_counted_too() -> None:
    """It leaves whether or not the budget allows it."""
    budget = DeadLetterBudget(BudgetRules(at_least=2))
    for _ in range(5):
        budget.sent(1000.0)
    assert not budget.may_send(1000.0)


def test_a_clock_that_goes_back_opens_nothing() -> None:
    """Nothing is let go of twice."""
    budget = DeadLetterBudget(BudgetRules(at_least=5))
    assert _flood(budget, 1000.0, 9) == 5
    assert _flood(budget, 1.0, 9) == 0
    assert budget.until(1.0) == pytest.approx(1060.0, abs=6)


STEPS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.0, 0.01, 0.09, 0.1, 0.4, 1.0]),
        st.sampled_from(["ended", "ended", "flood", "take", "wait"]),
        st.integers(1, 60),
    ),
    max_size=40,
)


@bounded(60)
@given(
    STEPS,
    st.sampled_from([0.0, 0.1, 0.3, 0.99]),
    st.integers(1, 30),
    st.sampled_from([1, 7, 1000, 60_000]),
)
def test_what_leaves_stays_within_the_budget_and_every_hold_ends_when_it_says(
    steps: list[tuple[float, str, int]], share: float, at_least: int, window_ms: int
) -> None:
    """In any order of records that finish, dead letters and waits, on a clock that may stand still."""
    budget, now = DeadLetterBudget(BudgetRules(share, at_least, window_ms)), 1000.0
    for passed, what, count in steps:
        now += passed * window_ms / 1000
        if what == "ended":
            budget.ended(now, count)
        elif what == "wait":
            until = budget.until(now)
            assert now <= until <= now + window_ms / 1000 * 1.1
            if until > now:
                assert not budget.may_send(math.nextafter(until, 0.0))
            assert budget.may_send(until)
            now = until
        else:
            for _ in range(count if what == "flood" else 1):
                wait = budget.take(now)
                assert (wait == 0.0) == (not budget.is_held)
                records = max(budget._window.total, budget._window.marked)
                assert wait > 0.0 or budget._window.marked <= max(at_least, share * (records + 1))
            is_later = budget.until(now) > now
            assert budget.is_held == is_later
