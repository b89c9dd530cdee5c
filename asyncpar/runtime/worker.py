"""One slot of a handler: its task, what it runs now, and who waits for the end of that."""

from __future__ import annotations

import asyncio

from asyncpar.core.virtual_partitions import VirtualPartition
from asyncpar.records import RawRecord


class Interrupted(Exception):  # noqa: N818 - not an error: the record was not settled
    """The attempt was ended by us or from outside; it counts for nothing."""

    def __init__(self, worker_ends: bool) -> None:
        self.worker_ends = worker_ends


class Worker:
    """One slot: its task, and what it runs now."""

    __slots__ = ("cancel_reason", "finished", "record", "started", "task", "vp", "wake")

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.vp: VirtualPartition | None = None
        self.record: RawRecord | None = None
        self.started = 0.0
        self.cancel_reason: str | None = None
        self.wake: asyncio.Future[None] | None = None
        self.finished: asyncio.Future[None] | None = None
        """Set by whoever waits for the end of the running record."""

    def cancel(self, reason: str) -> None:
        """Cancel what runs, for `reason`; nothing when nothing runs."""
        if self.vp is not None and self.task is not None and self.cancel_reason is None:
            self.cancel_reason = reason
            self.task.cancel()

    def when_finished(self) -> asyncio.Future[None]:
        """Done when the record that runs now has ended."""
        if self.finished is None:
            self.finished = asyncio.get_running_loop().create_future()
        return self.finished
