"""The bounded part of the outages: seconds. Minutes: `python -m tests.letters outage`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.conftest import Broker
from tests.letters import table
from tests.letters.outage import Outage, Outcome, Rates
from tests.letters.plan import OutagePlan, Policy, Shape

SHORT = Shape(
    outage_seconds=2.5,
    calm_seconds=1.0,
    settle_seconds=1.0,
    after_seconds=1.0,
    open_ms=300,
    max_open_ms=600,
    at_least=10,
    window_ms=1_500,
    keys=24,
)


def test_plans_survive_the_way() -> None:
    """As an argument, with the shape."""
    plan = OutagePlan("m", "b:1", "g", "t", "h", 1, "budget", SHORT, {"m": 2})
    assert OutagePlan.from_argument(plan.to_argument()) == plan


def test_the_summary_shows_what_was_found(tmp_path: Path) -> None:
    """Each finding, and where the run's folder is; a clean run says so."""
    good = Outcome(tmp_path, "breaker", rates=Rates(200, 800, 900, 1.0, 2.0))
    assert "ok: nothing lost, nothing given up" in table.of_outage(good)
    bad = Outcome(tmp_path, "budget", findings=["m1 wrote 21 letters"])
    assert f"FAILED (1), kept: {tmp_path}\n  m1 wrote 21 letters" in table.of_outage(bad)
    assert "no verdict: gone" in table.of_outage(Outcome(tmp_path, "budget", void="gone"))


@pytest.mark.chaos
@pytest.mark.timeout(180)
@pytest.mark.parametrize("policy", ["breaker", "budget"])
async def test_a_short_outage_loses_nothing(broker: Broker, tmp_path: Path, policy: Policy) -> None:
    """With a breaker nothing is given up, and it goes on at full speed; without, the budget is the limit."""
    seed = random.SystemRandom().randrange(1_000_000)
    outcome = await Outage(broker.bootstrap, policy, SHORT, seed, tmp_path, lambda _: None).run()
    assert outcome.void is None
    assert outcome.faults_found == [], f"seed {seed}\n{table.of_outage(outcome)}"
    assert outcome.records > 500
    assert (outcome.letters == 0) == (policy == "breaker")
