"""Tests of the shrinker, on failures whose cause is known."""

from __future__ import annotations

from asyncpar.testing.simulation.life import plan_of
from asyncpar.testing.simulation.plan import Plan
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
