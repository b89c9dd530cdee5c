"""What the checkers know of a run: faults, records, tenures, calls and commits.

Plain data, derived from a history by `checker_replay` and judged by the checkers beside it; a `Checker`
hears of one thing after the other, in the order of time. Never here: anything that the engine says about
itself. A tenure is one member's hold on one partition, from `assign` until it gave it back, heard that it
lost it, stopped or was killed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from asyncpar.records import CommitAnswer, TopicPartition
from asyncpar.testing.checker_rules import Rules
from asyncpar.testing.history import Event

Check = Literal[
    "LOST", "ORDER", "SERIAL", "COMMIT", "STUCK", "DUPLICATES", "DEAD LETTER", "BUDGET", "UNKNOWN"
]
_ACKNOWLEDGED = CommitAnswer.ACKNOWLEDGED.value
NS_PER_MS = 1_000_000
REVOKE_COMMIT_NS = 1_500_000_000
"""A revoke keeps this much of its time for the final commit (source: DECISIONS, the drain's deadline)."""
STEP_NS = 500_000
"""A handler with a task of its own begins, and is known to have ended, some steps of the loop later."""


@dataclass(frozen=True)
class Fault:
    """A law that was broken: which check says so, how, and the events that show it."""

    check: Check
    text: str
    events: tuple[Event, ...] = ()

    def __str__(self) -> str:
        return f"{self.check} {self.told()}"

    def told(self) -> str:
        """How it was broken, and the events below each other."""
        return self.text + "".join(f"\n      {event}" for event in self.events)


class Sent:
    """A record of the log."""

    __slots__ = (
        "adopted",
        "dones",
        "ends",
        "ghost",
        "key",
        "lane",
        "offset",
        "ok",
        "rank",
        "settled",
        "size",
        "tried",
    )

    def __init__(self, offset: int, key: bytes | None, size: int) -> None:
        self.offset = offset
        self.key = key
        self.size = size
        self.lane: Lane | None = None
        """What orders it; None: nothing."""
        self.rank = 0
        """Its place in the lane."""
        self.settled = False
        """A handler succeeded, or it was settled otherwise, or it is gone from the log."""
        self.ghost = False
        """At an offset that another record had before the log was truncated (nobody can tell them apart), or
        passed over for good: not judged one by one.
        """
        self.ends: tuple[tuple[str, int], ...] = ()
        """The successful calls: the member, and the index of the event."""
        self.dones: tuple[tuple[str, int], ...] = ()
        """How it was settled otherwise: the same of each `done`."""
        self.tried: Call | None = None
        """The last call that did not end well."""
        self.ok: Call | None = None
        """The last successful call whose success its member could count."""
        self.adopted: tuple[Call, Tenure] | None = None
        """A straggler's later success, and the tenure that its member had by then."""


class Lane:
    """Records that are ordered with each other: of one key, or of the partition."""

    __slots__ = ("records", "waiting")

    def __init__(self) -> None:
        self.records: list[Sent] = []
        """Ascending."""
        self.waiting = 0
        """Index of the first that was started once and is not settled."""


class Tenure:
    """One member's hold on one partition."""

    __slots__ = (
        "assign",
        "closed",
        "closed_index",
        "closed_ns",
        "commits",
        "cut",
        "deadline_ns",
        "failures",
        "first_gap",
        "gave_up",
        "halted",
        "held",
        "index",
        "kept",
        "last_starts",
        "mute",
        "over",
        "position",
        "restored",
        "resumed",
        "revoke_ns",
        "seeks",
        "short",
        "stale",
        "started",
    )

    def __init__(self, assign: Event, index: int) -> None:
        self.assign = assign
        self.index = index
        self.over: str = ""
        """How others came to own it: displaced, released, lost, left, dead. While empty it is ours."""
        self.closed: str = ""
        """How the member came to know; until then it may believe that the partition is its own."""
        self.closed_ns = 0
        self.closed_index = 0
        self.gave_up = False
        """Its member's process said after the stop that not all was done and stored."""
        self.revoke_ns: int | None = None
        self.deadline_ns: int | None = None
        self.seeks: list[tuple[int, int]] = []
        """Index of the event, and where to."""
        self.position = -1
        """The highest next position that it was delivered up to, or sought."""
        self.kept = -1
        """The highest of those that no truncation has taken away."""
        self.commits: list[Commit] = []
        self.stale = False
        """A commit was answered: you are no longer a member."""
        self.cut = 0
        """The index of the event that truncated the log meanwhile; 0: none did."""
        self.resumed = 0
        """The index of the seek that went on within what a truncation had left."""
        self.mute = False
        """When it was closed its member could send no commit: another one waited for its answer, or the
        member had been frozen until the revoke's time was up.
        """
        self.short = False
        """The broker refused its member's metadata as too large: what is done above a gap stays out."""
        self.last_starts: dict[Lane, tuple[Sent, int]] = {}
        """The record that started last, and the index of that event."""
        self.restored: list[tuple[int, int]] | None = None
        """Runs that the commit listed as done from which the assignment began; found when somebody asks."""
        self.first_gap: int | None = None
        """The lowest offset that it left undone; found when somebody asks, after its end."""
        self.failures: dict[int, int] = {}
        """Failed attempts by offset, since the last seek."""
        self.halted: Event | None = None
        """The failed attempt that was the last one allowed, until somebody seeks."""
        self.held: dict[int, int] = {}
        """Delivered and not started: by offset the index of the poll."""
        self.started: dict[Sent, int] = {}
        """Started and not known to be done: the index of the last attempt's end, or -1."""

    @property
    def is_cut(self) -> bool:
        """The log was truncated, and where it went on since is not known: its offsets mean nothing."""
        return self.cut > self.resumed

    def is_adopted(self, record: Sent) -> bool:
        """A straggler of the same member has done it during this tenure, or it was settled otherwise."""
        since = max(self.index, self.resumed)
        settled = record.ends + record.dones
        return any(member == self.assign.member and index > since for member, index in settled)

    def drain_ns(self, grace_ms: int) -> int | None:
        """Until when its revoke waits for what runs; None when it was not revoked."""
        if self.revoke_ns is None:
            return None
        grace = self.revoke_ns + grace_ms * NS_PER_MS
        return grace if self.deadline_ns is None else min(grace, self.deadline_ns - REVOKE_COMMIT_NS)


class Call:
    """One run of a handler."""

    __slots__ = ("end", "end_index", "index", "is_late", "lane", "part", "record", "start", "tenure")

    def __init__(
        self, part: Partition, start: Event, index: int, tenure: Tenure | None, lane: Hashable
    ) -> None:
        self.part = part
        self.start = start
        self.index = index
        self.record: Sent | None = part.log.records.get(start.offset)
        """None: nobody sent it."""
        self.tenure = tenure
        """The tenure in which it started."""
        self.lane = lane
        self.is_late = False
        """Started past the lease, but its check came before a freeze."""
        self.end: Event | None = None
        """Its end, or its member's death."""
        self.end_index = -1


class Commit:
    """One commit of one partition."""

    __slots__ = ("answer", "answer_ns", "event", "index", "is_near_cap", "refused_chars", "runs", "tenure")

    def __init__(self, event: Event, index: int, tenure: Tenure | None, *, refused_chars: int | None) -> None:
        self.event = event
        self.index = index
        self.tenure = tenure
        self.refused_chars = refused_chars
        """The shortest metadata of this member that the broker had refused as too large; None: none."""
        self.answer = ""
        self.answer_ns: int | None = None
        self.runs: list[tuple[int, int]] | None = None
        """Decoded when somebody asks."""
        self.is_near_cap: bool | None = None
        """Runs may have been left out; found when somebody asks."""

    @property
    def is_acknowledged(self) -> bool:
        """The member heard that it is stored."""
        return self.answer == _ACKNOWLEDGED


@dataclass
class Log:
    """The records of a partition, between two truncations."""

    records: dict[int, Sent] = field(default_factory=dict)
    ordered: list[Sent] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    started: set[int] = field(default_factory=set)
    """Offsets that a handler was ever given."""
    reused_below: int = 0
    """Offsets below it may have had another record before a truncation."""


@dataclass
class Partition:
    """One partition and what happens to it now."""

    tp: TopicPartition
    log: Log
    tenures: dict[str, Tenure] = field(default_factory=dict)
    """By member, its latest."""
    running: dict[Hashable, list[Call]] = field(default_factory=dict)
    """By lane."""
    calls: dict[str, dict[int, list[Call]]] = field(default_factory=dict)
    """The same by member and offset."""
    commits: list[Commit] = field(default_factory=list)
    last_commits: dict[str, Commit] = field(default_factory=dict)
    """By member."""
    waiting: int = 0
    """Index in the log's order of the first record that is not settled, or was found lost."""
    listed: frozenset[tuple[int, int]] = frozenset()
    """The runs that the last commit listed as done: what they hold was judged."""
    cut_at: int | None = None
    """The end of the log after its last truncation; what is sent later moves it on."""
    jumps: int = 1
    """How many starts at the log's end (`offset_reset="latest"`) may still pass over records."""

    def running_of(self, member: str) -> list[Call]:
        """The calls of `member` that run now."""
        return [call for calls in self.calls.get(member, {}).values() for call in calls]


FaultSink = Callable[..., None]
"""`found(check, text, *events)` takes a fault down."""


class Checker:
    """Hears of what happens, in the order of time; a subclass listens to what it judges."""

    def __init__(self, rules: Rules, found: FaultSink) -> None:
        self.rules = rules
        self.found = found

    def started(self, call: Call) -> None:
        """A handler began; it is not among those that run yet."""

    def ended(self, call: Call) -> None:
        """A handler ended; it is not among those that run any more."""

    def settled(self, part: Partition, record: Sent, event: Event, index: int) -> None:
        """A record was settled without a handler's success."""

    def polled(self, part: Partition, tenure: Tenure, event: Event, index: int) -> None:
        """A chunk was delivered."""

    def sought(self, part: Partition, event: Event) -> None:
        """A member moved its position."""

    def revoked(self, tenure: Tenure, index: int) -> None:
        """A revoke began, or the tenure ended without one."""

    def closed(self, part: Partition, tenure: Tenure, event: Event) -> None:
        """A member gave the partition back or heard that it is gone."""

    def outdated(self, part: Partition, event: Event) -> None:
        """The commit that is sent next has the token of an assignment that is over."""

    def committed(self, part: Partition, commit: Commit) -> None:
        """A commit was sent."""

    def finished(self, parts: Mapping[TopicPartition, Partition]) -> None:
        """The history has ended."""
