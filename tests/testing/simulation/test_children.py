"""Simulated lives whose handlers run in child processes: what goes wrong with those, and who sees a bug."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from asyncpar.errors import WorkerDiedError
from asyncpar.executors.lane_port import Job, JobFailure
from asyncpar.executors.process_outcomes import Outcomes
from asyncpar.testing.modelled_lanes import ModelledLane
from asyncpar.testing.simulation.children import CHILD_STATES, ChildPlan, Window, with_children
from asyncpar.testing.simulation.life import Outcome, live, plan_of
from asyncpar.testing.simulation.plan import LetterPlan, Mix, Plan, PlannedFault
from asyncpar.testing.simulation.shrink import shrink
from asyncpar.testing.simulation.trace import tell
from tests.testing.simulation.test_life import SETTINGS, small_plan

WORKING = Mix(brief=0.5, slow=0.05, raising=0.05)


def plan_with(
    *faults: PlannedFault,
    mix: Mix = WORKING,
    letters: bool = False,
    grace_ms: int = 2_000,
    **values: object,
) -> Plan:
    """A small life with such children."""
    settings = {**SETTINGS, "max_revoke_grace_ms": grace_ms}
    plan = small_plan(*faults, mix=mix, attempts=3 if letters else None, settings=settings)
    if letters:
        plan = replace(plan, letters=LetterPlan(partitions=1, undecodable=False))
    return with_children(plan, ChildPlan(**values))  # type: ignore[arg-type]


def told(outcome: Outcome) -> str:
    return "" if outcome.is_ok else tell(outcome)


def hanging(plan: Plan) -> Plan:
    """The same, and a few records never end."""
    return replace(plan, mix=replace(plan.mix, hanging=0.02))


JOIN = PlannedFault(at=14.0, kind="member joins", seconds=3.0, pick=0.5, share=0.5)
CASES: dict[str, Plan] = {
    "child crashed": plan_with(crashing=0.1),
    "child killed for its time": hanging(plan_with(timeout_ms=3_000)),
    "child killed with its record": plan_with(JOIN, mix=Mix(slow=0.9), grace_ms=200),
    "child replied late": plan_with(JOIN, late=0.3),
    "child died in its reply": plan_with(torn=0.2),
    "child did not start": plan_with(no_starts=(Window(10.0, 11.0),)),
    "child frozen": plan_with(freezes=(Window(10.0, 11.0), Window(15.0, 30.0))),
    "child replaced after its share": plan_with(max_tasks_per_child=20),
    "no child could be started": plan_with(no_starts=(Window(10.0, 30.0),)),
}


def test_every_state_has_a_case() -> None:
    """What lives have to meet is what is tried here."""
    assert set(CASES) == set(CHILD_STATES)


@pytest.mark.parametrize("state", CASES)
def test_whatever_becomes_of_children_no_law_is_broken(state: str) -> None:
    """Each of it alone: it is met, and the life passes."""
    outcome = live(CASES[state])
    assert outcome.is_ok, told(outcome)
    assert outcome.met[state] > 0
    assert outcome.counts["handled"] > 200


@pytest.mark.parametrize("letters", [False, True])
def test_a_record_that_crashes_twice_is_given_up(letters: bool) -> None:
    """It halts its partition, or becomes a dead letter after two attempts; everything comes to rest."""
    outcome = live(plan_with(crashing=0.05, crashing_twice=0.05, letters=letters))
    assert outcome.is_ok, told(outcome)
    assert outcome.met["child crashed"] > 1
    assert (outcome.counts["dead letters"] > 0) == letters
    assert (outcome.met["partition halted"] + outcome.met["retried amid chaos"] > 0) == (not letters)


def test_children_die_with_their_member() -> None:
    """Nothing of a killed member runs on beside the one that takes its place."""
    dies = [
        PlannedFault(at=at, kind="member dies", seconds=1.0, pick=0.3, share=0.5) for at in (9.0, 17.0, 26.0)
    ]
    outcome = live(plan_with(*dies, mix=Mix(slow=0.5), lanes=4))
    assert outcome.is_ok, told(outcome)
    assert outcome.met["member dies"] == 3


def test_a_frozen_members_children_go_on_within_its_lease() -> None:
    """Beyond the session, too: what they have is not started by then."""
    frozen = [
        PlannedFault(at=at, kind="member frozen", seconds=8.0, pick=0.3, share=0.5) for at in (9.0, 24.0)
    ]
    outcome = live(plan_with(*frozen, mix=Mix(slow=0.9), batch_size=64))
    assert outcome.is_ok, told(outcome)
    assert outcome.met["member frozen"] == 2


def test_an_attempt_that_was_counted_for_nothing_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of a batch is charged with the death of its child: the life says so."""

    def charged(self: Outcomes, calls: list[object], why: str) -> None:
        for call in calls:
            call.end(WorkerDiedError(why))  # type: ignore[attr-defined]

    monkeypatch.setattr(Outcomes, "not_started", charged)
    outcome = live(plan_with(crashing=0.1, batch_size=64))
    assert "PROBLEM" in outcome.failed_checks
    assert any("and 0 of its runs had failed" in str(problem) for problem in outcome.problems)


def test_a_record_that_is_ended_at_its_very_time_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine counts from when its child announced it, and so does the judge of its attempts."""
    run_job = ModelledLane._run_job

    async def begin_later(lane: ModelledLane, job: Job) -> JobFailure | None:
        await asyncio.sleep(0.1)
        return await run_job(lane, job)

    monkeypatch.setattr(ModelledLane, "_run_job", begin_later)
    outcome = live(CASES["child killed for its time"])
    assert outcome.is_ok, told(outcome)
    assert outcome.met["child killed for its time"] > 5


def test_such_lives_are_drawn_now_and_then() -> None:
    """About one in ten, and nothing in them that a process cannot do."""
    plans = [plan for plan in map(plan_of, range(500)) if plan.children is not None]
    assert 25 < len(plans) < 80
    for plan in plans:
        mix = plan.mix
        assert not (mix.stubborn or mix.untidy or mix.failing or mix.skipped)
        assert not mix.hanging or (plan.children is not None and plan.children.timeout_ms is not None)
        assert plan.handler["on_revoke"] == "cancel"
        assert (plan.attempts is None) == (plan.letters is None)
    assert any(plan.letters for plan in plans)


def test_they_shrink_to_what_the_failure_needs() -> None:
    """One property of the children is to blame: all others go back to the plainest."""
    plan = next(one for one in map(plan_of, range(500)) if one.children and one.children.crashing)
    assert plan.children is not None
    busy = replace(plan, children=replace(plan.children, torn=0.01, late=0.02, max_tasks_per_child=50))
    smaller = shrink(busy, lambda one: one.children is not None and one.children.crashing > 0)
    assert smaller.children == ChildPlan(crashing=plan.children.crashing)
