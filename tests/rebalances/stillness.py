"""How long a rebalance stopped work: the longest time between two starts of a partition, around each change.

Pure: a history in, milliseconds out. Called by `changes.py`. Always: a pause counts once, with its whole
length, where it begins.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import median
from typing import NamedTuple

from asyncpar.records import TopicPartition
from asyncpar.testing.history import Event

_NS_PER_MS = 1_000_000


class Window(NamedTuple):
    """A part of a run in which `what` happened; CLOCK_MONOTONIC ns."""

    what: str
    from_ns: int
    until_ns: int


class Stillness(NamedTuple):
    """How long the partitions stood still in `window`, in ms: one figure for each."""

    window: Window
    pauses_ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """Half of the partitions stood still for no longer."""
        return median(self.pauses_ms)

    @property
    def max_ms(self) -> float:
        """The partition that stood still longest."""
        return max(self.pauses_ms)


def stillness(events: Iterable[Event], windows: Sequence[Window]) -> list[Stillness]:
    """For each window the longest pause of each partition that was ever worked on, in order of partitions.

    A pause that no start ends is none: whether work went on is for the checkers to say.
    """
    starts: dict[TopicPartition, list[int]] = {}
    for event in events:
        if event.kind == "start":
            starts.setdefault(event.tp, []).append(event.at_ns)
    ordered = [sorted(starts[tp]) for tp in sorted(starts)]
    return [Stillness(window, tuple(_longest_ms(times, window) for times in ordered)) for window in windows]


def _longest_ms(times: Sequence[int], window: Window) -> float:
    first, after = bisect_left(times, window.from_ns), bisect_left(times, window.until_ns)
    begun = pairwise(times[first : after + 1])
    return max((later - earlier for earlier, later in begun), default=0) / _NS_PER_MS
