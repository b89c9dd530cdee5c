"""The queues as a state machine: lives of one partition, with stragglers, gates and retries in any order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from asyncpar.core.offsets import OffsetTracker, Run
from asyncpar.core.virtual_partitions import (
    ANY_OFFSET,
    NO_OFFSET,
    ParkingLot,
    Queues,
    ReadyQueue,
    VirtualPartition,
)
from asyncpar.records import RawRecord
from tests.core.models import TP, FakeRecord, bounded, key_of, offset_of, settle_success, take

KEYS = st.sampled_from([b"a", b"a", b"b", b"c", None])


class QueuesMachine(RuleBasedStateMachine):
    """One partition over several lives: what a worker, the intake and a rebalance may do, in any order.

    The model is the log, the offsets that ever succeeded, and which calls run now.
    """

    def __init__(self) -> None:
        super().__init__()
        self.handlers = [ReadyQueue("first"), ReadyQueue("second")]
        self.lot = ParkingLot()
        self.now = 0.0
        self.log: list[FakeRecord] = []
        self.cursor = 0
        self.succeeded: set[int] = set()
        self.commits: list[tuple[int, list[Run]]] = [(0, [])]
        self.running: list[VirtualPartition] = []
        self.stragglers: dict[VirtualPartition, tuple[VirtualPartition, bool]] = {}
        self.shared = False
        self.generation = 0
        self._begin(0, [])

    @initialize(shared=st.booleans())
    def choose_routes(self, shared: bool) -> None:
        """One handler for the topic, or two that share it by `match=`."""
        self.shared = shared
        self._begin(0, [])

    def _begin(self, start: int, runs: list[Run]) -> None:
        """A new life, as the runtime opens it: what still runs locks its key."""
        self.generation += 1
        self.tracker = OffsetTracker(start, runs)
        self.queues = Queues(TP, self.generation, self.tracker, None if self.shared else self.handlers[0])
        self.cursor = sum(record.offset < self.tracker.position for record in self.log)
        self.stragglers.clear()
        for vp in self.running:
            offset = offset_of(vp)
            adoptable = offset >= start and not self.tracker.is_done(offset)
            self.stragglers[vp] = (self.queues.lock(vp.key, offset), adoptable)

    def _handler_of(self, record: RawRecord) -> ReadyQueue:
        return self.handlers[record.offset % 2 if self.shared else 0]

    @property
    def is_closed(self) -> bool:
        return self.queues.start_below == NO_OFFSET

    # -- the intake --------------------------------------------------------------------------

    @precondition(lambda self: not self.is_closed)
    @rule(produced=st.lists(st.tuples(KEYS, st.integers(1, 3)), max_size=5), count=st.integers(0, 8))
    def deliver(self, produced: list[tuple[bytes | None, int]], count: int) -> None:
        """Records are produced, with holes, and a fetch delivers some."""
        for key, gap in produced:
            last = self.log[-1].offset if self.log else -1
            self.log.append(FakeRecord(last + gap, key))
        chunk = self.log[self.cursor : self.cursor + count]
        self.cursor += len(chunk)
        fresh = self.tracker.admit(chunk)
        if self.shared:
            for record in fresh:
                self.queues.enqueue_one(record, record.key, self._handler_of(record))
        else:
            # A plain order by key is passed as None: both ways must queue alike.
            assert self.queues.enqueue(iter(fresh), key_of if self.generation % 2 else None) is None

    # -- the workers -------------------------------------------------------------------------

    @rule(which=st.integers(0, 1))
    def start(self, which: int) -> None:
        """A worker takes: below the gate, its handler's, in order, and alone in its key."""
        vp = take(self.handlers[which])
        if vp is None:
            return
        offset = offset_of(vp)
        assert vp.head is not None
        assert vp.queues is self.queues
        assert self._handler_of(vp.head) is self.handlers[which]
        assert offset < self.queues.start_below
        assert offset in self.tracker.unfinished
        for other in self.running:
            assert other.key != vp.key if vp.key is not None else offset_of(other) != offset
        if vp.key is not None:
            assert offset == min(r.offset for r in self.tracker.unfinished.values() if r.key == vp.key)
        self.running.append(vp)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), inlined=st.booleans())
    def succeed(self, data: st.DataObject, inlined: bool) -> None:
        """A running call ends well."""
        vp = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self._succeed(vp, inlined)

    def _succeed(self, vp: VirtualPartition, inlined: bool) -> None:
        offset = offset_of(vp)
        if settle_success(vp, inlined):
            assert vp.queues is self.queues
            self.succeeded.add(offset)
        elif self._late(vp, offset, ok=True):
            self.succeeded.add(offset)

    def _late(self, vp: VirtualPartition, offset: int, ok: bool) -> bool:
        """What the runtime does with an end that no tracker holds; True when it counts."""
        if vp.queues is self.queues:
            assert self.is_closed, f"offset {offset} ran although it was done"
            if ok:
                self.tracker.mark_done(offset)
            return ok
        lock, adoptable = self.stragglers.pop(vp)
        self.queues.unlock(lock, offset, ok and adoptable)
        return ok and adoptable

    @precondition(lambda self: self.running)
    @rule(data=st.data(), delay=st.integers(0, 4))
    def fail(self, data: st.DataObject, delay: int) -> None:
        """A running call fails and is parked for a retry."""
        vp = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        offset = offset_of(vp)
        if offset in vp.queues.unfinished:
            vp.queues.attempts[offset] = vp.queues.attempts.get(offset, 0) + 1
            self.lot.park(vp, self.now + delay)
        else:
            self._late(vp, offset, ok=False)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def interrupt(self, data: st.DataObject) -> None:
        """A running call is cancelled from outside: neither done nor failed."""
        vp = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        offset = offset_of(vp)
        if offset in vp.queues.unfinished:
            vp.queues.again(vp)
            assert self._handler_of(vp.queues.unfinished[offset]).ready[0] is vp
        else:
            self._late(vp, offset, ok=False)

    @rule(seconds=st.integers(0, 3))
    def time_passes(self, seconds: int) -> None:
        """Parked retries become due, each in its own handler."""
        self.now += seconds
        before = len(self.lot)
        woken = self.lot.release(self.now)
        assert len(woken) == before - len(self.lot)
        due = self.lot.next_due()
        assert due is None or due > self.now

    # -- the gate, and the end of a life -----------------------------------------------------

    @precondition(lambda self: not self.is_closed)
    @rule(above=st.one_of(st.none(), st.integers(0, 8)))
    def move_gate(self, above: int | None) -> None:
        """The metadata nears the cap, or is short again."""
        self.queues.move_gate(ANY_OFFSET if above is None else self.tracker.hwm + above)

    @rule()
    def commit(self) -> None:
        """What a commit of this moment stores."""
        self.commits.append((self.tracker.hwm, self.tracker.done_runs()))

    @rule()
    def close(self) -> None:
        """A halt or a revoke."""
        self.queues.close(self.handlers)
        self.lot.discard(self.queues)
        assert not any(handler.ready for handler in self.handlers)
        assert not (self.queues.held or self.queues.by_key or self.queues.routes)

    @precondition(lambda self: self.is_closed)
    @rule(back=st.integers(0, 2), metadata=st.booleans())
    def open_again(self, back: int, metadata: bool) -> None:
        """The partition comes back: from the last commit, or from an older one after an unclean loss."""
        del self.commits[max(1, len(self.commits) - back) :]
        start, runs = self.commits[-1]
        self._begin(start, runs if metadata else [])

    @precondition(lambda self: self.is_closed)
    @rule()
    def resume(self) -> None:
        """A halted partition goes on where it stopped."""
        self._begin(self.tracker.hwm, self.tracker.done_runs())

    # -- what always holds -------------------------------------------------------------------

    def _places(self) -> Iterator[VirtualPartition]:
        for handler in self.handlers:
            yield from handler.ready
        yield from self.queues.held
        yield from self.lot.parked()
        yield from (vp for vp in self.running if vp.queues is self.queues)
        if not self.is_closed:
            yield from (lock for lock, _ in self.stragglers.values())

    @invariant()
    def every_unfinished_record_is_in_exactly_one_place(self) -> None:
        """No record is lost, none is queued twice, nothing of an older life is left."""
        found: Counter[int] = Counter()
        for vp in self._places():
            assert vp.queues is self.queues
            if self.is_closed:
                continue
            found.update(record.offset for record in (vp.head, *(vp.rest or ())) if record is not None)
        assert found == Counter(self.tracker.unfinished.keys())

    @invariant()
    def memory_follows_what_is_held(self) -> None:
        """A key is known as long as it has records or a lock, and no longer."""
        if self.is_closed:
            return
        keys: set[Hashable] = {record.key for record in self.tracker.unfinished.values()}
        keys |= {lock.key for lock, _ in self.stragglers.values()}
        assert set(self.queues.by_key) == keys - {None}
        assert set(self.queues.attempts) <= set(self.tracker.unfinished)
        assert set(self.queues.routes) == (set(self.tracker.unfinished) if self.shared else set())
        loose = {offset_of(vp) for vp in self.stragglers if vp.key is None}
        assert set(self.queues.locked_offsets) == loose

    @invariant()
    def nothing_undone_lies_below_the_hwm(self) -> None:
        """Only what succeeded may be passed by a commit."""
        hwm = self.tracker.hwm
        assert all(record.offset in self.succeeded for record in self.log if record.offset < hwm)

    def teardown(self) -> None:
        """From wherever this stands, everything that was produced succeeds in the end."""
        if self.is_closed:
            self._begin(self.tracker.hwm, self.tracker.done_runs())
        self.move_gate(None)
        self.deliver([], len(self.log))
        for _ in range(3 * len(self.log) + 3):
            for vp in [self.running.pop() for _ in self.running[:]]:
                self._succeed(vp, inlined=True)
            self.lot.release(float("inf"))
            self.start(0)
            self.start(1)
        assert self.tracker.unfinished == {}
        assert {record.offset for record in self.log} <= self.succeeded
        self.every_unfinished_record_is_in_exactly_one_place()
        self.memory_follows_what_is_held()
        assert not self.queues.held
        assert not self.queues.attempts
        assert len(self.lot) == 0


QueuesMachine.TestCase.settings = bounded(40, 40)
TestQueues = QueuesMachine.TestCase
