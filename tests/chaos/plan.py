"""What a member is told, and how it treats a record: from slow to never, decided by the record's place alone.

What lives here: plain data and plain functions. What never does: Kafka, processes, clocks. Called by
`member.py`, `crew.py`, `round.py` and the rebalances. Always: every member that meets a record treats it
alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple
from zlib import crc32

SESSION_TIMEOUT_MS = 1500
GRACE_MS = 1500
DRAIN_MS = 3000
MAX_IN_FLIGHT = 300
QUICK_CONCURRENCY = 16
SLOW_CONCURRENCY = 32
LONGEST_KIND_SECONDS = 0.055
"""What an ordinary slow record takes at most."""

EXIT_UNREACHABLE = 4
EXIT_UNFINISHED = 10
READY = "asyncpar chaos member is ready"
"""What a member writes on stderr once it has connected."""

SETTINGS: dict[str, Any] = {
    "session_timeout_ms": SESSION_TIMEOUT_MS,
    "heartbeat_interval_ms": 300,
    "commit_interval_ms": 100,
    "commit_every": 200,
    "max_revoke_grace_ms": GRACE_MS,
    "shutdown_drain_timeout_ms": DRAIN_MS,
    "metadata_max_age_ms": 1000,
    "fetch_max_wait_ms": 200,
    "max_in_flight": MAX_IN_FLIGHT,
    "poll_batch_size": 100,
    "http_port": 0,
}


@dataclass(frozen=True)
class MemberPlan:
    """One member process: its name in the history, where it connects, what it reads.

    `is_kind`: no call fails, and none lasts longer than any grace. `settings`: what is set otherwise than in
    `SETTINGS`.
    """

    name: str
    bootstrap: str
    group: str
    quick_topic: str
    slow_topic: str
    history: str
    is_kind: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_argument(self) -> str:
        """For the member's command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_argument(cls, text: str) -> MemberPlan:
        """In the member."""
        return cls(**json.loads(text))


class Temper(NamedTuple):
    """How a call goes: `seconds` of work, `failures` attempts that raise, `is_deaf` to one cancellation."""

    seconds: float
    failures: int = 0
    is_deaf: bool = False


def temper(topic: str, partition: int, offset: int, *, is_quick: bool) -> Temper:
    """How the record at this place is treated. Of the slow ones a few outlast the grace, raise, are deaf."""
    lot = crc32(f"{topic} {partition} {offset}".encode())
    share, rest = lot % 1000, (lot // 1000) % 1000 / 1000
    if is_quick:
        return Temper(0.004 * rest, failures=1 if share < 5 else 0)
    if share < 1:
        return Temper(2.0, is_deaf=True)
    if share < 3:
        return Temper(GRACE_MS / 1000 + 0.5 + rest)
    if share < 15:
        return Temper(0.3 + 0.7 * rest)
    if share < 40:
        return Temper(0.02, failures=1 + share % 3)
    return Temper(0.005 + 0.05 * rest)


def kind_temper(topic: str, partition: int, offset: int, *, is_quick: bool) -> Temper:
    """The same record where every call ends well, and soon."""
    ordinary = temper(topic, partition, offset, is_quick=is_quick)
    return Temper(min(ordinary.seconds, LONGEST_KIND_SECONDS))
