"""One group's state: partitions, queues, token and lease. Owned by the runtime, shared by its parts.

Holds what several parts need and the few steps that must happen in one breath (intake, late
completions, stragglers). Waits for nothing.
"""

from __future__ import annotations

import logging
import random
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from asyncpar.core.assignment import Event, Generations, Partition, State
from asyncpar.core.commits import MetadataBudget
from asyncpar.core.failures import give_up
from asyncpar.core.offsets import OffsetTracker, Run
from asyncpar.core.virtual_partitions import ANY_OFFSET, ParkingLot, Queues, ReadyQueue, VirtualPartition
from asyncpar.errors import DecodeError
from asyncpar.records import Chunk, GroupToken, RawRecord, TopicPartition
from asyncpar.runtime.config import RuntimeConfig
from asyncpar.runtime.tally import GroupCounters, count

if TYPE_CHECKING:
    from asyncpar.events import Listener
    from asyncpar.runtime.outbox import Outbox
    from asyncpar.runtime.workers import HandlerPool

LEASE_MARGIN_SECONDS = 0.5
_MAX_ARRIVALS = 64


@dataclass(frozen=True, slots=True)
class Clock:
    """Where time and chance come from; a simulation passes its own."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    uniform: Callable[[], float] = field(default_factory=lambda: random.Random().random)


@dataclass(slots=True)
class Straggler:
    """A call of an older generation that still runs; its key is locked in the present one."""

    lock: VirtualPartition
    adoptable: bool


class GroupState:
    """What is true of one group now."""

    def __init__(
        self, group: str, config: RuntimeConfig, clock: Clock, lease_from: Callable[[], float]
    ) -> None:
        self.group = group
        self.config = config
        self.clock = clock
        self.log = logging.getLogger("asyncpar.runtime")
        self.partitions: dict[TopicPartition, Partition] = {}
        self.pools: tuple[HandlerPool, ...] = ()
        self.parking = ParkingLot()
        self.on_parked: Callable[[], None] = lambda: None
        self.on_intake: Callable[[], None] = lambda: None
        self.on_event: Listener = lambda _: None
        self.generations = Generations()
        self.metadata_budget = MetadataBudget()
        self.counters = GroupCounters()
        self.token: GroupToken | None = None
        """Commits are possible while it is set: from assigned to the end of revoked."""
        self.phase = "starting"
        self.stopping = False
        self.stragglers: dict[VirtualPartition, Straggler] = {}
        self.lease_from = lease_from
        self._lease_seconds = config.session_timeout_ms / 1000 - LEASE_MARGIN_SECONDS
        self.lease_until = float("-inf")
        self.lease_closed = False
        self.holds: dict[TopicPartition, dict[str, str]] = {}
        """Why a partition is not fetched although it is open: by what holds it, in words."""
        self.outbox: Outbox | None = None
        """Where records leave for other topics; None when no handler sends any."""
        self._routes: dict[str, list[HandlerPool]] = {}
        self._fed: dict[HandlerPool, None] = {}
        self.arrivals: dict[TopicPartition, list[tuple[int, float]]] = {}

    # -- the lease ---------------------------------------------------------------------------

    def renew_lease(self, now: float) -> bool:
        """True when something may start at `now`. Called when the known lease has run out."""
        self.lease_until = self.lease_end()
        held = now <= self.lease_until
        if held is self.lease_closed and (held or self.partitions):
            self.lease_closed = not held
            if held:
                self.log.info("group %s: heartbeats are answered again, handlers start again", self.group)
                self.wake_all()
            else:
                self.log.warning(
                    "group %s: no heartbeat was answered for %.1f s, no handler starts until one is",
                    self.group,
                    self._lease_seconds,
                )
        return held

    def lease_end(self) -> float:
        """Until when something may start, by the last sign of membership: monotonic seconds."""
        return self.lease_from() + self._lease_seconds

    # -- holds -------------------------------------------------------------------------------

    def hold(self, tp: TopicPartition, who: str, why: str, *, is_told: bool = False) -> None:
        """Do not fetch `tp` until `let_go`; logged when it begins, unless `is_told` already."""
        if tp not in self.partitions:
            return
        by = self.holds.setdefault(tp, {})
        if who not in by and not is_told:
            self.log.error("%s is held: %s. Nothing is lost; it is tried again", tp, why)
        by[who] = why

    def let_go(self, tp: TopicPartition, who: str, *, is_told: bool = False) -> None:
        """The hold of `who` on `tp` is over."""
        by = self.holds.get(tp)
        if by is None or by.pop(who, None) is None:
            return
        if not by:
            del self.holds[tp]
        if not is_told:
            self.log.info("%s is no longer held by its %s", tp, who)
        self.on_intake()

    def wake(self, queue: ReadyQueue) -> None:
        """Let the handler of `queue` look at it."""
        for pool in self.pools:
            if pool.queue is queue:
                pool.wake()

    def wake_all(self) -> None:
        """Let every handler look at its queue."""
        for pool in self.pools:
            pool.wake()

    # -- routes ------------------------------------------------------------------------------

    def pools_for(self, topic: str) -> list[HandlerPool]:
        """The handlers of `topic`; an exact name beats a pattern."""
        pools = self._routes.get(topic)
        if pools is None:
            named = [pool for pool in self.pools if topic in pool.handler.topics]
            pools = named or [pool for pool in self.pools if pool.handler.takes(topic)]
            self._routes[topic] = pools
        return pools

    def route_conflict(self, topic: str) -> str | None:
        """Why `topic` has no one handler for each record; None when it has."""
        pools = self.pools_for(topic)
        if not pools:
            return f"topic {topic} is assigned to group {self.group}, but no handler takes it"
        if len(pools) > 1 and any(pool.handler.match is None for pool in pools):
            names = " and ".join(pool.handler.name for pool in pools)
            return (
                f"topic {topic} fits the patterns of several handlers ({names}); give each a match= predicate"
            )
        return None

    def ready_queues(self) -> list[ReadyQueue]:
        """All handlers' queues."""
        return [pool.queue for pool in self.pools]

    # -- opening -----------------------------------------------------------------------------

    def open(
        self, partition: Partition, start: int, runs: Iterable[Run], *, adopt_below: int = ANY_OFFSET
    ) -> None:
        """`partition` begins at `start` with `runs` done above it; stragglers of it lock their keys.

        Their success counts below `adopt_below`: from there on (the end of a log that was truncated, or 0)
        offsets mean other records than before.
        """
        tracker = OffsetTracker(start, runs)
        pools = self.pools_for(partition.tp.topic)
        route = pools[0].queue if len(pools) == 1 and pools[0].handler.match is None else None
        queues = Queues(partition.tp, partition.generation, tracker, route)
        partition.tracker, partition.queues = tracker, queues
        self.arrivals[partition.tp] = []
        for pool in pools:
            for vp in pool.running():
                if vp.queues.partition == partition.tp and vp.head is not None:
                    offset = vp.head.offset
                    adoptable = start <= offset < adopt_below and not tracker.is_done(offset)
                    self.stragglers[vp] = Straggler(queues.lock(vp.key, offset), adoptable)
        partition.apply(Event.OPENED)
        for pool in pools:
            if pool.gate is not None:
                pool.gate.hold_new(partition.tp)
            if pool.children is not None:
                pool.children.hold_new(partition.tp)

    def has_running(self, tp: TopicPartition) -> bool:
        """A call of an earlier life of `tp` still runs."""
        return any(vp.queues.partition == tp for pool in self.pools for vp in pool.running())

    # -- intake ------------------------------------------------------------------------------

    def intake(self, chunk: Chunk, now: float) -> int:
        """Queue what a fetch delivered; returns how many records were let in. `wake_fed` follows."""
        partition = self.partitions.get(TopicPartition(chunk.topic, chunk.partition))
        if partition is None or not partition.is_open or not chunk.records:
            return 0
        tracker, queues = partition.tracker, partition.queues
        assert tracker is not None
        assert queues is not None
        before = tracker.redelivered
        fresh = tracker.admit(chunk.records)
        self.counters.redelivered += tracker.redelivered - before
        if not fresh:
            return 0
        self._note_arrival(partition.tp, fresh[-1].offset, now)
        if queues.route is not None:
            self._enqueue(partition, queues, fresh)
        else:
            for record in fresh:
                if not self._route_one(partition, queues, record):
                    break
        return len(fresh)

    def wake_fed(self) -> None:
        """Let the handlers look at what came in: once per fetch, however many partitions it is of."""
        for pool in self._fed:
            pool.wake()
        self._fed.clear()
        self.on_intake()

    def _enqueue(self, partition: Partition, queues: Queues, fresh: Sequence[RawRecord]) -> None:
        pool = self.pools_for(partition.tp.topic)[0]
        records = iter(fresh)
        while (refused := queues.enqueue(records, pool.handler.key_of)) is not None:
            if not self._settle_undecodable(partition, pool, refused.record, refused.error):
                return
        self._fed[pool] = None

    def _route_one(self, partition: Partition, queues: Queues, record: RawRecord) -> bool:
        """Queue one record where handlers share the topic; False when that halted the partition."""
        topic = partition.tp.topic
        pools = self.pools_for(topic)
        pool = pools[0]
        try:
            for pool in pools:
                if pool.handler.match is None or pool.handler.match(topic, record):
                    key_of = pool.handler.key_of
                    key = record.key if key_of is None else key_of(topic, record)
                    queues.enqueue_one(record, key, pool.queue)
                    self._fed[pool] = None
                    return True
        except DecodeError as error:
            return self._settle_undecodable(partition, pool, record, error)
        except Exception as error:  # noqa: BLE001 - a user's predicate may raise anything
            refused = DecodeError(f"match= of handler {pool.handler.name} raised {error!r}")
            return self._settle_undecodable(partition, pool, record, refused)
        return self._settle_unmatched(partition, pools, record)

    def _settle_undecodable(
        self, partition: Partition, pool: HandlerPool, record: RawRecord, error: DecodeError
    ) -> bool:
        pool.tally(partition.tp.topic).undecodable += 1
        rules, queues = pool.handler.rules, partition.queues
        if rules.dead_letter and not rules.skip_undecodable and queues is not None:
            # Nothing orders it: its key cannot be found.
            queues.routes[record.offset] = pool.queue
            pool.verdicts.send_away(
                VirtualPartition(queues, None, record), record, give_up(rules, "undecodable"), error
            )
            return True
        return self._skip_or_halt(partition, record, rules.skip_undecodable, str(error))

    def _settle_unmatched(
        self, partition: Partition, pools: Sequence[HandlerPool], record: RawRecord
    ) -> bool:
        skip = all(pool.handler.skip_unmatched for pool in pools)
        if skip:
            pools[0].tally(partition.tp.topic).skipped += 1
        names = ", ".join(pool.handler.name for pool in pools)
        reason = f"no match= of its handlers ({names}) takes it; unmatched='skip' would pass over it"
        return self._skip_or_halt(partition, record, skip, reason)

    def _skip_or_halt(self, partition: Partition, record: RawRecord, skip: bool, reason: str) -> bool:
        if skip:
            assert partition.tracker is not None
            partition.tracker.complete(record.offset)
            return True
        self.halt(partition, f"offset {record.offset}: {reason}")
        return False

    def _note_arrival(self, tp: TopicPartition, last: int, now: float) -> None:
        runs = self.arrivals[tp]
        runs.append((last, now))
        if len(runs) > _MAX_ARRIVALS:
            del runs[: _MAX_ARRIVALS // 2]

    def arrived_at(self, tp: TopicPartition, offset: int) -> float | None:
        """When `offset` came in; None when that is too long ago to be known."""
        runs = self.arrivals.get(tp)
        if not runs:
            return None
        at = bisect_right(runs, (offset, float("-inf")))
        return runs[at][1] if at < len(runs) else None

    # -- endings -----------------------------------------------------------------------------

    def halt(self, partition: Partition, reason: str) -> None:
        """Stop `partition` at a record that failed for good; the others go on."""
        if partition.state not in (State.OPEN, State.OPENING):
            return
        partition.apply(Event.HALT)
        partition.halt_reason = reason
        partition.halted_at = self.clock.monotonic()
        self.close_queues(partition)
        self.log.error(
            "%s halted, %s. Its records wait until app.retry_halted(), a rebalance or a restart; "
            "other partitions go on",
            partition.tp,
            reason,
        )
        self.on_intake()

    def close_queues(self, partition: Partition) -> None:
        """Nothing of `partition` starts any more; what runs may end and still counts."""
        if partition.queues is not None:
            partition.queues.close(self.ready_queues())
            self.parking.discard(partition.queues)
            for pool in self.pools_for(partition.tp.topic):
                if pool.children is not None:
                    pool.children.bridge.withdraw(partition.tp)

    def forget_departures(self, partition: Partition) -> None:
        """What is on its way to other topics of this life of `partition` will run again."""
        if self.outbox is not None and partition.queues is not None:
            self.outbox.discard(partition.queues)

    def release(self, partition: Partition, event: Event) -> None:
        """`partition` is no longer ours: completions that come later are of an older generation."""
        self.close_queues(partition)
        self.forget_departures(partition)
        partition.apply(event)
        del self.partitions[partition.tp]
        self.holds.pop(partition.tp, None)
        self.arrivals.pop(partition.tp, None)

    def late_completion(self, vp: VirtualPartition, offset: int, ok: bool) -> None:
        """A record ended that its tracker does not hold: its partition halted, drains, or went away."""
        queues = vp.queues
        partition = self.partitions.get(queues.partition)
        if partition is not None and partition.queues is queues:
            if ok:
                queues.tracker.mark_done(offset)
            return
        straggler = self.stragglers.pop(vp, None)
        if straggler is None:
            self.counters.stale_completions += 1
            return
        lock = straggler.lock
        present = partition is not None and partition.queues is lock.queues
        adopted = ok and straggler.adoptable and present
        if adopted:
            count(self.counters.stragglers, "adopted")
        else:
            self.counters.stale_completions += 1
        if present:
            lock.queues.unlock(lock, offset, adopted)
            self.wake_all()
