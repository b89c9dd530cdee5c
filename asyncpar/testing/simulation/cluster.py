"""The brokers of a simulated world, the network to them, and what happens to both.

Lives here: topics, what they hold in the end, and each misfortune of brokers and logs. Never here: members,
or when something strikes. Called by the world and by the faults. What is done to a log stands in the history.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from asyncpar import headers
from asyncpar.records import Committed, TopicPartition
from asyncpar.testing.checker_letters import letter_of
from asyncpar.testing.checker_rules import Final, Letter
from asyncpar.testing.history import DELETE_RECORDS, OVERWRITE, TRUNCATE, Recorder
from asyncpar.testing.memory_broker import MemoryBroker
from asyncpar.testing.memory_link import Code, RefusedError, Request
from asyncpar.testing.simulation.link import Refusal, TroubledLink
from asyncpar.testing.simulation.plan import LETTERS, Plan, PlannedFault
from asyncpar.testing.virtual_time import VirtualLoop

GROUP = "billing"

Later = Callable[[float, Callable[[], object]], object]
"""Do something in so many seconds."""


class Cluster:
    """A broker, the link to it, and what is done to them in `later` moments; `wall` is the brokers' clock."""

    def __init__(self, plan: Plan, history: Recorder, later: Later, wall: Callable[[], float]) -> None:
        self.link = TroubledLink(plan.rng("link"), VirtualLoop.context_of(""))
        self.broker = MemoryBroker(
            link=self.link,
            recorder=history,
            wall=wall,
            metadata_max_bytes=plan.metadata_max_bytes,
        )
        self.open = {topic: list(range(count)) for topic, count in plan.partitions.items()}
        """By topic: the partitions that the producer of the world uses."""
        self.is_up = asyncio.Event()
        self.is_up.set()
        self._plan = plan
        self._history = history
        self._later = later
        self._rng = plan.rng("world")
        self._truncated: set[TopicPartition] = set()

    def create_topics(self) -> None:
        """Those that are read, and those of their dead letters."""
        for topic, partitions in self._plan.partitions.items():
            self.broker.create_topic(topic, partitions)
        if self._plan.letters is not None:
            for topic in self._letter_topics():
                self.broker.create_topic(topic, self._plan.letters.partitions)

    def _letter_topics(self) -> list[str]:
        return [f"{topic}{LETTERS}" for topic in self._plan.partitions]

    # -- what it holds -----------------------------------------------------------------------

    def partitions(self) -> Sequence[TopicPartition]:
        """Those that are read; nothing strikes the dead letters' logs, which nobody could do without."""
        return [tp for topic in self._plan.partitions for tp in self.broker.partitions(topic)]

    def finals(self) -> dict[TopicPartition, Final]:
        """What the broker holds of each partition that is read."""
        committed = self.broker.committed(GROUP)
        found = {}
        for tp in self.partitions():
            stored = committed.get(tp)
            found[tp] = Final(None if stored is None else stored.offset, self.broker.log(tp).end)
        return found

    def letters(self) -> list[Letter] | None:
        """All dead letters; None where the life has none."""
        if self._plan.letters is None:
            return None
        values = {
            (tp, record.offset): record.value
            for tp in self.partitions()
            if tp not in self._truncated
            for record in self.broker.log(tp).records
        }
        found = []
        for tp in (tp for topic in self._letter_topics() for tp in self.broker.partitions(topic)):
            for record in self.broker.log(tp).records:
                place = headers.origin(record.headers)
                # What was deleted, or may be another record by now, cannot be compared any more.
                value = record.value if place is None else values.get(place, record.value)
                found.append(letter_of(tp, record, is_intact=record.value == value))
        return found

    def pick_partition(self, fault: PlannedFault) -> TopicPartition:
        """The partition that a fault hits."""
        every = self.partitions()
        return every[int(fault.pick * len(every))]

    # -- what happens to the brokers ---------------------------------------------------------

    def heal(self) -> None:
        """Every fault of theirs ends."""
        self.link.troubles.clear()
        self.link.refusals.clear()
        self._bring_up()
        self.broker.metadata_max_bytes = self._plan.metadata_max_bytes

    def kick(self, member: str) -> bool:
        """Remove a member at the coordinator; False when it is none now."""
        for member_id in list(self.broker.group(GROUP).members):
            if member_id.startswith(f"{member}-"):
                with contextlib.suppress(RefusedError):
                    self.broker.kick(GROUP, member_id)
                    self._history.note("fault", member, detail="kicked")
                    return True
        return False

    def refuse(self, request: Request, code: Code, times: int, member: str | None = None) -> bool:
        """The broker answers the next `times` requests (of `member`) with `code`; False while it is down."""
        if not self.broker.is_down:
            self.link.refusals += [Refusal(request, code, member)] * times
        return not self.broker.is_down

    def move_coordinator(self) -> None:
        """Another node coordinates the group, now or after it has loaded."""
        loading = self._rng.random() < 0.5
        self.broker.move_coordinator(GROUP, loading=loading)
        if loading:
            self._later(self._rng.uniform(0.1, 4.0), lambda: self.broker.loaded(GROUP))

    def restart(self, seconds: float) -> None:
        """Down now, up after `seconds`."""
        self.broker.down()
        self.link.refusals.clear()  # it will have forgotten why
        self.is_up.clear()
        self._later(seconds, self._bring_up)

    def _bring_up(self) -> None:
        self.broker.up()
        self.is_up.set()

    def limit_metadata(self, max_bytes: int, seconds: float) -> None:
        """The broker takes at most so much metadata for a while."""
        usual = self._plan.metadata_max_bytes
        self.broker.metadata_max_bytes = min(max_bytes, usual)
        self._later(seconds, lambda: setattr(self.broker, "metadata_max_bytes", usual))

    def write_foreign_metadata(self, tp: TopicPartition, *, is_copy: bool) -> bool:
        """Put another tool's string beside the committed offset; False when there is none to put.

        `is_copy`: asyncpar's own, of another partition, as tools do that copy offsets.
        """
        committed = self.broker.committed(GROUP)
        stored = committed.get(tp)
        own = [one.metadata for other, one in committed.items() if other != tp and one.metadata]
        if stored is None or (is_copy and not own):
            return False
        text = max(own, key=len) if is_copy else "bm90IG91cnM="
        self._history.note("fault", tp=tp, offset=stored.offset, detail=OVERWRITE)
        self.broker.group(GROUP).offsets[tp] = Committed(stored.offset, text)
        return True

    # -- what happens to the logs ------------------------------------------------------------

    def truncate(self, tp: TopicPartition, share: float) -> bool:
        """Lose the last records of a log; False when it has none, or is the last one open to the producer.

        Later records would take their offsets, and whoever had not heard of the loss would miss them
        (no client can tell): the producer leaves the partition alone from here on.
        """
        log = self.broker.log(tp)
        end = max(log.start, log.end - 1 - int(share * 30))
        others = [number for number in self.open[tp.topic] if number != tp.partition]
        if end >= log.end or not others:
            return False
        self.open[tp.topic] = others
        self._truncated.add(tp)
        self._history.note("fault", tp=tp, offset=end, detail=TRUNCATE)
        self.broker.truncate(tp, end)
        return True

    def delete_beginning(self, tp: TopicPartition, share: float) -> bool:
        """Delete a log's first records, up to a little beyond what is committed; False when it has none."""
        log = self.broker.log(tp)
        stored = self.broker.committed(GROUP).get(tp, Committed(0, ""))
        before = min(log.end, stored.offset + int(share * 20))
        if before <= log.start:
            return False
        self._history.note("fault", tp=tp, offset=before, detail=DELETE_RECORDS)
        self.broker.delete_records(tp, before)
        return True

    def run_transaction(self, tp: TopicPartition, records: int, seconds: float, *, commits: bool) -> bool:
        """Records that become visible at its end, or never; until then nothing behind them does.

        False when there can be none: the broker is down, or the partition is closed to producers.
        """
        if self.broker.is_down or (commits and tp.partition not in self.open[tp.topic]):
            return False
        transaction = self.broker.transaction()
        for _ in range(records):
            transaction.send(tp.topic, b"late", b"k1", partition=tp.partition)

        def end() -> None:
            # A broker that is down when the producer commits gives the transaction up later.
            is_lost = self.broker.is_down or tp.partition not in self.open[tp.topic]
            transaction.commit() if commits and not is_lost else transaction.abort()

        self._later(seconds, end)
        return True

    def grow(self, topic: str) -> None:
        """One more partition; the producer does not use it, but the group has to be given it."""
        self.broker.add_partitions(topic, self.broker.partition_counts()[topic] + 1)
