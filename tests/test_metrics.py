"""Metrics: durations in buckets of powers of two."""

from __future__ import annotations

import pytest

from asyncpar.metrics import HISTOGRAM_BOUNDS, SecondsHistogram


@pytest.mark.parametrize("seconds", [1.5e-6, 0.3, 1.7, 900.0])
def test_an_observation_lies_in_the_bucket_of_its_bound(seconds: float) -> None:
    """Above the bound before it, below its own."""
    histogram = SecondsHistogram()
    histogram.add(seconds)
    snapshot = histogram.snapshot()
    place = snapshot.counts.index(1)
    assert HISTOGRAM_BOUNDS[place - 1] < seconds <= HISTOGRAM_BOUNDS[place]
    assert (sum(snapshot.counts), snapshot.total) == (1, seconds)


def test_what_is_out_of_range_is_counted_at_the_ends() -> None:
    """Nothing, less than nothing, and more than the highest bound."""
    histogram = SecondsHistogram()
    for seconds in (0.0, -1.0, 1e-9, 1e9):
        histogram.add(seconds)
    assert (histogram.counts[0], histogram.counts[-1]) == (3, 1)
    assert histogram.total == pytest.approx(1e9)
