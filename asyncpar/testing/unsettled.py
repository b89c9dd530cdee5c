"""Why a test's records are not done: the errors of `TestApp.settled`, and their texts.

Pure: takes the app's status and what was handled, returns words. Called by `TestApp`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from asyncpar.errors import AsyncparError
from asyncpar.records import TopicPartition
from asyncpar.runtime.failure_log import brief
from asyncpar.status import AppStatus, GroupStatus, PartitionStatus, blocked_text
from asyncpar.testing.arguments import counted
from asyncpar.testing.history import Event
from asyncpar.testing.witness import Handled

_SHOWN = 3
_HELD_STATES = ("open", "halted")
_BLOCKED_SECONDS = 0.5
"""From here on a loop that did not run is worth a word."""


class UnsettledError(AsyncparError):
    """Records were not done and committed in time, or a member got no partitions.

    The last error of the records' handler is its cause.
    """


class HaltedError(UnsettledError):
    """A partition halted: a record could not be handled, and nothing behind it is. The error is its cause."""


class Open(NamedTuple):
    """The first record of a partition that its group has not committed."""

    group: str
    tp: TopicPartition
    offset: int


def group_status(status: AppStatus, group: str) -> GroupStatus | None:
    """The group's part of `status`."""
    return next((one for one in status.groups if one.group == group), None)


def partition_status(status: AppStatus, group: str, tp: TopicPartition) -> PartitionStatus | None:
    """The partition's part of `status`; None while it is not assigned."""
    of_group = group_status(status, group)
    partitions = () if of_group is None else of_group.partitions
    return next((one for one in partitions if (one.topic, one.partition) == tp), None)


def halted(status: PartitionStatus, handled: Sequence[Handled]) -> HaltedError:
    """The error for a halted partition, with what its handler raised as the cause."""
    tp = TopicPartition(status.topic, status.partition)
    reason = status.halt_reason or "no reason given"
    error = HaltedError(f"{tp} halted in group {status.group}, {reason}")
    for one in reversed(handled):
        is_it = one.group == status.group and one.place == tp and reason.startswith(f"offset {one.offset}: ")
        if is_it and one.error is not None:
            error.__cause__ = one.error
            break
    return error


def unsettled(
    places: Sequence[tuple[Open, AppStatus]],
    timeout_s: float,
    handled: Sequence[Handled],
    *,
    blocked_s: float = 0.0,
) -> UnsettledError:
    """The error for what is open after `timeout_s` seconds: each partition with its reason, on one line.

    `blocked_s`: the longest time that the event loop did not run meanwhile.
    """
    shown, cause = _reasons(places, handled)
    blocked = ""
    if blocked_s >= _BLOCKED_SECONDS:
        blocked = (
            f"the event loop was blocked for {blocked_s:.1f} s: await what takes long, or let the handler "
            "be a plain `def`, which runs in a thread; "
        )
    error = UnsettledError(f"not settled after {timeout_s:g} s: {blocked}{shown}")
    error.__cause__ = cause
    return error


def forgotten(places: Sequence[tuple[Open, AppStatus]], handled: Sequence[Handled]) -> UnsettledError:
    """The error for what is not done at the end of a block in which nobody awaited `settled`.

    A HaltedError when one of the partitions has halted.
    """
    stopped = [
        (place, status)
        for place, status in places
        if (found := partition_status(status, place.group, place.tp)) is not None
        and found.halt_reason is not None
    ]
    shown, cause = _reasons(stopped or places, handled)
    error = (HaltedError if stopped else UnsettledError)(
        f"the block ended, and not all that was sent is done: {shown}; `await kafka.settled()` after the "
        'last send, or say TestApp(..., unsettled="ignore")'
    )
    error.__cause__ = cause
    return error


def _reasons(
    places: Sequence[tuple[Open, AppStatus]], handled: Sequence[Handled]
) -> tuple[str, BaseException | None]:
    """The first few places with their reasons, and the first error that is known."""
    reasons = [_why(place, status, handled) for place, status in places]
    shown = "; ".join(text for text, _ in reasons[:_SHOWN])
    if len(reasons) > _SHOWN:
        shown += f"; and {counted(len(reasons) - _SHOWN, 'more partition')}"
    return shown, next((cause for _, cause in reasons if cause is not None), None)


