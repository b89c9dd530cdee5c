"""The command `python -m asyncpar.testing.simulate`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from asyncpar.testing import simulate
from asyncpar.testing.simulation.faults import FAULTS
from asyncpar.testing.simulation.life import live, plan_of

ROOT = Path(__file__).parents[2]


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
    assert "--lives 1 --seed 3 --verbose" in ended.output
    assert "failed: 3, 4" in ended.output


def test_a_fault_that_never_strikes_is_the_rigs_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """With enough lives, a zero in the table ends with exit code 1."""
    monkeypatch.setattr(simulate, "_MIN_LIVES_FOR_ZEROS", 1)
    monkeypatch.setattr(simulate, "live", lambda plan: live(plan_of(plan.seed)))
    ended = CliRunner().invoke(simulate.main, ["--lives", "1", "--seed", "3", "--workers", "1"])
    assert ended.exit_code == 1
    assert "never met, so the rig is at fault:" in ended.output


@pytest.mark.parametrize("option", ["--lives=0", "--lives=-3", "--workers=0", "--workers=-2"])
def test_nothing_can_be_lived_by_nobody(option: str) -> None:
    """Numbers below 1 are refused: no life would pass."""
    ended = CliRunner().invoke(simulate.main, [option])
    assert ended.exit_code == 2
    assert "is not in the range x>=1" in ended.output


def test_the_log_is_shown_when_asked_for_only() -> None:
    """A single life is lived in silence; `--verbose` shows the engine's log, and of one life only."""
    for more in ([], ["--verbose"]):
        command = [sys.executable, "-m", "asyncpar.testing.simulate", "--lives", "1", "--seed", "11", *more]
        done = subprocess.run(command, cwd=ROOT, timeout=100, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("1 life from seed 11, 1 worker\n")
        assert ("INFO " in done.stderr) == ("--verbose" in more)
    ended = CliRunner().invoke(simulate.main, ["--lives", "2", "--verbose"])
    assert ended.exit_code == 2
    assert "say --lives 1 --seed N" in ended.output


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_ends_it(workers: str) -> None:
    """At once, with exit code 130 and how far it came; no worker tells its own end."""
    command = [sys.executable, "-m", "asyncpar.testing.simulate", "--seed", "5", "--workers", workers]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as living:
        assert living.stdout is not None
        assert living.stdout.readline().startswith("500 lives from seed 5")
        os.killpg(living.pid, signal.SIGINT)
        _, said = living.communicate(timeout=30)
    assert living.returncode == simulate.EXIT_INTERRUPTED
    last = next(line for line in said.splitlines() if line.startswith("stopped after "))
    assert last.endswith(" from seed 5")
    assert "Traceback" not in said
