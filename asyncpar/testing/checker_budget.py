"""BUDGET: the records, bytes and calls that a member has (source: ARCHITECTURE, law 6; DECISIONS, Limits).

Lives here: a lower bound of what was held, from the history alone. Never here: what the engine counts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence

from asyncpar.records import TopicPartition
from asyncpar.testing.checker_model import Call, Checker, FaultSink, Partition, Sent, Tenure
from asyncpar.testing.checker_rules import Rules
from asyncpar.testing.history import Event


class Budget(Checker):
    """BUDGET: delivered and not settled, at most `max_in_flight` records, and bytes plus one chunk.

    And of calls, stragglers included, at most `concurrency` at a time: each keeps its slot until it ends.
    Counted is what was surely held: a record that started later, or whose dead letter was acknowledged, from
    the poll that delivered it until it was done; or, when it never was or was delivered once more first,
    until its last attempt ended; or until its revoke began, which drops the queue. What a halt drops never
    starts and is not counted.
    """

    def __init__(self, rules: Rules, found: FaultSink, events: Sequence[Event]) -> None:
        super().__init__(rules, found)
        self._events = events
        self._running: defaultdict[str, list[Call]] = defaultdict(list)
        """By member: its calls; those that have ended are taken out when there seem to be too many."""
        self._records: defaultdict[str, defaultdict[int, int]] = defaultdict(lambda: defaultdict(int))
        self._bytes: defaultdict[str, defaultdict[int, int]] = defaultdict(lambda: defaultdict(int))

    def polled(self, part: Partition, tenure: Tenure, event: Event, index: int) -> None:
        """What a chunk brought is held, should it start."""
        offsets = part.log.offsets
        low = bisect_left(offsets, event.offset)
        high = bisect_left(offsets, int(event.detail), lo=low)
        tenure.held.update(dict.fromkeys(offsets[low:high], index))

    def started(self, call: Call) -> None:
        """It takes a slot; and it was held since its poll."""
        if self.rules.concurrency is not None:
            self._take_slot(call, self.rules.concurrency)
        record, tenure = call.record, call.tenure
        if record is None or tenure is None:
            return
        polled = tenure.held.pop(record.offset, None)
        ended = tenure.started.get(record)
        if ended is not None and (polled is None or polled < ended):
            tenure.started[record] = -1
        elif polled is not None:
            if ended is not None:  # it was dropped after its last attempt, and delivered once more
                self._change(call.start.member, ended, record, -1)
            tenure.started[record] = -1
            self._change(call.start.member, polled, record, 1)

    def _take_slot(self, call: Call, concurrency: int) -> None:
        member = call.start.member
        running = self._running[member]
        running.append(call)
        if len(running) > concurrency:
            running = self._running[member] = [one for one in running if one.end is None]
            if len(running) > concurrency:
                what = f"{member} ran {len(running)} calls at a time, at most {concurrency} may be"
                self.found("BUDGET", what, call.start)

    def ended(self, call: Call) -> None:
        """Done, or perhaps to be tried again."""
        record, tenure = call.record, call.tenure
        if record is None or tenure is None or record not in tenure.started:
            return
        if call.end is not None and call.end.detail == "ok":
            del tenure.started[record]
            self._change(call.start.member, call.end_index, record, -1)
        else:
            tenure.started[record] = call.end_index

    def settled(self, part: Partition, record: Sent, event: Event, index: int) -> None:
        """Held until now: by the member that says so, from its poll on, whether it started or not."""
        member, tenure = event.member, part.tenures.get(event.member)
        if tenure is None:
            return
        polled, ended = tenure.held.pop(record.offset, None), tenure.started.pop(record, None)
        if ended is not None and polled is not None and 0 <= ended < polled:
            self._change(member, ended, record, -1)  # dropped after its last attempt, and delivered once more
            ended = None
        if ended is None and polled is not None:
            self._change(member, polled, record, 1)
        if ended is not None or polled is not None:
            self._change(member, index, record, -1)

    def revoked(self, tenure: Tenure, index: int) -> None:
        """The queue is dropped."""
        for record, ended in tenure.started.items():
            self._change(tenure.assign.member, index if ended < 0 else ended, record, -1)
        tenure.started.clear()
        tenure.held.clear()

    def _change(self, member: str, index: int, record: Sent, by: int) -> None:
        self._records[member][index] += by
        self._bytes[member][index] += by * record.size

    def finished(self, parts: Mapping[TopicPartition, Partition]) -> None:
        """Add up, in the order of time."""
        for part in parts.values():
            for tenure in part.tenures.values():
                self.revoked(tenure, len(self._events) - 1)
        if self.rules.max_in_flight is not None:
            self._judge(self._records, self.rules.max_in_flight, "records")
        if self.rules.max_in_flight_bytes is not None:
            limit = self.rules.max_in_flight_bytes + self.rules.chunk_bytes
            self._judge(self._bytes, limit, "bytes")

    def _judge(self, changes: Mapping[str, Mapping[int, int]], limit: int, what: str) -> None:
        for member, of_member in changes.items():
            held = most = 0
            worst = -1
            for index in sorted(of_member):
                held += of_member[index]
                if held > most:
                    most, worst = held, index
            if most > limit:
                self.found(
                    "BUDGET", f"{member} held {most} {what}, at most {limit} may be", self._events[worst]
                )
