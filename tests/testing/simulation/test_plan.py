"""Tests of plans: drawn from the seed alone, within their bounds."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from asyncpar.testing.simulation.faults import FAULTS
from asyncpar.testing.simulation.life import plan_of
from asyncpar.testing.simulation.plan import (
    CHAOS_SECONDS,
    HANDLERS_FAIL,
    LETTERS_REFUSED,
    MAX_FAULTS,
    MIN_FAULTS,
    MIN_RECORDS,
    Plan,
)


def test_a_plan_follows_from_its_seed() -> None:
    """The same seed draws the same plan; other seeds draw others."""
    assert plan_of(7) == plan_of(7)
    assert len({repr(plan_of(seed)) for seed in range(50)}) == 50


def test_plans_keep_to_their_bounds() -> None:
    """Two to four members, enough faults and records, all of it within the time of chaos."""
    for plan in map(plan_of, range(300)):
        assert 2 <= plan.members <= 4
        assert MIN_FAULTS <= len(of_all_lives(plan)) <= MAX_FAULTS
        assert plan.records >= MIN_RECORDS
        assert all(0 < fault.at < CHAOS_SECONDS and 0 <= fault.pick < 1 for fault in plan.faults)
        assert list(plan.faults) == sorted(plan.faults, key=lambda fault: fault.at)
        assert (plan.attempts is None) == (not plan.mix.failing and plan.letters is None)
        assert (plan.mix.hopeless > 0) == (plan.letters is not None)


def of_all_lives(plan: Plan) -> list[object]:
    """Its faults but for those that come with dead letters."""
    return [fault for fault in plan.faults if fault.kind not in (LETTERS_REFUSED, HANDLERS_FAIL)]


def test_dead_letters_are_drawn_beside_all_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A life with them is the life that it would be without, and what belongs to them."""
    plans = [plan_of(seed) for seed in range(200)]
    monkeypatch.setattr("asyncpar.testing.simulation.plan._LETTERS_SHARE", 0.0)
    for plan in plans:
        without = plan_of(plan.seed)
        assert without.letters is None
        assert of_all_lives(plan) == list(without.faults)
        taken_away = replace(
            plan,
            letters=None,
            attempts=without.attempts,
            mix=replace(plan.mix, hopeless=0.0),
            faults=without.faults,
        )
        assert taken_away == without


def test_every_rule_of_dead_letters_is_drawn_often() -> None:
    """A part of the lives has them, and each rule a part of those; an outage only with a breaker."""
    plans = [plan for plan in map(plan_of, range(500)) if plan.letters is not None]
    assert 100 < len(plans) < 200
    for rule in ("budget", "breaker", "poison", "rate"):
        assert 15 < sum(getattr(plan.letters, rule) is not None for plan in plans) < len(plans) / 2
    for plan in plans:
        assert plan.letters is not None
        has_outages = any(fault.kind == HANDLERS_FAIL for fault in plan.faults)
        assert has_outages == (plan.letters.breaker is not None)


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
