"""The ledger: what handlers did, written so that `kill -9` loses none of it, and the checks over it.

What lives here: `Ledger` (the file), `read` and `check`. What never does: Kafka, and any state of asyncpar,
so that the engine cannot vouch for itself. Called by handlers in test processes (writing) and by tests
(reading). Always: one event is one line in one write() to a file opened with O_APPEND, so lines of several
processes never mix and each is in the kernel's hands before the handler goes on. Times are CLOCK_MONOTONIC,
comparable between the processes of one machine; they are taken inside the handler, so that a true overlap
is never hidden and none is invented.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, get_args

# start, end, fail: a handler call begins, succeeds, raises or is cancelled. assign: this writer reads a
# partition (again) from `offset` on. dead: the process `pid` was killed, so nothing of it runs after this.
Kind = Literal["start", "end", "fail", "assign", "dead"]

_KINDS = frozenset(get_args(Kind))


class Place(NamedTuple):
    """Where a record lies; equal to the plain tuple."""

    topic: str
    partition: int
    offset: int


class Writer(NamedTuple):
    """Who wrote: the process, and the instance's name (several may share a process)."""

    pid: int
    instance: str


class Event(NamedTuple):
    """One line of the ledger."""

    kind: Kind
    place: Place
    key: bytes | None
    monotonic_ns: int
    writer: Writer


class ProducedRecord(Protocol):
    """What the checker must know of a record; `kafka_tools.Produced` fits."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...


class Ledger:
    """Append to the ledger at `path`, created if need be. `instance` (no tabs): which one in this process."""

    def __init__(self, path: Path | str, instance: str = "") -> None:
        self.path = Path(path)
        self.instance = instance
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def close(self) -> None:
        """Close the file; nothing is buffered, so nothing depends on it."""
        os.close(self._file)

    @contextmanager
    def handling(self, topic: str, partition: int, offset: int, key: bytes | None) -> Iterator[None]:
        """Around a handler's body: start, then end, or fail when the body raised or was cancelled."""
        self.write("start", topic, partition, offset, key)
        try:
            yield
        except BaseException:
            self.write("fail", topic, partition, offset, key)
            raise
        self.write("end", topic, partition, offset, key)

    def assigned(self, topic: str, partition: int, offset: int) -> None:
        """This writer reads the partition from `offset` on; what it repeats from there is a replay."""
        self.write("assign", topic, partition, offset, None)

    def dead(self, pid: int) -> None:
        """Process `pid` was killed and waited for: what it had started has ended by now."""
        self._append("dead", "-", 0, 0, None, pid)

    def write(self, kind: Kind, topic: str, partition: int, offset: int, key: bytes | None) -> None:
        """Append one event with the time and process of now; OSError when the file cannot take all of it."""
        self._append(kind, topic, partition, offset, key, os.getpid())

    def _append(
        self, kind: Kind, topic: str, partition: int, offset: int, key: bytes | None, pid: int
    ) -> None:
        name = "-" if key is None else f"={key.hex()}"
        fields = (kind, topic, partition, offset, name, time.monotonic_ns(), pid, self.instance)
        line = ("\t".join(map(str, fields)) + "\n").encode()
        if os.write(self._file, line) != len(line):
            raise OSError(f"ledger {self.path} took only part of a line: is the disk full?")


def read(path: Path | str) -> list[Event]:
    """All events in the order written; ValueError names the line that is none."""
    lines = Path(path).read_text().split("\n")  # splitlines() would also cut at separators inside a name
    if not lines[-1]:
        lines.pop()
    return [_event(str(path), number, line) for number, line in enumerate(lines, 1)]


def _event(path: str, number: int, line: str) -> Event:
    try:
        kind, topic, partition, offset, key, stamp, pid, instance = line.split("\t")
        if kind not in _KINDS:
            raise ValueError(f"unknown kind {kind!r}")
        place = Place(topic, int(partition), int(offset))
        key_bytes = None if key == "-" else bytes.fromhex(key.removeprefix("="))
        return Event(kind, place, key_bytes, int(stamp), Writer(int(pid), instance))  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"{path}:{number}: not a ledger line ({error}): {line!r}") from None


