"""The demo's ledger: what was produced and what was handled, counted outside of the engine.

What lives here: `Ledger`, written by the load (what the broker acknowledged) and by the handlers (what they
did), and the proof over both. What never does: anything that the engine says about itself, so that it cannot
vouch for itself. Called by `demo.py`, `demo_app.py` and `demo_load.py`, from several threads. Always: a
record of a key has a number that counts up from 0 in the order produced; two bytes of memory per record.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

_UNANSWERED, _ACKNOWLEDGED, _REFUSED = 0, 1, 2
_MOST_COUNTED = 255


@dataclass(frozen=True, slots=True)
class Counts:
    """How far it is, at one moment."""

    sent: int
    acknowledged: int
    handled: int
    """Records handled at least once."""
    duplicates: int
    """Successful calls beyond each record's first."""
    failed: int
    """Calls that raised."""
    running: int
    most_running: int
    """Most calls that ever ran at the same time."""

    @property
    def backlog(self) -> int:
        """Records sent and not handled yet."""
        return self.sent - self.handled


@dataclass(frozen=True, slots=True)
class Proof:
    """What the ledger shows, with the first few culprits (`key #number`) of each sort."""

    acknowledged: int
    handled: int
    duplicates: int
    refused: int
    """Records that the broker did not take; they are nobody's loss."""
    unanswered: int
    """Records whose fate at the broker is not known; any makes the proof impossible."""
    lost: tuple[str, ...]
    reordered: tuple[str, ...]
    overlapping: tuple[str, ...]
    stored_out_of_order: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        """Every acknowledged record was handled, and the broker answered for all of them."""
        return not self.lost and not self.unanswered

    @property
    def is_in_order(self) -> bool:
        """Each key's records ran one after the other, in the order in which they were produced."""
        return not self.reordered and not self.overlapping and not self.stored_out_of_order


class _Book:
    """One key: its records by number, and how far its handlers came."""

    __slots__ = (
        "answers",
        "handled",
        "jumps",
        "last_place",
        "overlaps",
        "position",
        "running",
        "stored_wrongly",
    )

    def __init__(self) -> None:
        self.answers = bytearray()
        self.handled = bytearray()
        self.position = -1
        """The number handled last; the next start is the one after it, or an earlier one (a replay)."""
        self.running = 0
        self.jumps: list[tuple[int, int]] = []
        """Starts that left numbers out: (position, started). Right only if the broker refused those."""
        self.overlaps: list[int] = []
        self.last_place: tuple[int, int] | None = None
        self.stored_wrongly: list[int] = []


class Ledger:
    """What happened to the records of `keys`."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = tuple(keys)
        self._books = {key: _Book() for key in keys}
        self._lock = threading.Lock()
        self._sent = self._acknowledged = self._handled = 0
        self._duplicates = self._failed = self._running = self._most_running = 0

    # -- the load's side ---------------------------------------------------------------------

    def send(self, key: str) -> int:
        """The number of the next record of `key`; call it before the record is given to the producer."""
        with self._lock:
            book = self._books[key]
            book.answers.append(_UNANSWERED)
            book.handled.append(0)
            self._sent += 1
            return len(book.answers) - 1

    def acknowledged(self, key: str, number: int, partition: int, offset: int) -> None:
        """The broker has the record, at this place."""
        with self._lock:
            book = self._books[key]
            book.answers[number] = _ACKNOWLEDGED
            self._acknowledged += 1
            if book.last_place is not None:
                last_partition, last_offset = book.last_place
                if partition != last_partition or offset <= last_offset:
                    book.stored_wrongly.append(number)
            book.last_place = (partition, offset)

    def refused(self, key: str, number: int) -> None:
        """The broker did not take the record."""
        with self._lock:
            self._books[key].answers[number] = _REFUSED
            self._sent -= 1

    # -- the handlers' side ------------------------------------------------------------------

    @contextmanager
    def handling(self, key: str, number: int) -> Iterator[None]:
        """Around a handler's body. KeyError, IndexError for a record that was never sent."""
        with self._lock:
            self._start(self._books[key], number)
        try:
            yield
        except BaseException:
            with self._lock:
                self._end(self._books[key])
                self._failed += 1
            raise
        with self._lock:
            self._end(self._books[key])
            self._done(self._books[key], number)

    def _start(self, book: _Book, number: int) -> None:
        book.handled[number]  # IndexError here, and not when it is done
        if book.running:
            book.overlaps.append(number)
        if number > book.position + 1:
            book.jumps.append((book.position, number))
        book.running += 1
        self._running += 1
        self._most_running = max(self._most_running, self._running)

    def _end(self, book: _Book) -> None:
        book.running -= 1
        self._running -= 1

    def _done(self, book: _Book, number: int) -> None:
        book.position = number
        if book.handled[number]:
            self._duplicates += 1
        else:
            self._handled += 1
        book.handled[number] = min(book.handled[number] + 1, _MOST_COUNTED)

    # -- looking -----------------------------------------------------------------------------

    def counts(self) -> Counts:
        """The counts of this moment."""
        with self._lock:
            return Counts(
                sent=self._sent,
                acknowledged=self._acknowledged,
                handled=self._handled,
                duplicates=self._duplicates,
                failed=self._failed,
                running=self._running,
                most_running=self._most_running,
            )

    def prove(self) -> Proof:
        """Compare what was acknowledged with what was handled. Looks at every record: call it at the end."""
        with self._lock:
            books = [(key, self._books[key]) for key in self._keys]
            answers = b"".join(bytes(book.answers) for _, book in books)
            return Proof(
                acknowledged=answers.count(_ACKNOWLEDGED),
                handled=self._handled,
                duplicates=self._duplicates,
                refused=answers.count(_REFUSED),
                unanswered=answers.count(_UNANSWERED),
                lost=tuple(f"{key} #{number}" for key, book in books for number in _lost(book)),
                reordered=tuple(f"{key} #{number}" for key, book in books for number in _reordered(book)),
                overlapping=tuple(f"{key} #{number}" for key, book in books for number in book.overlaps),
                stored_out_of_order=tuple(
                    f"{key} #{number}" for key, book in books for number in book.stored_wrongly
                ),
            )


def _lost(book: _Book) -> Iterator[int]:
    for number, (answer, times) in enumerate(zip(book.answers, book.handled, strict=True)):
        if answer == _ACKNOWLEDGED and not times:
            yield number


def _reordered(book: _Book) -> Iterator[int]:
    """Starts that came before a record of the key that the broker has."""
    for position, started in book.jumps:
        if any(answer != _REFUSED for answer in book.answers[position + 1 : started]):
            yield started
