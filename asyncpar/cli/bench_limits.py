"""What limits a bench: looks at a group's status, what each of them says, and the verdict of all.

Lives here: `looked_at` (one look at a group, one word), `Looks` (their counts) and `verdict`. Never here: the
words that people read (`bench_report.py`), when to look (`bench_run.py`). Pure.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from asyncpar.cli.bench_loop import LoopFigures
from asyncpar.status import GroupStatus, HandlerStatus, PartitionStatus

Limit: TypeAlias = Literal[
    "loop",
    "computing",
    "blocked_loop",
    "slots",
    "children",
    "keys",
    "buffer",
    "held",
    "retries",
    "fetch",
    "input",
]
_FULL = 0.95
_BUSY_SHARE = 0.85
_LATE_SHARE = 0.5
_STARVED_SHARE = 0.4
_OWN_LATENESS = 0.3
"""So much more often than a thread that does nothing must the loop be late, for it to be its own doing."""
_GATES = ("waiting for the rate limit", "waiting for the breaker", "held")
"""How a status begins to say that something other than slots and keys keeps records from starting."""


class Look(NamedTuple):
    """What one look at a group says: what its records wait for, and whose that is."""

    limit: Limit
    who: str = ""
    """The handler whose slots or children are busy, or why records are held; else nothing."""


_IDLE = Look("input")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What limited a group, in which share of the looks (of the time, for the loop), and what came next."""

    limit: Limit
    share: float
    who: str = ""
    second: Look | None = None
    second_share: float = 0.0
    buffer_share: float = 0.0
    """In how many looks as much was held as may be held."""


def looked_at(group: GroupStatus) -> Look:
    """What the records of `group` wait for at this moment."""
    return _of_handlers(group) or _of_records(group)


def _of_handlers(group: GroupStatus) -> Look | None:
    """When records wait for what runs them, or for leave to start."""
    for handler in group.handlers:
        if handler.children and handler.busy_children >= handler.children and _waits_for_children(handler):
            return Look("children", handler.name)
    ready = [handler for handler in group.handlers if handler.ready]
    for handler in ready:
        if handler.running >= _FULL * handler.concurrency:
            return Look("slots", handler.name)
    why = next((one.blocking_reason for one in group.partitions if _is_gated(one.blocking_reason)), None)
    if why is not None:
        return Look("held", why)
    return Look("loop") if ready else None


def _of_records(group: GroupStatus) -> Look:
    """When slots are free and nothing is ready for them."""
    is_parked = any(partition.parked for partition in group.partitions)
    if is_parked and not any(handler.running for handler in group.handlers):
        return Look("retries")  # what is queued waits behind those
    if any(partition.queued for partition in group.partitions):
        return Look("keys")
    if _is_full(group):
        return Look("buffer")
    if is_parked:
        return Look("retries")
    return Look("fetch" if any(_has_more(partition) for partition in group.partitions) else "input")


def _has_more(partition: PartitionStatus) -> bool:
    """Whether records may be fetched that are not in flight."""
    lag = partition.true_lag
    return partition.state == "open" and (lag is None or lag > partition.in_flight)


def _waits_for_children(handler: HandlerStatus) -> bool:
    """Whether there are records beyond those that each child runs."""
    return handler.ready > 0 or handler.running > handler.busy_children


def _is_gated(reason: str | None) -> bool:
    return reason is not None and reason.startswith(_GATES)


def _is_full(group: GroupStatus) -> bool:
    return group.in_flight >= _FULL * group.max_in_flight or any(
        partition.backpressure for partition in group.partitions
    )


class Looks:
    """The looks at one group, to the last one at which there was something to do.

    That nothing was there to do counts once more was done: what comes after the last record, until the time
    is up, says nothing of how fast it was.
    """

    def __init__(self) -> None:
        self._seen: Counter[Look] = Counter()
        self._full = 0
        self._running: Counter[str] = Counter()
        self._idle = 0
        """Looks that found nothing, since more was done last."""
        self._done = 0

    def add(self, group: GroupStatus) -> bool:
        """One more. False: there was nothing to do."""
        look = looked_at(group)
        done = sum(one.succeeded + one.failed + one.skipped for one in group.handlers)
        if look == _IDLE and not group.in_flight and done == self._done:
            self._idle += 1
            return False
        if self._idle:
            self._seen[_IDLE] += self._idle
        self._idle, self._done = 0, done
        self._seen[look] += 1
        self._full += _is_full(group)
        for handler in group.handlers:
            self._running[handler.name] += handler.running
        return True

    @property
    def number(self) -> int:
        """How many there were."""
        return self._seen.total()

    def running(self, handler: str) -> float:
        """How many calls of `handler` ran at a time, in the mean of all looks."""
        return self._running[handler] / max(1, self.number)

    def verdict(self, loop: LoopFigures, *, has_threads: bool) -> Verdict:
        """What limited the group most. `has_threads`: one of its handlers runs in threads."""
        number = max(1, self.number)
        buffer_share = self._full / number
        ranked = self._seen.most_common(2)
        first, count = ranked[0] if ranked else (_IDLE, 0)
        if first.limit != "input":
            of_loop = _of_loop(loop, has_threads)
            if of_loop is not None:
                return Verdict(*of_loop, second=first, second_share=count / number, buffer_share=buffer_share)
        second, second_count = ranked[1] if len(ranked) > 1 else (None, 0)
        return Verdict(first.limit, count / number, first.who, second, second_count / number, buffer_share)


def _of_loop(loop: LoopFigures, has_threads: bool) -> tuple[Limit, float] | None:
    """When it is the loop, or what shares its core: which of them, and its share of the time."""
    if loop.thread_share >= _BUSY_SHARE:
        return "loop", loop.thread_share
    if loop.process_share >= _BUSY_SHARE and has_threads:
        return "computing", loop.process_share
    if loop.late_share >= _LATE_SHARE and loop.late_share - loop.machine_late_share >= _OWN_LATENESS:
        return ("loop" if loop.thread_share >= _STARVED_SHARE else "blocked_loop"), loop.late_share
    return None
