"""Tests of the waiting time before a retry."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncpar.core.backoff import exp_full_jitter
from tests.core.models import bounded


@pytest.mark.parametrize(
    ("attempt", "seconds"), [(1, 0.1), (2, 0.2), (3, 0.4), (9, 25.6), (10, 30.0), (1_000_000, 30.0)]
)
def test_the_bound_doubles_up_to_its_limit(attempt: int, seconds: float) -> None:
    """100 ms, doubled with each attempt, at most 30 s; a record that fails for weeks overflows nothing."""
    assert exp_full_jitter(attempt, 100, 30_000, 1.0) == pytest.approx(seconds)
    assert exp_full_jitter(attempt, 100, 30_000, 0.5) == pytest.approx(seconds / 2)
    assert exp_full_jitter(attempt, 100, 30_000, 0.0) == 0.0


@bounded(50)
@given(
    st.integers(1, 10_000),
    st.integers(0, 10_000),
    st.integers(0, 3_600_000),
    st.floats(0, 1, exclude_max=True),
)
def test_a_delay_is_never_negative_nor_beyond_the_limit(
    attempt: int, base_ms: int, max_ms: int, u: float
) -> None:
    """Whatever the settings and the chance."""
    assert 0.0 <= exp_full_jitter(attempt, base_ms, max_ms, u) <= max_ms / 1000


def test_jitter_spreads_over_the_whole_range() -> None:
    """Records that failed together do not come back together: the delay follows the chance that is passed."""
    uniform = random.Random(7).random
    delays = [exp_full_jitter(4, 100, 30_000, uniform()) for _ in range(400)]
    assert len(set(delays)) == 400
    quarters = [sum(0.2 * n <= delay < 0.2 * (n + 1) for delay in delays) for n in range(4)]
    assert sum(quarters) == 400
    assert min(quarters) > 60
