"""Where partitions begin: committed offsets and metadata are read, or `offset_reset` decides; then they open.

Never here: what was given or taken, and when (`rebalance.py`). Called by the rebalancer, and by the session
when a position is out of range. Always: what the broker does not answer is asked again, for as long as the
partition is ours; nothing counts as done that lies beyond the end of its log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from asyncpar.core.assignment import Event, Partition, State
from asyncpar.core.offset_codec import Ignored, decode, decode_attempts
from asyncpar.core.offsets import Run
from asyncpar.core.virtual_partitions import ANY_OFFSET
from asyncpar.errors import AuthorizationError, BrokerError, ConfigurationError
from asyncpar.ports import Consumer
from asyncpar.records import Committed, TopicPartition
from asyncpar.runtime.group_state import GroupState
from asyncpar.runtime.tally import count

_RETRY_SECONDS = 0.1
_MAX_RETRY_SECONDS = 2.0
_SLOW_AFTER_TRIES = 5


class Opener:
    """Of one group and one consumer. `fatal` hears what no retry mends."""

    def __init__(self, state: GroupState, consumer: Consumer, fatal: Callable[[BaseException], None]) -> None:
        self._state = state
        self._consumer = consumer
        self._fatal = fatal
        self._assigned_before = False

    async def open(self, partitions: list[Partition]) -> None:
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
        # What metadata lists as done, and what stragglers do, counts only as far as the log still reaches.
        asked = {tp for tp, stored in committed.items() if stored and stored.metadata}
        asked |= {tp for tp in names if self._state.has_running(tp)}
        ends = await self._ends(sorted(asked))
        unknown: list[TopicPartition] = []
        for partition in self._still_opening(partitions):
            tp = partition.tp
            stored = committed.get(tp)
            if tp in asked and tp not in ends:
                unknown.append(tp)
            elif stored is not None:
                # Where nobody asked, nothing is listed above it, and nothing runs.
                end = ends.get(tp, stored.offset)
                runs = _restored_runs(self._state, tp, stored, end)
                partition.acknowledged = stored
                self._open_at(partition, stored.offset, runs, adopt_below=end)
                self._restore_attempts(partition, stored, end)
            elif tp in starts:
                self._open_at(partition, starts[tp], (), adopt_below=ends.get(tp, ANY_OFFSET))
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
        self, partition: Partition, start: int, runs: Iterable[Run], *, adopt_below: int = ANY_OFFSET
    ) -> None:
        self._state.open(partition, start, runs, adopt_below=adopt_below)
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
        self._begin_again(partition, Event.REOPEN, target, (), adopt_below=0)

    async def resume(self, partition: Partition, generation: int) -> None:
        """Go on where `partition` halted, without what its log has lost meanwhile: nobody fetched from it.

        What is just leaving it leaves first; what its dead-letter budget holds runs again.
        """
        tp, state = partition.tp, self._state

        def is_halted() -> bool:
            same = partition.generation == generation and partition.state is State.HALTED
            return same and not state.stopping

        def is_sending() -> bool:
            """What may be written by now would leave twice."""
            return state.outbox is not None and state.outbox.is_sending(tp)

        async def read() -> None:
            while is_halted():
                if is_sending():
                    assert state.outbox is not None
                    await state.outbox.idle([tp], _MAX_RETRY_SECONDS)
                    continue
                end = (await self._consumer.end([tp]))[tp]
                if is_halted() and not is_sending():
                    tracker = partition.tracker
                    assert tracker is not None
                    runs = _runs_within(state, tp, tracker.done_runs(), end)
                    self._begin_again(partition, Event.RESUME, tracker.hwm, runs, adopt_below=end)

        await self._persist(read)

    def _begin_again(
        self, partition: Partition, event: Event, start: int, runs: Iterable[Run], *, adopt_below: int
    ) -> None:
        self._state.close_queues(partition)
        self._state.forget_departures(partition)
        partition.apply(event)
        partition.generation = self._state.generations.next(partition.tp)
        self._open_at(partition, start, runs, adopt_below=adopt_below)


def _restored_runs(state: GroupState, tp: TopicPartition, committed: Committed, end: int) -> list[Run]:
    """What the metadata of a commit says is done above it and below `end`; counts what it ignores.

    Offsets from `end` on were lost with a truncated log: other records will have them.
    """
    runs = decode(tp, committed.offset, committed.metadata)
    if isinstance(runs, Ignored):
        count(state.counters.metadata_ignored, runs.value)
        state.log.warning(
            "%s: commit metadata at offset %d is %s and was ignored; records above that offset may run twice",
            tp,
            committed.offset,
            runs.value,
        )
        return []
    kept = _runs_within(state, tp, runs, end)
    if kept != runs:
        count(state.counters.metadata_ignored, "beyond_end")
    return kept


def _runs_within(state: GroupState, tp: TopicPartition, runs: list[Run], end: int) -> list[Run]:
    """What of `runs`, which are done, lies below `end`, where the log ends; says what does not."""
    kept = [(first, min(last, end)) for first, last in runs if first < end]
    if kept != runs:
        state.log.error(
            "%s: records up to offset %d were done, but the log was truncated to %d; those beyond its "
            "end do not count as done",
            tp,
            runs[-1][1] - 1,
            end,
        )
    return kept
