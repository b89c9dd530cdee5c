"""Tests of the sliding window: against a list of everything that ever happened."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncpar.core.window import BUCKETS, Window, seconds_until
from tests.core.models import bounded

BUCKETS_PASSED = st.sampled_from([0.0, 0.003, 0.1, 0.3, 0.75, 2.997, 3.0, 15.0])
STEPS = st.lists(st.tuples(BUCKETS_PASSED, st.integers(0, 3), st.booleans()), max_size=40)


@bounded(60)
@given(STEPS, st.sampled_from([0.0, 17.3, -4.0, 1e7]), st.sampled_from([1, 7, 100, 1000, 60_000]))
def test_it_holds_the_newest_bucket_and_the_nine_before(
    steps: list[tuple[float, int, bool]], start: float, window_ms: int
) -> None:
    """And the outlook is what advancing a window to each of its moments finds."""
    window, width, now = Window(window_ms), window_ms / 1000 / BUCKETS, start
    happened: list[tuple[int, int, int]] = []
    for elapsed, total, marked in steps:
        now += elapsed * width
        window.add(now, total, marked)
        bucket = window._bucket
        assert bucket == pytest.approx(now / width, abs=1 + 1e-9 * abs(now / width))
        happened.append((bucket, total, marked))
        lately = [one for one in happened if one[0] > bucket - BUCKETS]
        assert (window.total, window.marked) == (sum(one[1] for one in lately), sum(one[2] for one in lately))
    outlook = list(window.outlook(now))
    assert len(outlook) == BUCKETS + 1
    assert outlook[0] == (now, window.total, window.marked)
    assert [moment for moment, _, _ in outlook] == sorted({moment for moment, _, _ in outlook})
    assert outlook[-1][1:] == (0, 0)
    for moment, total, marked in outlook:
        window.advance(moment)
        assert (window.total, window.marked) == (total, marked)


def test_something_stays_for_nine_to_ten_tenths_of_the_window() -> None:
    """One that comes when a bucket begins stays for all of it, one that comes at its end for a tenth less."""
    window = Window(1000)
    window.add(5.0, 1, 1)
    window.add(5.0999, 1, 0)
    window.advance(5.9999)
    assert (window.total, window.marked) == (2, 1)
    window.advance(6.0)
    assert (window.total, window.marked) == (0, 0)


def test_a_clock_that_stands_still_or_goes_back_loses_nothing() -> None:
    """It all counts as of the newest moment that was seen."""
    window = Window(1000)
    for now in (50.0, 50.0, 50.0, 49.0, -3.0):
        window.add(now, 1, 0)
    window.advance(50.95)
    window.advance(2.0)
    assert window.total == 5
    window.add(50.96, 1, 0)
    assert window.total == 6
    window.advance(51.0)
    assert window.total == 1


def test_memory_and_work_do_not_grow_with_what_is_counted_or_with_the_time_between() -> None:
    """A million in one bucket, or ten years of nothing, cost what one costs."""
    window = Window(100)
    window.add(0.0, 10**6, 10**5)
    window.add(3e8, 1, 1)
    assert (window.total, window.marked) == (1, 1)
    assert len(window._starts) == BUCKETS


def test_each_edge_is_a_moment_at_which_the_bucket_has_begun() -> None:
    """Rounded down, whoever sleeps until an edge would wake before it, again and again."""
    for window_ms in (3, 7, 10, 333, 1000, 60_000):
        window = Window(window_ms)
        for bucket in range(123_456_700, 123_456_900):
            edge = window._edge(bucket)
            assert math.floor(edge * window._buckets_per_second) == bucket


@bounded(100)
@given(st.floats(-10, 1e9), st.floats(-10, 1e9) | st.floats(0, 1e-3))
def test_whoever_waits_as_told_has_waited_long_enough(moment: float, now: float) -> None:
    """Subtracted and added again, floats may miss by a hair, and a virtual clock would stand still there."""
    wait = seconds_until(moment, now)
    assert now + wait >= moment
    assert (wait == 0.0) == (now >= moment)
    assert wait == pytest.approx(max(0.0, moment - now))
