"""Judgements of what children wrote: each finds the wrong in a journal made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncpar.testing.history import Event
from tests.workers import journal
from tests.workers.journal import Journal, Run


def run(offset: int, start: int, end: int | None, pid: int = 1, attempt: int = 1, key: str = "k") -> Run:
    """Of partition 0."""
    return Run("m", pid, 0, offset, key, attempt, start, end)


def test_a_journal_is_read_as_it_grows(tmp_path: Path) -> None:
    """Half a line is left for later; what started and what ended is known at each look."""
    path = tmp_path / "journal"
    seen = Journal(path)
    assert seen.look() == 0
    start, end = "start\t5\tm\t7\t0\t3\tk\t1\n", "end\t9\tm\t7\t0\t3\tk\t1\n"
    path.write_text(start + end[:-4])
    assert (seen.look(), seen.running()) == (0, [run(3, 5, None, pid=7)])
    path.write_text(start + end)
    assert (seen.look(), seen.running()) == (1, [])
    assert seen.runs == [run(3, 5, 9, pid=7)]


def test_a_child_with_two_records_at_a_time_is_refused(tmp_path: Path) -> None:
    """The end of another record than the one that it began."""
    path = tmp_path / "journal"
    path.write_text("start\t5\tm\t7\t0\t3\tk\t1\nend\t9\tm\t7\t0\t4\tk\t1\n")
    with pytest.raises(AssertionError, match="one record at a time"):
        Journal(path).look()


GOOD = [run(0, 10, 20), run(1, 20, 30, pid=2), run(5, 12, 18, key="other", pid=3)]


def test_a_good_journal_has_no_findings() -> None:
    """One of a key at a time, in order, each once; and one whose child was killed, which ran again."""
    again = [*GOOD, run(2, 31, None, pid=4), run(2, 50, 60, pid=5, attempt=2)]
    for runs, killed in ((GOOD, {}), (again, {4: 45})):
        assert journal.overlaps(runs, killed) == []
        assert journal.reordered(runs) == []
        assert journal.miscounted(runs, killed) == []


@pytest.mark.parametrize(
    ("runs", "killed", "finding"),
    [
        ([run(0, 10, 20), run(1, 19, 30, pid=2)], {}, "still ran when"),
        ([run(0, 10, None), run(1, 40, 50, pid=2)], {}, "never ended"),
        ([run(0, 10, None), run(1, 40, 50, pid=2)], {1: 41}, "still ran when"),
    ],
    ids=["at one time", "no end", "before the kill"],
)
def test_two_records_of_a_key_at_a_time_are_found(
    runs: list[Run], killed: dict[int, int], finding: str
) -> None:
    """Also where the first one was cut off by a kill."""
    [found] = journal.overlaps(runs, killed)
    assert finding in found


def test_a_step_back_within_a_key_is_found() -> None:
    """A later record of the key had begun."""
    [found] = journal.reordered([run(1, 10, 20), run(0, 30, 40)])
    assert "offset 0" in found and "began after" in found


@pytest.mark.parametrize(
    ("runs", "killed", "finding"),
    [
        ([run(0, 10, 20), run(0, 30, 40, attempt=2)], {}, "although its child lived"),
        ([run(0, 10, 20), run(1, 20, 25), run(0, 30, 40, attempt=2)], {1: 26}, "although its child lived"),
        ([run(0, 10, None), run(0, 30, 40, pid=2)], {1: 20}, "is run 2 of it"),
        ([run(0, 10, 20, attempt=2)], {}, "1 attempts were counted of records that did not run"),
        ([run(0, 10, None), run(1, 30, 40, pid=2, attempt=2)], {1: 20}, "1 attempts were counted"),
    ],
    ids=["for nothing", "not the one at fault", "not counted", "counted for nothing", "a neighbour's"],
)
def test_attempts_that_were_counted_wrongly_are_found(
    runs: list[Run], killed: dict[int, int], finding: str
) -> None:
    """One for each child that died at the record, and no other."""
    assert any(finding in found for found in journal.miscounted(runs, killed))


def test_an_attempt_that_a_killed_child_had_no_time_to_write_down_is_no_finding() -> None:
    """It died after its last line: at the next record, which the engine knows and the journal does not."""
    runs = [run(0, 10, 20), run(1, 30, 40, pid=2, attempt=2)]
    assert journal.miscounted(runs, {1: 21}) == []


def test_events_tell_what_was_cut_off_and_what_nobody_heard_of() -> None:
    """A kill ends a run; one that ended just before its child was killed, and ran again, had not counted."""
    runs = [run(0, 10, 20), run(1, 20, None, pid=2), run(1, 50, 60, pid=3), run(0, 30, 35, pid=4)]
    found = journal.events("t", runs, {1: 21, 2: 40})
    ends = [(event.offset, event.at_ns, event.detail) for event in found if event.kind == "end"]
    assert ends == [(0, 20, "cancelled"), (1, 40, "cancelled"), (0, 35, "ok"), (1, 60, "ok")]
    assert all(isinstance(event, Event) and event.member == "m" for event in found)
