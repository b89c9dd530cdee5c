"""Members that are watched: what their consumers and handlers do goes into a history, and is judged.

What lives here: `Watch` (around one app's consumers and handlers) and `judge`. What never does: a rule; those
are the checkers'. Called by `member_app.py` and by tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from asyncpar import App, Record
from asyncpar.assembly import kafka_consumers
from asyncpar.ports import Consumer
from asyncpar.records import TopicPartition
from asyncpar.testing.checkers import Final, Report, Rules, check
from asyncpar.testing.history import Event, HistoryFile, handling, read
from asyncpar.testing.recording import Recording, recording
from tests.integration.members import FAST
from tests.kafka_tools import Produced

# Threads and other processes note what they saw a little later than it was, on a machine that is busy too.
TOLERANCE_NS = 200_000_000
# The engine's defaults, where a test sets nothing else.
_DRAIN_MS = 30_000
_MAX_IN_FLIGHT = 5_000


class Watch:
    """One member, named `member` in `history`. Give `consumers` to its app, and the app to `app`."""

    def __init__(self, history: HistoryFile, member: str) -> None:
        self.history = history
        self.member = member
        self.app: App | None = None
        self._recording: Recording | None = None

    def consumers(self, group: str) -> Consumer:
        """A recorded consumer on aiokafka, with the app's settings."""
        assert self.app is not None
        if self._recording is None:
            self._recording = recording(kafka_consumers(self.app.settings), self.history, self.member)
        return self._recording(group)

    def handling(self, record: Record) -> AbstractContextManager[None]:
        """Around a handler's body."""
        assert self._recording is not None
        tp = TopicPartition(record.topic, record.partition)
        return handling(self.history, self.member, tp, record.offset, record.key, self._recording.lease_from)


def judge(
    history: Path | Sequence[Event],
    produced: Iterable[Produced],
    finals: Mapping[TopicPartition, Final] | None = None,
    **rules: Any,
) -> Report:
    """What the checkers say of members with the settings `FAST`; `rules` say what was set otherwise."""
    events = read(history) if isinstance(history, Path) else history
    sends = [Event("send", 0, "", TopicPartition(*one[:2]), one.offset, one.key) for one in produced]
    values: dict[str, Any] = {
        "session_timeout_ms": FAST["session_timeout_ms"],
        "max_revoke_grace_ms": FAST["max_revoke_grace_ms"],
        "shutdown_drain_timeout_ms": _DRAIN_MS,
        "max_in_flight": _MAX_IN_FLIGHT,
        "tolerance_ns": TOLERANCE_NS,
        "finals": finals,
    }
    return check([*sends, *events], Rules(**{**values, **rules}))
