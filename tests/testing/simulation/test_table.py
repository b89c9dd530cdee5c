"""Tests of the totals over many lives."""

from __future__ import annotations

from dataclasses import replace

from asyncpar.testing.simulation.life import FAULTS_AND_STATES, Outcome, Problem, plan_of
from asyncpar.testing.simulation.table import Totals, render


def outcome(**values: object) -> Outcome:
    made = Outcome(
        plan=plan_of(1),
        problems=(),
        met=dict.fromkeys(FAULTS_AND_STATES, 2),
        counts={"handled": 10},
        simulated_seconds=90.0,
    )
    return replace(made, **values)  # type: ignore[arg-type]


def test_totals_add_up_and_name_what_was_never_met() -> None:
    """Times and lives are counted apart; one zero is named."""
    totals = Totals()
    totals.add(outcome())
    assert totals.never_met() == []
    missing = Totals()
    missing.add(outcome(met={**dict.fromkeys(FAULTS_AND_STATES, 1), "member dies": 0}))
    assert missing.never_met() == ["member dies"]
    totals.add(outcome(met={"member dies": 3}, problems=(Problem("LOST", "a record"),)))
    assert (totals.events["member dies"], totals.lives_with["member dies"]) == (5, 2)
    assert totals.failed == [1]


def test_the_table_has_a_line_for_each_fault_and_state() -> None:
    """Also for those that were not met, and for what nobody expected."""
    totals = Totals()
    totals.add(outcome(met={"surprise": 4}))
    lines = render(totals).splitlines()
    assert {line.split("  ")[0].strip() for line in lines} >= {*FAULTS_AND_STATES, "surprise"}
    assert lines[-1] == "1 lives, 0.0 simulated hours, 0 failed"
    assert "10 handled" in lines
