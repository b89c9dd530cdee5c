"""Tests of the waiting time before a retry."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncpar.core.backoff import BACKOFFS, exp_full_jitter
from tests.core.models import bounded

JITTERED = ["exp_full_jitter", "exp_equal_jitter"]


@pytest.mark.parametrize(
    ("attempt", "seconds"), [(1, 0.1), (2, 0.2), (3, 0.4), (9, 25.6), (10, 30.0), (1_000_000, 30.0)]
)
def test_the_bound_doubles_up_to_its_limit(attempt: int, seconds: float) -> None:
    """100 ms, doubled with each attempt, at most 30 s; a record that fails for weeks overflows nothing."""
    assert exp_full_jitter(attempt, 100, 30_000, 1.0) == pytest.approx(seconds)
    assert exp_full_jitter(attempt, 100, 30_000, 0.5) == pytest.approx(seconds / 2)
    assert exp_full_jitter(attempt, 100, 30_000, 0.0) == 0.0


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("fixed", [0.1, 0.1, 0.1, 0.1, 0.1, 0.1]),
        ("linear", [0.1, 0.2, 0.3, 0.4, 0.5, 0.5]),
        ("exponential", [0.1, 0.2, 0.4, 0.5, 0.5, 0.5]),
        ("exp_full_jitter", [0.025, 0.05, 0.1, 0.125, 0.125, 0.125]),
        ("exp_equal_jitter", [0.0625, 0.125, 0.25, 0.3125, 0.3125, 0.3125]),
    ],
)
def test_each_policy_grows_in_its_own_way(name: str, seconds: list[float]) -> None:
    """Six attempts from 100 ms to 500 ms, by a chance of a quarter."""
    delays = [BACKOFFS[name](attempt, 100, 500, 0.25) for attempt in range(1, 7)]
    assert delays == pytest.approx(seconds)


def test_chance_moves_only_the_jittered_policies() -> None:
    """The full jitter from 0, the equal one from half of the delay; the others are the same for all."""
    for name, backoff in BACKOFFS.items():
        low, high = backoff(3, 100, 30_000, 0.0), backoff(3, 100, 30_000, 0.999)
        assert (low != high) == (name in JITTERED)
    assert BACKOFFS["exp_full_jitter"](3, 100, 30_000, 0.0) == 0.0
    assert BACKOFFS["exp_equal_jitter"](3, 100, 30_000, 0.0) == 0.2


@bounded(60)
@given(
    st.sampled_from(sorted(BACKOFFS)),
    st.integers(1, 10_000) | st.just(10**400),
    st.integers(0, 10_000),
    st.integers(0, 3_600_000),
    st.floats(0, 1, exclude_max=True),
)
def test_a_delay_is_never_negative_nor_beyond_the_limit(
    name: str, attempt: int, base_ms: int, max_ms: int, u: float
) -> None:
    """Whatever the policy, the settings and the chance, and however often it failed."""
    assert 0.0 <= BACKOFFS[name](attempt, base_ms, max_ms, u) <= max_ms / 1000


@bounded(40)
@given(st.sampled_from(sorted(BACKOFFS)), st.integers(1, 200), st.floats(0, 1, exclude_max=True))
def test_a_delay_never_shrinks_with_the_attempts(name: str, attempt: int, u: float) -> None:
    """By the same chance."""
    backoff = BACKOFFS[name]
    assert backoff(attempt, 100, 30_000, u) <= backoff(attempt + 1, 100, 30_000, u)


def test_jitter_spreads_over_the_whole_range() -> None:
    """Records that failed together do not come back together: the delay follows the chance that is passed."""
    uniform = random.Random(7).random
    delays = [exp_full_jitter(4, 100, 30_000, uniform()) for _ in range(400)]
    assert len(set(delays)) == 400
    quarters = [sum(0.2 * n <= delay < 0.2 * (n + 1) for delay in delays) for n in range(4)]
    assert sum(quarters) == 400
    assert min(quarters) > 60
