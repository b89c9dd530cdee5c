"""Which partitions to ask the broker for, and for how many records.

A partition is left out of the question, not paused (a pause throws the client's buffer away): when
its own limit is near, when the group's limit of records or bytes is near, or while its metadata is
near the cap. Hysteresis: off when less than a quantum of room is left, on again at 70 %. A quantum
is one fetch, so the record limits are never passed; bytes may be passed by one fetched chunk, and by a
record that is larger than a reserve.

Half of the group's limits is reserved, in equal shares: each partition counts with at least its reserve,
whether it uses it or not. So partitions whose records cannot leave (their breaker is open, their dead letters
are held, their handler hangs) never fill what the others live on: these are `starving`, and get it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from asyncpar.core.assignment import Partition, State
from asyncpar.core.offsets import OffsetTracker
from asyncpar.core.virtual_partitions import ANY_OFFSET, Queues
from asyncpar.records import RawRecord

_RESUME_SHARE = 0.7
_MIN_PARTITION_LIMIT = 64


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what is held; see the settings of the same names."""

    max_in_flight: int
    max_in_flight_per_partition: int | None
    max_in_flight_bytes: int
    poll_batch_size: int

    def per_partition(self, assigned: int) -> int:
        """The limit of one partition when `assigned` are assigned (source: DECISIONS, Limits)."""
        if self.max_in_flight_per_partition is not None:
            return min(self.max_in_flight, self.max_in_flight_per_partition)
        fair = 2 * self.max_in_flight // max(1, assigned)
        return min(self.max_in_flight, max(_MIN_PARTITION_LIMIT, fair))

    def reserve(self, assigned: int) -> int:
        """Records of each partition that the others cannot take; 0 when the limit is too small for all."""
        return min(self.per_partition(assigned), self.max_in_flight // (2 * max(1, assigned)))

    def reserved_bytes(self, assigned: int) -> int:
        """The same in payload bytes."""
        return self.max_in_flight_bytes // (2 * max(1, assigned))


def payload_bytes(record: RawRecord) -> int:
    """Bytes of key and value that a record holds."""
    key, value = record.key, record.value
    return (0 if key is None else len(key)) + (0 if value is None else len(value))


class Backpressure:
    """The intake's memory between fetches: which limits are active."""

    __slots__ = (
        "_bytes_bound",
        "_counted_for",
        "_most",
        "_records_bound",
        "_uncounted",
        "bytes_active",
        "limits",
        "records_active",
        "share",
    )

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.records_active = False
        """True while the group's record limit holds all fetching back."""
        self.bytes_active = False
        """True while the group's byte limit holds all fetching back."""
        self.share = 0
        """The most records of one partition in the fetch that `wanted` or `starving` asked for last."""
        self._most = 0
        """What a partition may hold and still be asked for a whole share."""
        self._bytes_bound = 0
        """No less than what all partitions count with, since the last exact count."""
        self._records_bound = 0
        """The same in records."""
        self._uncounted: list[tuple[OffsetTracker, Sequence[RawRecord]]] = []
        """Let in since bytes were judged last."""
        self._counted_for = 0
        """How many partitions there were at those counts."""

    @property
    def is_full(self) -> bool:
        """True while a limit of the group holds all fetching back, but for what is `starving`."""
        return self.records_active or self.bytes_active

    def wanted(self, partitions: Sequence[Partition]) -> tuple[list[Partition], int]:
        """The partitions to ask for and the most records to take in all; ([], 0) when intake must wait."""
        limits = self.limits
        limit = limits.per_partition(len(partitions))
        self.share = _quantum(limits.poll_batch_size, limit)
        has_changed = len(partitions) != self._counted_for
        if has_changed:
            self._counted_for = len(partitions)
            self._most = limit - self.share
            for one in partitions:
                one.backpressure = one.backpressure or one.in_flight > self._most
        is_open, any_offset = State.OPEN, ANY_OFFSET
        # At each fetch, for each partition: that nothing holds it back is seen in one expression.
        wanted = [
            one
            for one in partitions
            if (
                one.state is is_open and not one.backpressure and one.queues.start_below is any_offset  # type: ignore[union-attr] # it is open
            )
            or self._is_wanted(one, limit)
        ]
        self._judge_records(partitions, must_count=has_changed)
        self._judge_bytes(partitions, must_count=has_changed)
        if self.is_full:
            return [], 0
        return wanted, _quantum(limits.poll_batch_size, limits.max_in_flight) if wanted else 0

    def _is_wanted(self, partition: Partition, limit: int) -> bool:
        """True when nothing of its own holds `partition` back; sees whether its limit still does."""
        if partition.backpressure:
            partition.backpressure = partition.in_flight > limit * _RESUME_SHARE
        return not partition.backpressure and partition.is_open and not _near_cap(partition.queues)

    def starving(self, partitions: Sequence[Partition]) -> tuple[list[Partition], int]:
        """Of those that use little of their reserve, and the most records to take, while `is_full`.

        Where bytes are short only those that hold nothing, one record at a time: sizes are not known before.
        """
        limits = self.limits
        reserve = limits.reserve(len(partitions))
        used, room = (0, min(1, reserve)) if self.bytes_active else (reserve // 2, reserve - reserve // 2)
        wanted = [
            one for one in partitions if one.is_open and one.in_flight <= used and not _near_cap(one.queues)
        ]
        # With more partitions than before, those that were there may hold more than their part.
        left = limits.max_in_flight - sum(one.in_flight for one in partitions)
        self.share = room = min(room, left, limits.poll_batch_size)
        return (wanted, room) if wanted and room > 0 else ([], 0)

    def admitted(self, partition: Partition, records: Sequence[RawRecord]) -> None:
        """`partition` has let these in: only now can it come near its limit.

        Their bytes are counted when next judged, if it holds any records then.
        """
        tracker = partition.tracker
        assert tracker is not None
        if len(tracker.unfinished) > self._most:
            partition.backpressure = True
        self._records_bound += len(records)
        self._uncounted.append((tracker, records))

    # Both limits of the group are judged by a bound, and by an exact count only when the bound says that the
    # limit may be passed, or was of other partitions (`must_count`): that saves counting at every completion,
    # and looking at each partition.

    def _judge_records(self, partitions: Sequence[Partition], *, must_count: bool) -> None:
        limits = self.limits
        most, reserve = limits.max_in_flight, limits.reserve(len(partitions))
        quantum = _quantum(limits.poll_batch_size, most)
        if not (must_count or self.records_active or self._records_bound + quantum > most):
            return
        self._records_bound = sum([max(reserve, one.in_flight) for one in partitions])
        self.records_active = _hysteresis(self.records_active, self._records_bound, most, quantum)

    def _judge_bytes(self, partitions: Sequence[Partition], *, must_count: bool) -> None:
        """What is quickly done need not be counted at all."""
        for tracker, records in self._uncounted:
            if tracker.unfinished:
                self._bytes_bound += sum([len(one.value or b"") + len(one.key or b"") for one in records])
        self._uncounted.clear()
        limit = self.limits.max_in_flight_bytes
        if not (must_count or self.bytes_active or self._bytes_bound >= limit):
            return
        reserve = self.limits.reserved_bytes(len(partitions))
        self._bytes_bound = sum(max(reserve, bytes_held([partition])) for partition in partitions)
        resume_at = limit * _RESUME_SHARE if self.bytes_active else limit
        self.bytes_active = self._bytes_bound >= resume_at and self._bytes_bound > 0


def bytes_held(partitions: Iterable[Partition]) -> int:
    """Payload bytes of all records in flight."""
    return sum(
        payload_bytes(record)
        for partition in partitions
        if partition.tracker is not None
        for record in partition.tracker.unfinished.values()
    )


def _quantum(poll_batch_size: int, limit: int) -> int:
    """The most records of one fetch: it fits between the 70 % mark and the limit."""
    return max(1, min(poll_batch_size, int(limit * (1 - _RESUME_SHARE))))


def _hysteresis(active: bool, held: int, limit: int, quantum: int) -> bool:
    if active:
        return held > limit * _RESUME_SHARE
    return held + quantum > limit


def _near_cap(queues: Queues | None) -> bool:
    """True while only records below the highest done offset may start (see core.commits)."""
    return (
        queues is not None
        and queues.start_below is not ANY_OFFSET
        and queues.start_below <= queues.tracker.position
    )
