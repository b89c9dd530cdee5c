"""What one record runs, in whichever process and Python: nothing or a sleep, and a line in a journal.

What lives here: the handlers that all contenders share, the journal by which their runs are judged, and the
wait until all records ran. What never does: consumers, judging (`load.py`). Imported by the workloads, by
`p7_work.py`, and by the rivals' scripts under other Pythons, so it needs the standard library alone. Always:
a journal is a file that is mapped into memory, so nothing that was written is lost when its process ends.
"""

from __future__ import annotations

import asyncio
import mmap
import struct
import time
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

PLACE_BYTES = 14
"""The first bytes of a value say where its record belongs: its key and its number within the key."""
SLEEP_END = 20
"""From there to here they say how many microseconds its handler is to sleep."""
NO_OP, SLEEP = "no-op", "sleep"
ALL, LATE, IDLE = "all", "late", "idle"
"""How a rival's run ended: with all records; when its time was over; when no more came, before all had."""
START_SECONDS = 30.0
IDLE_SECONDS = 5.0
LOOK_SECONDS = 0.05

Write: TypeAlias = Callable[[bytes, int, int], None]
Handler: TypeAlias = Callable[[bytes], Coroutine[Any, Any, None]]

_LINE = struct.Struct("=14sqq")
_clock = time.monotonic_ns


class Entry(NamedTuple):
    """One call that returned: of which record, and its monotonic nanoseconds, the same clock everywhere."""

    place: bytes
    began: int
    ended: int


def writer(path: Path, lines: int) -> Write:
    """A new journal with room for so many lines, and what writes the next one: place, began, ended.

    Raises struct.error when it is full.
    """
    with path.open("x+b") as file:
        file.truncate(_LINE.size * lines)
        journal = mmap.mmap(file.fileno(), 0)
    position, length, pack_into = 0, _LINE.size, _LINE.pack_into

    def write(place: bytes, began: int, ended: int) -> None:
        nonlocal position
        pack_into(journal, position, place, began, ended)
        position += length

    return write


def entries(paths: Iterable[Path]) -> list[Entry]:
    """All that was written into these journals, by the time when it began."""
    lines = (fields for path in paths for fields in _LINE.iter_unpack(path.read_bytes()))
    return sorted((Entry(*fields) for fields in lines if fields[2]), key=lambda one: one.began)


def handler(work: str, write: Write) -> Handler:
    """What a record runs, given its value: `NO_OP`, or `SLEEP` as long as the value says."""
    sleep = asyncio.sleep

    async def no_op(value: bytes) -> None:
        began = _clock()
        write(value[:PLACE_BYTES], began, _clock())

    async def sleeps(value: bytes) -> None:
        began = _clock()
        await sleep(int(value[PLACE_BYTES:SLEEP_END]) / 1e6)
        write(value[:PLACE_BYTES], began, _clock())

    return sleeps if work == SLEEP else no_op


class Progress:
    """Which records of a rival's run are done, and when it is to end: after `seconds` from the first one."""

    def __init__(self, records: int, seconds: float) -> None:
        self._records, self._seconds = records, seconds
        self._done: set[bytes] = set()
        self._first = 0.0

    def did(self, value: bytes) -> None:
        """The record with this value ran."""
        self._first = self._first or time.monotonic()
        self._done.add(value[:PLACE_BYTES])

    @property
    def is_late(self) -> bool:
        """The time is over."""
        return bool(self._first) and time.monotonic() - self._first >= self._seconds

    async def ended(self) -> str:
        """Wait until all are done, the time is over, or no more come: `ALL`, `LATE` or `IDLE`.

        Idle is when for `IDLE_SECONDS` no more came, or none at all for `START_SECONDS`.
        """
        changed, seen = time.monotonic(), 0
        while len(self._done) < self._records:
            if self.is_late:
                return LATE
            if len(self._done) > seen:
                changed, seen = time.monotonic(), len(self._done)
            if time.monotonic() - changed >= (IDLE_SECONDS if seen else START_SECONDS):
                return IDLE
            await asyncio.sleep(LOOK_SECONDS)
        return ALL
