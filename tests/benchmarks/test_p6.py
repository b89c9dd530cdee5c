"""Workload P6: what counts as redelivered, and one kill -9."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import p6
from benchmarks.load import place
from benchmarks.p6_member import BEGAN, ENDED, ends_in, journal_of
from tests.conftest import Broker

A0, A1, A2, STUCK = place(0, 0), place(0, 1), place(0, 2), place(1, 0)


def test_what_was_done_and_runs_again_is_redelivered_and_what_was_in_flight_is_not():
    """Two of a key done, the third begun, the stuck one begun: of the done ones the second ran again."""
    found = p6.judge(([STUCK, A0, A1, A2], [A0, A1]), ([STUCK, A1, A2], [A1, A2, STUCK]), [3])
    assert (found.done, found.in_flight, found.redelivered, found.ran_again) == (2, 2, 1, 3)
    assert found.share == 0.5
    assert found.faults == []


@pytest.mark.parametrize(
    ("ended_again", "fault"),
    [([A2], "missing"), ([A2, A1, STUCK], "overtook"), ([STUCK], "missing")],
    ids=["the stuck one is lost", "order", "a record in flight is lost"],
)
def test_lost_and_reordered_records_are_faults(ended_again: list[bytes], fault: str):
    """Over both members."""
    found = p6.judge(([STUCK, A0, A1], [A0]), (ended_again, ended_again), [3])
    assert any(fault in one for one in found.faults)


def test_the_journal_of_a_killed_member_is_read_as_far_as_it_goes(tmp_path: Path):
    """Half a line at its end, or no journal at all, is no error."""
    path = tmp_path / "journal"
    assert (journal_of(path), ends_in(path)) == (([], []), 0)
    path.write_bytes(BEGAN + A0 + BEGAN + STUCK + ENDED + A0 + BEGAN + A1[:3])
    assert journal_of(path) == ([A0, STUCK], [A0])
    assert ends_in(path) == 1


@pytest.mark.broker
def test_a_killed_member_leaves_one_record_in_flight(broker: Broker, monkeypatch: pytest.MonkeyPatch):
    """A member is killed above its stuck record, and the second one ends what is left, in order."""
    monkeypatch.setattr(p6, "SESSION_TIMEOUT_MS", 1500)
    found = p6.killed(broker.bootstrap, 500, is_settled=True)
    assert found.faults == []
    assert (found.done, found.in_flight) == (500, 1)
    assert found.ran_again == found.redelivered + 1
