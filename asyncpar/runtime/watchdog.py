"""Notices what stands still: the loop, the client, commits, a blocking offset. Reports once per transition.

Ticks ten times a second at most, does work only once a second, and never asks the broker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from math import inf

from asyncpar.core.assignment import Partition
from asyncpar.core.commits import follow_gate
from asyncpar.core.virtual_partitions import Queues, VirtualPartition
from asyncpar.errors import EngineError
from asyncpar.ports import Consumer
from asyncpar.records import TopicPartition
from asyncpar.runtime.group_state import GroupState
from asyncpar.runtime.poller import Poller
from asyncpar.runtime.workers import HandlerPool

_TICK_SECONDS = 0.1
_LOOK_SECONDS = 1.0
_STALL_SECONDS = 60.0
_LATE_SECONDS = 1.0
"""A loop that is later than this is worth a line in the log."""
_QUIET_SECONDS = 60.0
"""Between two such lines, at least."""


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
        self._next_late_line = float("-inf")
        self.blocked: dict[TopicPartition, int] = {}
        """Partitions blocked for longer than `max_blocking_duration_ms`, and their offset."""
        self.idle_blocks: dict[TopicPartition, int] = {}
        """Partitions whose blocking offset neither runs nor waits while it could: a defect."""
        self.refused_since: float | None = None
        """Since when commits are impossible although we count as joined; None while they are possible."""
        self._suspected: dict[TopicPartition, int] = {}

    async def run(self) -> None:
        """Watch until cancelled."""
        clock = self._state.clock.monotonic
        next_look = clock()
        while True:
            asked_at = clock()
            await asyncio.sleep(_TICK_SECONDS)
            now = clock()
            self.loop_lag_seconds = max(0.0, now - asked_at - _TICK_SECONDS)
            if self.loop_lag_seconds > _LATE_SECONDS and now >= self._next_late_line:
                self._next_late_line = now + _QUIET_SECONDS
                self._state.log.warning(
                    "group %s: the event loop stood still for %.1f s, heartbeats included: the process was "
                    "stopped, or something blocks it, mostly an async handler. As a plain def a handler runs "
                    'in a thread, with executor="process" in a process of its own',
                    self._state.group,
                    self.loop_lag_seconds,
                )
            if now > self._state.lease_until or self._state.lease_closed:
                self._state.renew_lease(now)
            if now < next_look:
                continue
            next_look = now + _LOOK_SECONDS
            self._look(now)

    def _look(self, now: float) -> None:
        failure = self._consumer.failure()
        if failure is not None:
            self._dead(failure)
            return
        if now - self._poller.called_at > self.stall_seconds:
            self._dead(EngineError(f"a fetch has not returned for {self.stall_seconds:.0f} s"))
            return
        self._judge_commits(now)
        partitions = list(self._state.partitions.values())
        has_opened = False
        for partition in partitions:
            has_opened |= follow_gate(partition, self._state.metadata_budget)
        if has_opened:
            self._state.wake_all()
        for partition in partitions:
            self._judge_blocking(partition, now)
        self._forget_gone()

    @property
    def stall_seconds(self) -> float:
        """A fetch may take this long: it waits out rebalances, which the grace bounds."""
        return max(_STALL_SECONDS, 2 * (self._state.config.max_revoke_grace_ms / 1000 + 10))

    def _judge_commits(self, now: float) -> None:
        """The group refused a commit as of no member: heartbeats must say so too, or nothing ever will."""
        state = self._state
        if state.token is not None or state.phase != "joined" or not state.partitions or state.lease_closed:
            self.refused_since = None
            return
        if self.refused_since is None:
            self.refused_since = now
        waited = now - self.refused_since
        if waited * 1000 > state.config.session_timeout_ms:
            self._dead(
                EngineError(
                    f"commits have been impossible for {waited:.0f} s: the group refused one as of a member "
                    "that it does not know, and answers its heartbeats all the same"
                )
            )

    def _judge_blocking(self, partition: Partition, now: float) -> None:
        tracker, limit_ms = partition.tracker, self._state.config.max_blocking_duration_ms
        if tracker is None:
            return
        offset = tracker.blocking_offset
        blocked_for = min(tracker.blocked_for(now), self._due_for(partition, offset))
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
        if over and offset is not None:
            self._unblock(partition, offset, limit_ms / 1000, now)
        self._suspect(partition, offset if blocked_for > 5 * _LOOK_SECONDS else None)

    def _due_for(self, partition: Partition, offset: int | None) -> float:
        """Seconds since the record at `offset` might run by its header, below 0 before; inf without one."""
        queues = partition.queues
        if queues is None or offset is None or (record := queues.unfinished.get(offset)) is None:
            return inf
        pool = self._pool_of(queues, offset)
        gate = None if pool is None else pool.gate
        if gate is None or gate.due_times is None:
            return inf
        return -gate.due_times.due_in(partition.tp, record)

    def _pool_of(self, queues: Queues, offset: int) -> HandlerPool | None:
        """Whose the unfinished record at `offset` is."""
        route = queues.route_at(offset)
        return next((pool for pool in self._state.pools if pool.queue is route), None)

    def _unblock(self, partition: Partition, offset: int, limit_seconds: float, now: float) -> None:
        """What `on_blocked` asks for: cancel a call that ran for that long, or give the record up.

        A heartbeat of the call begins its time anew. What waits while its breaker is open, or for a child
        process, is left alone, and so is what never failed: a rate limit, say, keeps it back.
        """
        state, queues, how = self._state, partition.queues, self._state.config.on_blocked
        if how == "warn" or queues is None:
            return
        for pool in state.pools:
            for worker in pool.busy():
                if worker.vp is not None and worker.vp.queues is queues and worker.offset == offset:
                    ends = pool.deadline(worker, limit_seconds)
                    if how == "dead_letter" and ends < inf:
                        worker.cancel("blocked_for_good")
                    elif ends < now:
                        worker.cancel("blocked")
                    return
        if how != "dead_letter" or offset not in queues.first_failed:
            return
        owner = self._pool_of(queues, offset)
        if owner is None or (owner.gate is not None and owner.gate.closed_for(now)[0] > 0):
            return
        vp = state.parking.take(queues, offset)
        if vp is not None:
            owner.verdicts.end_blocked(vp)

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
                is_closed = pool.gate is not None and pool.gate.closed_for(state.clock.monotonic())[0] > 0
                return not is_closed and len(pool.busy()) < pool.handler.concurrency
        locked = (straggler.lock for straggler in state.stragglers.values())
        if state.outbox is not None and offset in state.outbox.waiting(partition.tp):
            return False
        return not has_it(state.parking.parked()) and not has_it(locked)

    def _forget_gone(self) -> None:
        for watched in (self.blocked, self.idle_blocks, self._suspected):
            for tp in [tp for tp in watched if tp not in self._state.partitions]:
                del watched[tp]
