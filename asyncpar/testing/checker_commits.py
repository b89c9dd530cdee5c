"""LOST, COMMIT and STUCK: what was committed, and whether it was true (source: ARCHITECTURE, laws 1, 2, 9).

Lives here: what commits and the final state say. Never here: the order of calls.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet

from asyncpar.records import TopicPartition
from asyncpar.testing.checker_model import Checker, Commit, FaultSink, Partition, Sent, Tenure
from asyncpar.testing.checker_restored import restored_runs, runs_of
from asyncpar.testing.checker_rules import Final, Rules
from asyncpar.testing.history import Event

_NAMED = 5


class Lost(Checker):
    """LOST: at each commit of offset X, whatever its answer, every record below X is settled by then.

    And so is every record that its metadata lists as done: nobody would ever be given it again. Settled: a
    handler ended ok, whoever's, or a `done`, or gone from the log. The final committed offset
    counts as one more commit. With `offset_reset="latest"` the first position of a partition passes over
    what lies below it, and so may one after its log was cut (source: TESTING; DECISIONS, start position).
    """

    def sought(self, part: Partition, event: Event) -> None:
        """A start at the log's end settles what lies below it."""
        if self.rules.offset_reset == "earliest" or not part.jumps:
            return
        passed = [
            record for record in part.log.ordered if record.offset < event.offset and not record.settled
        ]
        part.jumps -= bool(passed)
        for record in passed:
            record.settled = record.ghost = True

    def committed(self, part: Partition, commit: Commit) -> None:
        """Judge one commit."""
        if not part.commits:
            part.jumps = 0  # the first position is committed: it is chosen
        self._judge(part, commit.event.offset, f"committed by {commit.event.member}", commit.event)
        self._judge_listed(part, commit)

    def _judge_listed(self, part: Partition, commit: Commit) -> None:
        event = commit.event
        if not event.detail or (part.commits and part.commits[-1].event.detail == event.detail):
            return
        listed = frozenset(runs_of(commit))
        missing: list[Sent] = []
        for first, end in sorted(listed - part.listed):
            low = bisect_left(part.log.offsets, first)
            high = bisect_left(part.log.offsets, end, lo=low)
            missing += [record for record in part.log.ordered[low:high] if not record.settled]
        part.listed = listed
        if missing:
            what = f"{part.tp}: {_named(missing)} not done when the commit of {event.offset}"
            self.found("LOST", f"{what} by {event.member} listed them as done", event)

    def finished(self, parts: Mapping[TopicPartition, Partition]) -> None:
        """Judge the commits that the broker holds."""
        for tp, final in (self.rules.finals or {}).items():
            if tp in parts and final.committed is not None:
                self._judge(parts[tp], final.committed, "committed in the end")

    def _judge(self, part: Partition, offset: int, what: str, *events: Event) -> None:
        ordered, at = part.log.ordered, part.waiting
        missing: list[Sent] = []
        while at < len(ordered) and (ordered[at].settled or ordered[at].offset < offset):
            if not ordered[at].settled:
                missing.append(ordered[at])
            at += 1
        part.waiting = at
        if missing:
            self.found("LOST", f"{part.tp}: {_named(missing)} not done when {offset} was {what}", *events)


