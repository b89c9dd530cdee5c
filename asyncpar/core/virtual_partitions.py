"""Virtual partitions: the FIFO of one ordering key, and which of them may run next, O(1) per record.

A `Queues` object is one partition during one generation. A `ReadyQueue` is one handler: a deque of
virtual partitions whose head may run. Always true: a virtual partition is in at most one place
(ready, running in a worker, parked, held or locked), so at most one of its records runs at a time;
its `head` is the record that runs or runs next; later records of the key wait in `rest`.

The gate is one number: a record starts only below `start_below`. Open is `ANY_OFFSET`, closed (a
revoke, a halt) is `NO_OFFSET`, and near the metadata cap it is the highest done offset.

Called by the runtime's intake (`enqueue`) and by its workers, which inline `take` and `finish` of
the plain case; both ways have the same tests.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple

from asyncpar.core.offsets import OffsetTracker
from asyncpar.errors import DecodeError
from asyncpar.records import RawRecord, TopicPartition

ANY_OFFSET = 1 << 63
NO_OFFSET = -1

KeyOf = Callable[[str, RawRecord], Hashable]
"""The ordering key of a record; None for a record that nothing orders."""


class VirtualPartition:
    """The records of one ordering key of one partition, in one generation."""

    __slots__ = ("head", "key", "queues", "rest")

    def __init__(self, queues: Queues, key: Hashable, head: RawRecord | None) -> None:
        self.queues = queues
        self.key = key
        """None: a record on its own, ordered by nothing and not found by key."""
        self.head = head
        """None only while locked by a straggler with nothing behind it."""
        self.rest: deque[RawRecord] | None = None
        """Made when a second record arrives: an empty deque costs 760 bytes."""

    def append(self, record: RawRecord) -> None:
        """`record` waits behind all others of its key."""
        if self.head is None:
            self.head = record
        elif self.rest is None:
            self.rest = deque((record,))
        else:
            self.rest.append(record)


class Unorderable(NamedTuple):
    """A record whose ordering key cannot be found, and why."""

    record: RawRecord
    error: DecodeError


class ReadyQueue:
    """One handler's virtual partitions whose head may run, first come first served."""

    __slots__ = ("name", "ready")

    def __init__(self, name: str) -> None:
        self.name = name
        self.ready: deque[VirtualPartition] = deque()

    def discard(self, queues: Queues) -> None:
        """Forget what is ready of `queues`."""
        kept = [vp for vp in self.ready if vp.queues is not queues]
        self.ready.clear()
        self.ready.extend(kept)


