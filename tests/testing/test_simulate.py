"""The command `python -m asyncpar.testing.simulate`."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from asyncpar.testing import simulate
from asyncpar.testing.simulation.faults import FAULTS
from asyncpar.testing.simulation.life import live, plan_of


def test_it_says_its_seed_and_what_was_met() -> None:
    """A few lives in two processes: exit code 0, the seed, the table, the rate."""
    ended = CliRunner().invoke(simulate.main, ["--lives", "4", "--seed", "11", "--workers", "2"])
    assert ended.exit_code == 0, ended.output
    assert ended.output.startswith("4 lives from seed 11, 2 workers")
    assert "4 lives, 0.1 simulated hours, 0 failed" in ended.output
    assert "lives per second" in ended.output
    assert all(kind in ended.output for kind in FAULTS)


def test_without_a_seed_it_draws_one_and_says_which() -> None:
    """So that a failure in CI can be repeated."""
    ended = CliRunner().invoke(simulate.main, ["--lives", "1", "--workers", "1"])
    assert ended.exit_code == 0, ended.output
    assert ended.output.split("from seed ")[1].split(",")[0].isdigit()


def test_a_failing_life_is_told_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 1, what is wrong, and how to repeat it."""
    monkeypatch.setattr("asyncpar.testing.simulation.life.MAX_STEPS", 5_000)
    ended = CliRunner().invoke(
        simulate.main, ["--lives", "2", "--seed", "3", "--workers", "1", "--no-shrink"]
    )
    assert ended.exit_code == 1
    assert "life 3 failed:" in ended.output
    assert "--lives 1 --seed 3 --workers 1 --verbose" in ended.output
    assert "failed: 3, 4" in ended.output


def test_a_fault_that_never_strikes_is_the_rigs_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """With enough lives, a zero in the table ends with exit code 1."""
    monkeypatch.setattr(simulate, "_MIN_LIVES_FOR_ZEROS", 1)
    monkeypatch.setattr(simulate, "live", lambda plan: live(plan_of(plan.seed)))
    ended = CliRunner().invoke(simulate.main, ["--lives", "1", "--seed", "3", "--workers", "1"])
    assert ended.exit_code == 1
    assert "never met, so the rig is at fault:" in ended.output
