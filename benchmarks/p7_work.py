"""What a record of workload P7 runs, in whichever process that is: some sha256, and a line in a journal.

What lives here: the handler of all contenders, and which journals belong to a run. What never does:
consumers. Imported by `p7.py`, by the children of its contenders, and by `p7_pyrallel.py` under another
Python, so it needs the standard library alone (`@topic` is put on where asyncpar is there). Always: each
process writes a journal of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import work
from benchmarks.work import PLACE_BYTES, Entry

FOLDER, HASHES, LINES = "P7_JOURNAL", "P7_HASHES", "P7_LINES"
"""In the environment: where the journal is, how many hashes a record is, and the most lines of a file."""

_clock = time.monotonic_ns
_work: tuple[int, Callable[[bytes, int, int], None]] | None = None
"""Hashes per record, and the journal of this process: from its first record on, because this module may have
been imported before the process was forked."""


def handle(value: bytes) -> None:
    """Hash the value, then the hash, and so on."""
    began = _clock()
    hashes, write = _work or _begin()
    digest = value
    for _ in range(hashes):
        digest = sha256(digest).digest()
    write(value[:PLACE_BYTES], began, _clock())


def _begin() -> tuple[int, Callable[[bytes, int, int], None]]:
    global _work  # noqa: PLW0603 - of this process, from here on
    write = work.writer(Path(os.environ[FOLDER], str(os.getpid())), int(os.environ[LINES]))
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
    return work.entries(folder.iterdir())


with suppress(ImportError):  # another Python, without asyncpar
    from asyncpar import topic

    # The name is what children go by; the topic of a run is declared with it in `p7.py`.
    topic("p7", name="p7", executor="process")(handle)
