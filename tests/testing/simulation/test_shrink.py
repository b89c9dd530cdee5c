"""Tests of the shrinker, on failures whose cause is known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from asyncpar.policies import DeadLetterBudget, PoisonKeys, RateLimit
from asyncpar.testing.simulation.life import plan_of
from asyncpar.testing.simulation.plan import HANDLERS_FAIL, LetterPlan, Plan
from asyncpar.testing.simulation.shrink import MIN_RECORDS, shrink


def test_it_leaves_only_what_the_failure_needs() -> None:
    """One fault of many and half of the records are to blame: all else goes."""
    plan = next(plan for plan in map(plan_of, range(100)) if len(plan.faults) > 8 and plan.members > 2)
    culprit = plan.faults[4]
    smaller = shrink(plan, lambda one: culprit in one.faults and one.records > 500)
    assert smaller.faults == (culprit,)
    assert 500 < smaller.records <= 1_000
    assert smaller.members == 1
    assert not any(vars_of(smaller))


def vars_of(plan: Plan) -> list[object]:
    """Oddities that a shrunken plan can do without."""
    mix = plan.mix
    return [plan.cooperative, plan.static, plan.keyless_share, mix.brief, mix.slow, mix.raising, mix.hanging]


def test_it_is_bounded() -> None:
    """No more lives than allowed, also when everything fails."""
    tries = 0

    def always(_: Plan) -> bool:
        nonlocal tries
        tries += 1
        return True

    shrink(plan_of(1), always, max_lives=7)
    assert tries == 7
    assert shrink(plan_of(1), always).records == MIN_RECORDS


def with_all_rules() -> Plan:
    """A life with dead letters and every rule that goes with them."""
    plans = map(plan_of, range(200))
    plan = next(one for one in plans if one.letters is not None and one.letters.breaker is not None)
    assert plan.letters is not None
    letters = replace(
        plan.letters,
        partitions=3,
        undecodable=True,
        budget=DeadLetterBudget(),
        poison=PoisonKeys(),
        rate=RateLimit(per_second=60, burst=1),
    )
    return replace(plan, letters=letters)


def test_rules_of_dead_letters_go_one_by_one() -> None:
    """As long as the failure needs dead letters."""
    smaller = shrink(with_all_rules(), lambda one: one.letters is not None)
    assert smaller.letters == LetterPlan(partitions=1, undecodable=False)
    assert smaller.mix.hopeless == 0


@pytest.mark.parametrize("needs_an_outage", [False, True])
def test_no_life_is_tried_that_would_fail_for_another_reason(needs_an_outage: bool) -> None:
    """Without dead letters what never succeeds halts for ever; without a breaker an outage floods them."""
    tried: list[Plan] = []

    def fails(plan: Plan) -> bool:
        tried.append(plan)
        return any(fault.kind == HANDLERS_FAIL for fault in plan.faults) or not needs_an_outage

    assert (shrink(with_all_rules(), fails).letters is not None) is needs_an_outage
    for plan in tried:
        if plan.letters is None:
            assert plan.mix.hopeless == 0
        if plan.letters is None or plan.letters.breaker is None:
            assert all(fault.kind != HANDLERS_FAIL for fault in plan.faults)
