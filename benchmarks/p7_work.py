"""What a record of workload P7 runs, in whichever process that is: some sha256, and a line in a journal.

What lives here: the handler of all contenders, and the journal by which their runs are judged. What never
does: consumers. Imported by `p7.py`, by the children of its contenders, and by `p7_pyrallel.py` under another
Python, so it needs the standard library alone (`@topic` is put on where asyncpar is there). Always: each
process writes a file of its own, mapped into memory, so that nothing that was written is lost when it ends.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

FOLDER, HASHES, LINES = "P7_JOURNAL", "P7_HASHES", "P7_LINES"
"""In the environment: where the journal is, how many hashes a record is, and the most lines of a file."""
_PLACE_BYTES = 14
"""As in `load.py`, which says what they mean."""
_LINE = struct.Struct("=14sqq")

_clock = time.monotonic_ns
_work: tuple[int, Callable[[bytes, int, int], None]] | None = None
"""Hashes per record, and the journal of this process: from its first record on, because this module may have
been imported before the process was forked."""


class Entry(NamedTuple):
    """One call that returned: of which record, and its monotonic nanoseconds, the same clock everywhere."""

    place: bytes
    began: int
    ended: int


def handle(value: bytes) -> None:
    """Hash the value, then the hash, and so on."""
    began = _clock()
    hashes, write = _work or _begin()
    digest = value
    for _ in range(hashes):
        digest = sha256(digest).digest()
    write(value[:_PLACE_BYTES], began, _clock())


def _begin() -> tuple[int, Callable[[bytes, int, int], None]]:
    global _work  # noqa: PLW0603 - of this process, from here on
    path = Path(os.environ[FOLDER], str(os.getpid()))
    with path.open("x+b") as file:
        file.truncate(_LINE.size * int(os.environ[LINES]))
        journal = mmap.mmap(file.fileno(), 0)
    position, length, pack_into = 0, _LINE.size, _LINE.pack_into

    def write(place: bytes, began: int, ended: int) -> None:
        nonlocal position
        pack_into(journal, position, place, began, ended)
        position += length

    _work = int(os.environ[HASHES]), write
    return _work


@contextmanager
def journal(hashes: int, records: int) -> Iterator[Path]:
    """The folder of a new journal; processes that start meanwhile, and this one, write into it.

    Each has room for twice as many lines as there are records: what runs twice is to be seen.
    """
    with TemporaryDirectory(prefix="p7-") as folder:
        os.environ |= {FOLDER: folder, HASHES: str(hashes), LINES: str(2 * records)}
        yield Path(folder)


def entries(folder: Path) -> list[Entry]:
    """All that was written, by all processes, by the time when it began."""
    found = [Entry(*fields) for path in folder.iterdir() for fields in _LINE.iter_unpack(path.read_bytes())]
    return sorted((one for one in found if one.ended), key=lambda one: one.began)


with suppress(ImportError):  # another Python, without asyncpar
    from asyncpar import topic

    # The name is what children go by; the topic of a run is declared with it in `p7.py`.
    topic("p7", name="p7", executor="process")(handle)
