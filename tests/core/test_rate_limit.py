"""Tests of the rate limits: exact rates, waits that suffice, and tables of keys that stay small."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncpar.core.rate_limit import KeyedBuckets, RateRules, TokenBucket
from tests.core.models import bounded

RATES = [0.001, 0.1, 1 / 3, 1.0, 7.7, 1000.0, 1e6]


def _takes(bucket: TokenBucket, now: float, times: int) -> int:
    return sum(bucket.take(now) == 0.0 for _ in range(times))


def _greedy(bucket: TokenBucket, now: float, times: int) -> list[float]:
    """When the tokens came of somebody who waits exactly as long as told, and looks twice at most."""
    moments = []
    for _ in range(times):
        wait = bucket.take(now)
        if wait > 0.0:
            assert now + wait > now
            now += wait
            assert bucket.take(now) == 0.0
        moments.append(now)
    return moments


def test_a_burst_is_there_at_once_and_then_the_rate() -> None:
    """Three at once, then one in half a second."""
    bucket = TokenBucket(RateRules(2.0, 3))
    assert _takes(bucket, 100.0, 10) == 3
    assert bucket.take(100.0) == 0.5
    assert bucket.take(100.25) == 0.25
    assert _takes(bucket, 100.5, 10) == 1
    assert _takes(bucket, 101.5, 10) == 2


def test_a_question_and_a_refusal_take_nothing() -> None:
    """A call that needs tokens of two buckets asks both before it takes any."""
    bucket = TokenBucket(RateRules(1.0, 1))
    assert [bucket.wait(5.0) for _ in range(5)] == [0.0] * 5
    assert bucket.take(5.0) == 0.0
    assert [bucket.take(5.0) for _ in range(5)] == [1.0] * 5
    assert [bucket.wait(5.75) for _ in range(5)] == [0.25] * 5
    assert bucket.take(6.0) == 0.0


def test_tokens_beyond_the_burst_are_lost() -> None:
    """A night without calls is followed by a burst, not by a flood."""
    bucket = TokenBucket(RateRules(100.0, 5))
    _takes(bucket, 0.0, 5)
    assert bucket.is_full(0.05)
    assert not bucket.is_full(0.049)
    assert _takes(bucket, 40_000.0, 1000) == 5


def test_a_clock_that_stands_still_or_goes_back_gives_no_tokens() -> None:
    """The wait grows with how far it went back."""
    bucket = TokenBucket(RateRules(1.0, 2))
    assert _takes(bucket, 50.0, 100) == 2
    assert bucket.take(40.0) == 11.0
    assert bucket.take(51.0) == 0.0
    late = TokenBucket(RateRules(1.0, 2))
    assert (late.take(50.0), late.take(40.0)) == (0.0, 0.0)
    assert late.take(50.0) == 1.0


@pytest.mark.parametrize("per_second", RATES)
@pytest.mark.parametrize("burst", [1, 10])
def test_nothing_drifts_however_long_it_runs(per_second: float, burst: int) -> None:
    """After four months of uptime: the last of 3,000 tokens comes when the first one and the rate say.

    Intervals that are added up would be rounded at each step, at 1e6 per second by up to 0.1 %.
    """
    start = 1e7 + 0.1
    moments = _greedy(TokenBucket(RateRules(per_second, burst)), start, 3000)
    exact = Fraction(start) + Fraction(3000 - burst) / Fraction(per_second)
    assert abs(Fraction(moments[-1]) - exact) < 2**-28, "more than the two floats next to it"
    assert moments == sorted(moments)


def test_a_year_at_full_rate_is_exact_to_the_token() -> None:
    """3e13 tokens taken since it was full: the next one comes when their number divided by the rate says."""
    bucket = TokenBucket(RateRules(1e6, 10))
    bucket.take(0.0)
    bucket._taken = 31_536_000 * 10**6 + 10
    assert bucket.wait(31_536_000.0) == pytest.approx(1e-6, rel=0.01)
    assert bucket.wait(31_536_000.000_001) == 0.0


GAPS = st.lists(st.sampled_from([0.0, 0.0, 0.1, 0.5, 0.999, 1.0, 3.3, 50.0]), min_size=1, max_size=60)


@bounded(60)
@given(GAPS, st.sampled_from(RATES), st.integers(1, 5), st.sampled_from([0.0, 0.1, 1e6]))
def test_no_span_of_time_sees_more_than_the_burst_and_the_rate(
    gaps: list[float], per_second: float, burst: int, start: float
) -> None:
    """Between any two takes, whenever they come; and each refusal's wait is exactly long enough."""
    bucket, now = TokenBucket(RateRules(per_second, burst)), start
    taken: list[float] = []
    for gap in gaps:
        now += gap / per_second
        wait = bucket.wait(now)
        assert bucket.take(now) == wait
        if wait > 0.0:
            assert bucket.wait(now + wait * 0.999) > 0.0
            now += wait
            assert bucket.take(now) == 0.0
        taken.append(now)
    for first, begin in enumerate(taken):
        for count, end in enumerate(taken[first:], 1):
            assert count <= burst + (end - begin) * per_second * (1 + 1e-9) + 1e-3


