"""The bounded part of the soak: some seconds, and verdicts on samples made by hand. All: `make soak`."""

from __future__ import annotations

import random
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import Broker
from tests.soak import table
from tests.soak.plan import SoakPlan, Vitals
from tests.soak.sampling import Sample
from tests.soak.soaking import Outcome, Shape, Soak, incomplete, judged

RATE = 4000
WELL = Vitals(0.0, 15, {0: 10, 1: 20}, 0, [])
SUMS = ({0: 10, 1: 20}, {0: 10, 1: 20})


def run_of(change: Callable[[Sample, int], Sample] = lambda sample, _: sample) -> list[tuple[float, Sample]]:
    """Half an hour of a member that is well, a sample each second, but for what `change` does to each."""
    chance = random.Random(1)
    samples = []
    for second in range(1800):
        vitals = Vitals(second + 0.2, 15 + chance.randrange(100), {0: second * RATE}, 0, [])
        rss = 55 + chance.gauss(0, 1)
        sample = Sample(rss, 12 + chance.randrange(2), 3, 0.4 * second, chance.randrange(900), 50, vitals)
        samples.append((float(second), change(sample, second)))
    return samples


def flagged(samples: list[tuple[float, Sample]]) -> set[str]:
    """The names of the series that did not pass."""
    return {one.name for one in judged(samples, RATE, 0.05) if not one.is_ok}


def test_a_member_that_is_well_passes_every_gate() -> None:
    """Noise in each series, slope in none."""
    assert flagged(run_of()) == set()


@pytest.mark.parametrize(
    ("name", "leak"),
    [
        ("resident memory", lambda one, second: replace(one, rss_mb=one.rss_mb + second * 0.003)),
        ("open descriptors", lambda one, second: replace(one, descriptors=one.descriptors + second // 300)),
        ("threads", lambda one, second: replace(one, threads=one.threads + second // 600)),
        (
            "asyncio tasks",
            lambda one, second: replace(
                one, vitals=replace(one.vitals, tasks=one.vitals.tasks + second // 60)
            ),
        ),
        ("true lag", lambda one, second: replace(one, lag=one.lag + second * 8)),
        ("in flight", lambda one, second: replace(one, in_flight=one.in_flight + second * 8)),
        (
            "handled",
            lambda one, second: replace(
                one, vitals=replace(one.vitals, handled={0: int(RATE * (second - second**2 / 20_000))})
            ),
        ),
    ],
)
def test_each_leak_is_flagged_by_its_own_gate(name: str, leak: Callable[[Sample, int], Sample]) -> None:
    """And by no other."""
    assert flagged(run_of(leak)) == {name}


def test_sums_that_agree_are_complete() -> None:
    """What the broker acknowledged, holds and has committed, and what was handled."""
    assert incomplete(Counter({0: 10, 1: 20}), *SUMS, WELL) == []


@pytest.mark.parametrize(
    ("acknowledged", "commits", "vitals", "text"),
    [
        ({0: 11, 1: 20}, SUMS[1], WELL, r"\[0\] has 10 records, but 11 were acknowledged"),
        ({}, {0: 10, 1: 19}, WELL, r"\[1\] is committed up to 19, and ends at 20"),
        ({}, {0: 10}, WELL, r"\[1\] is committed up to None"),
        ({}, SUMS[1], replace(WELL, handled={0: 9, 1: 20}), r"\[0\] has 10 records, and 9 were handled"),
        ({}, SUMS[1], replace(WELL, handled={0: 10}), r"\[1\] has 20 records, and 0 were handled"),
        ({}, SUMS[1], replace(WELL, fault_count=3, faults=["this one"]), "3 steps back .* this one"),
    ],
)
def test_sums_that_differ_are_found(
    acknowledged: dict[int, int], commits: dict[int, int], vitals: Vitals, text: str
) -> None:
    """Each of them alone, with the partition's name."""
    found = incomplete(Counter(acknowledged), SUMS[0], commits, vitals)
    assert len(found) == 1
    assert re.search(text, found[0])


def test_plans_and_vitals_survive_the_way() -> None:
    """As an argument and as a line."""
    plan = SoakPlan("m", "b:1", "g", "t", 1234, "v", 0.5)
    assert SoakPlan.from_argument(plan.to_argument()) == plan
    assert Vitals.from_line(WELL.to_line()) == WELL


def test_the_summary_names_what_grew(tmp_path: Path) -> None:
    """With growth, limit and rule, and where the folder is; a soak without findings says so."""
    bad = judged(run_of(lambda one, second: replace(one, threads=3 + second // 100)), RATE, 0.05)
    shown = table.summary(Outcome(tmp_path, judged=bad))
    assert f"FAILED (1), kept: {tmp_path}" in shown
    assert "threads: 15.62 of 1.5 (its floor rises" in shown
    assert "no slope" in table.summary(Outcome(tmp_path, judged=judged(run_of(), RATE, 0.05)))


@pytest.mark.chaos
@pytest.mark.timeout(180)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_a_short_soak_loses_nothing_and_leaks_nothing(broker: Broker, tmp_path: Path) -> None:
    """Some seconds, too few to judge memory and rate, which still warm up: the rest as in half an hour."""
    shape = Shape(minutes=0.2, rate_share=0.2, measure_seconds=3, sample_seconds=0.2)
    outcome = await Soak(broker.bootstrap, shape, 1, tmp_path, lambda _: None).run()
    assert outcome.void is None
    assert outcome.findings == [], table.summary(outcome)
    grown = {one.name for one in outcome.judged if not one.is_ok}
    assert grown <= {"resident memory", "handled"}, table.summary(outcome)
    assert outcome.records > 1000
    assert outcome.samples > 30
    assert len(outcome.judged) == 7
