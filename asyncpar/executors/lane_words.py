"""The words of memory that both sides of a lane share: read and written without a message or a lock.

The child says what it runs and since when; the parent says what must not start. Each word is written by one
side only, and whole. The order matters, and is kept here: a job is announced before it is asked whether it
may run, so that a parent that has written its word, and then sees another job announced, knows that the
first one did not slip through. (Processors may delay a write for an instant: it looks at a later moment.)
"""

from __future__ import annotations

import ctypes
from multiprocessing.sharedctypes import RawArray
from typing import TYPE_CHECKING, Final, TypeAlias

from asyncpar.executors.lane_port import Progress

if TYPE_CHECKING:
    WordArray: TypeAlias = ctypes.Array[ctypes.c_uint64]

_STARTED, _EXTENDED, _PLACE, _STOP_BEFORE, _LEASE = range(5)
_WORDS = 5
_INDEX_BITS = 24
_HIGHEST = 2**63 - 1
ALL_NUMBERS: Final = 2**38
"""Above the number of any batch."""


def new_words() -> WordArray:
    """Shared memory for one lane; crosses to a child as an argument of its process. Nothing may start yet."""
    return RawArray(ctypes.c_uint64, _WORDS)


def first_place(number: int) -> int:
    """The place of the first job of batch `number`; those of its other jobs follow. Never 0."""
    return number << _INDEX_BITS | 1


class LaneWords:
    """One side's view of them. A place is a batch's number and an index in one word, to be read whole."""

    __slots__ = ("_words",)

    def __init__(self, words: WordArray) -> None:
        # A view, which is faster to read and write than the array, and does so by the whole word as well.
        self._words = memoryview(words).cast("B").cast("Q")

    # --- the child's ---

    def begin(self, place: int, now_ns: int) -> bool:
        """Announce the job that is about to run. False: it must not."""
        words = self._words
        # The place last: who reads it first, and then the others, never takes an old start for a new job's.
        words[_STARTED] = now_ns
        words[_EXTENDED] = 0
        words[_PLACE] = place
        return place >= words[_STOP_BEFORE] and now_ns <= words[_LEASE]

    def extend(self, until_ns: int) -> None:
        """What runs needs time until then; never less than it asked for before."""
        if until_ns > self._words[_EXTENDED]:
            self._words[_EXTENDED] = min(until_ns, _HIGHEST)

    def stand_at(self, place: int) -> None:
        """Behind the last job of a batch: all of it ran, and nobody was told yet."""
        self._words[_PLACE] = place

    def rest(self) -> None:
        """Nothing runs."""
        self._words[_PLACE] = 0

    # --- the parent's ---

    def progress(self) -> Progress | None:
        """What runs in the child; None while nothing does."""
        words = self._words
        place, extended_ns, started_ns = words[_PLACE], words[_EXTENDED], words[_STARTED]
        if place == 0:
            return None
        number = place >> _INDEX_BITS
        return Progress(number, place - first_place(number), started_ns, extended_ns)

    def stop_before(self, number: int) -> None:
        """No job of a batch below `number` starts any more; never taken back."""
        self._words[_STOP_BEFORE] = max(first_place(number), self._words[_STOP_BEFORE])

    def renew_lease(self, until_ns: int) -> None:
        """Nothing starts after this moment."""
        self._words[_LEASE] = min(max(until_ns, 0), _HIGHEST)
