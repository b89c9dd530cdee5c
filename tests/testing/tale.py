"""A history told by hand, for the checkers' tests: one partition, as many members as it takes.

Each step is a millisecond later than the one before. Never here: a checker.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from asyncpar.core.offset_codec import encode
from asyncpar.core.offsets import Run
from asyncpar.records import TopicPartition
from asyncpar.testing.checkers import Report, Rules, check
from asyncpar.testing.history import DELETE_RECORDS, TRUNCATE, Event, Kind

TP = TopicPartition("orders", 0)
SESSION_MS = 10_000
GRACE_MS = 5_000
RULES = Rules(session_timeout_ms=SESSION_MS, max_revoke_grace_ms=GRACE_MS)


def metadata(offset: int, *runs: Run) -> str:
    """Commit metadata that lists `runs` as done above `offset`."""
    return encode(TP, offset, runs).text


class Tale:
    """Events as they are told; every method returns the tale."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.now_ms = 1_000
        self._keys: dict[int, bytes | None] = {}

    def judged(self, rules: Rules = RULES) -> Report:
        """What the checkers say."""
        return check(self.events, rules)

    def wait(self, milliseconds: int) -> Self:
        self.now_ms += milliseconds
        return self

    def note(
        self,
        kind: Kind,
        member: str = "",
        offset: int = -1,
        detail: str = "",
        key: bytes | None = None,
        tp: TopicPartition = TP,
    ) -> Self:
        self.now_ms += 1
        self.events.append(Event(kind, self.now_ms * 1_000_000, member, tp, offset, key, detail))
        return self

    def sent(self, *offsets: int, key: bytes | None = b"k", size: int = 10) -> Self:
        for offset in offsets:
            self._keys[offset] = key
            self.note("send", offset=offset, key=key, detail=str(size))
        return self

    def given(self, member: str, start: int = 0) -> Self:
        """Assigned and opened at `start`."""
        return self.note("assign", member).note("seek", member, start)

    def polled(self, member: str, first: int, end: int) -> Self:
        return self.note("poll", member, first, str(end))

    def began(self, member: str, offset: int, lease_ms: int | None = None) -> Self:
        """`lease_ms`: how long ago the sign of membership was sent."""
        sign = "" if lease_ms is None else str((self.now_ms - lease_ms) * 1_000_000)
        return self.note("start", member, offset, sign, self._keys.get(offset))

    def ended(self, member: str, offset: int, how: str = "ok") -> Self:
        return self.note("end", member, offset, how, self._keys.get(offset))

    def ran(self, member: str, *offsets: int, how: str = "ok") -> Self:
        for offset in offsets:
            self.began(member, offset).ended(member, offset, how)
        return self

    def commit_sent(self, member: str, offset: int, *runs: Run, text: str | None = None) -> Self:
        return self.note("commit", member, offset, metadata(offset, *runs) if text is None else text)

    def answered(self, member: str, answer: str) -> Self:
        return self.note("answer", member, detail=answer)

    def committed(self, member: str, offset: int, *runs: Run, text: str | None = None) -> Self:
        """Sent and acknowledged."""
        return self.commit_sent(member, offset, *runs, text=text).answered(member, "acknowledged")

    def revoked(self, member: str, within_ms: int = 8_000) -> Self:
        return self.note("revoke", member, detail=str((self.now_ms + within_ms) * 1_000_000))

    def released(self, member: str) -> Self:
        return self.note("released", member)

    def truncated(self, end: int) -> Self:
        return self.note("fault", offset=end, detail=TRUNCATE)

    def deleted(self, before: int) -> Self:
        return self.note("fault", offset=before, detail=DELETE_RECORDS)


def broken(tale: Tale, rules: Rules = RULES) -> Sequence[str]:
    """The checks that found something, sorted."""
    return sorted(tale.judged(rules).broken)


def fine(tale: Tale, rules: Rules = RULES) -> bool:
    """Nothing was found; says what was."""
    report = tale.judged(rules)
    assert report.is_ok, report.explain()
    return True
