"""When records may run whose header says so, and the partitions that are not fetched until then.

Of one handler; made and asked by `admission.Gate`. Retry topics always have such headers: the one that was
read last names the topic's delay, so one that asks for much more was written by somebody else, or by a clock
that is wrong, and is not believed. Elsewhere only handlers with `delayed=True` look at them. Always: only
partitions whose records all go to this handler, or to others that read them as a retry topic too, are held;
and what was held for one life of a partition is let go when its next one begins.
"""

from __future__ import annotations

import asyncio
from math import inf
from typing import TYPE_CHECKING

from asyncpar import headers
from asyncpar.records import RawRecord, TopicPartition

if TYPE_CHECKING:
    from asyncpar.runtime.workers import HandlerPool

DELAY = "delay"
"""What holds a partition whose next record is not due."""
CLOCKS_DIFFER_SECONDS = 60.0
"""So much more than its delay a record of a retry topic may ask for."""
_LONG_SECONDS = 86_400.0


class DueTimes:
    """`is_delayed`: in all topics of the handler, not only in its retry topics."""

    def __init__(self, pool: HandlerPool, *, is_delayed: bool) -> None:
        self._pool = pool
        self._state = pool.state
        self._is_delayed = is_delayed
        self._delays = dict(pool.handler.retry_topics)
        self._timers: dict[TopicPartition, tuple[float, asyncio.TimerHandle]] = {}
        """When each hold is over, monotonic seconds, and what ends it then."""
        self._told: set[TopicPartition] = set()
        """Partitions of which a line said that a header asks for a very late time."""

    def due_in(self, tp: TopicPartition, record: RawRecord) -> float:
        """Seconds until `record` of `tp` may run, below 0 since it might; -inf: at any time."""
        wait = self._asked_for(tp, record)
        return -inf if wait is None or self._is_disbelieved(tp, wait) else wait

    def _asked_for(self, tp: TopicPartition, record: RawRecord) -> float | None:
        """Seconds that the header asks for from now on; None: none that this handler looks at."""
        if not record.headers or not (self._is_delayed or tp.topic in self._delays):
            return None
        not_before = headers.number(record.headers, headers.NOT_BEFORE)
        return None if not_before is None else not_before / 1000 - self._state.clock.wall()

    def _is_disbelieved(self, tp: TopicPartition, wait: float) -> bool:
        """Nobody who writes to that retry topic by its name would ask for `wait` seconds."""
        return wait > self._delays.get(tp.topic, inf) + CLOCKS_DIFFER_SECONDS

    def tell_if_disbelieved(self, tp: TopicPartition, record: RawRecord) -> None:
        """`record` starts: one line for each life of `tp` when that is long before its header says."""
        if tp in self._told or tp.topic not in self._delays:
            return
        wait = self._asked_for(tp, record)
        if wait is None or not self._is_disbelieved(tp, wait):
            return
        self._told.add(tp)
        self._state.log.error(
            "%s offset %d: its header %s lies %s ahead, in a retry topic whose delay is %s; such records "
            "are run at once. Does somebody else write there, or is a clock wrong?",
            tp,
            record.offset,
            headers.NOT_BEFORE,
            _length(wait),
            _length(self._delays[tp.topic]),
        )

    def hold(self, tp: TopicPartition, record: RawRecord, now: float, wait: float) -> None:
        """What is behind a record that is not due is not due either: do not fill the memory with it.

        The record for which it is held already may have run a moment before that hold's end: then it goes on.
        """
        if tp in self._timers:
            until, timer = self._timers[tp]
            if now < until:
                return
            timer.cancel()
        elif not self._all_wait(tp.topic):
            return
        self._state.hold(tp, DELAY, f"its next record is due in {_length(wait)}", is_told=True)
        loop = asyncio.get_running_loop()
        self._timers[tp] = (now + wait, loop.call_later(wait, self._let_go, tp))
        if wait > _LONG_SECONDS and tp not in self._told:
            self._told.add(tp)
            self._state.log.warning(
                "%s is not fetched for %s: offset %d is not due before, by its header %s",
                tp,
                _length(wait),
                record.offset,
                headers.NOT_BEFORE,
            )

    def _all_wait(self, topic: str) -> bool:
        """No other handler has records of `topic` that are due when they come."""
        others = (pool.handler for pool in self._state.pools_for(topic) if pool is not self._pool)
        return all(topic in dict(handler.retry_topics) for handler in others)

    def _let_go(self, tp: TopicPartition) -> None:
        if (held := self._timers.pop(tp, None)) is not None:
            held[1].cancel()
            self._state.let_go(tp, DELAY, is_told=True)

    def opened(self, tp: TopicPartition) -> None:
        """Another life of `tp` begins: what was known of the one before does not count."""
        self._told.discard(tp)
        self._let_go(tp)

    def close(self) -> None:
        """Let nothing go any more."""
        for _, timer in self._timers.values():
            timer.cancel()


def _length(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < _LONG_SECONDS else f"{seconds / 86_400:.1f} days"
