"""What the handler of a soak keeps: enough to know that nothing was lost, twice or out of order, and no more.

What lives here: counts and the last offset of each key. What never does: a history, which would grow. Called
by `member.py`. Always: constant size. When no key ever steps back and each partition's count is the number of
its records, then each record ran exactly once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_KEPT = 5


class Ledger:
    """One member's."""

    def __init__(self) -> None:
        self.handled: dict[int, int] = {}
        self.fault_count = 0
        self.faults: list[str] = []
        self._last: dict[bytes | None, int] = {}
        self._running: set[bytes | None] = set()

    @contextmanager
    def handling(self, partition: int, offset: int, key: bytes | None) -> Iterator[None]:
        """Around a handler's body; counts when it ends well."""
        last = self._last.get(key, -1)
        if offset <= last:
            self._found(f"[{partition}] offset {offset} of key {key!r} begins after offset {last}")
        if key in self._running:
            self._found(f"[{partition}] offset {offset} begins while its key {key!r} runs")
        self._last[key] = offset
        self._running.add(key)
        try:
            yield
        finally:
            self._running.discard(key)
        self.handled[partition] = self.handled.get(partition, 0) + 1

    def _found(self, text: str) -> None:
        self.fault_count += 1
        if len(self.faults) < _KEPT:
            self.faults.append(text)
