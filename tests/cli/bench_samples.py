"""Groups as a bench may see them, for tests of what that means: a status with only what a test names."""

from __future__ import annotations

from typing import Any

from asyncpar.cli.bench_loop import LoopFigures
from asyncpar.status import GroupStatus, HandlerStatus, PartitionStatus

IDLE = LoopFigures(0.05, 0.001, 0.02, 0.2, 0.3)
"""A loop with time to spare."""


def handler(**what: Any) -> HandlerStatus:
    """A handler with 10 slots that runs nothing."""
    usual: dict[str, Any] = {
        "group": "billing",
        "name": "bill",
        "topics": ("orders",),
        "executor": "async",
        "concurrency": 10,
        "running": 0,
        "ready": 0,
        "parked": 0,
        "succeeded": 0,
        "failed": 0,
        "skipped": 0,
        "oldest_task_duration_seconds": 0.0,
        "workers_retired": 0,
        "uncancellable": 0,
    }
    return HandlerStatus(**usual | what)


def partition(**what: Any) -> PartitionStatus:
    """A partition with nothing in flight and nothing to come."""
    usual: dict[str, Any] = {
        "group": "billing",
        "topic": "orders",
        "partition": 0,
        "state": "open",
        "generation": 1,
        "hwm": 100,
        "committed": 100,
        "position": 100,
        "blocking_offset": None,
        "blocking_duration_seconds": 0.0,
        "blocking_reason": None,
        "blocking_handler": None,
        "blocking_attempts": 0,
        "gap_count": 0,
        "done_above_hwm": 0,
        "in_flight": 0,
        "queued": 0,
        "running": 0,
        "parked": 0,
        "log_end": 100,
        "true_lag": 0,
        "held_by_transactions": 0,
        "backpressure": False,
        "metadata_chars": 0,
        "metadata_truncated": False,
        "halt_reason": None,
    }
    return PartitionStatus(**usual | what)


def group(*handlers: HandlerStatus, partitions: tuple[PartitionStatus, ...] = (), **what: Any) -> GroupStatus:
    """A group with these handlers, and one partition."""
    usual: dict[str, Any] = {
        "group": "billing",
        "state": "joined",
        "member_id": "m",
        "group_generation": 1,
        "lease_closed": False,
        "in_flight": 0,
        "max_in_flight": 1000,
        "bytes_in_flight": 0,
        "max_in_flight_bytes": 1000,
        "rebalances": 1,
        "consumer_replacements": 0,
        "partitions": partitions or (partition(),),
        "handlers": handlers or (handler(),),
    }
    return GroupStatus(**usual | what)
