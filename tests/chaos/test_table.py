"""What a campaign says about itself: nothing that failed, was left out or is missing goes unsaid."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from asyncpar.testing.checkers import Fault, Report
from tests.chaos.campaign import Goal, Tally
from tests.chaos.faults import MEMBER_KINDS, NETWORK_KINDS
from tests.chaos.round import Outcome
from tests.chaos.table import failure, round_line, summary


def outcome(*faults: Fault, struck: int = 3) -> Outcome:
    """A round of seed 7."""
    report = Report(faults, {"handled": 100, "duplicates": 5})
    return Outcome("7/2", Path("kept"), 30.0, Counter(kill=struck), records=100, report=report)


def tally(*outcomes: Outcome) -> Tally:
    """A campaign on one broker without a disk to fill."""
    kinds = (*MEMBER_KINDS, *NETWORK_KINDS)
    return Tally(list(outcomes), kinds=kinds, no_disk="may not mount", seconds=60.0)


def test_a_good_round_is_one_line() -> None:
    """The line tells faults, records and how far the campaign is."""
    line = round_line(tally(outcome()), outcome(), Goal(20))
    assert line.startswith("round 7/2: ok; 3 faults in 30 s; 100 records (100 handled, 5 duplicates)")
    assert "3 of 20 faults" in line


def test_a_bad_round_says_what_and_how_to_see_it_again() -> None:
    """Seed, round, folder and the findings are named."""
    bad = outcome(Fault("LOST", "offset 5 was lost"))
    bad.findings.append("m3 ended by itself")
    text = failure(bad, Goal(20, brokers=1))
    assert "--seed 7 --round 2 --brokers 1 --broker-faults 6" in text
    assert "kept" in text
    assert "LOST: offset 5 was lost" in text
    assert "m3 ended by itself" in text
    assert "FAILED (2)" in round_line(tally(bad), bad, Goal(20))


def test_the_summary_says_what_was_left_out_and_what_came_too_seldom() -> None:
    """A kind below its share and a kind that this machine cannot have are loud."""
    text = summary(tally(outcome()), Goal(100))
    rows = {line.split("  ")[0]: line for line in text.splitlines()}
    assert "FEWER THAN 5" in rows["kill"]
    assert "NO DISK CAN BE FILLED HERE: may not mount" in rows["disk full"]
    assert "LEFT OUT" in rows["rolling restart"]


def test_the_summary_counts_what_was_found() -> None:
    """Each law that was broken is counted under its own name."""
    text = summary(tally(outcome(Fault("ORDER", "a")), outcome(Fault("ORDER", "b"))), Goal(1))
    rows = {line[:38].strip(): line[38:].strip() for line in text.splitlines()}
    assert rows["reordered"] == "2"
    assert rows["lost"] == "0"
    assert rows["handled"] == "200"


def test_a_goal_wants_the_sum_and_each_kind() -> None:
    """Many faults of one kind are not enough."""
    goal = Goal(40)
    assert goal.of_each_kind == 2
    one_sided = tally(outcome(struck=100))
    assert not one_sided.has_reached(goal)
    one_sided.outcomes[0].struck.update(dict.fromkeys(one_sided.kinds, 2))
    assert one_sided.has_reached(goal)