# -- by key --------------------------------------------------------------------------------------


def test_each_key_has_its_own_rate() -> None:
    """One that is used up holds no other back."""
    buckets = KeyedBuckets(RateRules(1.0, 2))
    assert [buckets.take(b"a", 10.0) for _ in range(3)] == [0.0, 0.0, 1.0]
    assert buckets.wait(b"b", 10.0) == 0.0
    assert buckets.take(b"b", 10.0) == 0.0
    assert buckets.wait(b"a", 10.5) == 0.5
    assert buckets.take(b"a", 11.0) == 0.0


def test_a_question_costs_nothing_and_a_full_bucket_is_forgotten() -> None:
    """Keys that were seen once leave with the next ones, or when somebody sweeps."""
    buckets = KeyedBuckets(RateRules(10.0, 1))
    assert buckets.wait(b"a", 0.0) == 0.0
    assert len(buckets) == 0
    for n in range(1000):
        assert buckets.take(n, n * 0.05) == 0.0
        assert len(buckets) <= 3
    assert buckets.forgotten_early == 0
    buckets.forget_full(50.02)
    assert len(buckets) == 1
    buckets.forget_full(60.0)
    assert len(buckets) == 0


def test_of_too_many_keys_the_one_used_longest_ago_is_forgotten_early_and_counted() -> None:
    """A key in constant use keeps its rate; refusals do not count as use."""
    buckets = KeyedBuckets(RateRules(1.0, 2, max_keys=2))
    buckets.take("busy", 0.0)
    buckets.take("old", 0.0)
    buckets.take("old", 0.0)
    buckets.take("busy", 0.0)
    assert buckets.take("old", 0.5) == 0.5
    assert buckets.take("new", 0.5) == 0.0
    assert (len(buckets), buckets.forgotten_early) == (2, 1)
    assert buckets.take("busy", 0.5) == 0.5
    assert buckets.take("old", 0.5) == 0.0, "it starts with a full bucket"
    assert (len(buckets), buckets.forgotten_early) == (2, 2)


def test_room_is_made_by_full_buckets_first() -> None:
    """Nothing is forgotten early where a full one can go."""
    buckets = KeyedBuckets(RateRules(1.0, 1, max_keys=2))
    buckets.take("a", 0.0)
    buckets.take("b", 0.0)
    buckets.take("c", 1.0)
    buckets.take("d", 1.0)
    assert (len(buckets), buckets.forgotten_early) == (2, 0)


def test_one_take_never_sweeps_the_whole_table() -> None:
    """After a pause 1,000 are full: each new key lets go of two, so that the table shrinks by steps."""
    buckets = KeyedBuckets(RateRules(1.0, 1))
    for n in range(1000):
        buckets.take(n, 0.0)
    buckets.take("new", 100.0)
    assert len(buckets) == 999
    for n in range(1000):
        buckets.take(("more", n), 100.0 + n)
    assert len(buckets) < 10


KEYED = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from([0.0, 0.0, 0.2, 0.7, 1.0, 4.0]), st.booleans()), max_size=60
)


@bounded(60)
@given(KEYED, st.integers(1, 3))
def test_keys_behave_as_if_each_had_a_bucket_for_ever(
    steps: list[tuple[int, float, bool]], burst: int
) -> None:
    """Forgetting full buckets, in whichever moment, is seen by nobody."""
    rules, now = RateRules(1.0, burst, max_keys=4), 0.0
    buckets, model = KeyedBuckets(rules), [TokenBucket(rules) for _ in range(4)]
    for key, passed, sweeps in steps:
        now += passed
        if sweeps:
            buckets.forget_full(now)
        assert buckets.wait(key, now) == model[key].wait(now)
        assert buckets.take(key, now) == model[key].take(now)
        assert len(buckets) <= 4
    assert buckets.forgotten_early == 0
    buckets.forget_full(now + burst)
    assert len(buckets) == 0
