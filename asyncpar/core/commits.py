"""When to commit, what to commit, and what each answer means.

A commit is taken from the trackers in one breath (offset and metadata of the same moment), is
bound to a token by the runtime, and counts only when the broker acknowledged it. Always true: the
offset committed for a partition never passes its lowest unfinished record and never goes back
within a generation.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from asyncpar.core.assignment import Partition, State
from asyncpar.core.offset_codec import MAX_CHARS, MIN_CHARS, decode_attempts, encode
from asyncpar.core.offsets import OffsetTracker
from asyncpar.core.virtual_partitions import ANY_OFFSET, NO_OFFSET
from asyncpar.records import CommitAnswer, Committed, TopicPartition

MIN_SPACING_SECONDS = 0.05
_CAP_SHARE = 0.75
_RELEASE_SHARE = 0.5


@dataclass(slots=True)
class CommitClock:
    """Decides when: every `commit_every` completions or `commit_interval_ms`, whichever is first.

    Never closer than 50 ms apart. At once (after that spacing) when nothing is in flight.
    """

    commit_every: int
    commit_interval_ms: int
    _last_at: float = float("-inf")
    _completed: int = 0

    def is_due(self, now: float, completed: int, idle: bool) -> bool:
        """`completed` is the count of completions since the start; `idle`: nothing is in flight."""
        since = now - self._last_at
        if since < MIN_SPACING_SECONDS:
            return False
        if idle or completed - self._completed >= self.commit_every:
            return True
        return since * 1000 >= self.commit_interval_ms

    def committed(self, now: float, completed: int) -> None:
        """A commit of everything up to `completed` was tried at `now`."""
        self._last_at = now
        self._completed = completed


class Draft(NamedTuple):
    """One partition's part of a commit, tied to the generation that it was taken from."""

    partition: Partition
    generation: int
    committed: Committed
    plain: Committed
    """The same without how often records failed."""
    truncated: bool


class Consequence(enum.Enum):
    """What the committer does after one partition's answer."""

    STORED = "stored"
    AGAIN = "again"
    """Try again later; nothing is lost meanwhile."""
    AGAIN_SHORTER = "again_shorter"
    """Commit again at once, with less metadata."""
    DROP = "drop"
    """The token is stale: the partition is no longer ours to commit."""
    FATAL = "fatal"
    """No right to commit: the run ends, it would otherwise redo everything for ever."""
    FORGET = "forget"
    """The topic is gone; there is nothing to commit to."""


CONSEQUENCES: Mapping[CommitAnswer, Consequence] = {
    CommitAnswer.ACKNOWLEDGED: Consequence.STORED,
    CommitAnswer.METADATA_TOO_LARGE: Consequence.AGAIN_SHORTER,
    CommitAnswer.STALE: Consequence.DROP,
    CommitAnswer.RETRY: Consequence.AGAIN,
    CommitAnswer.FORBIDDEN: Consequence.FATAL,
    CommitAnswer.UNKNOWN_TOPIC: Consequence.FORGET,
}


class MetadataBudget:
    """How long the metadata may be: the broker's limit, learned from its refusals."""

    __slots__ = ("max_chars",)

    def __init__(self) -> None:
        self.max_chars = MAX_CHARS

    def refused(self, chars: int) -> None:
        """The broker refused `chars`: halve, so that a few refusals find the limit; 0 ends it.

        Room for hardly a run is taken for none: the gate would be closed at almost every gap.
        """
        if chars <= self.max_chars:
            half = chars // 2
            self.max_chars = half if half >= MIN_CHARS else 0

    def is_near_cap(self, chars: int, truncated: bool) -> bool:
        """True when only records below the highest done offset may start."""
        return self.max_chars > 0 and (truncated or chars > self.max_chars * _CAP_SHARE)

    def is_clear(self, chars: int, truncated: bool) -> bool:
        """True when all records may start again."""
        return self.max_chars == 0 or (not truncated and chars <= self.max_chars * _RELEASE_SHARE)


_COMMITTED_IN = frozenset({State.OPEN, State.HALTED, State.DRAINING})


def draft(partition: Partition, budget: MetadataBudget) -> Draft | None:
    """What to commit for `partition` now; None when the broker has it already, or there is nothing.

    That a record has failed once more is no reason for a commit of its own: it goes along with the next one,
    and with the last one of an assignment. That failures were given back is: who begins there must not find
    them used up.
    """
    tracker, queues = partition.tracker, partition.queues
    if tracker is None:
        return None
    if (
        partition.state is State.OPEN
        and tracker.all_done
        and queues is not None
        and queues.start_below is ANY_OFFSET
        and not queues.attempts
    ):  # nearly always so, and quicker than by what follows, which says the same
        partition.metadata_truncated = False
        plain = Committed(tracker.position, "")
        if plain == partition.acknowledged:
            return None
        return Draft(partition, partition.generation, plain, plain, truncated=False)
    if partition.state not in _COMMITTED_IN:
        return None
    made = _steered(partition, tracker, budget)
    is_last = partition.state is State.DRAINING
    if made.committed == partition.acknowledged or (
        not is_last and made.plain == partition.acknowledged_plain and not _gave_back(partition)
    ):
        return None
    return made


