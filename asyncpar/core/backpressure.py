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
        self._bytes_bound = 0
        """No less than what all partitions count with, since the last exact count."""
        self._uncounted: list[tuple[OffsetTracker, Sequence[RawRecord]]] = []
        """Let in since bytes were judged last."""
        self._counted_for = 0
        """How many partitions there were at that count."""

    @property
    def is_full(self) -> bool:
        """True while a limit of the group holds all fetching back, but for what is `starving`."""
        return self.records_active or self.bytes_active

    def wanted(self, partitions: Sequence[Partition]) -> tuple[list[Partition], int]:
        """The partitions to ask for and the most records to take in all; ([], 0) when intake must wait."""
        limits = self.limits
        limit = limits.per_partition(len(partitions))
        reserve = limits.reserve(len(partitions))
        self.share = _quantum(limits.poll_batch_size, limit)
        share, resume_at, in_flight = self.share, limit * _RESUME_SHARE, 0
        wanted: list[Partition] = []
        is_open = State.OPEN
        for partition in partitions:  # at each fetch, for each partition: in one place on purpose
            tracker, queues = partition.tracker, partition.queues
            held = 0 if tracker is None else len(tracker.unfinished)
            in_flight += max(held, reserve)
            if partition.backpressure:
                partition.backpressure = held > resume_at
            elif held + share > limit:
                partition.backpressure = True
            if (
                not partition.backpressure
                and partition.state is is_open
                and (queues is None or queues.start_below is ANY_OFFSET or not _near_cap(queues))
            ):
                wanted.append(partition)
        group_quantum = _quantum(limits.poll_batch_size, limits.max_in_flight)
        self.records_active = _hysteresis(self.records_active, in_flight, limits.max_in_flight, group_quantum)
        self._judge_bytes(partitions)
        if self.is_full:
            return [], 0
        return wanted, group_quantum if wanted else 0

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

    def admitted(self, tracker: OffsetTracker, records: Sequence[RawRecord]) -> None:
        """`tracker` has let these in: they are counted when bytes are next judged, if it holds any then."""
        self._uncounted.append((tracker, records))

    def _judge_bytes(self, partitions: Sequence[Partition]) -> None:
        """Count exactly only when the bound says that the limit may be passed.

        The bound saves counting at every completion, and what is quickly done need not be counted at all.
        """
        for tracker, records in self._uncounted:
            if tracker.unfinished:
                self._bytes_bound += sum([len(one.value or b"") + len(one.key or b"") for one in records])
        self._uncounted.clear()
        limit = self.limits.max_in_flight_bytes
        if not self.bytes_active and self._bytes_bound < limit and self._counted_for == len(partitions):
            return
        self._counted_for = len(partitions)
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
