"""The log of one partition: records, holes, transactions, retention, truncation.

Lives here: which offsets exist and what a fetch may see of them. Never here: topics, requests,
positions of consumers. Called by `memory_broker`. Always: offsets only grow, but for `truncate`,
which makes them mean other records from there on, as an unclean election does.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import NamedTuple

from asyncpar.records import RawRecord, TopicPartition


class MemoryRecord(NamedTuple):
    """A record in memory: `asyncpar.records.RawRecord`."""

    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()
    timestamp: int = 0
    timestamp_type: int = 0


class LogSlice(NamedTuple):
    """What a read found: `records`, and where the next read goes on (past holes and markers)."""

    records: list[RawRecord]
    next_offset: int


class PartitionLog:
    """One partition's records in ascending order of offsets, from `start` up to (not including) `end`."""

    def __init__(self, tp: TopicPartition, watchers: Sequence[Callable[[TopicPartition], None]] = ()) -> None:
        self.tp = tp
        self.start = 0
        """The first offset that exists: retention moves it."""
        self.end = 0
        """The offset of the next append, which is the high watermark as well."""
        self._watchers = watchers
        self._records: list[MemoryRecord] = []
        self._offsets: list[int] = []
        self._aborted: set[int] = set()
        self._open: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return len(self._records)

    @property
    def records(self) -> Sequence[MemoryRecord]:
        """All records that exist, those of open and aborted transactions included."""
        return tuple(self._records)

    @property
    def last_stable_offset(self) -> int:
        """Where the first open transaction begins, else the end: read_committed sees what is below."""
        if not self._open:
            return self.end
        return min(offsets[0] for offsets in self._open.values())

    # -- writing -----------------------------------------------------------------------------

    def append(
        self,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]] = (),
        timestamp_ms: int = 0,
        transaction: int | None = None,
    ) -> MemoryRecord:
        """Append one record, to the open transaction of that number if one is given."""
        record = MemoryRecord(self.end, key, value, headers, timestamp_ms)
        self._records.append(record)
        self._offsets.append(self.end)
        if transaction is not None:
            self._open.setdefault(transaction, []).append(self.end)
        self.end += 1
        self.changed()
        return record

    def end_transaction(self, transaction: int, commit: bool) -> None:
        """Write the marker that ends `transaction`; nothing when it wrote nothing here."""
        offsets = self._open.pop(transaction, None)
        if offsets is None:
            return
        if not commit:
            self._aborted.update(offsets)
        self.skip(1)

    def skip(self, count: int) -> None:
        """Leave `count` offsets without a record, as compaction, markers and failed appends do."""
        self.end += count
        self.changed()

    def delete_before(self, offset: int) -> None:
        """What retention does: nothing below `offset` exists any more. ValueError beyond the end."""
        if offset > self.end:
            raise ValueError(f"{self.tp} ends at {self.end}: records before {offset} cannot be deleted")
        self.start = max(self.start, offset)
        gone = bisect_left(self._offsets, self.start)
        del self._records[:gone], self._offsets[:gone]
        self.changed()

    def truncate(self, end: int) -> None:
        """Lose the tail from `end` on: later appends use these offsets again."""
        end = max(end, self.start)
        if end >= self.end:
            return
        kept = bisect_left(self._offsets, end)
        del self._records[kept:], self._offsets[kept:]
        self._aborted = {offset for offset in self._aborted if offset < end}
        still_open = {
            number: [offset for offset in offsets if offset < end] for number, offsets in self._open.items()
        }
        self._open = {number: offsets for number, offsets in still_open.items() if offsets}
        self.end = end
        self.changed()

    def changed(self) -> None:
        """Tell the watchers: they run in the changer's context, and may set futures, nothing else."""
        for watcher in self._watchers:
            watcher(self.tp)

    # -- reading -----------------------------------------------------------------------------

    def holds(self, record: MemoryRecord) -> bool:
        """Whether `record` was neither deleted nor truncated since it was appended."""
        at = bisect_left(self._offsets, record.offset)
        return at < len(self._records) and self._records[at] is record

    def has(self, position: int) -> bool:
        """Whether a fetch may begin at `position`: from the start up to the end, which is included."""
        return self.start <= position <= self.end

    def read(self, position: int, max_records: int, committed: bool) -> LogSlice:
        """At most `max_records` from `position` on; `committed` hides what no transaction has committed."""
        limit = self.last_stable_offset if committed else self.end
        if position >= limit:
            return LogSlice([], position)
        first = bisect_left(self._offsets, position)
        last = len(self._offsets) if limit == self.end else bisect_left(self._offsets, limit)
        if committed and self._aborted:
            return self._read_unaborted(first, last, limit, max_records)
        found: list[RawRecord] = self._records[first : min(last, first + max_records)]  # type: ignore[assignment]
        return LogSlice(found, limit if len(found) == last - first else found[-1].offset + 1)

    def _read_unaborted(self, first: int, last: int, limit: int, max_records: int) -> LogSlice:
        found: list[RawRecord] = []
        for at in range(first, last):
            record = self._records[at]
            if record.offset in self._aborted:
                continue
            if len(found) == max_records:
                return LogSlice(found, record.offset)
            found.append(record)
        return LogSlice(found, limit)
