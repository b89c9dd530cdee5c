"""Pauses between starts: where they begin, how long they are, and what does not end them."""

from __future__ import annotations

import pytest

from asyncpar.records import TopicPartition
from asyncpar.testing.history import Event
from tests.rebalances.stillness import Window, stillness

MS = 1_000_000
A, B = TopicPartition("t", 0), TopicPartition("t", 1)


def starts(tp: TopicPartition, *at_ms: int) -> list[Event]:
    return [Event("start", at * MS, "m", tp, number) for number, at in enumerate(at_ms)]


def test_the_longest_time_between_two_starts_counts() -> None:
    """Each partition has its own, whatever the order in which the events were written."""
    events = [*starts(B, 0, 50, 100), *starts(A, 0, 10, 40, 70, 100)]
    [found] = stillness(events, [Window("m2 joins", 0, 200 * MS)])
    assert found.pauses_ms == (30.0, 50.0)
    assert (found.median_ms, found.max_ms) == (40.0, 50.0)


def test_a_pause_counts_once_where_it_begins() -> None:
    """With its whole length, although the next window has begun when it ends."""
    events = starts(A, 0, 10, 20, 320, 330)
    windows = [Window("first", 5 * MS, 100 * MS), Window("second", 100 * MS, 400 * MS)]
    assert [one.max_ms for one in stillness(events, windows)] == [300.0, 10.0]


@pytest.mark.parametrize("kind", ["end", "poll", "commit"])
def test_only_starts_show_that_work_goes_on(kind: str) -> None:
    """Whatever else happens meanwhile does not shorten a pause."""
    other = Event(kind, 50 * MS, "m", A, 0)  # type: ignore[arg-type]
    [found] = stillness([*starts(A, 0, 100), other], [Window("first", 0, 100 * MS)])
    assert found.pauses_ms == (100.0,)
