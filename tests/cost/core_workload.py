"""Records through the core alone: asked for, admitted, queued, taken, finished, and drafted for a commit.

What lives here: a driver that does what poller, workers and committer do, without them, and counts what the
core spends. What never does: asyncio, limits, verdicts. Called by the tests and by `python -m tests.cost`.
"""

from __future__ import annotations

from asyncpar.core.assignment import Event, Partition
from asyncpar.core.backpressure import Backpressure, Limits
from asyncpar.core.commits import CommitClock, MetadataBudget, drafts, settle
from asyncpar.core.offsets import OffsetTracker
from asyncpar.core.virtual_partitions import Queues, ReadyQueue
from asyncpar.records import CommitAnswer, RawRecord, TopicPartition
from tests.cost.counter import Cost, Counter
from tests.cost.load import Load

_COMMIT_EVERY = 2000


class CoreDriver:
    """One handler's partitions, driven by hand."""

    def __init__(self, load: Load) -> None:
        self._logs = load.logs()
        self._handler = ReadyQueue("handle")
        self._partitions = [opened(tp, self._handler) for tp in self._logs]
        self._by_name = {partition.tp: partition for partition in self._partitions}
        self._backpressure = Backpressure(Limits(5000, None, 64 * 1024 * 1024, 500))
        self._budget = MetadataBudget()
        self._clock = CommitClock(_COMMIT_EVERY, 1000)
        self._positions = dict.fromkeys(self._logs, 0)
        self._stuck = load.is_stuck
        self._turn = 0
        self.completed = 0

    def run(self, upto: int) -> None:
        """Until `upto` records are done, all of which are committed then."""
        while self.completed < upto:
            wanted, room = self._backpressure.wanted(self._partitions)
            for partition, records in self._fetched(wanted, min(room, upto - self.completed)):
                assert partition.tracker is not None
                assert partition.queues is not None
                partition.queues.enqueue(partition.tracker.admit(records), None)
                self._backpressure.admitted(partition, records)
            self._work()
            if self._clock.is_due(self.completed * 1e-5, self.completed, idle=False):
                self._commit()
        self._commit()

    def _fetched(self, wanted: list[Partition], room: int) -> list[tuple[Partition, list[RawRecord]]]:
        """As a client hands its buffers out: what there is room for, of one partition after the other."""
        found: list[tuple[Partition, list[RawRecord]]] = []
        self._turn += 1
        first = self._turn % len(wanted)
        for partition in wanted[first:] + wanted[:first]:
            at = self._positions[partition.tp]
            records = self._logs[partition.tp][at : at + min(room, self._backpressure.share)]
            if records:
                self._positions[partition.tp] = at + len(records)
                found.append((partition, records))
                room -= len(records)
            if room <= 0:
                break
        assert found, "the core asks for nothing that is left"
        return found

    def _work(self) -> None:
        ready = self._handler.ready
        while ready:
            vp = ready.popleft()
            assert vp.head is not None
            if self._stuck and vp.head.offset == 0:
                continue
            vp.queues.tracker.complete(vp.head.offset)
            vp.queues.finish(vp)
            self.completed += 1

    def _commit(self) -> None:
        self._clock.committed(self.completed * 1e-5, self.completed)
        for made in drafts(self._partitions, self._budget):
            settle(made, CommitAnswer.ACKNOWLEDGED, self._budget)


def opened(tp: TopicPartition, route: ReadyQueue) -> Partition:
    """A partition that begins at its offset 0."""
    partition = Partition(tp, 1)
    partition.tracker = OffsetTracker(0)
    partition.queues = Queues(tp, 1, partition.tracker, route)
    partition.apply(Event.OPENED)
    return partition


def core_cost(load: Load) -> Cost:
    """Of a record of `load` in the core."""
    driver, counter = CoreDriver(load), Counter()
    driver.run(load.before)
    with counter.counting():
        driver.run(load.before + load.records)
    return counter.cost(load.records)
