"""Walks a history in the order of time: who holds what, what runs, what is settled; and tells the checkers.

Lives here: how events become records, tenures, calls and commits. Never here: a judgement. Called by
`checkers.check`. Records are known from the start, whenever their `send` was noted: a producer hears of its
record's offset later than a quick consumer sees it. Only a truncated log takes `send` by its time, since
offsets mean other records from there on.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from asyncpar.records import CommitAnswer, TopicPartition
from asyncpar.testing.checker_logs import logs_of
from asyncpar.testing.checker_model import Call, Checker, Commit, Log, Partition, Tenure
from asyncpar.testing.checker_rules import Rules
from asyncpar.testing.history import DEAD_LETTER, DELETE_RECORDS, FAILED, OVERWRITE, TRUNCATE, Event

_STALE = CommitAnswer.STALE.value
_TOO_LARGE = CommitAnswer.METADATA_TOO_LARGE.value


_LONGEST_COMMIT_NS = 60_000_000_000
"""No commit waits longer for its answer; one without any belonged to a consumer that is gone."""


class Replay:
    """One walk over `events`, which are in the order of time."""

    def __init__(self, events: Sequence[Event], rules: Rules) -> None:
        self.events = events
        self.rules = rules
        self.counts: Counter[str] = Counter()
        self.freezes: defaultdict[str, list[tuple[int, int | None]]] = defaultdict(list)
        """By member: when it froze and when it ran on (None: not yet)."""
        self.joins: defaultdict[str, list[int]] = defaultdict(list)
        """By member: the indexes of its joins, later ones included."""
        self.deaths: dict[str, tuple[int, str]] = {}
        """By member: the index of its death, also of a later one, and its detail."""
        self.gone: set[str] = set()
        """Members that have left and not joined again: what still ran there ends with its process."""
        self._later_logs = logs_of(events, rules, self.joins, self.deaths)
        self.parts = {tp: Partition(tp, logs.pop(0)) for tp, logs in self._later_logs.items()}
        self._refused: dict[str, int] = {}
        """By member: the length of the shortest metadata that was refused as too large."""

    def run(self, checkers: Sequence[Checker]) -> None:
        """Walk, and tell `checkers`."""
        self._started = _listeners(checkers, "started")
        self._ended = _listeners(checkers, "ended")
        self._settled = _listeners(checkers, "settled")
        self._polled = _listeners(checkers, "polled")
        self._sought = _listeners(checkers, "sought")
        self._revoked = _listeners(checkers, "revoked")
        self._closed = _listeners(checkers, "closed")
        self._committed = _listeners(checkers, "committed")
        self._outdated = _listeners(checkers, "outdated")
        steps: dict[str, Callable[[Event, int], None]] = {
            "poll": self._poll,
            "assign": self._assign,
            "seek": self._seek,
            "revoke": self._revoke,
            "released": self._gave_back,
            "lost": self._gave_back,
            "start": self._start,
            "end": self._end,
            "done": self._done,
            "outdated": self._commit_outdated,
            "commit": self._commit,
            "answer": self._answer,
            "freeze": self._freeze,
            "thaw": self._thaw,
            "dead": self._dead,
            "join": self._join,
            "leave": self._leave,
            "fault": self._fault,
        }
        if any(self._later_logs.values()):
            steps["send"] = self._send
        for index, event in enumerate(self.events):
            step = steps.get(event.kind)
            if step is not None:
                step(event, index)

    def _part(self, tp: TopicPartition) -> Partition:
        part = self.parts.get(tp)
        if part is None:
            self.parts[tp] = part = Partition(tp, Log())
        return part

    # -- tenures -----------------------------------------------------------------------------

    def _assign(self, event: Event, index: int) -> None:
        part, member = self._part(event.tp), event.member
        for holder, tenure in part.tenures.items():
            if holder == member:
                self._close(part, tenure, "lost", event, index)
            else:
                self._end_tenure(part, tenure, "displaced")
        tenure = part.tenures[member] = Tenure(event, index)
        tenure.short = member in self._refused

    def _seek(self, event: Event, index: int) -> None:
        part = self._part(event.tp)
        tenure = part.tenures.get(event.member)
        if tenure is None or tenure.closed:
            return
        for listen in self._sought:
            listen(part, event)
        if part.cut_at is not None and event.offset > part.cut_at:
            tenure.cut = index  # committed before the log was truncated: it will be found out of range
        elif tenure.is_cut:
            self._resume(part, tenure, index)
        tenure.seeks.append((index, event.offset))
        tenure.failures.clear()
        tenure.halted = None
        _reach(part, tenure, event.offset)

    def _resume(self, part: Partition, tenure: Tenure, index: int) -> None:
        """It goes on within the truncated log: from here on its offsets are to be believed again."""
        tenure.resumed = index
        if tenure.position > tenure.kept:  # it stood where nothing is any more: it has begun anew
            tenure.position = tenure.kept = -1
        _forget_successes(part)  # what was done before may be read again, whatever was committed

    def _send(self, event: Event, _: int) -> None:
        part = self._part(event.tp)
        if part.cut_at is not None:
            part.cut_at = max(part.cut_at, event.offset + 1)

    def _poll(self, event: Event, index: int) -> None:
        part = self._part(event.tp)
        tenure = part.tenures.get(event.member)
        if tenure is None or tenure.closed:
            return
        _reach(part, tenure, int(event.detail))
        for listen in self._polled:
            listen(part, tenure, event, index)

    def _revoke(self, event: Event, index: int) -> None:
        part = self._part(event.tp)
        tenure = part.tenures.get(event.member)
        if tenure is None or tenure.closed:
            return
        tenure.revoke_ns = event.at_ns
        tenure.deadline_ns = int(event.detail) if event.detail else None
        for listen in self._revoked:
            listen(tenure, index)

    def _gave_back(self, event: Event, index: int) -> None:
        part = self._part(event.tp)
        tenure = part.tenures.get(event.member)
        if tenure is not None:
            self._close(part, tenure, event.kind, event, index)

    def _close(self, part: Partition, tenure: Tenure, how: str, event: Event, index: int) -> None:
        """The member knows that it is over."""
        if tenure.closed:
            return
        self._end_tenure(part, tenure, how)
        tenure.closed, tenure.closed_ns, tenure.closed_index = how, event.at_ns, index
        tenure.mute = self._waits_for_an_answer(event) or self._was_frozen_through(tenure)
        if tenure.revoke_ns is None:
            for ceded in self._revoked:
                ceded(tenure, index)
        for listen in self._closed:
            listen(part, tenure, event)

    def _waits_for_an_answer(self, event: Event) -> bool:
        """A commit of the member, of whichever partition, is on its way: there is one at a time."""
        since = event.at_ns - _LONGEST_COMMIT_NS
        commits = (part.last_commits.get(event.member) for part in self.parts.values())
        return any(one and one.answer_ns is None and one.event.at_ns > since for one in commits)

    def _was_frozen_through(self, tenure: Tenure) -> bool:
        """Its member ran on only when the drain of its revoke was over."""
        grace_ms, freezes = self.rules.max_revoke_grace_ms, self.freezes.get(tenure.assign.member)
        drains_until = None if grace_ms is None else tenure.drain_ns(grace_ms)
        if drains_until is None or not freezes or freezes[-1][1] is None:
            return False
        return freezes[-1][1] >= drains_until - self.rules.tolerance_ns

    def _end_tenure(self, part: Partition, tenure: Tenure, how: str) -> None:
        """It is over, whether or not the member knows. What runs now is a straggler."""
        if tenure.over:
            return
        tenure.over = how
        if how != "dead":
            self.counts["stragglers"] += len(part.running_of(tenure.assign.member))
        if how in ("dead", "displaced", "lost"):
            self.counts["unclean losses"] += 1

    def _join(self, event: Event, _: int) -> None:
        self.gone.discard(event.member)

    def _leave(self, event: Event, index: int) -> None:
        """A clean stop; or a consumer that was lost, as its member joins again with another or has failed."""
        self.gone.add(event.member)
        returns = any(joined > index for joined in self.joins[event.member])
        died, why = self.deaths.get(event.member, (-1, ""))
        how = "lost" if returns or (died > index and why == FAILED) else "left"
        for part in self.parts.values():
            tenure = part.tenures.get(event.member)
            if tenure is not None:
                tenure.gave_up = died > index
                self._close(part, tenure, how, event, index)

    # -- members -----------------------------------------------------------------------------

    def _dead(self, event: Event, index: int) -> None:
        for part in self.parts.values():
            tenure = part.tenures.get(event.member)
            if tenure is not None:
                self._close(part, tenure, "dead", event, index)
            for call in part.running_of(event.member):
                call.end = event
                _forget(part.running, call)
            part.calls.pop(event.member, None)

    def _freeze(self, event: Event, _: int) -> None:
        self.freezes[event.member].append((event.at_ns, None))

    def _thaw(self, event: Event, _: int) -> None:
        freezes = self.freezes[event.member]
        if freezes:
            freezes[-1] = (freezes[-1][0], event.at_ns)

    # -- calls -------------------------------------------------------------------------------

    def _start(self, event: Event, index: int) -> None:
        part = self._part(event.tp)
        member, offset = event.member, event.offset
        lane = self.rules.lane_of(event.key, offset)
        call = Call(part, event, index, part.tenures.get(member), lane)
        for listen in self._started:
            listen(call)
        running = part.running.get(lane)
        if running is None:
            part.running[lane] = [call]
        else:
            running.append(call)
        part.calls.setdefault(member, {}).setdefault(offset, []).append(call)

    def _end(self, event: Event, index: int) -> None:
        part = self._part(event.tp)
        of_member = part.calls.get(event.member)
        calls = None if of_member is None else of_member.get(event.offset)
        if of_member is None or not calls:
            return
        call = calls.pop(0)
        if not calls:
            del of_member[event.offset]
        call.end, call.end_index = event, index
        _forget(part.running, call)
        record = call.record
        if record is not None and event.detail == "ok":
            record.settled = True
            self.counts["duplicates" if record.ends else "handled"] += 1
            record.ends += ((event.member, index),)
        elif record is not None:
            record.tried = call
        for listen in self._ended:
            listen(call)

    def _done(self, event: Event, index: int) -> None:
        self.counts["dead letters"] += event.detail == DEAD_LETTER
        part = self._part(event.tp)
        record = part.log.records.get(event.offset)
        if record is None:
            return
        record.settled = True
        record.dones += ((event.member, index),)
        for listen in self._settled:
            listen(part, record, event, index)

    # -- commits -----------------------------------------------------------------------------

    def _commit_outdated(self, event: Event, _: int) -> None:
        for listen in self._outdated:
            listen(self._part(event.tp), event)

    def _commit(self, event: Event, index: int) -> None:
        part = self._part(event.tp)
        tenure = part.tenures.get(event.member)
        commit = Commit(event, index, tenure, refused_chars=self._refused.get(event.member))
        self.counts["commits"] += 1
        for listen in self._committed:
            listen(part, commit)
        part.commits.append(commit)
        part.last_commits[event.member] = commit
        if tenure is not None:
            tenure.commits.append(commit)

    def _answer(self, event: Event, _: int) -> None:
        commit = self._part(event.tp).last_commits.get(event.member)
        if commit is None or commit.answer_ns is not None:
            return
        commit.answer, commit.answer_ns = event.detail, event.at_ns
        if commit.is_acknowledged:
            self.counts["acknowledged commits"] += 1
        elif event.detail == _STALE and commit.tenure is not None:
            commit.tenure.stale = True  # and with it whatever the member held by the same token
            for part in self.parts.values():
                tenure = part.tenures.get(event.member)
                if tenure is not None and not tenure.closed and tenure.index <= commit.index:
                    tenure.stale = True
        elif event.detail == _TOO_LARGE:
            chars = len(commit.event.detail)
            self._refused[event.member] = min(chars, self._refused.get(event.member, chars))
            for part in self.parts.values():
                if (tenure := part.tenures.get(event.member)) is not None:
                    tenure.short = True

    # -- the log -----------------------------------------------------------------------------

    def _fault(self, event: Event, index: int) -> None:
        """Only what changes a log is of interest here."""
        if event.detail == DELETE_RECORDS:
            part = self._part(event.tp)
            # Whoever goes on from what is stored finds its place, unless that is gone as well.
            part.jumps += event.offset > _stored(part)
            for record in part.log.ordered:
                if record.offset >= event.offset:
                    break
                record.settled = record.ghost = True
        elif event.detail == OVERWRITE:
            _forget_successes(self._part(event.tp), event.offset)  # only the metadata above it is gone
        elif event.detail == TRUNCATE:
            part = self._part(event.tp)
            part.log = self._later_logs[event.tp].pop(0)
            part.jumps += 1
            part.waiting = 0
            part.cut_at = event.offset
            _forget_successes(part)  # a position beyond the new end may begin again, whatever was committed
            for tenure in part.tenures.values():
                if not tenure.closed:
                    tenure.cut = index
                    tenure.kept = min(tenure.kept, event.offset)


def _listeners(checkers: Sequence[Checker], name: str) -> list[Callable[..., None]]:
    """The checkers' methods `name`, of those that have one of their own."""
    nothing = getattr(Checker, name)
    return [getattr(checker, name) for checker in checkers if getattr(type(checker), name) is not nothing]


def _reach(part: Partition, tenure: Tenure, position: int) -> None:
    """It was delivered, or sought, up to `position`: that stays true of what no truncation took away."""
    tenure.position = max(tenure.position, position)
    if part.cut_at is None or position <= part.cut_at:
        tenure.kept = max(tenure.kept, position)


def _forget_successes(part: Partition, start: int = 0) -> None:
    """Whatever was done from `start` on may be done again."""
    for record in part.log.ordered:
        if record.offset >= start:
            record.ok = record.adopted = None


def _stored(part: Partition) -> int:
    """What the broker has stored at least."""
    return max((commit.event.offset for commit in part.commits if commit.is_acknowledged), default=0)


def _forget(running: dict[object, list[Call]], call: Call) -> None:
    calls = running[call.lane]
    if len(calls) == 1:
        del running[call.lane]
    else:
        calls.remove(call)