class Queues:
    """All virtual partitions of one partition in one generation, and its gate."""

    __slots__ = (
        "attempts",
        "by_key",
        "first_failed",
        "generation",
        "held",
        "locked_offsets",
        "number",
        "partition",
        "route",
        "routes",
        "start_below",
        "topic",
        "tracker",
        "unfinished",
    )

    def __init__(
        self,
        partition: TopicPartition,
        generation: int,
        tracker: OffsetTracker,
        route: ReadyQueue | None,
    ) -> None:
        """`route` is where its records go; None when each record's own is given at `enqueue`."""
        self.partition = partition
        self.topic, self.number = partition
        self.generation = generation
        self.tracker = tracker
        self.unfinished = tracker.unfinished
        self.route = route
        self.routes: dict[int, ReadyQueue] = {}
        """By offset, where several handlers share the topic; empty otherwise."""
        self.by_key: dict[Hashable, VirtualPartition] = {}
        self.start_below = ANY_OFFSET
        self.held: list[VirtualPartition] = []
        """Taken while the gate was closed to their head; ready again when it opens."""
        self.attempts: dict[int, int] = {}
        """Failed attempts by offset; only records that failed have an entry."""
        self.first_failed: dict[int, float] = {}
        """When each of them failed first, monotonic seconds."""
        self.locked_offsets: dict[int, VirtualPartition] = {}
        """Unordered records that a straggler still runs, by offset."""

    def enqueue(self, records: Iterable[RawRecord], key_of: KeyOf | None) -> Unorderable | None:
        """Queue admitted records of a partition with one route, in the order of `records`.

        `key_of` None: the record's own key, and a record without one is ordered by nothing.

        Stops at a record whose key cannot be found and returns it; with an iterator as `records`
        the caller goes on behind it.
        """
        assert self.route is not None
        ready = self.route.ready
        by_key = self.by_key
        topic = self.topic
        for record in records:
            try:
                key = record.key if key_of is None else key_of(topic, record)
            except DecodeError as error:
                return Unorderable(record, error)
            if key is None:
                if self.locked_offsets and record.offset in self.locked_offsets:
                    self.locked_offsets[record.offset].append(record)
                else:
                    ready.append(VirtualPartition(self, None, record))
                continue
            vp = by_key.get(key)
            if vp is None:
                by_key[key] = vp = VirtualPartition(self, key, record)
                ready.append(vp)
            elif vp.rest:
                vp.rest.append(record)
            else:
                vp.append(record)
        return None

    def enqueue_one(self, record: RawRecord, key: Hashable, route: ReadyQueue) -> None:
        """Queue one admitted record whose route differs from record to record."""
        self.routes[record.offset] = route
        vp = None
        if key is not None:
            vp = self.by_key.get(key)
        elif self.locked_offsets:
            vp = self.locked_offsets.get(record.offset)
        if vp is not None:
            vp.append(record)
            return
        vp = VirtualPartition(self, key, record)
        if key is not None:
            self.by_key[key] = vp
        route.ready.append(vp)

    def route_of(self, record: RawRecord) -> ReadyQueue:
        """The handler that `record` goes to."""
        if self.route is not None:
            return self.route
        return self.routes[record.offset]

    def route_at(self, offset: int) -> ReadyQueue | None:
        """The handler that the unfinished record at `offset` goes to; None: no handler takes it."""
        return self.routes.get(offset) if self.route is None else self.route

    def finish(self, vp: VirtualPartition) -> ReadyQueue | None:
        """The head is done: the next record of the key becomes ready, or the key is forgotten.

        Returns the queue that got the next record; with several routes it can be another handler's.
        """
        assert vp.head is not None
        self.routes.pop(vp.head.offset, None)
        if self.attempts.pop(vp.head.offset, None) is not None:
            self.first_failed.pop(vp.head.offset, None)
        if vp.rest:
            vp.head = vp.rest.popleft()
            route = self.route_of(vp.head)
            route.ready.append(vp)
            return route
        if vp.key is not None:
            del self.by_key[vp.key]
        return None

    def again(self, vp: VirtualPartition) -> None:
        """The head was not run or is to run again now: first in line of its handler."""
        assert vp.head is not None
        self.route_of(vp.head).ready.appendleft(vp)

    def hold(self, vp: VirtualPartition) -> None:
        """The head lies at or above the gate: wait until the gate moves."""
        self.held.append(vp)

    def move_gate(self, start_below: int) -> None:
        """Let records start below `start_below` only; what was held becomes ready to be tried."""
        risen = start_below > self.start_below
        self.start_below = start_below
        if risen:
            held, self.held = self.held, []
            for vp in held:
                assert vp.head is not None
                self.route_of(vp.head).ready.append(vp)

    def lock(self, key: Hashable, offset: int) -> VirtualPartition:
        """A straggler of an older generation still runs `key` (or, unordered, `offset`): nothing starts."""
        vp = VirtualPartition(self, key, None)
        if key is None:
            self.locked_offsets[offset] = vp
        else:
            self.by_key[key] = vp
        return vp

    def unlock(self, vp: VirtualPartition, offset: int, adopted: bool) -> None:
        """The straggler at `offset` has ended; `adopted`: it succeeded and counts in this generation."""
        if self.start_below == NO_OFFSET:
            if adopted:
                self.tracker.mark_done(offset)
            return
        if vp.key is None:
            self.locked_offsets.pop(offset, None)
        if adopted:
            self.tracker.mark_done(offset)
            self._drop_waiting(vp, offset)
        if vp.head is not None:
            self.route_of(vp.head).ready.append(vp)
        elif vp.key is not None:
            del self.by_key[vp.key]

    def _drop_waiting(self, vp: VirtualPartition, offset: int) -> None:
        """Take the record at `offset` out of `vp`; older ones, delivered again, may stand before it."""
        waiting = [record for record in (vp.head, *(vp.rest or ())) if record is not None]
        waiting = [record for record in waiting if record.offset != offset]
        vp.head = waiting[0] if waiting else None
        vp.rest = deque(waiting[1:]) if len(waiting) > 1 else None
        self.routes.pop(offset, None)

    def close(self, handlers: Iterable[ReadyQueue]) -> None:
        """Drop what is queued and start nothing more; what runs reports to the tracker when it ends."""
        self.start_below = NO_OFFSET
        self.held.clear()
        self.by_key.clear()
        self.routes.clear()
        self.tracker.rewind()
        for handler in handlers:
            handler.discard(self)


class ParkingLot:
    """Virtual partitions whose head waits for a retry, by the time it is due."""

    __slots__ = ("_due", "_serial")

    def __init__(self) -> None:
        self._due: list[tuple[float, int, VirtualPartition]] = []
        self._serial = 0

    def __len__(self) -> int:
        return len(self._due)

    def park(self, vp: VirtualPartition, due: float) -> None:
        """The head of `vp` runs again at `due`; until then it takes no slot and its key waits."""
        self._serial += 1
        heapq.heappush(self._due, (due, self._serial, vp))

    def next_due(self) -> float | None:
        """When the first of them is due; None when nothing is parked."""
        return self._due[0][0] if self._due else None

    def release(self, now: float) -> list[ReadyQueue]:
        """Make ready what is due at `now`; returns the handlers that got work (with repeats)."""
        woken: list[ReadyQueue] = []
        while self._due and self._due[0][0] <= now:
            vp = heapq.heappop(self._due)[2]
            assert vp.head is not None
            route = vp.queues.route_of(vp.head)
            route.ready.append(vp)
            woken.append(route)
        return woken

    def take(self, queues: Queues, offset: int) -> VirtualPartition | None:
        """The one whose head is at `offset` of `queues`, which no longer waits here; None: it does not."""
        for entry in self._due:
            vp = entry[2]
            if vp.queues is queues and vp.head is not None and vp.head.offset == offset:
                self._due.remove(entry)
                heapq.heapify(self._due)
                return vp
        return None

    def discard(self, queues: Queues) -> None:
        """Forget what is parked of `queues`."""
        self._due = [entry for entry in self._due if entry[2].queues is not queues]
        heapq.heapify(self._due)

    def parked(self) -> Iterable[VirtualPartition]:
        """All that wait, in no order."""
        return (entry[2] for entry in self._due)