def held(status: AppStatus, group: str) -> list[TopicPartition]:
    """The partitions of `group` that the app reads now."""
    of_group = group_status(status, group)
    partitions = () if of_group is None else of_group.partitions
    return [TopicPartition(one.topic, one.partition) for one in partitions if one.state in _HELD_STATES]


def unassigned(
    group: str, member: str, status: AppStatus, events: Iterable[Event], at_least: int, timeout_s: float
) -> UnsettledError:
    """The error for a `member` that holds too few partitions after `timeout_s` seconds: who holds which."""
    of_group = group_status(status, group)
    phase = "stopped" if of_group is None else of_group.state
    has = counted(len(held(status, group)), "partition")
    holders = [
        f"{name} holds {', '.join(map(str, sorted(tps))) or 'none'}" for name, tps in _holders(events).items()
    ]
    return UnsettledError(
        f"not assigned after {timeout_s:g} s: member {member} of group {group} is {phase} and reads {has}, "
        f"not {at_least}; {'; '.join(holders) or 'nobody has joined'}; partitions= gives a topic more of them"
    )


def _holders(events: Iterable[Event]) -> dict[str, set[TopicPartition]]:
    """What each member of a group holds at the end of its history."""
    holders: dict[str, set[TopicPartition]] = {}
    for event in events:
        if event.kind == "join":
            holders[event.member] = set()
        elif event.kind in ("leave", "dead"):
            holders.pop(event.member, None)
        elif event.kind == "assign":
            holders.setdefault(event.member, set()).add(event.tp)
        elif event.kind in ("released", "lost"):
            holders.get(event.member, set()).discard(event.tp)
    return holders


def _why(place: Open, status: AppStatus, handled: Sequence[Handled]) -> tuple[str, BaseException | None]:
    """Where it stands, and the last error of the record that holds it up."""
    partition = partition_status(status, place.group, place.tp)
    if partition is None:
        of_group = group_status(status, place.group)
        phase = "stopped" if of_group is None else of_group.state
        return f"{place.tp} offset {place.offset}: not assigned, group {place.group} is {phase}", None
    blocking = partition.blocking_offset
    if blocking is None:
        return f"{place.tp} offset {place.offset}: {_unblocked(place, partition)}", None
    error = _last_error(place, blocking, handled)
    if partition.halt_reason is not None:
        return f"{place.tp} halted, {partition.halt_reason}", error
    why = blocked_text(partition, "" if error is None else brief(error))
    return f"{place.tp} offset {blocking}: {why}{_trouble(status, partition)}", error


def _trouble(status: AppStatus, partition: PartitionStatus) -> str:
    """What ails the handler, where the partition itself is not held: it shares its topic with another one."""
    group = group_status(status, partition.group)
    if group is None or partition.hold_reason is not None:
        return ""
    reasons = [one.hold_reason for one in group.handlers if one.name == partition.blocking_handler]
    return "".join(f"; {reason}" for reason in reasons if reason is not None)


def _unblocked(place: Open, partition: PartitionStatus) -> str:
    """Nothing of the partition is in flight."""
    if partition.halt_reason is not None:
        return f"halted, {partition.halt_reason}"
    if partition.hwm is None:
        return f"not begun, group {place.group} is reading its committed offset"
    if partition.hwm > place.offset:
        return f"done, but not committed: group {place.group} has committed {partition.committed}"
    held = f"; it is held: {partition.hold_reason}" if partition.hold_reason else ""
    return f"not fetched yet, group {place.group} is at offset {partition.position}{held}"


def _last_error(place: Open, offset: int, handled: Sequence[Handled]) -> BaseException | None:
    for one in reversed(handled):
        if (one.group, one.place, one.offset) == (place.group, place.tp, offset):
            return one.error
    return None
