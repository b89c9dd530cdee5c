"""From a series of samples to a verdict: does it grow?

What lives here: lines through noisy points, and one gate for each sort of series. What never does: where the
samples come from. Called by `soaking.py` and `table.py`. Always: pure; a single outlier decides nothing.

A slope is told twice: by least squares, as the usual figure to show, and by Theil and Sen (the median of the
slopes of all pairs), which a burst of noise cannot turn, to judge by. Beside it stands the plain difference
between the last third and the first, which sees a step that no slope shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from statistics import fmean, median
from typing import NamedTuple

WARM_SHARE = 0.1
"""So much of a run is left out at its beginning: caches fill, pools grow, connections open."""
FEWEST_POINTS = 6
_MOST_BINS = 200
_FLOORS = 30
_HOUR = 3600.0


class Point(NamedTuple):
    """A sample: seconds since the beginning of the run, and what was measured."""

    seconds: float
    value: float


class Line(NamedTuple):
    """`value = at_zero + slope * seconds`."""

    slope: float
    at_zero: float


@dataclass(frozen=True)
class Judged:
    """What became of a series: `growth` of `allowed`, both in its own unit, over the whole run."""

    name: str
    unit: str
    start: float
    end: float
    per_hour: float
    growth: float
    allowed: float
    rule: str

    @property
    def is_ok(self) -> bool:
        """Whether it stayed within what is allowed."""
        return self.growth <= self.allowed


def warm(points: Sequence[Point], share: float = WARM_SHARE) -> list[Point]:
    """The points after the first `share` of the time. ValueError when too few are left to judge."""
    if points:
        first, last = points[0].seconds, points[-1].seconds
        points = [point for point in points if point.seconds >= first + share * (last - first)]
    if len(points) < FEWEST_POINTS:
        raise ValueError(f"{len(points)} samples are too few to judge: let it run for longer")
    return list(points)


def least_squares(points: Sequence[Point]) -> Line:
    """The line with the least sum of squared distances."""
    middle = fmean(point.seconds for point in points)
    height = fmean(point.value for point in points)
    spread = sum((point.seconds - middle) ** 2 for point in points)
    slope = sum((point.seconds - middle) * (point.value - height) for point in points) / spread
    return Line(slope, height - slope * middle)


def theil_sen(points: Sequence[Point]) -> float:
    """The median slope of all pairs, per second; of many points, those of their bins' medians."""
    return median(
        (later.value - earlier.value) / (later.seconds - earlier.seconds)
        for earlier, later in combinations(bins(points, _MOST_BINS, median), 2)
    )


def bins(points: Sequence[Point], most: int, value_of: Callable[[Sequence[float]], float]) -> list[Point]:
    """At most `most` points, each for as many neighbours."""
    count = min(most, len(points))
    edges = [number * len(points) // count for number in range(count + 1)]
    parts = [points[first:end] for first, end in pairwise(edges)]
    return [
        Point(fmean(point.seconds for point in part), value_of([point.value for point in part]))
        for part in parts
    ]


# -- gates ---------------------------------------------------------------------------------------


def may_grow_by_share(name: str, unit: str, points: Sequence[Point], share: float) -> Judged:
    """For memory: over the whole run by less than `share` of where it began."""
    kept = warm(points)
    allowed = share * _middle(kept[: len(kept) // 3])
    return _judged(name, unit, kept, _growth(kept), allowed, f"grows by at most {share:.0%}")


def may_not_grow(name: str, unit: str, points: Sequence[Point], most: float = 1.5) -> Judged:
    """For what is counted: its floor, which noise cannot lift and a leak must, rises by `most` at most.

    One more for good, whenever it comes, is a growth between 1 and 1.3; the second one is too many.
    """
    kept = warm(points)
    floors = bins(kept, _FLOORS, min)
    return _judged(name, unit, kept, _growth(floors), most, f"its floor rises by at most {most:g}")


def may_not_pile_up(name: str, unit: str, points: Sequence[Point], slack: float) -> Judged:
    """For a backlog: at the end not more than twice that of the beginning, and `slack`."""
    kept = warm(points)
    first, last = _thirds(kept)
    rule = "the last third's median is at most twice the first's, and a second's records"
    return _judged(name, unit, kept, last - first, first + slack, rule)


def may_not_fall(name: str, unit: str, points: Sequence[Point], share: float) -> Judged:
    """For a rate: over the whole run it loses less than `share` of where it began."""
    kept = warm(points)
    first, last = _thirds(kept)
    return _judged(name, unit, kept, first - last, share * first, f"falls by at most {share:.0%}")


def _growth(points: Sequence[Point]) -> float:
    first, last = _thirds(points)
    return max(theil_sen(points) * (points[-1].seconds - points[0].seconds), last - first)


def _thirds(points: Sequence[Point]) -> tuple[float, float]:
    third = max(len(points) // 3, 1)
    return _middle(points[:third]), _middle(points[-third:])


def _middle(points: Sequence[Point]) -> float:
    return median(point.value for point in points)


def _judged(name: str, unit: str, kept: Sequence[Point], growth: float, allowed: float, rule: str) -> Judged:
    tenth = max(len(kept) // 10, 1)
    return Judged(
        name,
        unit,
        start=_middle(kept[:tenth]),
        end=_middle(kept[-tenth:]),
        per_hour=least_squares(kept).slope * _HOUR,
        growth=growth,
        allowed=allowed,
        rule=rule,
    )