def _drafted(partition: Partition, tracker: OffsetTracker, budget: MetadataBudget) -> Draft:
    hwm, runs = tracker.hwm, tracker.done_runs()
    encoded = encode(partition.tp, hwm, runs, budget.max_chars)
    plain = committed = Committed(hwm, encoded.text)
    attempts = _attempts(partition, hwm)
    if attempts and not encoded.truncated:
        committed = Committed(hwm, encode(partition.tp, hwm, runs, budget.max_chars, attempts).text)
    return Draft(partition, partition.generation, committed, plain, encoded.truncated)


def _attempts(partition: Partition, hwm: int) -> dict[int, int]:
    """Of records that are not done; those of records that never came back are forgotten."""
    queues = partition.queues
    if queues is None or not queues.attempts:
        return {}
    for offset in [offset for offset in queues.attempts if offset < hwm]:
        del queues.attempts[offset]
    return {offset: made for offset, made in queues.attempts.items() if made > 0}


def _gave_back(partition: Partition) -> bool:
    """The broker, which has all else of `partition`, holds more failures of a record than it has by now."""
    stored = partition.acknowledged
    assert stored is not None
    before = decode_attempts(partition.tp, stored.offset, stored.metadata)
    attempts = {} if partition.queues is None else partition.queues.attempts
    return any(attempts.get(offset, 0) < made for offset, made in before.items())


def is_stored(partition: Partition, budget: MetadataBudget) -> bool:
    """True when the broker has all that is known of `partition`, also when that is no longer ours."""
    tracker = partition.tracker
    if tracker is None:
        return True
    made = _drafted(partition, tracker, budget)
    return made.committed == partition.acknowledged or made.plain == partition.acknowledged_plain


def drafts(partitions: Iterable[Partition], budget: MetadataBudget) -> list[Draft]:
    """What to commit now, of all partitions in one breath."""
    return [made for partition in partitions if (made := draft(partition, budget)) is not None]


def _steered(partition: Partition, tracker: OffsetTracker, budget: MetadataBudget) -> Draft:
    """The draft of now, after which the gate is where its metadata wants it."""
    made = _drafted(partition, tracker, budget)
    partition.metadata_truncated = made.truncated
    _steer_gate(partition, budget, len(made.plain.metadata), made.truncated)
    return made


def _steer_gate(partition: Partition, budget: MetadataBudget, chars: int, truncated: bool) -> None:
    """Near the cap nothing above the highest done offset starts, so that the metadata can only shrink.

    While it stays long the gate follows that offset: holes in a chunk that was on its way when the gate
    closed, or records that were running, can be too long by themselves, with all that may start done.
    """
    queues, tracker = partition.queues, partition.tracker
    if queues is None or tracker is None or queues.start_below == NO_OFFSET:
        return
    if queues.start_below == ANY_OFFSET:
        is_long = budget.is_near_cap(chars, truncated)
    else:
        is_long = not budget.is_clear(chars, truncated)
    queues.move_gate(tracker.done_runs()[-1][1] if is_long else ANY_OFFSET)


def follow_gate(partition: Partition, budget: MetadataBudget) -> bool:
    """Move a gate that the cap has closed to where it belongs by now; True when more may start.

    Each draft does that too, but none is made while a commit waits for its answer, or the next assignment.
    """
    queues, tracker = partition.queues, partition.tracker
    if queues is None or tracker is None or queues.start_below in (ANY_OFFSET, NO_OFFSET):
        return False
    before = queues.start_below
    _steered(partition, tracker, budget)
    return queues.start_below > before


def settle(made: Draft, answer: CommitAnswer, budget: MetadataBudget) -> Consequence:
    """Take an answer in: only an acknowledgement of the same generation moves `acknowledged`."""
    consequence = CONSEQUENCES[answer]
    if consequence is Consequence.AGAIN_SHORTER:
        budget.refused(len(made.committed.metadata))
    elif consequence is Consequence.STORED and made.generation == made.partition.generation:
        made.partition.acknowledged, made.partition.acknowledged_plain = made.committed, made.plain
    return consequence


def by_partition(made: Iterable[Draft]) -> dict[TopicPartition, Committed]:
    """The request's form."""
    return {one.partition.tp: one.committed for one in made}
