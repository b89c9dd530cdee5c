"""What waits for a lane, and which lane gets how much of it.

Lives here: the queue in front of the lanes and the size of batches. Never here: results. Called by the
bridge, once per turn of the loop in which records came, and whenever a lane has room.

- A lane that has nothing gets a batch at once, with its share of what waits: batches grow only under load.
- A second batch for a lane that is busy: when all are, and it would be full, or records have waited for
  `max_batch_wait_ms`. Not where one record alone is likely to keep a lane busy for longer than a batch
  should: behind it the next would wait for nothing, while another lane may become free.
- No batch is expected to take longer than 50 ms, by the mean time of the handler's last records. Until one
  has ended nothing is known, and a batch is one record.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence

from asyncpar.executors.process_calls import Call
from asyncpar.executors.process_lanes import ServingLane
from asyncpar.executors.process_rules import BridgeRules
from asyncpar.executors.process_statistics import Counters
from asyncpar.records import TopicPartition

_BATCH_SECONDS = 0.05
_NEWEST_SHARE = 0.25
"""The weight of the last batch in the mean."""
_SLACK_SECONDS = 0.0001
"""A timer may fire that much too early by the clock."""


class Pace:
    """How long the handler takes for a record, lately."""

    __slots__ = ("seconds",)

    def __init__(self) -> None:
        self.seconds: float | None = None
        """None: not known yet."""

    def note(self, seconds: float, records: int) -> None:
        """`records` took `seconds` together."""
        if not records:
            return
        mean = seconds / records
        self.seconds = mean if self.seconds is None else self.seconds + _NEWEST_SHARE * (mean - self.seconds)

    @property
    def is_quick(self) -> bool:
        """A record is known to take no longer than a batch should."""
        return self.seconds is not None and self.seconds <= _BATCH_SECONDS

    def batch_limit(self, most: int) -> int:
        """Records that are expected to take no longer than a batch should; 1 to `most`."""
        if self.seconds is None:
            return 1
        if self.seconds * most <= _BATCH_SECONDS:
            return most
        return max(1, int(_BATCH_SECONDS / self.seconds))


class Feed:
    """Of one handler. `lanes` is the caller's list, read at each turn; `on_send` hears of each batch sent."""

    def __init__(
        self,
        rules: BridgeRules,
        lanes: Sequence[ServingLane],
        counters: Counters,
        clock: Callable[[], float],
        on_send: Callable[[ServingLane], None],
    ) -> None:
        self.pending: deque[Call] = deque()
        self.pace = Pace()
        self._rules = rules
        self._lanes = lanes
        self._counters = counters
        self._clock = clock
        self._on_send = on_send
        self._is_scheduled = False
        self._turn_began = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def take(self, call: Call, loop: asyncio.AbstractEventLoop) -> None:
        """`call` waits for a lane; the lanes are fed when all that is ready on the loop has run."""
        if not self._is_scheduled:
            self._is_scheduled = True
            self._turn_began = self._clock()
            loop.call_soon(self._feed_scheduled)
        call.since = self._turn_began
        self.pending.append(call)

    def drop(self, call: Call) -> bool:
        """Forget `call`; False: it does not wait any more."""
        with contextlib.suppress(ValueError):
            self.pending.remove(call)
            return True
        return False

    def drop_all(self, tp: TopicPartition | None = None) -> list[Call]:
        """Take out what waits, of `tp` only where one is given."""
        dropped: list[Call] = []
        kept: deque[Call] = deque()
        for call in self.pending:
            (dropped if tp is None or call.is_of(tp) else kept).append(call)
        self.pending.clear()
        self.pending.extend(kept)
        self._keep_time()
        return dropped

    def feed(self) -> None:
        """Send what may be sent."""
        pending = self.pending
        if pending:
            now = self._clock()
            limit = self.pace.batch_limit(self._rules.batch_size)
            idle = [lane for lane in self._lanes if lane.is_open and not lane.batches]
            while pending and idle:
                share = -(-len(pending) // len(idle))
                self._send(idle.pop(0), min(limit, share), now)
            if pending and self.pace.is_quick:
                self._feed_ahead(limit, now)
        self._keep_time()

    def _feed_ahead(self, limit: int, now: float) -> None:
        """Every lane is busy: give those that have one batch another."""
        pending = self.pending
        room = [lane for lane in self._lanes if lane.is_open]
        while room and pending and (len(pending) >= limit or now >= self._due() - _SLACK_SECONDS):
            share = -(-len(pending) // len(room))
            self._send(room.pop(0), limit if len(pending) >= limit else share, now)

    def _due(self) -> float:
        """When a second batch may go out although it is not full."""
        return self.pending[0].since + self._rules.max_batch_wait_ms / 1000

    def _send(self, lane: ServingLane, count: int, now: float) -> None:
        pending = self.pending
        calls = [pending.popleft() for _ in range(count)]
        sizes = self._counters.batch_sizes
        sizes[count] = sizes.get(count, 0) + 1
        self._on_send(lane)
        lane.send(calls, now)

    def _feed_scheduled(self) -> None:
        self._is_scheduled = False
        self.feed()

    def _keep_time(self) -> None:
        """One timer while a second batch may become due, none otherwise."""
        is_wanted = bool(self.pending) and self.pace.is_quick and any(lane.is_open for lane in self._lanes)
        if is_wanted and self._timer is None:
            wait = max(0.0, self._due() - self._clock())
            self._timer = asyncio.get_running_loop().call_later(wait, self._time_is_over)
        elif not is_wanted and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_is_over(self) -> None:
        self._timer = None
        self.feed()