class Reordered(NamedTuple):
    """A record that was started when its key's order did not allow it, and why."""

    place: Place
    key: bytes
    writer: Writer
    reason: str


class Overlapping(NamedTuple):
    """Two calls of one key that ran at the same time; `nanoseconds` is how long at least."""

    first: Place
    second: Place
    key: bytes
    writers: tuple[Writer, Writer]
    nanoseconds: int


@dataclass(frozen=True)
class Report:
    """What check() found. `duplicates` counts successful calls beyond each record's first: no fault."""

    lost: tuple[Place, ...]
    reordered: tuple[Reordered, ...]
    overlapping: tuple[Overlapping, ...]
    unknown: tuple[Event, ...]
    handled: int
    duplicates: int
    duplicated: tuple[Place, ...]

    @property
    def is_ok(self) -> bool:
        """Whether nothing was lost, reordered, overlapping or of unknown origin."""
        return not (self.lost or self.reordered or self.overlapping or self.unknown)

    def explain(self) -> str:
        """One line of counts, then the first three faults of each sort."""
        names = ("lost", "reordered", "overlapping", "unknown")
        counts = ", ".join(f"{len(getattr(self, name))} {name}" for name in names)
        lines = [f"{self.handled} handled, {self.duplicates} duplicates, {counts}"]
        lines += [f"  {name}: {fault}" for name in names for fault in getattr(self, name)[:3]]
        return "\n".join(lines)


def check(
    ledger: Path | str | Iterable[Event],
    produced: Iterable[ProducedRecord],
    *,
    settled: Collection[tuple[str, int, int]] = (),
    stragglers: Collection[tuple[str, int, int]] = (),
    rewinds: Literal["recorded", "any"] = "recorded",
) -> Report:
    """Compare what handlers did with what was produced.

    LOST: no successful call, and not in `settled` (places dealt with otherwise, such as dead letters).
    ORDER: per key (topic, partition, key) each start is the next record of the key, the same again, or an
    earlier one as a replay: the first start of another writer, or of one that wrote `assign` at or below it
    since its key's last start. With `rewinds="any"` every step back counts as a replay: for handlers that
    cannot see assignments.
    SERIAL: calls of one key never overlap, over all writers. A call without an end lasted until its process
    was `dead`, or else until the last line its process wrote.
    UNKNOWN: a record that was not produced, or not with that key. Places in `stragglers` may break ORDER
    and SERIAL. Records without a key have no order. `produced` is in the order produced, per partition.
    """
    events = read(ledger) if isinstance(ledger, str | Path) else list(ledger)
    keys = {Place(record.topic, record.partition, record.offset): record.key for record in produced}
    calls = [event for event in events if event.kind in ("start", "end", "fail")]
    unknown = tuple(e for e in calls if e.place not in keys or keys[e.place] != e.key)
    ended = Counter(event.place for event in calls if event.kind == "end")
    started = {event.place for event in calls if event.kind == "start"}
    twice = tuple(place for place, times in ended.items() if times > 1)
    strays = set(stragglers)
    return Report(
        lost=tuple(place for place in keys if place not in ended and place not in settled),
        reordered=tuple(r for r in _reordered(events, keys, started, rewinds) if r.place not in strays),
        overlapping=tuple(o for o in _overlapping(events) if not {o.first, o.second} & strays),
        unknown=unknown,
        handled=len(ended),
        duplicates=sum(ended.values()) - len(ended),
        duplicated=twice,
    )


KeyPlace = tuple[str, int, bytes]
Assigns = dict[tuple[Writer, str, int], list[tuple[int, int]]]


