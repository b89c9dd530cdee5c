"""What a case of these tests is: a request, an error, a moment, and what has to come of it.

What lives here: Kafka's error codes by name, and the words for a case. What never does: the table (`cases`)
and running it (`lives`).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from asyncpar.errors import AsyncparError
from tests.wire.mock_cluster import TRANSPORT, Request

ALWAYS = 0
"""As a number of times: until the end, or until `heal_seconds` are over."""


class Code(enum.IntEnum):
    """What a broker may answer, by Kafka's own names; `HANGS_UP` and `LATE` are what a network does."""

    HANGS_UP = TRANSPORT
    UNKNOWN_SERVER_ERROR = -1
    LATE = 0
    OFFSET_OUT_OF_RANGE = 1
    CORRUPT_MESSAGE = 2
    UNKNOWN_TOPIC_OR_PARTITION = 3
    LEADER_NOT_AVAILABLE = 5
    NOT_LEADER_OR_FOLLOWER = 6
    REQUEST_TIMED_OUT = 7
    REPLICA_NOT_AVAILABLE = 9
    OFFSET_METADATA_TOO_LARGE = 12
    COORDINATOR_LOAD_IN_PROGRESS = 14
    COORDINATOR_NOT_AVAILABLE = 15
    NOT_COORDINATOR = 16
    INVALID_TOPIC_EXCEPTION = 17
    ILLEGAL_GENERATION = 22
    INCONSISTENT_GROUP_PROTOCOL = 23
    INVALID_GROUP_ID = 24
    UNKNOWN_MEMBER_ID = 25
    INVALID_SESSION_TIMEOUT = 26
    REBALANCE_IN_PROGRESS = 27
    INVALID_COMMIT_OFFSET_SIZE = 28
    TOPIC_AUTHORIZATION_FAILED = 29
    GROUP_AUTHORIZATION_FAILED = 30
    UNSUPPORTED_VERSION = 35
    INVALID_REQUEST = 42
    UNSUPPORTED_FOR_MESSAGE_FORMAT = 43
    KAFKA_STORAGE_ERROR = 56
    GROUP_ID_NOT_FOUND = 69
    FENCED_LEADER_EPOCH = 74
    UNKNOWN_LEADER_EPOCH = 75
    UNSUPPORTED_COMPRESSION_TYPE = 76
    OFFSET_NOT_AVAILABLE = 78
    MEMBER_ID_REQUIRED = 79
    GROUP_MAX_SIZE_REACHED = 81
    FENCED_INSTANCE_ID = 82
    UNSTABLE_OFFSET_COMMIT = 88
    UNKNOWN_TOPIC_ID = 100


class Phase(enum.Enum):
    """When the cluster is given the fault."""

    START = "start"
    """Before the app starts."""
    RUNNING = "running"
    """When the first records are handled and committed."""
    STOP = "stop"
    """When the first records are handled, right before the stop; for commits, while the next ones run."""


class Rewrite(enum.Enum):
    """Answers that the mock cluster cannot give: a proxy in front of it writes them."""

    PARTITIONS = "in-partitions"
    """The code stands beside each partition, and none beside the whole."""
    WHOLE = "alone"
    """The code stands beside the whole and there are no topics, as real brokers do."""
    MEMBER_ID = "with-id"
    """The refusal carries a member id."""


@dataclass(frozen=True)
class Case:
    """`request` is answered with `code` for `times` times in `phase`; the app recovers, or ends with `ends`.

    `beside` are other faults that make the client send `request` at all; `after` those that a real broker
    shows next. `repeats`: the member loses its partitions without a revoke, so records may run again.
    `says`: a part of the error's text. `is_quiet`: that it lasts for seconds is no news.
    """

    request: Request
    code: Code
    phase: Phase
    times: int = 1
    beside: tuple[tuple[Request, Code], ...] = ()
    after: tuple[tuple[Request, Code], ...] = ()
    heal_seconds: float = 0.0
    delay_ms: int = 0
    rewrite: Rewrite | None = None
    ends: type[AsyncparError] | None = None
    says: str = ""
    repeats: bool = False
    is_quiet: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """`heartbeat-25-UNKNOWN_MEMBER_ID-running`: what pytest shows, and the group's name."""
        parts = [self.request.name.lower(), str(int(self.code)), self.code.name, self.phase.value]
        if self.rewrite is not None:
            parts.append(self.rewrite.value)
        if self.times == ALWAYS:
            parts.append("a-while" if self.heal_seconds else "always")
        return "-".join(parts)
