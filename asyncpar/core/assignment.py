"""A partition's life while this member has it, as a table, and its generation.

    opening --opened--> open --halt--> halted --resume--> opening
    opening --halt--> halted (no position, and offset_reset=error)
    open --reopen--> opening (the log was truncated below the position)
       any of them --revoke--> draining --release--> (gone)
       any of them --lose--> (gone)

A generation is our own number: it grows with every assignment of the partition, and everything in
flight belongs to the `Queues` object of its generation. Kafka's group generation occurs in the
commit token only: it can stay the same over two assignments.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from asyncpar.core.offsets import OffsetTracker
from asyncpar.core.virtual_partitions import Queues
from asyncpar.records import Committed, TopicPartition


class State(enum.Enum):
    """Where a partition is in its life."""

    OPENING = "opening"
    """Assigned; its committed offset is being read. Not fetched, not committed."""
    OPEN = "open"
    HALTED = "halted"
    """A record failed for good: nothing starts, nothing is fetched; what is done is committed."""
    DRAINING = "draining"
    """Revoked: nothing starts, what runs may end."""
    GONE = "gone"


class Event(enum.Enum):
    """What can happen to a partition."""

    OPENED = "opened"
    HALT = "halt"
    RESUME = "resume"
    REOPEN = "reopen"
    REVOKE = "revoke"
    RELEASE = "release"
    LOSE = "lose"


TRANSITIONS: Mapping[tuple[State, Event], State] = {
    (State.OPENING, Event.OPENED): State.OPEN,
    (State.OPENING, Event.HALT): State.HALTED,
    (State.OPENING, Event.REVOKE): State.DRAINING,
    (State.OPENING, Event.LOSE): State.GONE,
    (State.OPEN, Event.HALT): State.HALTED,
    (State.OPEN, Event.REOPEN): State.OPENING,
    (State.OPEN, Event.REVOKE): State.DRAINING,
    (State.OPEN, Event.LOSE): State.GONE,
    (State.HALTED, Event.HALT): State.HALTED,
    (State.HALTED, Event.RESUME): State.OPENING,
    (State.HALTED, Event.REVOKE): State.DRAINING,
    (State.HALTED, Event.LOSE): State.GONE,
    (State.DRAINING, Event.HALT): State.DRAINING,
    (State.DRAINING, Event.RELEASE): State.GONE,
    (State.DRAINING, Event.LOSE): State.GONE,
}


class Partition:
    """One assigned partition: state, generation, and (once opened) its offsets and queues."""

    __slots__ = (
        "acknowledged",
        "acknowledged_plain",
        "backpressure",
        "generation",
        "halt_reason",
        "halted_at",
        "metadata_truncated",
        "queues",
        "state",
        "tp",
        "tracker",
    )

    def __init__(self, tp: TopicPartition, generation: int) -> None:
        self.tp = tp
        self.generation = generation
        self.state = State.OPENING
        self.tracker: OffsetTracker | None = None
        self.queues: Queues | None = None
        self.acknowledged: Committed | None = None
        """What the broker is known to have stored in this generation, or had at its start."""
        self.acknowledged_plain: Committed | None = None
        """The same without how often records failed; None when it was not committed in this generation."""
        self.backpressure = False
        self.halt_reason: str | None = None
        self.halted_at = 0.0
        """When it was halted, monotonic seconds."""
        self.metadata_truncated = False

    def apply(self, event: Event) -> None:
        """Move along the table. ValueError for a step that the table does not have."""
        try:
            self.state = TRANSITIONS[self.state, event]
        except KeyError:
            raise ValueError(f"{self.tp}: {event.value} is not possible while {self.state.value}") from None

    @property
    def is_open(self) -> bool:
        """True when it may be fetched."""
        return self.state is State.OPEN

    @property
    def in_flight(self) -> int:
        """Records held: queued, running or parked."""
        return 0 if self.tracker is None else len(self.tracker.unfinished)


class Generations:
    """The counter of each partition; it outlives assignments."""

    __slots__ = ("_last", "given")

    def __init__(self) -> None:
        self._last: dict[TopicPartition, int] = {}
        self.given = 0
        """How many were given, of all partitions: while it stays the same, so do they."""

    def next(self, tp: TopicPartition) -> int:
        """A generation that `tp` has not had before, from 1."""
        self.given += 1
        self._last[tp] = generation = self._last.get(tp, 0) + 1
        return generation