def _by_key(events: Iterable[Event], kinds: Collection[str]) -> dict[KeyPlace, list[Event]]:
    found: dict[KeyPlace, list[Event]] = defaultdict(list)
    for event in events:
        if event.kind in kinds and event.key is not None:
            found[(event.place.topic, event.place.partition, event.key)].append(event)
    for group in found.values():
        # Stable: events of one nanosecond keep the order in which the file got them.
        group.sort(key=lambda event: event.monotonic_ns)
    return found


def _reordered(
    events: list[Event], keys: dict[Place, bytes | None], started: set[Place], rewinds: str
) -> Iterator[Reordered]:
    order: dict[KeyPlace, dict[Place, int]] = defaultdict(dict)
    for place in sorted(keys):
        key = keys[place]
        if key is not None and place in started:  # one never started is lost: its followers are not to blame
            ranks = order[(place.topic, place.partition, key)]
            ranks[place] = len(ranks)
    assigns = _assigns(events)
    for key_place, starts in _by_key(events, ("start",)).items():
        ranks = order[key_place]
        yield from _walk([start for start in starts if start.place in ranks], ranks, assigns, rewinds)


def _walk(
    starts: list[Event], ranks: dict[Place, int], assigns: Assigns, rewinds: str
) -> Iterator[Reordered]:
    previous: Event | None = None
    for start in starts:
        assert start.key is not None
        step = ranks[start.place] - (ranks[previous.place] if previous else -1)
        if step > 1:
            came = f"after offset {previous.place.offset}" if previous else "first"
            reason = f"started {came}, {step - 1} of its key left out"
            yield Reordered(start.place, start.key, start.writer, reason)
        elif step < 0 and previous and rewinds != "any" and not _is_replay(previous, start, assigns):
            reason = f"started after offset {previous.place.offset} without a replay"
            yield Reordered(start.place, start.key, start.writer, reason)
        previous = start


def _assigns(events: Iterable[Event]) -> Assigns:
    found: Assigns = defaultdict(list)
    for event in events:
        if event.kind == "assign":
            place = event.place
            found[(event.writer, place.topic, place.partition)].append((event.monotonic_ns, place.offset))
    return {who: sorted(times) for who, times in found.items()}


def _is_replay(previous: Event, start: Event, assigns: Assigns) -> bool:
    if previous.writer != start.writer:
        return True
    times = assigns.get((start.writer, start.place.topic, start.place.partition), [])
    since = bisect_right(times, (previous.monotonic_ns, -1))
    return any(at <= start.monotonic_ns and offset <= start.place.offset for at, offset in times[since:])


class _Call(NamedTuple):
    start_ns: int
    end_ns: int
    place: Place
    writer: Writer


def _overlapping(events: list[Event]) -> Iterator[Overlapping]:
    last_seen: dict[Writer, int] = {}
    deaths: dict[int, int] = {}
    for event in events:
        if event.kind == "dead":
            deaths[event.writer.pid] = event.monotonic_ns
        else:
            last_seen[event.writer] = max(event.monotonic_ns, last_seen.get(event.writer, 0))
    for (_, _, key), group in _by_key(events, ("start", "end", "fail")).items():
        longest: _Call | None = None
        for call in _calls(group, last_seen, deaths):
            if longest is not None and call.start_ns < longest.end_ns:
                both = min(longest.end_ns, call.end_ns) - call.start_ns
                yield Overlapping(longest.place, call.place, key, (longest.writer, call.writer), both)
            if longest is None or call.end_ns > longest.end_ns:
                longest = call


def _calls(group: list[Event], last_seen: dict[Writer, int], deaths: dict[int, int]) -> list[_Call]:
    running: dict[tuple[Writer, Place], list[int]] = defaultdict(list)
    calls: list[_Call] = []
    for event in group:
        who = (event.writer, event.place)
        if event.kind == "start":
            running[who].append(event.monotonic_ns)
        elif running[who]:
            calls.append(_Call(running[who].pop(0), event.monotonic_ns, event.place, event.writer))
    for (writer, place), starts in running.items():
        end = deaths.get(writer.pid, last_seen[writer])
        calls += [_Call(start, max(start, end), place, writer) for start in starts]
    return sorted(calls)
