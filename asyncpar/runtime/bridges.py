"""What a group does about a handler in child processes: their lease, and no fetching while none starts.

Never here: the children (`executors/process_bridge.py`). Made by the handler's pool. Always: while no child
can be started the group keeps its membership, its partitions are not fetched, and the reason is shown.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from asyncpar.records import TopicPartition
from asyncpar.runtime.holds import HandlerHold, Trouble

if TYPE_CHECKING:
    from asyncpar.executors.process_bridge import ProcessBridge
    from asyncpar.runtime.worker import Worker
    from asyncpar.runtime.workers import HandlerPool


class BridgeWatch:
    """Of one handler."""

    def __init__(self, pool: HandlerPool, bridge: ProcessBridge) -> None:
        self._pool = pool
        self.bridge = bridge
        self._hold = HandlerHold(pool, f"child processes of {pool.handler.name}")

    def open(self) -> None:
        """Records may start in children from now on, while the group's lease lasts."""
        self.bridge.open(self._pool.state.lease_end, self._refused)

    def _refused(self, reason: str | None) -> None:
        """Children cannot be started, for `reason`; None: they can again."""
        if reason is None:
            self._hold.end()
        else:
            self._hold.begin(
                f"no child process of handler {self._pool.handler.name} can be started: {reason}; "
                "it is tried again, and goes on as soon as one starts"
            )

    def deadline(self, worker: Worker, seconds: float) -> float:
        """When the record of `worker` has run in a child for `seconds`; inf while it waits for one."""
        if worker.vp is None or worker.offset is None:
            return inf
        progress = self.bridge.progress_of(worker.vp.queues.partition, worker.offset)
        if progress is None:
            return inf
        return max(progress.started_ns / 1e9 + seconds, progress.extended_ns / 1e9)

    def trouble(self) -> Trouble | None:
        """Why nothing of the handler starts, while no child can be started."""
        if self.bridge.refusal is None:
            return None
        return Trouble(
            f"no child process can be started: {self.bridge.refusal}; it is tried again", self._hold.since
        )

    def hold_new(self, tp: TopicPartition) -> None:
        """`tp` was opened: it is held while no child can be started."""
        self._hold.hold_new(tp)
