"""Series made by hand: what leaks must be flagged, what is only noisy must pass."""

from __future__ import annotations

import math
import random

import pytest

from tests.soak.trend import (
    Point,
    bins,
    least_squares,
    may_grow_by_share,
    may_not_fall,
    may_not_grow,
    may_not_pile_up,
    theil_sen,
    warm,
)

RUN = 1800
SEEDS = range(20)


def series(value_at, noise: float, seed: int, seconds: int = RUN) -> list[Point]:
    """A sample each second of `value_at(second)` with gaussian noise."""
    chance = random.Random(seed)
    return [Point(second, value_at(second) + chance.gauss(0, noise)) for second in range(seconds)]


def rough(value_at, spread: int, seed: int, seconds: int = RUN) -> list[Point]:
    """A sample each second of a whole number that is never below `value_at(second)`."""
    chance = random.Random(seed)
    return [Point(second, int(value_at(second)) + chance.randrange(spread)) for second in range(seconds)]


# -- lines ---------------------------------------------------------------------------------------


def test_both_slopes_of_a_straight_line_are_its_own() -> None:
    """Without noise they agree."""
    points = [Point(second, 7 + 0.25 * second) for second in range(50)]
    line = least_squares(points)
    assert line.slope == pytest.approx(0.25)
    assert line.at_zero == pytest.approx(7)
    assert theil_sen(points) == pytest.approx(0.25)


def test_a_burst_of_noise_does_not_turn_the_slope_that_judges() -> None:
    """A fifth of the samples is absurd: least squares believes them, Theil and Sen do not."""
    points = [Point(second, 100.0 if second < 800 else 10_000.0) for second in range(1000)]
    assert least_squares(points).slope > 5
    assert theil_sen(points) == 0


def test_bins_keep_order_and_all_points() -> None:
    """Each bin stands for as many neighbours, give or take one."""
    points = [Point(second, second) for second in range(10)]
    assert bins(points, 3, min) == [Point(1, 0), Point(4, 3), Point(7.5, 6)]
    assert bins(points, 30, min) == points


def test_the_warm_up_is_left_out() -> None:
    """A tenth of the time, however many samples that are; too few of the rest are no base for a verdict."""
    points = [Point(second, 0) for second in range(101)]
    assert warm(points)[0].seconds == 10
    with pytest.raises(ValueError, match="0 samples are too few"):
        warm([])
    with pytest.raises(ValueError, match="4 samples are too few"):
        warm(points[:5])


# -- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_flat_memory_passes_whatever_its_noise(seed: int) -> None:
    """60 MB with three MB of noise, and pools that double in the warm-up."""
    flat = series(lambda second: 60.0 if second > 60 else 30.0, 3.0, seed)
    assert may_grow_by_share("RSS", "MB", flat, 0.05).is_ok


@pytest.mark.parametrize("seed", SEEDS)
def test_leaking_memory_is_flagged_under_noise(seed: int) -> None:
    """Ten MB in an hour on top of 60: less than the noise at any moment, more than a tolerable slope."""
    leak = series(lambda second: 60.0 + 10.0 * second / 3600, 3.0, seed)
    judged = may_grow_by_share("RSS", "MB", leak, 0.05)
    assert not judged.is_ok
    assert judged.per_hour == pytest.approx(10, rel=0.3)


def test_memory_that_grows_in_one_late_step_is_flagged() -> None:
    """No slope, but the last third holds more than the first."""
    stepped = series(lambda second: 60.0 if second < 1300 else 80.0, 0.5, 1)
    assert not may_grow_by_share("RSS", "MB", stepped, 0.05).is_ok


@pytest.mark.parametrize("seed", SEEDS)
def test_memory_that_is_given_back_passes(seed: int) -> None:
    """A saw of a garbage collector, and spikes, are no growth."""
    chance = random.Random(seed)
    saw = [
        Point(second, 60 + second % 97 / 10 + (200 if chance.random() < 0.01 else 0)) for second in range(RUN)
    ]
    assert may_grow_by_share("RSS", "MB", saw, 0.05).is_ok


# -- counts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("spread", [1, 3, 120])
def test_counts_that_only_swing_pass(seed: int, spread: int) -> None:
    """Tasks come and go with the records, a scrape opens a socket: the floor stays."""
    assert may_not_grow("tasks", "", rough(lambda _: 15, spread, seed)).is_ok


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("spread", [1, 3, 40])
def test_a_leaked_descriptor_every_five_minutes_is_flagged(seed: int, spread: int) -> None:
    """Six in half an hour, under a swing that is larger."""
    leak = rough(lambda second: 15 + second / 300, spread, seed)
    assert not may_not_grow("descriptors", "", leak).is_ok


def test_one_more_for_good_is_no_slope() -> None:
    """A connection that is opened late stays one."""
    assert may_not_grow("descriptors", "", rough(lambda second: 15 + (second > 900), 1, 1)).is_ok


def test_counts_of_a_short_run_are_judged_too() -> None:
    """Eighty samples: flat passes, a leak does not."""
    assert may_not_grow("tasks", "", rough(lambda _: 15, 3, 1, seconds=80)).is_ok
    assert not may_not_grow("tasks", "", rough(lambda second: 15 + second / 10, 3, 1, seconds=80)).is_ok


# -- backlog and rate ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_a_backlog_that_breathes_passes(seed: int) -> None:
    """Waves of a minute and noise as large as itself."""
    waves = series(lambda second: 500 + 400 * math.sin(second / 10), 300, seed)
    assert may_not_pile_up("lag", "", waves, slack=2000).is_ok


@pytest.mark.parametrize("seed", SEEDS)
def test_a_backlog_that_a_slow_member_piles_up_is_flagged(seed: int) -> None:
    """Three records in a thousand are left behind: six a second of two thousand."""
    pile = series(lambda second: 500 + 6 * second, 300, seed)
    assert not may_not_pile_up("lag", "", pile, slack=2000).is_ok


@pytest.mark.parametrize("seed", SEEDS)
def test_a_rate_that_falls_is_flagged_and_a_steady_one_passes(seed: int) -> None:
    """By a tenth over the run; the noise of a second is as large."""
    assert may_not_fall("rate", "/s", series(lambda _: 2000, 200, seed), 0.05).is_ok
    falling = series(lambda second: 2000 - 0.2 * second, 200, seed)
    assert not may_not_fall("rate", "/s", falling, 0.05).is_ok
