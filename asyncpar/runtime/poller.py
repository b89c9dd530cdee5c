"""The only caller of the consumer's fetch: one call at a time, never cancelled, never timed out.

Asks for what backpressure wants, queues what comes, and yields to the loop between calls (a fetch
with data buffered never suspends). After a fetch that raised, every partition it asked for is
sought back to its own next offset: the client may have dropped what it had already taken out. An
error that names its partition concerns that one alone: it waits, the others go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from asyncpar.core.assignment import Partition
from asyncpar.core.backpressure import Backpressure
from asyncpar.errors import (
    AuthorizationError,
    BrokerError,
    ConfigurationError,
    FetchError,
    OffsetOutOfRangeError,
)
from asyncpar.ports import RecordSource
from asyncpar.records import Chunk, TopicPartition
from asyncpar.runtime.group_state import GroupState
from asyncpar.runtime.unreadable import UnreadablePartitions

_FETCH_TIMEOUT_MS = 200
_FETCH_TIMEOUT_BUSY_MS = 50
_HELD_BACK_SECONDS = 0.005
_MAX_HELD_BACK_SECONDS = 0.08
_STARVED_AFTER_SECONDS = 0.1
"""A limit of the group that was reached for so long is not about to be left; what lives beside it goes on."""
_KEEP_ALIVE_SECONDS = 1.0
_PAUSE_AFTER_ERROR_SECONDS = 0.1
_UNASSIGNED_SECONDS = 0.1
_MARKERS_SECONDS = 0.2
_MAX_PAUSE_SECONDS = 5.0

ResetPositions = Callable[[dict[TopicPartition, int]], Awaitable[None]]


class _Question(NamedTuple):
    """Which partitions a fetch asks for, in the forms that it needs."""

    wanted: Sequence[Partition]
    given: int
    """How many generations had been given then."""
    asked: list[TopicPartition]
    generations: dict[TopicPartition, int]
    """In which generation each of them is asked for."""


class Poller:
    """Fetches for one group until `close()`."""

    def __init__(
        self,
        state: GroupState,
        source: RecordSource,
        reset: ResetPositions,
        fatal: Callable[[BaseException], None],
    ) -> None:
        self._state = state
        self._source = source
        self._reset = reset
        self._fatal = fatal
        self._closing = False
        self._failures = 0
        self._next_markers = float("-inf")
        self.backpressure = Backpressure(state.config.limits)
        self.unreadable = UnreadablePartitions(state)
        self.called_at = state.clock.monotonic()
        """When fetch was last called or returned: the watchdog's sign of life."""
        self.in_fetch = False
        self._held = (0, _HELD_BACK_SECONDS)
        self._full_since: float | None = None
        """Since when a limit of the group holds fetching back."""
        self._question = _Question([], 0, [], {})
        self.empty_handed: frozenset[TopicPartition] = frozenset()
        """What the last fetch asked for and got nothing of."""

    def close(self) -> None:
        """Make no further call; the one under way may return."""
        self._closing = True

    async def run(self) -> None:
        """Fetch and queue until closed."""
        clock = self._state.clock.monotonic
        kept_alive = clock()
        while not self._closing:
            if self._state.stopping:
                wanted, room = list[Partition](), 0
            else:
                wanted, room = self._wanted(clock())
                if self._state.holds:
                    wanted = [partition for partition in wanted if partition.tp not in self._state.holds]
                if self.unreadable:
                    wanted = self.unreadable.without_waiting(wanted, clock())
            if not wanted and clock() - kept_alive < _KEEP_ALIVE_SECONDS:
                await asyncio.sleep(self._pause_while_held())
                self.called_at = clock()
                continue
            kept_alive = clock()
            await self._fetch(wanted, room)
            await asyncio.sleep(0)

    def _wanted(self, now: float) -> tuple[list[Partition], int]:
        """What limits allow, and the most records to take."""
        partitions = list(self._state.partitions.values())
        wanted, room = self.backpressure.wanted(partitions)
        if not self.backpressure.is_full:
            self._full_since = None
            return wanted, room
        if self._full_since is None:
            self._full_since = now
        if now - self._full_since < _STARVED_AFTER_SECONDS:
            return [], 0
        return self.backpressure.starving(partitions)

    def _pause_while_held(self) -> float:
        """Short while limits hold us back, as room comes soon; longer while nothing ends or is assigned."""
        partitions = self._state.partitions.values()
        if not self.backpressure.is_full and not any(partition.backpressure for partition in partitions):
            return _UNASSIGNED_SECONDS
        in_flight = sum(partition.in_flight for partition in partitions)
        before, pause = self._held
        pause = min(2 * pause, _MAX_HELD_BACK_SECONDS) if in_flight == before else _HELD_BACK_SECONDS
        self._held = (in_flight, pause)
        return pause

    async def _fetch(self, wanted: list[Partition], room: int) -> None:
        _, _, asked, generations = self._ask(wanted)
        # What is not asked for now may be soon, as its records end; what is asked for wakes the fetch itself.
        others = self._state.partitions.keys() - asked if len(asked) < len(self._state.partitions) else ()
        busy = any(self._state.partitions[tp].in_flight for tp in others)
        timeout_ms = _FETCH_TIMEOUT_BUSY_MS if busy else _FETCH_TIMEOUT_MS
        if self.backpressure.is_full:
            timeout_ms = round(self._pause_while_held() * 1000)  # look again as soon as without a fetch
        self.called_at = self._state.clock.monotonic()
        self.in_fetch = True
        try:
            chunks = await self._source.fetch(asked, room, timeout_ms, self.backpressure.share)
        except OffsetOutOfRangeError as error:
            self._restore(asked, except_for=set(error.offsets))
            await self._reset(error.offsets)
            return
        except (AuthorizationError, ConfigurationError) as error:
            self._fatal(error)
            return
        except BrokerError as error:
            await self._recover(asked, error)
            return
        finally:
            self.in_fetch = False
            self.called_at = self._state.clock.monotonic()
        self._failures = 0
        delivered: set[TopicPartition] = set()
        for chunk in chunks:
            tp = TopicPartition(chunk.topic, chunk.partition)
            delivered.add(tp)
            self._take(tp, chunk, generations.get(tp))
        if delivered:
            self._state.wake_fed()
        self.empty_handed = frozenset(asked) - delivered
        if self.unreadable:
            self.unreadable.delivered(delivered)
        self._pass_markers(generations)

    def _ask(self, wanted: Sequence[Partition]) -> _Question:
        """For `wanted`; mostly the same as last time, which matters where there are many."""
        given = self._state.generations.given
        if wanted != self._question.wanted or given != self._question.given:
            generations = {partition.tp: partition.generation for partition in wanted}
            self._question = _Question(wanted, given, list(generations), generations)
        return self._question

    def _take(self, tp: TopicPartition, chunk: Chunk, asked_in: int | None) -> None:
        """Queue a chunk, unless its partition began another life while the fetch was under way."""
        partition = self._state.partitions.get(tp)
        if partition is None or partition.generation != asked_in:
            # Read from a position that is not this life's: the client has moved on, move it back.
            if partition is not None and partition.is_open and partition.tracker is not None:
                self._source.seek(tp, partition.tracker.position)
            return
        if self._state.intake(chunk, self.called_at):
            self.backpressure.admitted(partition, chunk.records)

    def _pass_markers(self, generations: dict[TopicPartition, int]) -> None:
        """Where nothing came and nothing is held, the client's position is past markers and holes.

        Only here, between two fetches: during one, the position may be past records that are not
        delivered yet.
        """
        if self.called_at < self._next_markers or not self.empty_handed:
            return
        self._next_markers = self.called_at + _MARKERS_SECONDS
        for tp in self.empty_handed:
            partition = self._state.partitions.get(tp)
            if partition is None or not partition.is_open or partition.generation != generations[tp]:
                continue
            tracker, position = partition.tracker, self._source.position(tp)
            if tracker is not None and position is not None and not tracker.unfinished:
                tracker.skip_to(position)

    def _restore(self, asked: list[TopicPartition], except_for: set[TopicPartition]) -> None:
        """Seek back: the fetch that raised may have thrown away what it had taken, also of a newer life."""
        for tp in asked:
            partition = self._state.partitions.get(tp)
            if tp in except_for or partition is None or not partition.is_open:
                continue
            if partition.tracker is not None:
                self._source.seek(tp, partition.tracker.position)

    async def _recover(self, asked: list[TopicPartition], error: BrokerError) -> None:
        """Seek back, and wait: the one partition that is concerned, or all of us."""
        if isinstance(error, FetchError) and error.partition is not None:
            self._restore([error.partition], except_for=set())
            partition = self._state.partitions.get(error.partition)
            if partition is not None and partition.is_open:
                self.unreadable.failed(partition, error, self._state.clock.monotonic())
            return
        self._restore(asked, except_for=set())
        await self._back_off(error)

    async def _back_off(self, error: BrokerError) -> None:
        self._failures += 1
        pause = min(_MAX_PAUSE_SECONDS, _PAUSE_AFTER_ERROR_SECONDS * 2 ** min(self._failures - 1, 10))
        if self._failures == 1:
            self._state.log.warning("group %s: %s; trying again", self._state.group, error)
        await asyncio.sleep(pause)
