"""One line on a terminal that tells how far something is, written over and over.

Lives here: `ProgressLine`. Called by `bench_run.py` and `produce_run.py`. Always: it is on stderr, and only
when that is a terminal; nothing of it is left when it ends.
"""

from __future__ import annotations

import sys
import time

_SPACING_SECONDS = 0.25
_CLEAR = "\r\x1b[K"


class ProgressLine:
    """The last line of the terminal, while it lasts."""

    def __init__(self) -> None:
        self._is_shown = sys.stderr.isatty()
        self._next = 0.0

    @property
    def is_due(self) -> bool:
        """Whether it is worth the while to make up a new text."""
        return self._is_shown and time.monotonic() >= self._next

    def show(self, text: str) -> None:
        """Write `text` over what stood there."""
        if self._is_shown:
            self._next = time.monotonic() + _SPACING_SECONDS
            sys.stderr.write(f"{_CLEAR}{text}")
            sys.stderr.flush()

    def end(self) -> None:
        """Take the line away."""
        if self._is_shown:
            sys.stderr.write(_CLEAR)
            sys.stderr.flush()
