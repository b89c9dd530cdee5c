"""What the group gives and takes: open what was assigned; gate, drain, commit and release what is revoked.

The assignment's callback is synchronous (mark, take the token); a task then reads offsets and
metadata and opens the partitions. A revoke closes the gate, lets what runs end within the grace,
cancels the rest, commits with the old token and returns before the group's deadline. Nothing is
committed for a lost partition.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterable
from functools import partial
from typing import Any

from asyncpar.core.assignment import Event, Partition, State
from asyncpar.core.offset_codec import decode_attempts
from asyncpar.core.offsets import Run
from asyncpar.errors import AuthorizationError, BrokerError, ConfigurationError, HandlerError
from asyncpar.ports import Consumer
from asyncpar.records import Committed, GroupToken, TopicPartition
from asyncpar.runtime.committer import Committer
from asyncpar.runtime.group_state import GroupState
from asyncpar.runtime.tally import count
from asyncpar.runtime.worker import Worker

_CANCEL_SECONDS = 0.5
_COMMIT_SECONDS = 1.5
_RETRY_SECONDS = 0.1
_MAX_RETRY_SECONDS = 2.0
_SLOW_AFTER_TRIES = 5


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
        self._assigned_before = False

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
        self._spawn(self._open(fresh), "open")

    async def _open(self, partitions: list[Partition]) -> None:
        """Read offsets and metadata, retried until it works or none of them is ours any more."""

        async def read() -> None:
            if waiting := self._still_opening(partitions):
                await self._open_once(waiting)

        await self._persist(read)

    async def _persist(self, read: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Await `read` again and again until the broker has answered it."""
        tries = 0
        while True:
            try:
                await read()
                return
            except (AuthorizationError, ConfigurationError) as error:
                self._fatal(error)
                return
            except BrokerError as error:
                tries += 1
                if tries == _SLOW_AFTER_TRIES:
                    self._state.log.warning(
                        "group %s: offsets cannot be read (%s); trying again",
                        self._state.group,
                        error,
                    )
                await asyncio.sleep(min(_MAX_RETRY_SECONDS, _RETRY_SECONDS * 2 ** min(tries, 8)))

    def _still_opening(self, partitions: Iterable[Partition]) -> list[Partition]:
        """Those that were not taken away meanwhile, each judged by itself: a revoke may name but some."""
        if self._state.stopping:
            return []
        return [partition for partition in partitions if partition.state is State.OPENING]

    async def _open_once(self, partitions: list[Partition]) -> None:
        names = [partition.tp for partition in partitions]
        committed = await self._consumer.committed(names)
        missing = [tp for tp in names if committed.get(tp) is None]
        starts = await self._first_positions(missing) if missing else {}
        ends = await self._ends([tp for tp, stored in committed.items() if stored and stored.metadata])
        unknown: list[TopicPartition] = []
        for partition in self._still_opening(partitions):
            tp = partition.tp
            stored = committed.get(tp)
            if stored is not None:
                if stored.metadata and tp not in ends:
                    unknown.append(tp)
                    continue
                runs = self._state.restored_runs(tp, stored, ends.get(tp, stored.offset))
                partition.acknowledged = stored
                self._open_at(partition, stored.offset, runs)
                self._restore_attempts(partition, stored, ends.get(tp, stored.offset))
            elif tp in starts:
                self._open_at(partition, starts[tp], ())
                if self._state.config.offset_reset == "earliest":
                    # A start that any restart would find again needs no commit of its own.
                    partition.acknowledged = Committed(starts[tp], "")
            else:
                reason = "it has no committed offset, and offset_reset=error"
                self._state.halt(partition, reason)
        self._assigned_before = True
        self._state.on_intake()
        if unknown:
            raise BrokerError(f"where the log ends is not known of {', '.join(map(str, unknown))}")

    @staticmethod
    def _restore_attempts(partition: Partition, stored: Committed, end: int) -> None:
        """How often records below `end` had failed; what lies beyond was lost with a truncated log."""
        assert partition.queues is not None
        found = decode_attempts(partition.tp, stored.offset, stored.metadata)
        partition.queues.attempts.update({offset: made for offset, made in found.items() if offset < end})

    async def _ends(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        """Where the logs end; without those whose leader does not say. Raises BrokerError when none does."""
        if not partitions:
            return {}
        try:
            return await self._consumer.end(partitions)
        except BrokerError as error:
            reached = [tp for tp in partitions if tp not in error.partitions]
            if len(reached) == len(partitions):
                raise
            return await self._consumer.end(reached) if reached else {}

    def _open_at(
        self, partition: Partition, start: int, runs: Iterable[Run], *, may_adopt: bool = True
    ) -> None:
        self._state.open(partition, start, runs, may_adopt=may_adopt)
        assert partition.tracker is not None
        self._consumer.seek(partition.tp, partition.tracker.position)

    async def _first_positions(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        """Where partitions without a commit start; {} when that is an error."""
        state = self._state
        policy = state.config.offset_reset
        if policy == "latest" and (self._assigned_before or await self._consumer.has_commits()):
            # It appeared while the group was running: what it held before we looked is not old news.
            policy = "earliest"
        count(state.counters.offset_resets, "no_commit", len(partitions))
        if policy == "error":
            return {}
        bounds = self._consumer.end if policy == "latest" else self._consumer.beginning
        return await bounds(partitions)

    # -- out of range ------------------------------------------------------------------------

    async def reset_positions(self, offsets: dict[TopicPartition, int]) -> None:
        """Positions outside of the log: apply `offset_reset`, and say what is passed over."""
        state = self._state
        lives = {tp: state.partitions[tp].generation for tp in offsets if tp in state.partitions}
        try:
            begin = await self._consumer.beginning(offsets)
            end = await self._consumer.end(offsets)
        except (AuthorizationError, ConfigurationError) as error:
            self._fatal(error)
            return
        except BrokerError as error:
            state.log.warning("group %s: log bounds cannot be read (%s); trying again", state.group, error)
            await asyncio.sleep(_RETRY_SECONDS)
            return
        is_inside = False
        for tp, offset in offsets.items():
            partition = state.partitions.get(tp)
            if partition is None or not partition.is_open or partition.generation != lives.get(tp):
                continue
            assert partition.tracker is not None
            position = partition.tracker.position
            if begin[tp] <= position <= end[tp]:
                # The answer was to a position of an older life, or to one past trailing markers.
                self._consumer.seek(tp, position)
                is_inside = True
            else:
                self._reset(partition, offset, begin[tp], end[tp])
        if is_inside:
            await asyncio.sleep(_RETRY_SECONDS)  # should the leader insist, do not ask it in a loop

    def _reset(self, partition: Partition, offset: int, begin: int, end: int) -> None:
        state, policy = self._state, self._state.config.offset_reset
        count(state.counters.offset_resets, "out_of_range")
        where = f"offset {offset} is outside of the log ({begin} to {end})"
        if policy == "error":
            state.halt(partition, f"{where}, and offset_reset=error")
            return
        target = end if policy == "latest" else begin
        state.log.error(
            "%s: %s; offset_reset=%s goes on at %d, offsets from %d to %d are passed over or read again",
            partition.tp,
            where,
            policy,
            target,
            min(offset, target),
            max(offset, target),
        )
        self._move(partition, target)

    def _move(self, partition: Partition, target: int) -> None:
        tracker = partition.tracker
        assert tracker is not None
        if target >= tracker.position:
            tracker.skip_to(target)
            self._consumer.seek(partition.tp, tracker.position)
            return
        # Back within a life is against the law of commits: begin a new generation there. What the broker has
        # is not known: a commit of this one that got no answer may have been stored.
        partition.acknowledged = partition.acknowledged_plain = None
        self._begin_again(partition, Event.REOPEN, target, ())

    def retry_halted(self, partition: Partition) -> None:
        """Run the records of a halted partition again, from its HWM."""
        if partition.tracker is None:
            partition.halt_reason = None
            partition.apply(Event.RESUME)
            self._spawn(self._open([partition]), "open")
        else:
            self._spawn(self._resume(partition, partition.generation), "resume")

    async def _resume(self, partition: Partition, generation: int) -> None:
        """Go on where `partition` halted, without what its log has lost meanwhile: nobody fetched from it."""
        tp, state = partition.tp, self._state

        def is_halted() -> bool:
            same = partition.generation == generation and partition.state is State.HALTED
            return same and not state.stopping

        async def read() -> None:
            end = (await self._consumer.end([tp]))[tp] if is_halted() else 0
            if is_halted():
                tracker = partition.tracker
                assert tracker is not None
                partition.halt_reason = None
                runs = state.runs_within(tp, tracker.done_runs(), end)
                self._begin_again(partition, Event.RESUME, tracker.hwm, runs)

        await self._persist(read)

    def _begin_again(self, partition: Partition, event: Event, start: int, runs: Iterable[Run]) -> None:
        self._state.close_queues(partition)
        self._state.forget_departures(partition)
        partition.apply(event)
        partition.generation = self._state.generations.next(partition.tp)
        self._open_at(partition, start, runs, may_adopt=event is Event.RESUME)

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
        outbox = self._state.outbox
        if outbox is None:
            return True
        seconds = 0.0 if hurry is not None and hurry.is_set() else deadline - self._state.clock.monotonic()
        return await outbox.idle([partition.tp for partition in partitions], seconds)

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
        waiting: set[asyncio.Future[Any]] = {all_ended}
        alarm = None if hurry is None else asyncio.ensure_future(hurry.wait())
        if alarm is not None:
            waiting.add(alarm)
        await asyncio.wait(waiting, timeout=max(0.0, seconds), return_when=asyncio.FIRST_COMPLETED)
        if alarm is not None:
            alarm.cancel()
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
