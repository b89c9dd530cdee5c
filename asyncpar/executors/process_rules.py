"""What a handler's declaration and the settings say about its child processes: plain and frozen."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BridgeRules:
    """Of one handler. Values are checked where they are declared."""

    lanes: int
    """Child processes."""
    batch_size: int
    """Most records of a batch."""
    queue_size: int
    """Most records that may be with the bridge: waiting, sent and running."""
    max_batch_wait_ms: int
    """How long records wait for a batch to fill while every child is busy."""
    timeout_ms: int | None = None
    """A record that runs for longer ends with its child; None: no limit."""
    max_tasks_per_child: int | None = None
    """A child that has run so many records is replaced; None: it is kept."""

    @property
    def slots(self) -> int:
        """Records that a handler may have with the bridge at a time: one batch runs, one waits, per child."""
        return min(self.queue_size, 2 * self.lanes * self.batch_size)
