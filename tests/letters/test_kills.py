"""The bounded part of the kills: one at each step. All of them: `python -m tests.letters kills`."""

from __future__ import annotations

import random
import sys
from collections import Counter
from pathlib import Path

import pytest

from asyncpar.testing.checkers import Fault, Report
from tests.conftest import Broker
from tests.letters import table
from tests.letters.accounting import Account
from tests.letters.kills import Kills, Outcome
from tests.letters.plan import LONGEST_DELAY_MS, STEPS, KillPlan, aim_of


@pytest.mark.parametrize("seed", range(5))
def test_a_seed_strikes_each_step_equally_often(seed: int) -> None:
    """Some kills meet a member that stands at the step, some one that went on for a moment."""
    aims = [aim_of(seed, number) for number in range(100)]
    assert aims == [aim_of(seed, number) for number in range(100)]
    assert Counter(aim.step for aim in aims) == dict.fromkeys(STEPS, 20)
    delays = [aim.delay_ms for aim in aims if aim.delay_ms is not None]
    assert 20 < len(delays) < 80
    assert all(0 <= delay <= LONGEST_DELAY_MS for delay in delays)


def test_plans_survive_the_way_and_the_last_member_lives() -> None:
    """As an argument; who is beyond the number of kills has no aim."""
    plan = KillPlan("m2", "b:1", "g", "t", "h", "f", seed=3, times=2)
    assert KillPlan.from_argument(plan.to_argument()) == plan
    assert plan.aim == aim_of(3, 1)
    assert KillPlan("m3", "b:1", "g", "t", "h", "f", seed=3, times=2).aim is None


def test_the_summary_shows_what_was_found(tmp_path: Path) -> None:
    """Each fault, and where the run's folder is; a clean run says so."""
    doubles = Counter(committing=3)
    good = Outcome(tmp_path, 5, Counter(committing=5), letters=Account(2, 5, doubles=doubles))
    assert "ok: nothing lost" in table.of_kills(good)
    assert "committing            5            0                3" in table.of_kills(good)
    bad = Outcome(tmp_path, 5, letters=Account(findings=["offset 7 is in no letter"]))
    bad.report = Report((Fault("ORDER", "offset 8 before 7"),), {})
    shown = table.of_kills(bad)
    assert f"FAILED (2), kept: {tmp_path}" in shown
    assert "offset 7 is in no letter" in shown
    assert "ORDER: offset 8 before 7" in shown


@pytest.mark.chaos
@pytest.mark.timeout(180)
@pytest.mark.skipif(sys.platform != "linux", reason="opens a named pipe for reading and writing")
async def test_a_kill_at_each_step_loses_no_letter(broker: Broker, tmp_path: Path) -> None:
    """Every failing record is a dead letter once, or twice with a kill in between; all others are handled."""
    seed = random.SystemRandom().randrange(1_000_000)
    outcome = await Kills(broker.bootstrap, len(STEPS), seed, 150, tmp_path, lambda _: None).run()
    assert outcome.void is None
    assert outcome.faults_found == [], f"seed {seed}\n{table.of_kills(outcome)}"
    assert outcome.struck == dict.fromkeys(STEPS, 1)
    assert outcome.letters is not None
    assert outcome.letters.letters >= outcome.letters.failing > 10
