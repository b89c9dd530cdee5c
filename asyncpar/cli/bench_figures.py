"""The arithmetic of `asyncpar bench`: percentiles, busiest keys and rates out of what was counted.

Lives here: counting in bounded memory, however long a bench lasts. Never here: handlers, clocks, words.
Called by `bench_meter.py` for each record, so adding costs well under a microsecond. Pure.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from math import exp, log
from statistics import median
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_STEPS_PER_E = 50
"""Buckets of durations for a factor of e: what comes out is within 1 % of what went in."""
_SHORTEST_SECONDS = 1e-7
_KEYS_KEPT = 50_000
BIN_SECONDS = 0.1
_LONGEST_WINDOW_BINS = 10
_WINDOWS = 10


class Durations:
    """Durations in seconds, counted in buckets that are 2 % wide: a thousand from 100 ns to hours."""

    __slots__ = ("_counts", "number", "total")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.number = 0
        self.total = 0.0
        """The sum of all, in seconds."""

    def add(self, seconds: float) -> None:
        """One more. A negative one (two clocks that differ) counts as the shortest there is."""
        self.number += 1
        self.total += seconds
        if seconds < _SHORTEST_SECONDS:
            seconds = _SHORTEST_SECONDS
        bucket = round(log(seconds) * _STEPS_PER_E)
        self._counts[bucket] = self._counts.get(bucket, 0) + 1

    @property
    def mean(self) -> float:
        """The mean, in seconds; 0.0 of none."""
        return self.total / self.number if self.number else 0.0

    def at(self, share: float) -> float:
        """The duration that `share` (0 to 1) of all do not exceed, in seconds; 0.0 of none."""
        wanted, seen = share * self.number, 0
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            if seen >= wanted:
                return exp(bucket / _STEPS_PER_E)
        return 0.0


class BusiestKeys(Generic[K]):
    """How often each key came, for the keys that come often: rare ones are forgotten when there are too many.

    Lossy counting (Manku and Motwani, 2002): a count is too low by at most `short_by`, which grows by 1 for
    each `_KEYS_KEPT` records, and a key that is forgotten had no more than that.
    """

    __slots__ = ("_counts", "_seen", "short_by")

    def __init__(self) -> None:
        self._counts: dict[K, int] = {}
        self._seen = 0
        self.short_by = 0

    def add(self, key: K) -> None:
        """One more record of `key`."""
        counts = self._counts
        counts[key] = counts.get(key, self.short_by) + 1
        self._seen += 1
        if not self._seen % _KEYS_KEPT:
            self.short_by += 1
            self._counts = {one: count for one, count in counts.items() if count > self.short_by}

    def __len__(self) -> int:
        return len(self._counts)

    @property
    def busiest(self) -> tuple[K, int] | None:
        """The key that came most often, and how often; None when there was none."""
        return max(self._counts.items(), key=lambda item: item[1], default=None)


def windows(bins: Mapping[int, int], first: float, last: float) -> list[float]:
    """The rate of each whole window between the moments `first` and `last`, in records a second.

    `bins` has how many records ended in each `BIN_SECONDS` since `first`. A window is a tenth of the time,
    and a second at most; of a time that is too short for it there is none.
    """
    whole = int((last - first) / BIN_SECONDS)
    size = max(1, min(_LONGEST_WINDOW_BINS, whole // _WINDOWS))
    return [
        sum(bins.get(at, 0) for at in range(start, start + size)) / (size * BIN_SECONDS)
        for start in range(0, whole - size + 1, size)
    ]


def rate(bins: Mapping[int, int], first: float, last: float) -> float:
    """Records a second: the median of all windows; over the whole time where there are fewer than three."""
    found = windows(bins, first, last)
    if len(found) >= 3:
        return median(found)
    return sum(bins.values()) / (last - first) if last > first else 0.0
