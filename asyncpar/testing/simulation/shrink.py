"""A failing life made smaller: fewer faults, records, members and oddities, while it still fails.

Plain delta debugging: remove a part, live again, keep the smaller plan when it fails in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace

from asyncpar.testing.simulation.children import ChildPlan
from asyncpar.testing.simulation.plan import HANDLERS_FAIL, Mix, Plan

MIN_RECORDS = 10
MAX_LIVES = 200


def shrink(plan: Plan, fails: Callable[[Plan], bool], max_lives: int = MAX_LIVES) -> Plan:
    """The smallest plan found that still `fails`, after at most `max_lives` tries."""
    left = max_lives
    progress = True
    while progress and left:
        progress = False
        for smaller in _smaller(plan):
            if not left:
                break
            left -= 1
            if fails(smaller):
                plan, progress = smaller, True
                break
    return plan


def _smaller(plan: Plan) -> Iterator[Plan]:
    """Plans with one part less, the greatest cuts first."""
    yield from _fewer_faults(plan)
    if plan.records > MIN_RECORDS:
        for divisor in (8, 2):
            yield replace(plan, records=max(MIN_RECORDS, plan.records // divisor))
    yield from _simpler_group(plan)
    yield from _simpler_letters(plan)
    yield from _simpler_children(plan)
    for share in fields(Mix):
        if getattr(plan.mix, share.name):
            yield replace(plan, mix=replace(plan.mix, **{share.name: 0.0}))
    yield from _fewer_partitions(plan)


def _simpler_group(plan: Plan) -> Iterator[Plan]:
    if plan.members > 1:
        yield replace(plan, members=plan.members - 1)
    if plan.cooperative:
        yield replace(plan, cooperative=False)
    if plan.static:
        yield replace(plan, static=False)
    if plan.keyless_share:
        yield replace(plan, keyless_share=0.0)


def _simpler_letters(plan: Plan) -> Iterator[Plan]:
    letters = plan.letters
    if letters is None:
        return
    yield _without_outages(
        replace(
            plan,
            letters=None,
            attempts=plan.attempts if plan.mix.failing else None,
            mix=replace(plan.mix, hopeless=0.0),
        )
    )
    if letters.breaker is not None:
        # Without a breaker an outage is a flood of letters, which no budget lets pass in time.
        yield _without_outages(replace(plan, letters=replace(letters, breaker=None)))
    if letters.budget is not None:
        yield replace(plan, letters=replace(letters, budget=None))
    if letters.poison is not None:
        yield replace(plan, letters=replace(letters, poison=None))
    if letters.rate is not None:
        yield replace(plan, letters=replace(letters, rate=None))
    if letters.partitions > 1:
        yield replace(plan, letters=replace(letters, partitions=1))
    if letters.undecodable:
        yield replace(plan, letters=replace(letters, undecodable=False))
    if letters.late:
        yield replace(plan, letters=replace(letters, late=0.0))


def _simpler_children(plan: Plan) -> Iterator[Plan]:
    children = plan.children
    if children is None:
        return
    yield replace(plan, children=None)
    simple = ChildPlan()
    for one in fields(ChildPlan):
        value = getattr(simple, one.name)
        if getattr(children, one.name) != value and (one.name != "timeout_ms" or not plan.mix.hanging):
            yield replace(plan, children=replace(children, **{one.name: value}))


def _without_outages(plan: Plan) -> Plan:
    return replace(plan, faults=tuple(fault for fault in plan.faults if fault.kind != HANDLERS_FAIL))


def _fewer_partitions(plan: Plan) -> Iterator[Plan]:
    for topic, count in plan.partitions.items():
        if len(plan.partitions) > 1:
            yield replace(plan, partitions={t: n for t, n in plan.partitions.items() if t != topic})
        if count > 1:
            yield replace(plan, partitions={**plan.partitions, topic: 1})


def _fewer_faults(plan: Plan) -> Iterator[Plan]:
    faults = tuple(plan.faults)
    size = len(faults)
    while size:
        for start in range(0, len(faults), size):
            yield replace(plan, faults=faults[:start] + faults[start + size :])
        size //= 2
