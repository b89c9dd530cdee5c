"""Notices what stands still: the loop, the client, a blocking offset. Reports once per transition.

Ticks twenty times a second at most, does work only once a second, and never asks the broker more
than once in ten seconds (and only while something is suspiciously quiet).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from asyncpar.core.assignment import Partition
from asyncpar.core.virtual_partitions import VirtualPartition
from asyncpar.errors import BrokerError, EngineError
from asyncpar.ports import Consumer
from asyncpar.records import TopicPartition
from asyncpar.runtime.group_state import GroupState
from asyncpar.runtime.poller import Poller

_TICK_SECONDS = 0.1
_LOOK_SECONDS = 1.0
_QUIET_CHECK_SECONDS = 10.0
_QUIET_CHECKS = 3
_STALL_SECONDS = 60.0


class Watchdog:
    """Watches one consumer's life."""

    def __init__(
        self, state: GroupState, consumer: Consumer, poller: Poller, dead: Callable[[BaseException], None]
    ) -> None:
        self._state = state
        self._consumer = consumer
        self._poller = poller
        self._dead = dead
        self.loop_lag_seconds = 0.0
        """How much later than asked the last tick came."""
        self.blocked: dict[TopicPartition, int] = {}
        """Partitions blocked for longer than `max_blocking_duration_ms`, and their offset."""
        self.idle_blocks: dict[TopicPartition, int] = {}
        """Partitions whose blocking offset neither runs nor waits while it could: a defect."""
        self._positions: dict[TopicPartition, tuple[int, int]] = {}
        self._suspected: dict[TopicPartition, int] = {}

    async def run(self) -> None:
        """Watch until cancelled."""
        clock = self._state.clock.monotonic
        next_look = next_quiet_check = clock()
        while True:
            asked_at = clock()
            await asyncio.sleep(_TICK_SECONDS)
            now = clock()
            self.loop_lag_seconds = max(0.0, now - asked_at - _TICK_SECONDS)
            if now > self._state.lease_until or self._state.lease_closed:
                self._state.renew_lease(now)
            if now < next_look:
                continue
            next_look = now + _LOOK_SECONDS
            self._look(now)
            if now >= next_quiet_check:
                next_quiet_check = now + _QUIET_CHECK_SECONDS
                await self._check_quiet_partitions()

    def _look(self, now: float) -> None:
        failure = self._consumer.failure()
        if failure is not None:
            self._dead(failure)
            return
        if now - self._poller.called_at > self.stall_seconds:
            self._dead(EngineError(f"a fetch has not returned for {self.stall_seconds:.0f} s"))
            return
        for partition in list(self._state.partitions.values()):
            self._judge_blocking(partition, now)
        self._forget_gone()

    @property
    def stall_seconds(self) -> float:
        """A fetch may take this long: it waits out rebalances, which the grace bounds."""
        return max(_STALL_SECONDS, 2 * (self._state.config.max_revoke_grace_ms / 1000 + 10))

    def _judge_blocking(self, partition: Partition, now: float) -> None:
        tracker, limit_ms = partition.tracker, self._state.config.max_blocking_duration_ms
        if tracker is None:
            return
        blocked_for = tracker.blocked_for(now)
        offset = tracker.blocking_offset
        over = bool(limit_ms) and blocked_for * 1000 > limit_ms
        if over and offset is not None and self.blocked.get(partition.tp) != offset:
            self.blocked[partition.tp] = offset
            self._state.log.warning(
                "%s: offset %d has blocked the commit for %.1f s (max_blocking_duration_ms=%d)",
                partition.tp,
                offset,
                blocked_for,
                limit_ms,
            )
        elif not over and partition.tp in self.blocked:
            was = self.blocked.pop(partition.tp)
            self._state.log.info("%s: offset %d no longer blocks the commit", partition.tp, was)
        self._suspect(partition, offset if blocked_for > 5 * _LOOK_SECONDS else None)

    def _suspect(self, partition: Partition, offset: int | None) -> None:
        """A blocking offset that could run and neither runs nor waits, on two looks in a row."""
        tp = partition.tp
        if offset is None or not self._is_neglected(partition, offset):
            self._suspected.pop(tp, None)
            self.idle_blocks.pop(tp, None)
            return
        if self._suspected.get(tp) == offset and tp not in self.idle_blocks:
            self.idle_blocks[tp] = offset
            self._state.log.error("%s: offset %d could run but no worker takes it; waking them", tp, offset)
            self._state.wake_all()
        self._suspected[tp] = offset

    def _is_neglected(self, partition: Partition, offset: int) -> bool:
        """True when the lowest unfinished record (always a head) is nowhere, or ready beside a free slot."""
        state, queues = self._state, partition.queues
        if queues is None or state.lease_closed or state.stopping:
            return False

        def has_it(heads: Iterable[VirtualPartition]) -> bool:
            return any(
                vp.queues is queues and vp.head is not None and vp.head.offset == offset for vp in heads
            )

        for pool in state.pools:
            if has_it(pool.running()):
                return False
            if has_it(pool.queue.ready):
                return len(pool.busy()) < pool.handler.concurrency
        locked = (straggler.lock for straggler in state.stragglers.values())
        return not has_it(state.parking.parked()) and not has_it(locked)

    def _forget_gone(self) -> None:
        for watched in (self.blocked, self.idle_blocks, self._suspected):
            for tp in [tp for tp in watched if tp not in self._state.partitions]:
                del watched[tp]

    async def _check_quiet_partitions(self) -> None:
        """A fetcher that died in silence delivers nothing while the log grows."""
        quiet = [
            partition.tp
            for partition in self._state.partitions.values()
            if partition.is_open and not partition.in_flight and partition.tp in self._poller.empty_handed
        ]
        if not quiet:
            self._positions.clear()
            return
        try:
            ends = await self._consumer.end(quiet)
        except BrokerError:
            return  # the broker is away: that is no sign of a dead fetcher
        seen: dict[TopicPartition, tuple[int, int]] = {}
        for tp in quiet:
            position = self._consumer.position(tp)
            if position is None or position >= ends.get(tp, 0):
                continue
            before = self._positions.get(tp)
            checks = before[1] + 1 if before is not None and before[0] == position else 1
            seen[tp] = (position, checks)
            if checks > _QUIET_CHECKS:
                self._dead(
                    EngineError(
                        f"{tp}: nothing was delivered from offset {position}, "
                        f"although the log ends at {ends[tp]}"
                    )
                )
        self._positions = seen
