"""The arithmetic of `asyncpar bench`: percentiles, busiest keys, windows and rates."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from asyncpar.cli import bench_figures
from asyncpar.cli.bench_figures import BusiestKeys, Durations, rate, windows


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.99, 1.0])
def test_percentiles_are_within_one_percent(share: float) -> None:
    """From microseconds to minutes, what comes out is what was put in, but for the width of a bucket."""
    chance = random.Random(1)
    durations, all_of_them = Durations(), []
    for _ in range(5_000):
        seconds = 10 ** chance.uniform(-6, 2)
        durations.add(seconds)
        all_of_them.append(seconds)
    exact = sorted(all_of_them)[max(0, round(share * 5_000) - 1)]
    assert durations.at(share) == pytest.approx(exact, rel=0.0101)
    assert durations.mean == pytest.approx(sum(all_of_them) / 5_000)


def test_no_durations_have_no_percentiles() -> None:
    """Nothing, and times that two clocks turned round, are no error."""
    assert Durations().at(0.5) == 0.0
    assert Durations().mean == 0.0
    backwards = Durations()
    backwards.add(-3.0)
    assert 0 < backwards.at(1.0) < 1e-6


def test_the_busiest_key_is_found_among_more_keys_than_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rare keys are forgotten, a frequent one keeps its count up to what the method allows."""
    monkeypatch.setattr(bench_figures, "_KEYS_KEPT", 100)
    keys, most = BusiestKeys(), 0
    for number in range(5_000):
        keys.add("busy" if number % 10 == 0 else number)
        most = max(most, len(keys))
    assert keys.busiest is not None
    key, count = keys.busiest
    assert key == "busy"
    assert 500 - keys.short_by <= count <= 500 + keys.short_by
    assert most < 300


def test_without_keys_nobody_is_busiest() -> None:
    """Handlers without order have no key."""
    assert BusiestKeys().busiest is None


def test_the_rate_is_the_median_of_whole_windows() -> None:
    """A pause in the middle and the rest at the end do not move it."""
    bins = Counter({at: 10 for at in range(105) if not 40 <= at < 50})
    found = windows(bins, 7.0, 17.5)
    assert found == [100.0] * 4 + [0.0] + [100.0] * 5
    assert rate(bins, 7.0, 17.5) == 100.0


def test_short_runs_have_short_windows_or_none() -> None:
    """A tenth of the time, a tenth of a second at least; over less than three of them there is one rate."""
    assert len(windows(Counter(dict.fromkeys(range(20), 1)), 0.0, 2.0)) == 10
    assert windows(Counter({0: 5}), 3.0, 3.05) == []
    assert rate(Counter({0: 5}), 3.0, 3.05) == pytest.approx(100.0)
    assert rate(Counter({0: 1}), 3.0, 3.0) == 0.0
