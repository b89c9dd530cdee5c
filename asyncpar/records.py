"""The words that every room speaks: partitions, records, commits and outcomes.

Plain data only. Nothing here decides, waits or knows Kafka's client. Imported by every other
module; imports none of them.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, TypeAlias


class TopicPartition(NamedTuple):
    """One partition of one topic. Equal to any `(topic, partition)` tuple, also the client's own."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]"


class RawRecord(Protocol):
    """A record as the client delivers it: bytes in, nothing decoded.

    Topic and partition belong to the chunk that a record came in, never to the record: core and
    workers must not read them from here. `match=` and `order=` functions get `(topic, raw)`.
    """

    @property
    def offset(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes]]: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def timestamp_type(self) -> int: ...


class Chunk(NamedTuple):
    """What one fetch delivered of one partition, in ascending order of offsets."""

    topic: str
    partition: int
    records: list[RawRecord]


class OutgoingRecord(NamedTuple):
    """A record to be written. `partition` None: by the hash of its key, as Kafka's own clients choose."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    partition: int | None = None
    timestamp: int | None = None
    """Milliseconds since the epoch; None: now."""


class Committed(NamedTuple):
    """A committed position: the next offset to read (the HWM) and the metadata string beside it."""

    offset: int
    metadata: str


class GroupToken(NamedTuple):
    """What a commit is bound to: Kafka's group generation and the member id it was given with."""

    generation: int
    member_id: str


class CommitAnswer(enum.Enum):
    """What the group coordinator said to one partition of a commit."""

    ACKNOWLEDGED = "acknowledged"
    """Stored."""
    METADATA_TOO_LARGE = "metadata_too_large"
    """Refused: the broker's `offset.metadata.max.bytes` is smaller than the string sent."""
    STALE = "stale"
    """Refused: the token is of an older group generation or of a member that was removed."""
    RETRY = "retry"
    """Not stored, or nobody knows (lost answer, time-out): commit again, at least as high."""
    FORBIDDEN = "forbidden"
    """Refused: no right on the group or on the topic. Final."""
    UNKNOWN_TOPIC = "unknown_topic"
    """Refused: the topic or the partition is gone."""


class Verdict(enum.Enum):
    """How one attempt on a record ended."""

    SUCCESS = "success"
    FAILED = "failed"
    UNDECODABLE = "undecodable"
    SKIPPED = "skipped"


OnError: TypeAlias = Literal["retry", "dead_letter", "skip", "halt"]
"""What a handler's declaration asks for when an attempt raised an exception of some class."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a middleware gets from `call_next(call)` and returns, changed or not.

    `error` is set when `verdict` is FAILED or UNDECODABLE and None otherwise.
    """

    verdict: Verdict
    error: BaseException | None = None

    @property
    def ok(self) -> bool:
        """True when the record counts as done: it succeeded, or it was skipped on purpose."""
        return self.verdict is Verdict.SUCCESS or self.verdict is Verdict.SKIPPED


SUCCESS = Outcome(Verdict.SUCCESS)


@dataclass(frozen=True, slots=True)
class Record:
    """One Kafka record as a handler sees it when it asks for `Record`.

    `key` and `value` are the raw bytes (None for a missing key, or for a tombstone). `timestamp`
    is in milliseconds since the epoch, as the producer or the broker set it (`timestamp_type`: 0
    create time, 1 log append time). `attempt` counts from 1. `generation` is asyncpar's own
    counter of the partition, which grows whenever the partition is revoked or lost.
    """

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = field(default=())
    timestamp: int = -1
    timestamp_type: int = 0
    attempt: int = 1
    generation: int = 0

    def header(self, name: str) -> bytes | None:
        """The value of header `name`; where it occurs more than once, the last one. Else None."""
        for key, value in reversed(self.headers):
            if key == name:
                return value
        return None
