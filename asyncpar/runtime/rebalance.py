"""What the group gives and takes: mark what was assigned; gate, drain, commit and release what is revoked.

The assignment's callback is synchronous (mark, take the token); a task of the opener's (`opening.py`) then
reads where to begin. A revoke closes the gate, lets what runs end within the grace, cancels the rest,
commits with the old token and returns before the group's deadline. Nothing is committed for a lost
partition.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterable
from functools import partial
from typing import Any

from asyncpar.core.assignment import Event, Partition, State
from asyncpar.errors import HandlerError
from asyncpar.ports import Consumer
from asyncpar.records import GroupToken, TopicPartition
from asyncpar.runtime.committer import Committer
from asyncpar.runtime.group_state import GroupState
from asyncpar.runtime.opening import Opener
from asyncpar.runtime.tally import count
from asyncpar.runtime.worker import Worker

_CANCEL_SECONDS = 0.5
_COMMIT_SECONDS = 1.5


class Rebalancer:
    """The group's `AssignmentListener`."""

    def __init__(
        self,
        state: GroupState,
        consumer: Consumer,
        committer: Committer,
        spawn: Callable[[Coroutine[Any, Any, None], str], object],
        fatal: Callable[[BaseException], None],
    ) -> None:
        self._state = state
        self._consumer = consumer
        self._committer = committer
        self._spawn = spawn
        self._fatal = fatal
        self.opener = Opener(state, consumer, fatal)

    # -- given -------------------------------------------------------------------------------

    def assigned(self, partitions: frozenset[TopicPartition], token: GroupToken) -> None:
        """Mark what was given as opening and return; a task opens it."""
        state = self._state
        held = partitions & state.partitions.keys()
        if held:
            # No revoke came for them: others may have had them meanwhile, and their positions are gone.
            self.lost(held)
        state.token = token
        count(state.counters.rebalances, "assigned")
        fresh = [Partition(tp, state.generations.next(tp)) for tp in sorted(partitions)]
        state.partitions.update({partition.tp: partition for partition in fresh})
        if not state.stopping:
            state.phase = "joined"
        for topic in sorted({tp.topic for tp in partitions}):
            conflict = state.route_conflict(topic)
            if conflict is not None:
                self._fatal(HandlerError(conflict))
                return
        names = ", ".join(str(partition.tp) for partition in fresh) or "nothing"
        state.log.info("group %s: assigned %s (group generation %d)", state.group, names, token.generation)
        self._spawn(self.opener.open(fresh), "open")

    def retry_halted(self, partition: Partition) -> None:
        """Run the records of a halted partition again, from its HWM."""
        partition.halt_reason = None  # at once: nobody should hear of the old one any more
        if partition.tracker is None:
            partition.apply(Event.RESUME)
            self._spawn(self.opener.open([partition]), "open")
        else:
            self._spawn(self.opener.resume(partition, partition.generation), "resume")

    # -- taken -------------------------------------------------------------------------------

    async def revoked(self, partitions: frozenset[TopicPartition]) -> None:
        """Gate, drain, commit, release; returns before the group's deadline."""
        state = self._state
        started = state.clock.monotonic()
        self._note_rebalance()
        count(state.counters.rebalances, "revoked")
        mine = [state.partitions[tp] for tp in sorted(partitions) if tp in state.partitions]
        grace = started + state.config.max_revoke_grace_ms / 1000
        deadline = min(grace, self._consumer.drain_deadline() - _COMMIT_SECONDS)
        await self.drain(mine, deadline)
        await self._committer.final(mine, deadline + _COMMIT_SECONDS)
        self.leave_behind(mine)
        if not state.partitions:
            state.token = None
        state.counters.rebalance_seconds.add(state.clock.monotonic() - started)

    def lost(self, partitions: frozenset[TopicPartition]) -> None:
        """They belong to others already: cancel what runs, commit nothing."""
        state = self._state
        state.token = None
        self._note_rebalance()
        count(state.counters.rebalances, "lost")
        mine = [state.partitions[tp] for tp in sorted(partitions) if tp in state.partitions]
        if mine:
            state.log.warning(
                "group %s: lost %s without a revoke; records handled since the last commit run again",
                state.group,
                ", ".join(str(partition.tp) for partition in mine),
            )
        for worker in self._running_of(partitions):
            if not self._is_kept(worker):
                worker.cancel("lost")
        for partition in mine:
            state.close_queues(partition)
        self.leave_behind(mine)

    def _note_rebalance(self) -> None:
        if not self._state.stopping:
            self._state.phase = "rebalancing"

    async def drain(
        self, partitions: list[Partition], deadline: float, hurry: asyncio.Event | None = None
    ) -> bool:
        """Start nothing more of `partitions`; True when all that ran has ended well by `deadline`.

        Waits for stragglers too whose success would still count: those of an older assignment to us.
        `hurry` ends the waiting early: what runs is cancelled at once.
        """
        state = self._state
        for partition in partitions:
            state.close_queues(partition)
            if partition.state is not State.DRAINING:
                partition.apply(Event.REVOKE)
        running = partial(self._running, partitions, with_adoptable=True)
        ended = await self._wait(running(), deadline - state.clock.monotonic(), hurry)
        # Anew: one that has ended may run a record of another. And what runs of older lives of them as well.
        for worker in self._running_of({partition.tp for partition in partitions}):
            if not self._is_kept(worker):
                worker.cancel("drain")
        if ended:
            return await self._departed(partitions, deadline, hurry)
        await self._wait(running(), _CANCEL_SECONDS)
        return False

    async def _departed(
        self, partitions: Iterable[Partition], deadline: float, hurry: asyncio.Event | None
    ) -> bool:
        """True when what leaves for other topics was acknowledged by `deadline`."""
        outbox, names = self._state.outbox, [partition.tp for partition in partitions]
        if outbox is None or not any(map(outbox.waiting, names)):
            return True
        seconds = deadline - self._state.clock.monotonic()
        leaving = asyncio.ensure_future(outbox.idle(names, seconds))
        try:
            await _wait_unless(hurry, leaving, seconds)
            return leaving.done() and leaving.result()
        finally:
            leaving.cancel()

    def _running(self, partitions: Iterable[Partition], *, with_adoptable: bool = False) -> list[Worker]:
        """What runs of `partitions`, and `with_adoptable` their stragglers whose success still counts."""
        queues = {id(partition.queues) for partition in partitions if partition.queues is not None}
        adoptable = {
            id(vp)
            for vp, straggler in self._state.stragglers.items()
            if with_adoptable and straggler.adoptable and id(straggler.lock.queues) in queues
        }
        return [
            worker
            for pool in self._state.pools
            for worker in pool.busy()
            if worker.vp is not None and (id(worker.vp.queues) in queues or id(worker.vp) in adoptable)
        ]

    def _running_of(self, partitions: Collection[TopicPartition]) -> list[Worker]:
        """What runs of `partitions`, in whichever of their lives it began."""
        return [
            worker
            for pool in self._state.pools
            for worker in pool.busy()
            if worker.vp is not None and worker.vp.queues.partition in partitions
        ]

    def _is_kept(self, worker: Worker) -> bool:
        return any(worker in pool.workers and not pool.handler.cancel_on_revoke for pool in self._state.pools)

    @staticmethod
    async def _wait(running: list[Worker], seconds: float, hurry: asyncio.Event | None = None) -> bool:
        """True when all of `running` have ended within `seconds`, and before `hurry`."""
        ends = [worker.when_finished() for worker in running if worker.vp is not None]
        if not ends:
            return True
        all_ended = asyncio.gather(*ends)
        await _wait_unless(hurry, all_ended, seconds)
        return all_ended.done()

    def leave_behind(self, partitions: list[Partition]) -> None:
        """Release those that are still held; what runs of them is a straggler, recorded and named."""
        state = self._state
        held = [partition for partition in partitions if state.partitions.get(partition.tp) is partition]
        for worker in self._running(held):
            vp, record = worker.vp, worker.record
            if vp is None or record is None:
                continue
            count(state.counters.stragglers, "left")
            state.log.warning(
                "%s offset %d still runs %.1f s after its start and outlives this assignment (a straggler); "
                "another member may run it at the same time",
                vp.queues.partition,
                record.offset,
                state.clock.monotonic() - worker.started,
            )
        for partition in held:
            state.release(partition, Event.RELEASE if partition.state is State.DRAINING else Event.LOSE)


async def _wait_unless(hurry: asyncio.Event | None, wanted: asyncio.Future[Any], seconds: float) -> None:
    """Until `wanted` is done, for at most `seconds`, or until `hurry` is set."""
    waiting: set[asyncio.Future[Any]] = {wanted}
    alarm = None if hurry is None else asyncio.ensure_future(hurry.wait())
    if alarm is not None:
        waiting.add(alarm)
    try:
        await asyncio.wait(waiting, timeout=max(0.0, seconds), return_when=asyncio.FIRST_COMPLETED)
    finally:
        if alarm is not None:
            alarm.cancel()
