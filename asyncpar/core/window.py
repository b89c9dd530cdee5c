"""How much happened lately: a sliding window of a few buckets, and how long to wait for one of its edges.

Never here: what the numbers mean. Used by the circuit breaker and by the dead-letter budget. Always true:
time and memory per count are constant, and nothing is lost or counted twice however long it runs: all
numbers are whole, and only ever grow.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator

BUCKETS = 10
_BEFORE_ALL = -(1 << 62)


class Window:
    """Counts of all that happened, and of the marked ones among it, over the last `window_ms`.

    Time moves on by buckets of a tenth: what is counted reaches back between 90 and 100 % of `window_ms`. A
    clock that stands still, or that goes back, counts into the newest bucket.
    """

    __slots__ = ("_bucket", "_buckets_per_second", "_ends_at", "_ever", "_ever_marked", "_starts")

    def __init__(self, window_ms: int) -> None:
        self._buckets_per_second = BUCKETS * 1000 / window_ms
        self._bucket = _BEFORE_ALL
        self._ends_at = -math.inf
        self._ever = 0
        self._ever_marked = 0
        self._starts: deque[tuple[int, int]] = deque([(0, 0)] * BUCKETS, BUCKETS)
        """Both counts as they were when each bucket of the window began, the oldest first."""

    @property
    def total(self) -> int:
        """All in the window, as of the last `add` or `advance`."""
        return self._ever - self._starts[0][0]

    @property
    def marked(self) -> int:
        """The marked ones in the window, as of the last `add` or `advance`."""
        return self._ever_marked - self._starts[0][1]

    def add(self, now: float, total: int, marked: int) -> None:
        """Count at `now`, monotonic seconds."""
        if now >= self._ends_at:
            self.advance(now)
        self._ever += total
        self._ever_marked += marked

    def advance(self, now: float) -> None:
        """Let go of what is too old at `now`."""
        if now < self._ends_at:
            return
        bucket = math.floor(now * self._buckets_per_second)
        self._starts.extend([(self._ever, self._ever_marked)] * min(bucket - self._bucket, BUCKETS))
        self._bucket = bucket
        self._ends_at = self._edge(bucket + 1)

    def outlook(self, now: float) -> Iterator[tuple[float, int, int]]:
        """What time alone does: (moment, total, marked) now, and at each edge until all of it has left."""
        self.advance(now)
        yield now, self.total, self.marked
        later = [*self._starts, (self._ever, self._ever_marked)][1:]
        for ahead, (total, marked) in enumerate(later, 1):
            yield self._edge(self._bucket + ahead), self._ever - total, self._ever_marked - marked

    def _edge(self, bucket: int) -> float:
        """A first moment of `bucket`, by the arithmetic of `advance`: whoever wakes then finds it begun."""
        moment = bucket / self._buckets_per_second
        while math.floor(moment * self._buckets_per_second) < bucket:
            moment = math.nextafter(moment, math.inf)
        return moment


def seconds_until(moment: float, now: float) -> float:
    """How long to wait at `now` for `moment`; 0.0: it has come. `now` plus this never falls short of it."""
    wait = moment - now
    if wait <= 0.0:
        return 0.0
    while now + wait < moment:
        wait = math.nextafter(wait, math.inf)
    return wait
