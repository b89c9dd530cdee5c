"""Tests of plans: drawn from the seed alone, within their bounds."""

from __future__ import annotations

from collections import Counter

from asyncpar.testing.simulation.faults import FAULTS
from asyncpar.testing.simulation.life import plan_of
from asyncpar.testing.simulation.plan import CHAOS_SECONDS, MAX_FAULTS, MIN_FAULTS, MIN_RECORDS


def test_a_plan_follows_from_its_seed() -> None:
    """The same seed draws the same plan; other seeds draw others."""
    assert plan_of(7) == plan_of(7)
    assert len({repr(plan_of(seed)) for seed in range(50)}) == 50


def test_plans_keep_to_their_bounds() -> None:
    """Two to four members, enough faults and records, all of it within the time of chaos."""
    for plan in map(plan_of, range(300)):
        assert 2 <= plan.members <= 4
        assert MIN_FAULTS <= len(plan.faults) <= MAX_FAULTS
        assert plan.records >= MIN_RECORDS
        assert all(0 < fault.at < CHAOS_SECONDS and 0 <= fault.pick < 1 for fault in plan.faults)
        assert list(plan.faults) == sorted(plan.faults, key=lambda fault: fault.at)
        assert (plan.attempts is None) == (not plan.mix.failing)


def test_every_fault_is_planned_often() -> None:
    """No kind is so rare that 500 lives may do without it."""
    planned = Counter(fault.kind for seed in range(500) for fault in plan_of(seed).faults)
    assert set(planned) == set(FAULTS)
    assert min(planned.values()) >= 20


def test_parts_draw_from_generators_of_their_own() -> None:
    """What one part draws does not depend on how much another has drawn."""
    plan = plan_of(3)
    first = plan.rng("link").random()
    plan.rng("producer").random()
    assert plan.rng("link").random() == first
    assert plan.rng("producer").random() != first
