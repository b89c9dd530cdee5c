"""Calls that run for longer than their handler's `timeout_ms` are cancelled. No timer per record.

One task per handler with a time-out sleeps until the earliest deadline of what runs: a call that begins
later has a later one, so nothing is missed and a quiet handler costs one wake-up per time-out. A call that
goes on although it was cancelled keeps its slot and its key; it is named once in the log, and counted.
"""

from __future__ import annotations

import asyncio

from asyncpar.core.virtual_partitions import VirtualPartition
from asyncpar.runtime.worker import Worker
from asyncpar.runtime.workers import HandlerPool

_DEAF_SECONDS = 1.0
"""A call that runs on for so long after its cancellation is named."""
_SHORTEST_SLEEP_SECONDS = 0.001


class Deadlines:
    """Watches the calls of one handler until cancelled."""

    def __init__(self, pool: HandlerPool, timeout_seconds: float) -> None:
        self._pool = pool
        self._timeout = timeout_seconds
        self._named: dict[Worker, VirtualPartition] = {}

    async def run(self) -> None:
        """Cancel what is over its time."""
        pause = self._timeout
        while True:
            await asyncio.sleep(pause)
            pause = max(_SHORTEST_SLEEP_SECONDS, self._look())

    def _look(self) -> float:
        """Cancel what is over its time; seconds until something can be over it next."""
        now = self._pool.state.clock.monotonic()
        soonest = now + self._timeout
        deaf: dict[Worker, VirtualPartition] = {}
        for worker in self._pool.busy():
            ends = worker.deadline(self._timeout)
            if ends > now:
                soonest = min(soonest, ends)
                continue
            worker.cancel("timeout")
            assert worker.vp is not None
            if now < ends + _DEAF_SECONDS:
                soonest = min(soonest, ends + _DEAF_SECONDS)
                continue
            deaf[worker] = worker.vp
            if self._named.get(worker) is not worker.vp:
                self._name(worker, now)
        self._named = deaf
        return soonest - now

    def _name(self, worker: Worker, now: float) -> None:
        assert worker.vp is not None
        assert worker.record is not None
        self._pool.state.log.error(
            "handler %s runs on with %s offset %d %.1f s after its start, although it was cancelled at its "
            "timeout_ms=%d; its slot and its key are taken until it ends",
            self._pool.handler.name,
            worker.vp.queues.partition,
            worker.record.offset,
            now - worker.started,
            round(self._timeout * 1000),
        )
