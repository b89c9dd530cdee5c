"""The bounded part of the clean rebalances: four changes. All of them: `python -m tests.rebalances`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from asyncpar.testing.checkers import Fault, Report
from asyncpar.testing.history import Event, HistoryFile
from tests.conftest import Broker
from tests.rebalances import table
from tests.rebalances.changes import FEWEST, MOST, PARTITIONS, Changes, Outcome, Progress, steps

CLEAN = {"handled": 9, "duplicates": 0, "stragglers": 0, "late starts": 0, "unclean losses": 0}


@pytest.mark.parametrize("times", [1, 2, 50, 333])
@pytest.mark.parametrize("seed", range(5))
def test_a_seed_gives_as_many_changes_as_asked_for(times: int, seed: int) -> None:
    """And never more or fewer members than allowed."""
    taken = list(steps(times, seed))
    assert taken == list(steps(times, seed))
    assert sum(map(len, taken)) == times
    members = FEWEST
    for step in taken:
        members += step.count("join") - step.count("leave")
        assert FEWEST <= members <= MOST


def test_long_runs_have_every_kind_of_step() -> None:
    """Joins, leaves, and both at once."""
    assert set(steps(50, seed=1)) == {("join",), ("leave",), ("join", "leave")}


def test_progress_reads_on_and_leaves_half_a_line_for_later(tmp_path: Path) -> None:
    """Who started something and who was given something when, from a file that grows."""
    path = tmp_path / "noted"
    history = HistoryFile(path)
    progress = Progress(path)
    history.append(Event("assign", 5, "m1"))
    progress.look()
    assert (progress.started, progress.assigned_ns) == (set(), {"m1": 5})
    history.append(Event("start", 6, "m1"))
    history.append(Event("assign", 7, "m1"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    progress.look()
    assert (progress.started, progress.assigned_ns) == ({"m1"}, {"m1": 5})
    path.write_bytes(whole)
    progress.look()
    assert progress.assigned_ns == {"m1": 7}
    history.close()


@pytest.mark.parametrize("name", ["duplicates", "stragglers", "late starts", "unclean losses"])
def test_what_could_excuse_a_duplicate_is_a_finding_itself(name: str, tmp_path: Path) -> None:
    """Where all changes are clean there is nothing to excuse, so the checkers' leniency is not used."""
    outcome = Outcome(tmp_path, report=Report((), {**CLEAN, name: 2}))
    assert outcome.faults_found == [f"2 {name}, where there must be none"]


def test_the_summary_shows_what_was_found(tmp_path: Path) -> None:
    """Each fault, and where the run's folder is; a clean run says so."""
    bad = Outcome(tmp_path, report=Report((Fault("LOST", "offset 7 was left out"),), CLEAN))
    shown = table.summary(bad)
    assert f"FAILED (1), kept: {tmp_path}" in shown
    assert "LOST: offset 7 was left out" in shown
    assert "every record ran once" in table.summary(Outcome(tmp_path, report=Report((), CLEAN)))


@pytest.mark.chaos
@pytest.mark.timeout(180)
async def test_members_join_and_leave_and_every_record_runs_once(broker: Broker, tmp_path: Path) -> None:
    """Four clean changes under load: nothing runs twice, nothing is lost, no key is out of order."""
    seed = random.SystemRandom().randrange(1_000_000)
    outcome = await Changes(broker.bootstrap, 4, seed, 300, tmp_path, lambda _: None).run()
    assert outcome.void is None
    assert outcome.faults_found == [], f"seed {seed}\n{table.summary(outcome)}"
    assert outcome.changes == 4
    assert outcome.records > 300
    assert all(len(one.pauses_ms) == 2 * PARTITIONS for one in outcome.steps)
