"""ORDER and SERIAL: the calls of a key, in order and one at a time (source: ARCHITECTURE, law 3).

Lives here: what calls, revokes, leases and freezes say. Never here: commits. Stragglers are derived from
the history: a call that outlives its member's tenure, where the member waited as long as it had to.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping

from asyncpar.core.offsets import is_within
from asyncpar.testing.checker_model import (
    NS_PER_MS,
    STEP_NS,
    Call,
    Checker,
    FaultSink,
    Lane,
    Partition,
    Sent,
    Tenure,
)
from asyncpar.testing.checker_restored import restored_runs
from asyncpar.testing.checker_rules import Rules
from asyncpar.testing.history import Event

_CANCEL_NS = 1_000_000_000
_RETURN_NS = 100_000_000
"""A revoke may need this much longer than its time: to cancel what runs, and to return."""
_RESUME_NS = 50_000_000
"""A member that runs on after a freeze has done within this time what it was about to do."""

Freezes = Mapping[str, list[tuple[int, int | None]]]


class Order(Checker):
    """ORDER: a record starts only when all earlier ones of its key are settled, and a key never steps back.

    Replays are no faults: another tenure may begin at earlier records again, in order. Within a tenure a
    step back needs a `seek` at or below the record since; and a step forward leaves out nothing but what was
    restored as done, or done by the member's own straggler meanwhile. A record that no handler was ever
    given is lost, or stuck: its followers are not to blame. A record that becomes a dead letter is settled
    when that is acknowledged. Without dead letters nothing of a partition starts behind the last attempt that
    a record of it is given (`attempts`), unless somebody seeks. UNKNOWN: a call for a record that was never
    sent, or not with that key. (Source: TESTING, "with replays from a committed offset removed, handled
    order = produced order".)
    """

    def started(self, call: Call) -> None:
        """Judge one start."""
        part, record = call.part, call.record
        if call.tenure is not None and call.tenure.halted is not None:
            self._judge_halted(call, call.tenure.halted)
        if record is None or record.key != call.start.key:
            if call.start.offset >= part.log.reused_below:
                self.found("UNKNOWN", f"{part.tp}: nobody sent what a handler was given", call.start)
            return
        if record.lane is None or record.ghost:
            return
        waiting = _first_waiting(record.lane, part.log.started)
        if waiting is not None and waiting.offset < record.offset:
            what = (
                f"{part.tp} offset {record.offset} started before offset {waiting.offset} of its key was done"
            )
            self.found("ORDER", what, call.start)
        if call.tenure is not None and self.rules.replays == "recorded":
            self._judge_step(call, record, call.tenure)

    def _judge_halted(self, call: Call, last: Event) -> None:
        if call.start.at_ns <= last.at_ns + STEP_NS + self.rules.tolerance_ns:
            return  # the engine may not have heard of the failure yet
        what = f"{call.start.tp} offset {call.start.offset} started although offset {last.offset} had failed"
        self.found("ORDER", f"{what} for the last time and halted the partition", last, call.start)

    def ended(self, call: Call) -> None:
        """Count failed attempts: the last one halts the partition, where there are no dead letters."""
        tenure, end = call.tenure, call.end
        if self.rules.attempts is None or self.rules.letters is not None or end is None or tenure is None:
            return
        if end.detail != "failed" or tenure.over or (tenure.seeks and call.index < tenure.seeks[-1][0]):
            return
        failures = tenure.failures[end.offset] = tenure.failures.get(end.offset, 0) + 1
        if failures >= self.rules.attempts and tenure.halted is None:
            tenure.halted = end

    def _judge_step(self, call: Call, record: Sent, tenure: Tenure) -> None:
        """Judge a start by the one before it of the same key in the same tenure."""
        assert record.lane is not None
        before = tenure.last_starts.get(record.lane)
        tenure.last_starts[record.lane] = (record, call.index)
        if before is None or record.rank > before[0].rank:
            self._judge_left_out(call, record, tenure, None if before is None else before[0])
        elif record is not before[0]:
            self._judge_step_back(call, record, tenure, before)

    def _judge_step_back(self, call: Call, record: Sent, tenure: Tenure, before: tuple[Sent, int]) -> None:
        if record.ok is not None and record.ok.tenure is tenure:
            return  # a duplicate within one tenure: not a matter of order
        if not any(index > before[1] and offset <= record.offset for index, offset in tenure.seeks):
            what = f"{call.start.tp} offset {record.offset} started after offset {before[0].offset}"
            self.found("ORDER", f"{what} of its key, without a replay", call.start)

    def _judge_left_out(self, call: Call, record: Sent, tenure: Tenure, before: Sent | None) -> None:
        assert record.lane is not None
        if tenure.cut or not tenure.seeks:
            return
        records = record.lane.records
        first = _first_from(records, tenure.seeks[0][1]) if before is None else before.rank + 1
        if first >= record.rank:
            return
        restored = restored_runs(call.part, tenure)
        for left in records[first : record.rank]:
            is_known = not left.ends or left.ghost or tenure.is_adopted(left)
            if not is_known and not is_within(restored, left.offset):
                what = f"{call.start.tp} offset {record.offset} started"
                self.found("ORDER", f"{what}, offset {left.offset} of its key was left out", call.start)
                return


def _first_from(records: list[Sent], offset: int) -> int:
    return bisect_left(records, offset, key=lambda record: record.offset)


def _first_waiting(lane: Lane, started: set[int]) -> Sent | None:
    """The first record of `lane` that a handler was given once and that is not settled."""
    records, at = lane.records, lane.waiting
    while at < len(records) and (records[at].settled or records[at].offset not in started):
        at += 1
    lane.waiting = at
    return records[at] if at < len(records) else None


class Serial(Checker):
    """SERIAL: calls of a key never overlap, over all members, but for stragglers.

    Within a member they never overlap at all. Across members an earlier call may outlive its tenure: when
    the partition was displaced (another member got it: a kick, a cut-off or a frozen member), lost, left or
    released. A release with calls running must have waited for min(grace, the revoke's deadline less 1.5 s
    for the final commit), a stop for its drain timeout. A revoke returns before its deadline. Nothing starts
    that is not held, after a revoke began, or after the lease: at_ns > the membership sign in the start's
    `detail` + session timeout; but at most one per slot whose check came before a freeze, at once when the
    member runs on (source: DECISIONS, stragglers and lease; the port's `revoked`).
    """

    def __init__(self, rules: Rules, found: FaultSink, freezes: Freezes, counts: Counter[str]) -> None:
        super().__init__(rules, found)
        self._freezes = freezes
        self._counts = counts
        self._late: Counter[tuple[str, int]] = Counter()
        self._is_recorded = rules.replays == "recorded"
        self._session_ns = (rules.session_timeout_ms or 0) * NS_PER_MS

    def started(self, call: Call) -> None:
        """Judge one start: the lease, the right to start, and what runs beside it."""
        sign = call.start.detail
        has_lease = self._session_ns > 0 and sign != ""
        if has_lease and call.start.at_ns > int(sign) + self._session_ns + self.rules.tolerance_ns:
            self._judge_late(call, int(sign) + self._session_ns)
        if self._is_recorded and not call.is_late:
            self._judge_right(call, has_lease=has_lease)
        for other in call.part.running.get(call.lane, ()):
            if not self._may_overlap(other, call):
                both = f"{call.start.tp} offsets {other.start.offset} and {call.start.offset}"
                self.found("SERIAL", f"{both} of one key ran at the same time", other.start, call.start)

    def _judge_late(self, call: Call, lease_ends: int) -> None:
        """Past the lease: only when its check came before a freeze, at once after it, and once per slot."""
        call.is_late = True
        member, tolerance = call.start.member, self.rules.tolerance_ns
        self._counts["late starts"] += 1
        started = call.start.at_ns
        for froze, thawed in reversed(self._freezes.get(member, [])):
            if froze > lease_ends + tolerance:
                started -= (thawed or started) - froze  # it did not run either while it was frozen again
                continue
            if thawed is None or max(lease_ends, started - _RESUME_NS) <= thawed + tolerance:
                self._late[member, froze] += 1
                if self._late[member, froze] <= self.rules.slots:
                    return
            break
        late_ms = (call.start.at_ns - lease_ends) // NS_PER_MS
        what = (
            f"{call.start.tp} offset {call.start.offset} started {late_ms} ms after the session had run out"
        )
        self.found("SERIAL", what, call.start)

    def _judge_right(self, call: Call, *, has_lease: bool) -> None:
        tenure, at_ns = call.tenure, call.start.at_ns - self.rules.tolerance_ns - STEP_NS
        reason = ""
        if tenure is None:
            reason = "without being assigned"
        elif tenure.closed and at_ns > tenure.closed_ns:
            reason = f"after the partition was {tenure.closed}"
        elif tenure.revoke_ns is not None and at_ns > tenure.revoke_ns:
            reason = "after its revoke began"
        elif tenure.over == "displaced" and not tenure.closed and not has_lease:
            reason = "after another member was given the partition"
        if reason:
            what = f"{call.start.tp} offset {call.start.offset} started on {call.start.member} {reason}"
            self.found("SERIAL", what, call.start)

    def _may_overlap(self, other: Call, call: Call) -> bool:
        """Whether `call` may start while `other` runs: one of them belongs to a tenure that is over."""
        if other.start.member == call.start.member:
            return False
        if call.is_late or other.is_late:
            return True
        if not self._is_recorded:
            freezes = self._freezes.get(other.start.member, [])
            return bool(freezes) and freezes[-1][0] >= other.start.at_ns
        if other.tenure is None or call.tenure is None:
            return True  # that start is a fault of its own
        return bool(other.tenure.over or call.tenure.over)

    def closed(self, part: Partition, tenure: Tenure, event: Event) -> None:
        """Judge the end of a revoke or a stop."""
        if tenure.closed == "released":
            self._judge_release(part, tenure, event)
        elif tenure.closed == "left" and self.rules.shutdown_drain_timeout_ms is not None:
            since = event.at_ns - self.rules.shutdown_drain_timeout_ms * NS_PER_MS + self.rules.tolerance_ns
            for call in part.running_of(event.member):
                if _is_waited_for(call, tenure) and call.start.at_ns > since:
                    what = f"{part.tp}: the stop did not wait for offset {call.start.offset}"
                    self.found("SERIAL", what, call.start, event)

    def _judge_release(self, part: Partition, tenure: Tenure, event: Event) -> None:
        member, tolerance = event.member, self.rules.tolerance_ns
        if tenure.revoke_ns is not None and tenure.deadline_ns is not None:
            latest = max(tenure.deadline_ns, tenure.revoke_ns + _CANCEL_NS) + _RETURN_NS + tolerance
            froze = any(
                (thawed or event.at_ns) >= tenure.revoke_ns for _, thawed in self._freezes.get(member, [])
            )
            if event.at_ns > latest and not froze:
                late_ms = (event.at_ns - tenure.deadline_ns) // NS_PER_MS
                self.found("SERIAL", f"{part.tp}: the revoke returned {late_ms} ms after its deadline", event)
        if self.rules.max_revoke_grace_ms is None:
            return
        drains_until = tenure.drain_ns(self.rules.max_revoke_grace_ms)
        if drains_until is not None and event.at_ns < drains_until - tolerance:
            for call in part.running_of(member):
                if not _is_waited_for(call, tenure):
                    continue
                early_ms = (drains_until - event.at_ns) // NS_PER_MS
                what = f"{part.tp}: the revoke did not wait for offset {call.start.offset}"
                what = f"{what}, it returned {early_ms} ms too early"
                self.found("SERIAL", what, call.start, event)


def _is_waited_for(call: Call, tenure: Tenure) -> bool:
    """Neither left behind by an earlier revoke, which waited for it, nor of a record that is gone since."""
    is_lost = call.index < max(tenure.cut, tenure.resumed) or (call.record is not None and call.record.ghost)
    return call.tenure is tenure and not is_lost
