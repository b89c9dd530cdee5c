"""Partitions at an offset that the client cannot read: when each is asked for again, and when it is given up.

Kept by the poller, one entry per partition, so that the others go on at full speed. Waits for nothing. A
fault of the bytes halts its partition once what came before it has ended: the halted partition's HWM is
then the offset that cannot be read. Any other fault is tried for ever.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from asyncpar.core.assignment import Partition
from asyncpar.errors import FetchError
from asyncpar.records import TopicPartition
from asyncpar.runtime.failure_log import brief
from asyncpar.runtime.group_state import GroupState

_FIRST_PAUSE_SECONDS = 0.1
_MAX_PAUSE_SECONDS = 5.0
_TRIES = 5


@dataclass(slots=True)
class _Fault:
    """What is known of one partition: `tries` failed at `offset`, the next one is due at `again_at`."""

    generation: int
    offset: int
    tries: int = 0
    again_at: float = 0.0
    reason: str = ""


class UnreadablePartitions:
    """One group's."""

    def __init__(self, state: GroupState) -> None:
        self._state = state
        self._faults: dict[TopicPartition, _Fault] = {}

    def __bool__(self) -> bool:
        return bool(self._faults)

    def __contains__(self, tp: TopicPartition) -> bool:
        return tp in self._faults

    def without_waiting(self, wanted: list[Partition], now: float) -> list[Partition]:
        """Those of `wanted` that need not wait."""
        self._forget_gone()
        faults = self._faults
        return [one for one in wanted if one.tp not in faults or now >= faults[one.tp].again_at]

    def failed(self, partition: Partition, error: FetchError, now: float) -> None:
        """A fetch of `partition` raised: let it wait, or halt it."""
        tracker = partition.tracker
        assert tracker is not None
        offset = tracker.position if error.offset is None else error.offset
        fault = self._faults.get(partition.tp)
        if fault is None or (fault.generation, fault.offset) != (partition.generation, offset):
            self._faults[partition.tp] = fault = _Fault(partition.generation, offset)
            self._state.log.warning("group %s: %s; trying again", self._state.group, error)
        fault.tries += 1
        fault.again_at = now + min(_MAX_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** min(fault.tries - 1, 10))
        fault.reason = f"offset {offset}: it cannot be read ({brief(error.__cause__ or error)})"
        if error.unreadable and fault.tries >= _TRIES and not partition.in_flight:
            del self._faults[partition.tp]
            self._state.halt(partition, fault.reason)

    def delivered(self, partitions: Collection[TopicPartition]) -> None:
        """Records of `partitions` came: they can be read again, up to the next fault."""
        for tp in partitions:
            self._faults.pop(tp, None)

    def lasting(self) -> dict[TopicPartition, str]:
        """What has failed often and is not halted (yet), and why."""
        self._forget_gone()
        return {tp: fault.reason for tp, fault in self._faults.items() if fault.tries >= _TRIES}

    def _forget_gone(self) -> None:
        partitions = self._state.partitions
        for tp, fault in list(self._faults.items()):
            partition = partitions.get(tp)
            if partition is None or partition.generation != fault.generation or not partition.is_open:
                del self._faults[tp]
