"""One partition's offsets: delivered records in; HWM, gaps and the blocking offset out.

The tracker holds the *unfinished* records only. Whatever lies below `position` and is not among
them is done: it was completed, or the log has a hole there (compaction, markers, retention), or a
predecessor's commit metadata listed it. So holes never block, and a gap of a million offsets costs
what the few unfinished records around it cost. Always true: the keys of `unfinished` ascend in
insertion order and lie below `position`.

Runs are half-open pairs `(first, end)`. Called by the runtime's intake, workers and committer.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from operator import itemgetter

from asyncpar.records import RawRecord

Run = tuple[int, int]


class OffsetTracker:
    """The offsets of one partition during one generation."""

    __slots__ = ("_blocking", "_blocking_since", "_restored", "position", "redelivered", "unfinished")

    def __init__(self, start: int, done: Iterable[Run] = ()) -> None:
        """Begin at `start` (the restored HWM); `done` are runs at or above it that need not run again."""
        self.position = start
        """One past the last offset that was delivered or is known to need no work."""
        self.unfinished: dict[int, RawRecord] = {}
        """Delivered, not done. Workers remove an entry when its record is done."""
        self.redelivered = 0
        """Records delivered again that are done or held already; they were not let in."""
        self._restored = merge_runs(done)
        self._restored.reverse()
        self._blocking: int | None = None
        self._blocking_since = 0.0
        self._absorb(start)

    @property
    def hwm(self) -> int:
        """Every delivered offset below it is done: the offset to commit."""
        return next(iter(self.unfinished), self.position)

    @property
    def all_done(self) -> bool:
        """Everything below `position` is done and nothing above it: that offset alone says it all."""
        return not self.unfinished and not self._restored

    @property
    def blocking_offset(self) -> int | None:
        """The lowest unfinished offset; None when everything delivered is done."""
        return next(iter(self.unfinished), None)

    def admit(self, records: Sequence[RawRecord]) -> Sequence[RawRecord]:
        """Take a fetched chunk (ascending offsets); return the records of it that must run."""
        if not records:
            return records
        if self._restored or records[0].offset < self.position:
            return self._admit_some(records)
        self.unfinished.update({record.offset: record for record in records})
        self.position = records[-1].offset + 1
        return records

    def _admit_some(self, records: Sequence[RawRecord]) -> list[RawRecord]:
        fresh: list[RawRecord] = []
        for record in records:
            offset = record.offset
            self._absorb(offset)
            if offset < self.position:
                self.redelivered += 1
                continue
            self.unfinished[offset] = record
            self.position = offset + 1
            fresh.append(record)
        self._absorb(self.position)
        return fresh

    def _absorb(self, offset: int) -> None:
        """Move past restored runs that begin at or before `offset`: they are done."""
        restored = self._restored
        while restored and restored[-1][0] <= offset:
            self.position = max(self.position, restored.pop()[1])

    def complete(self, offset: int) -> bool:
        """`offset` is done. False when it is not unfinished here (done already, or of another life)."""
        return self.unfinished.pop(offset, None) is not None

    def mark_done(self, offset: int) -> None:
        """`offset` is done although it may not have been delivered yet (an adopted straggler)."""
        if offset < self.position:
            self.unfinished.pop(offset, None)
            return
        self._restored = merge_runs([*self._restored, (offset, offset + 1)])
        self._restored.reverse()
        self._absorb(self.position)

    def rewind(self) -> None:
        """Hold nothing any more: back to the HWM, with what is done above it remembered.

        For a halt or a revoke: records that still run report through `mark_done`.
        """
        runs = self.done_runs()
        self.position = self.hwm
        self.unfinished.clear()
        self._restored = runs
        self._restored.reverse()

    def skip_to(self, position: int) -> None:
        """The client's position is `position`: nothing undelivered is left below it (markers, holes)."""
        if position > self.position:
            self.position = position
            self._absorb(position)

    def done_runs(self) -> list[Run]:
        """Runs of done offsets above the HWM, ascending, holes of the log included."""
        runs: list[Run] = []
        held = iter(self.unfinished)
        first = next(held, None)
        if first is not None:
            cursor = first + 1
            for offset in held:
                if offset > cursor:
                    runs.append((cursor, offset))
                cursor = offset + 1
            if self.position > cursor:
                runs.append((cursor, self.position))
        runs.extend(reversed(self._restored))
        return runs

    def is_done(self, offset: int) -> bool:
        """True when `offset` needs no run in this generation."""
        if offset < self.position:
            return offset not in self.unfinished
        return any(first <= offset < end for first, end in self._restored)

    def blocked_for(self, now: float) -> float:
        """Seconds for which the blocking offset has been the lowest one, as seen by these calls."""
        blocking = self.blocking_offset
        if blocking != self._blocking:
            self._blocking = blocking
            self._blocking_since = now
        return 0.0 if blocking is None else now - self._blocking_since


def is_within(runs: Sequence[Run], offset: int) -> bool:
    """One of `runs`, which ascend and do not overlap, has `offset` in it."""
    at = bisect_right(runs, offset, key=itemgetter(0))
    return at > 0 and offset < runs[at - 1][1]


def merge_runs(runs: Iterable[Run]) -> list[Run]:
    """Ascending, disjoint, non-empty runs that cover the same offsets."""
    merged: list[Run] = []
    for first, end in sorted(runs):
        if first >= end:
            continue
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((first, end))
    return merged