class CommitLaws(Checker):
    """COMMIT: within its assignment, never beyond the position, never back, never after it.

    The position is the highest one that the member was delivered up to or sought; past it only what the
    restored metadata lists as done, or what the member's own stragglers have done since (adopted). Never
    below where the assignment began, and never back, unless the log was truncated. No commit is sent after
    `released` or `lost`, and a revoke does not return before its time is up while one is not answered.
    Metadata that the broker refused as too large is not sent again at that length. A member has one commit on
    its way at a time, with the token of its latest assignment; and one that it sent after another owner's
    commit was stored is not acknowledged (source: ARCHITECTURE, law 2; AIOKAFKA 0.2; DECISIONS, "learn the
    limit").
    """

    def committed(self, part: Partition, commit: Commit) -> None:
        """Judge one commit."""
        tenure, event = commit.tenure, commit.event
        if self.rules.replays == "any":
            return
        if tenure is None or tenure.closed:
            how = "without being assigned" if tenure is None else f"after it was {tenure.closed}"
            self.found("COMMIT", f"{part.tp}: {event.member} committed {event.offset} {how}", event)
            return
        if event.offset > tenure.position and not _is_known_done(part, commit, tenure):
            what = f"{part.tp}: {event.offset} is beyond the position {tenure.position}"
            self.found("COMMIT", what, event)
        if commit.refused_chars and len(event.detail) >= commit.refused_chars:
            what = f"{len(event.detail)} characters of metadata, but {commit.refused_chars} were too many"
            self.found("COMMIT", f"{part.tp}: {event.member} committed {what}", event)
        last = tenure.commits[-1] if tenure.commits else None
        if last is not None and last.answer_ns is None:
            what = (
                f"{part.tp}: {event.offset} was sent while the commit of {last.event.offset} was on its way"
            )
            self.found("COMMIT", what, last.event, event)
        if tenure.is_cut:
            return
        if last is not None and last.index > tenure.resumed and event.offset < last.event.offset:
            what = f"{part.tp}: back from {last.event.offset} to {event.offset}"
            self.found("COMMIT", what, last.event, event)
        elif tenure.seeks and not tenure.resumed and event.offset < tenure.seeks[0][1]:
            what = f"{part.tp}: {event.offset} is below {tenure.seeks[0][1]}, where the assignment began"
            self.found("COMMIT", what, event)

    def outdated(self, part: Partition, event: Event) -> None:
        """The group refuses such a commit, and then nothing is stored until the consumer is replaced."""
        what = f"{event.member} sends the commit of {event.offset} with the token of an older assignment"
        self.found("COMMIT", f"{part.tp}: {what}", event)

    def closed(self, part: Partition, tenure: Tenure, event: Event) -> None:
        """A revoke that returned waits out the commit that is on its way."""
        grace_ms = self.rules.max_revoke_grace_ms
        if tenure.closed != "released" or grace_ms is None or not tenure.commits:
            return
        commit, drains_until = tenure.commits[-1], tenure.drain_ns(grace_ms)
        is_on_its_way = commit.answer_ns is None
        if (
            is_on_its_way
            and drains_until is not None
            and event.at_ns < drains_until - self.rules.tolerance_ns
        ):
            what = f"{part.tp}: the revoke returned while the commit of {commit.event.offset} was on its way"
            self.found("COMMIT", what, commit.event, event)

    def finished(self, parts: Mapping[TopicPartition, Partition]) -> None:
        """By now all answers are known: judge what was stored for those who had no right any more.

        Not where members keep partitions through rebalances: no generation tells such a commit then.
        """
        if self.rules.rebalancing == "cooperative":
            return
        for part in parts.values():
            newest: Commit | None = None
            for commit in part.commits:
                if commit.tenure is None or not commit.is_acknowledged:
                    continue
                if newest is None or newest.tenure is None or commit.tenure.index >= newest.tenure.index:
                    newest = commit
                elif _was_known(newest, commit, self.rules.tolerance_ns):
                    what = f"{part.tp}: {commit.event.offset} of {commit.event.member} was stored after"
                    what = f"{what} {newest.event.offset} of {newest.event.member}, who had it by then"
                    self.found("COMMIT", what, newest.event, commit.event)


def _was_known(stored: Commit, commit: Commit, tolerance_ns: int) -> bool:
    """`commit` was sent when `stored` had been acknowledged: its sender was in the group before that."""
    return stored.answer_ns is not None and stored.answer_ns + tolerance_ns < commit.event.at_ns


class Stuck(Checker):
    """STUCK: at the end the lag is 0, committed = end, and nothing runs (source: TESTING; law 9).

    What a member left running when it stopped ends with its process.
    """

    def __init__(self, rules: Rules, found: FaultSink, gone: AbstractSet[str]) -> None:
        super().__init__(rules, found)
        self._gone = gone

    def finished(self, parts: Mapping[TopicPartition, Partition]) -> None:
        """Judge the final state."""
        for tp, final in (self.rules.finals or {}).items():
            part = parts.get(tp)
            if final.committed != final.end and not _is_untouched(part, final):
                waiting = _first_unsettled(part)
                self.found(
                    "STUCK", f"{tp}: committed {final.committed}, the log ends at {final.end}{waiting}"
                )
            for calls in () if part is None else part.running.values():
                for call in calls:
                    if call.start.member in self._gone:
                        continue
                    self.found("STUCK", f"{tp}: offset {call.start.offset} still runs at the end", call.start)


def _is_untouched(part: Partition | None, final: Final) -> bool:
    """Nothing was ever there to be committed."""
    return final.committed is None and (final.end == 0 or part is None or not part.log.ordered)


def _first_unsettled(part: Partition | None) -> str:
    for record in () if part is None else part.log.ordered:
        if not record.settled:
            return f"; offset {record.offset} is the first that is not done"
    return ""


def _named(records: Iterable[Sent]) -> str:
    offsets = [str(record.offset) for record in records]
    names = ", ".join(offsets[:_NAMED])
    rest = f" and {len(offsets) - _NAMED} more" if len(offsets) > _NAMED else ""
    return f"offset{'s' if len(offsets) > 1 else ''} {names}{rest}"


def _is_known_done(part: Partition, commit: Commit, tenure: Tenure) -> bool:
    """All between the position and the commit was restored as done, or done by an adopted straggler."""
    at, end = max(tenure.position, 0), commit.event.offset
    for first, run_end in [*restored_runs(part, tenure), (end, end)]:
        while at < min(first, end):
            record = part.log.records.get(at)
            if record is None or not tenure.is_adopted(record):
                return False
            at += 1
        at = max(at, run_end)
    return tenure.position >= 0
