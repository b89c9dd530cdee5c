"""DUPLICATES: what ended well starts again only after an unclean loss that no commit covered.

Lives here: what each repetition is owed to. Never here: commits for themselves. That is the bound of
DECISIONS (Limits) record by record: what was in flight, plus what completed since the last acknowledged
commit.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import islice

from asyncpar.core.offset_codec import MAX_CHARS
from asyncpar.records import CommitAnswer
from asyncpar.testing.checker_model import STEP_NS, Call, Checker, Commit, Partition, Sent, Tenure
from asyncpar.testing.checker_restored import covers, runs_of
from asyncpar.testing.history import Event

_FULL_SHARE = 0.75
_HEAD_CHARS = 13
_LONGEST_RUN_BYTES = 20
_NO_GAP = 1 << 63
_FINAL_ANSWERS = frozenset({CommitAnswer.FORBIDDEN.value, CommitAnswer.UNKNOWN_TOPIC.value})
"""Answers after which nobody tries again."""


class Duplicates(Checker):
    """DUPLICATES: no start after an end ok, but after an unclean loss of the partition in between.

    Where a record was settled otherwise after its last call (`done`: its dead letter was acknowledged, or it
    was skipped), that counts as an end ok.

    Unclean: dead, lost, displaced, or removed (a commit answered stale). A clean release or stop counts as
    unclean only for what could not be committed: the final commit failed, another commit of the member still
    waited for its answer, the member was frozen to the end of the drain, or the call outlived the drain. A
    release has that excuse only when its time was up, since it has to try until then; a stop only when its
    process said so in the end (`dead` behind the `leave`). What the broker's limit leaves out of the metadata
    lies above a gap; below it the offset alone says that it is done.

    Even then a record must not start again that an acknowledged commit covered: one sent after the end, by
    its offset, or by its metadata; and it must be in the metadata unless that was near its cap. What a
    straggler does counts for nobody until its member has adopted and committed it, and what a displaced
    member starts is SERIAL's concern (source: TESTING; DECISIONS, Limits; law 1).
    """

    def ended(self, call: Call) -> None:
        """Remember a success that counts."""
        if call.end is not None and call.end.detail == "ok":
            self._remember(call)

    def settled(self, part: Partition, record: Sent, event: Event, index: int) -> None:
        """Remember it as if the call that did not end well had ended here, and well."""
        tried = record.tried
        if tried is not None and tried.start.member == event.member:
            call = Call(part, tried.start, tried.index, tried.tenure, tried.lane)
            call.end, call.end_index = event, index
            self._remember(call)

    @staticmethod
    def _remember(call: Call) -> None:
        record, tenure = call.record, call.tenure
        if record is None or tenure is None:
            return
        if not tenure.over:
            if call.index >= tenure.resumed:  # else it is of the log before its truncation
                record.ok, record.adopted = call, None
            return
        present = call.part.tenures.get(call.start.member)
        if present is not None and not present.over:
            record.adopted = (call, present)

    def started(self, call: Call) -> None:
        """Judge a repetition."""
        record, tenure = call.record, call.tenure
        if record is None or record.ghost or tenure is None or tenure.over or call.is_late:
            return
        if record.adopted is not None:
            self._judge_adopted(call, *record.adopted)
        ok = record.ok
        if ok is None or ok.tenure is None or ok.tenure.is_cut:
            return
        if ok.tenure is tenure:
            self._tell(call, ok, "within one assignment")
            return
        reason = self._why_not(call.part, record, ok, ok.tenure)
        if reason:
            self._tell(call, ok, reason)

    def _judge_adopted(self, call: Call, ok: Call, adopter: Tenure) -> None:
        """Whether a straggler's success counts is its member's to say: a stored commit has said it."""
        assert ok.end is not None
        since, offset = ok.end.at_ns + self.rules.tolerance_ns, call.start.offset
        stored = [one for one in adopter.commits if one.is_acknowledged and one.event.at_ns > since]
        if adopter.is_cut or not stored or not covers(stored[-1], offset):
            return
        if covers(call.part.commits[-1], offset):  # or a later owner had to leave it out again
            self._tell(call, ok, f"although the acknowledged commit of {stored[-1].event.offset} adopted it")

    def _tell(self, call: Call, ok: Call, reason: str) -> None:
        assert ok.end is not None
        place = f"{call.start.tp} offset {call.start.offset}"
        self.found("DUPLICATES", f"{place} started again {reason}", ok.end, call.start)

    def _why_not(self, part: Partition, record: Sent, ok: Call, tenure: Tenure) -> str:
        """Why `record`, done in `tenure`, must not start again; "" when it may."""
        assert ok.end is not None
        since = ok.end.at_ns + self.rules.tolerance_ns + STEP_NS
        acknowledged = [
            commit
            for commit in tenure.commits
            if commit.is_acknowledged
            and (
                commit.event.at_ns > since
                or (commit.event.at_ns >= ok.end.at_ns and covers(commit, record.offset))
            )
        ]
        if not acknowledged:
            return self._why_clean(part, ok, tenure)
        later = [commit for commit in part.commits if commit.index >= acknowledged[0].index]
        if not covers(acknowledged[-1], record.offset):
            if any(_is_near_cap(commit) for commit in later):
                return ""
            return f"although the acknowledged commit of {acknowledged[-1].event.offset} had to cover it"
        if any(_is_near_cap(commit) and not covers(commit, record.offset) for commit in later):
            return ""
        return f"although the acknowledged commit of {acknowledged[-1].event.offset} covered it"

    def _why_clean(self, part: Partition, ok: Call, tenure: Tenure) -> str:
        """Why what ended well had to be committed at a clean end of its tenure; "" when it could not be."""
        if tenure.stale or tenure.over not in ("released", "left"):
            return ""
        # What lies above all that the metadata can hold changes nothing in it: there is nothing to commit.
        is_full = tenure.short or (bool(tenure.commits) and _is_near_cap(tenure.commits[-1]))
        if is_full and ok.start.offset > _first_gap(part, tenure):
            return ""
        has_failed = tenure.mute or _has_failed_since(ok, tenure)
        if tenure.over == "left":
            is_cut_off = any(
                ok.index < commit.index and _is_after(ok, commit) for commit in tenure.commits[-1:]
            )
            could_not = tenure.gave_up and (has_failed or is_cut_off)
            return "" if could_not else "after a clean stop that did not commit it"
        could_not = (has_failed and not self._had_time(tenure)) or self._has_outlived(ok, tenure)
        return "" if could_not else "after a drained revoke that did not commit it"

    def _had_time(self, tenure: Tenure) -> bool:
        """Its revoke returned before its time was up, and the answer before did not forbid another try."""
        grace_ms = self.rules.max_revoke_grace_ms
        drains_until = None if grace_ms is None else tenure.drain_ns(grace_ms)
        if drains_until is None or any(one.answer in _FINAL_ANSWERS for one in tenure.commits[-1:]):
            return False
        return tenure.closed_ns < drains_until - self.rules.tolerance_ns

    def _has_outlived(self, ok: Call, tenure: Tenure) -> bool:
        """It ended when the drain had given it up, or the revoke had no time for a commit."""
        if tenure.revoke_ns is None or ok.end is None:
            return True
        if tenure.deadline_ns is not None and tenure.deadline_ns <= tenure.revoke_ns:
            return True
        if self.rules.max_revoke_grace_ms is None:
            return ok.start.at_ns <= tenure.revoke_ns <= ok.end.at_ns
        drains_until = tenure.drain_ns(self.rules.max_revoke_grace_ms)
        return drains_until is None or ok.end.at_ns >= drains_until - self.rules.tolerance_ns


def _first_gap(part: Partition, tenure: Tenure) -> int:
    """The lowest offset from where `tenure`, which has ended, began that it has not done itself.

    What it may have found listed as done counts as a gap, too: nobody knows which of the commits it read.
    """
    if tenure.first_gap is None:
        log, member = part.log, tenure.assign.member
        # After a truncation it began again, with nothing done.
        since = max(tenure.index, tenure.resumed)
        start = next((offset for index, offset in tenure.seeks if index >= tenure.resumed), 0)
        tenure.first_gap = _NO_GAP
        for record in islice(log.ordered, bisect_left(log.offsets, start), None):
            settled = record.ends + record.dones
            its_own = (since < index < tenure.closed_index for by, index in settled if by == member)
            # What is gone from the log by now may have been the gap while it was there.
            if not any(its_own):
                tenure.first_gap = record.offset
                break
    return tenure.first_gap


def _is_after(ok: Call, commit: Commit) -> bool:
    """`commit` was sent while the call ran."""
    return ok.end is not None and commit.event.at_ns <= ok.end.at_ns


def _has_failed_since(ok: Call, tenure: Tenure) -> bool:
    """A commit on its way at its end, or sent after it, was not acknowledged while the tenure lasted."""
    assert ok.end is not None
    for commit in reversed(tenure.commits):
        if commit.answer_ns is not None and commit.answer_ns < ok.end.at_ns:
            return False
        if not commit.is_acknowledged or (tenure.closed and (commit.answer_ns or 0) > tenure.closed_ns):
            return True
    return False


def _is_near_cap(commit: Commit) -> bool:
    if commit.is_near_cap is None:
        commit.is_near_cap = _has_left_out(commit)
    return commit.is_near_cap


def _has_left_out(commit: Commit) -> bool:
    """Runs may have been left out: the text or, before deflation, its runs come near the cap."""
    if commit.refused_chars is not None or len(commit.event.detail) > MAX_CHARS * _FULL_SHARE:
        return True
    room = (MAX_CHARS - _HEAD_CHARS) * 6 // 8
    cursor, size = commit.event.offset, 0
    if len(runs_of(commit)) * _LONGEST_RUN_BYTES <= room * _FULL_SHARE:
        return False
    for first, end in runs_of(commit):
        size += _varint_bytes(first - cursor) + _varint_bytes(end - first)
        cursor = end
    return size > room * _FULL_SHARE


def _varint_bytes(number: int) -> int:
    return max(1, (number.bit_length() + 6) // 7)
