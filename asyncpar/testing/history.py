"""The history of a run: what was sent, delivered, handled and committed, one event each.

One format for the in-memory broker, the simulation and real processes on a real Kafka, so that one set
of checkers judges all of them. Never here: what the engine says about itself; events are written by
the world around it (broker, handlers, a consumer that records) and only there.

In a file an event is one line, written by one write() to a file opened with O_APPEND: lines of several
processes never mix, and `kill -9` loses none that was written.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from asyncpar.records import TopicPartition

Kind = Literal[
    "send",
    "poll",
    "assign",
    "seek",
    "revoke",
    "released",
    "lost",
    "start",
    "end",
    "done",
    "outdated",
    "commit",
    "answer",
    "freeze",
    "thaw",
    "dead",
    "join",
    "leave",
    "fault",
    "heal",
]
"""What happened. With the fields that say more:

- `send`: a record exists that a consumer will be given (`key`; `detail` its payload's size in bytes).
- `poll`: `member` was delivered a chunk: from `offset` up to `detail` (the next position).
- `assign`, `lost`: `member` was given the partition, or heard that it belongs to others.
- `seek`: the next record that `member` is delivered of the partition is at `offset` or above.
- `revoke`, `released`: the revoke began (`detail` the time in ns by which it had to return), and returned.
- `start`: a handler call of `member` began (`detail` the ns of the membership sign that allowed it, or "").
- `end`: it ended (`detail` is ok, failed or cancelled).
- `done`: the record was settled without a handler's success. `detail` says how: skipped; dead_letter or
  retry: the topic of its dead letters, or the next retry topic, has acknowledged it to `member`.
- `outdated`: the commit of `offset` that `member` sends next has not the token of its latest assignment.
- `commit`: `member` sent a commit of `offset` (`detail` is the metadata string).
- `answer`: what `member` heard about the commit it sent last of this partition (`detail`: a CommitAnswer).
- `freeze`, `thaw`, `dead`: `member` did not run from here, ran on, or was killed. Behind its `leave`, `dead`
  says that the process ended with an error: not all was done and stored, or (`detail` is `FAILED`) it had
  failed and stopped without waiting for anything.
- `join`, `leave`: `member` began, or ended with a clean stop.
- `fault`, `heal`: the world did something to it (`detail` names what), or all faults ended. Three faults
  change what the broker holds and say where: `TRUNCATE` (the records from `offset` on are gone; those sent
  later take their place), `DELETE_RECORDS` (those below `offset` are gone) and `OVERWRITE` (somebody else has
  written the metadata beside the committed `offset`).

A clean stop's `leave` is noted before the member really leaves: what happens to others comes after it.
"""
TRUNCATE = "truncate"
DELETE_RECORDS = "delete_records"
OVERWRITE = "overwrite"
FAILED = "failed"
SKIPPED = "skipped"
DEAD_LETTER = "dead_letter"
RETRY = "retry"

_KINDS = frozenset(get_args(Kind))
NO_PARTITION = TopicPartition("-", -1)
NO_OFFSET = -1


class Event(NamedTuple):
    """One thing that happened. `at_ns` is CLOCK_MONOTONIC, comparable between processes of a machine."""

    kind: Kind
    at_ns: int
    member: str = ""
    tp: TopicPartition = NO_PARTITION
    offset: int = NO_OFFSET
    key: bytes | None = None
    detail: str = ""

    def __str__(self) -> str:
        where = "" if self.tp == NO_PARTITION else f" {self.tp}"
        offset = "" if self.offset == NO_OFFSET else f" {self.offset}"
        key = "" if self.key is None else f" key {self.key!r}"
        what = f"{self.kind}{where}{offset}{key} {self.detail}"
        return f"{self.at_ns / 1e9:.6f} {self.member or '-'} {what}".rstrip()


class Recorder(ABC):
    """Takes events down. `clock` gives CLOCK_MONOTONIC in ns, or a simulation's time."""

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.clock = clock

    @abstractmethod
    def append(self, event: Event) -> None:
        """Take down one event."""

    def note(
        self,
        kind: Kind,
        member: str = "",
        tp: TopicPartition = NO_PARTITION,
        offset: int = NO_OFFSET,
        key: bytes | None = None,
        detail: str = "",
    ) -> None:
        """Take down an event of now."""
        self.append(Event(kind, self.clock(), member, tp, offset, key, detail))


class History(Recorder):
    """Events in memory, in the order they happened."""

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        super().__init__(clock)
        self.events: list[Event] = []

    def append(self, event: Event) -> None:
        """Take down one event."""
        self.events.append(event)


class HistoryFile(Recorder):
    """Events in the file at `path`, created if need be; `close` is optional, nothing is buffered."""

    def __init__(self, path: Path | str, clock: Callable[[], int] = time.monotonic_ns) -> None:
        super().__init__(clock)
        self.path = Path(path)
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def append(self, event: Event) -> None:
        """Write one line; OSError when the file cannot take all of it."""
        line = encode(event)
        if os.write(self._file, line) != len(line):
            raise OSError(f"history {self.path} took only part of a line: is the disk full?")

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


@contextmanager
def handling(
    history: Recorder,
    member: str,
    tp: TopicPartition,
    offset: int,
    key: bytes | None,
    lease_from: Callable[[], float] | None = None,
) -> Iterator[None]:
    """Around a handler's body: `start`, then `end` with ok, failed, or cancelled.

    `lease_from` (a consumer's) makes the start say which sign of membership allowed it.
    """
    sign = "" if lease_from is None else membership_sign(lease_from)
    history.note("start", member, tp, offset, key, sign)
    try:
        yield
    except Exception:
        history.note("end", member, tp, offset, key, "failed")
        raise
    except BaseException:
        history.note("end", member, tp, offset, key, "cancelled")
        raise
    history.note("end", member, tp, offset, key, "ok")


def membership_sign(lease_from: Callable[[], float]) -> str:
    """A start's `detail`: when the sign of membership that allows it was sent, ns; 0 where there was none."""
    seconds = lease_from()
    return str(int(seconds * 1e9)) if seconds > float("-inf") else "0"


def encode(event: Event) -> bytes:
    """The event as a line. ValueError when a text holds a tab or a line break."""
    key = "-" if event.key is None else f"={event.key.hex()}"
    fields = (
        event.kind,
        str(event.at_ns),
        event.member,
        event.tp.topic,
        str(event.tp.partition),
        str(event.offset),
        key,
        event.detail,
    )
    line = "\t".join(fields)
    if line.count("\t") != len(fields) - 1 or "\n" in line:
        raise ValueError(f"an event's texts must hold no tab and no line break: {event!r}")
    return line.encode() + b"\n"


def decode(line: str) -> Event:
    """The event of a line without its line break. ValueError says what is wrong with it."""
    kind, at_ns, member, topic, partition, offset, key, detail = line.split("\t")
    if kind not in _KINDS:
        raise ValueError(f"unknown kind {kind!r}")
    key_bytes = None if key == "-" else bytes.fromhex(key.removeprefix("="))
    tp = TopicPartition(topic, int(partition))
    return Event(kind, int(at_ns), member, tp, int(offset), key_bytes, detail)  # type: ignore[arg-type]


def read(path: Path | str) -> list[Event]:
    """All events in the order written; ValueError names the line that is none.

    What stands behind the last line break is still being written, and is left out.
    """
    text = Path(path).read_bytes()
    # splitlines() would also cut at separators inside a text
    lines = text[: text.rfind(b"\n") + 1].decode().split("\n")[:-1]
    events: list[Event] = []
    for number, line in enumerate(lines, 1):
        try:
            events.append(decode(line))
        except ValueError as error:
            raise ValueError(f"{path}:{number}: not an event ({error}): {line!r}") from None
    return events
