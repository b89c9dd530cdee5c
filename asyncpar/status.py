"""Frozen snapshots of a running app: what `app.status()` returns and the probes are judged by.

Built by the app from the runtime's counters; cheap enough to build every second. Durations are in
seconds, sizes in bytes, timestamps `time.monotonic()` seconds unless a name says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PartitionStatus:
    """One assigned partition. Answers: why is the committed offset not moving?"""

    group: str
    topic: str
    partition: int
    state: str
    """opening | open | draining | halted"""
    generation: int
    hwm: int | None
    """Every delivered offset below it is done; None while opening."""
    committed: int | None
    """The last offset that the broker acknowledged (or restored); None when there is none."""
    position: int | None
    """One past the last offset delivered or known to be empty."""
    blocking_offset: int | None
    """The lowest unfinished offset; None when nothing is in flight."""
    blocking_duration_seconds: float
    """How long the lowest unfinished offset has been the lowest one; 0 when there is none."""
    blocking_reason: str | None
    """queued | running | waiting for a retry | leaving (for a dead-letter topic) |
    held (gate, lease, metadata cap) | halted
    """
    blocking_handler: str | None
    blocking_attempts: int
    """Failed attempts so far on the blocking offset."""
    gap_count: int
    """Runs of done offsets above the HWM."""
    done_above_hwm: int
    """Offsets above the HWM that need not run again (holes of the log included)."""
    in_flight: int
    queued: int
    running: int
    parked: int
    """Waiting for a retry."""
    log_end: int | None
    """Last stable offset (log end under read_uncommitted), as last fetched."""
    true_lag: int | None
    """`log_end - hwm`."""
    held_by_transactions: int | None
    """High watermark minus last stable offset: records held back by open transactions."""
    backpressure: bool
    """True while the partition is not asked for because a limit is reached."""
    metadata_chars: int
    """Length of the last commit's metadata."""
    metadata_truncated: bool
    """True when not all done offsets above the HWM fitted into it."""
    halt_reason: str | None
    hold_reason: str | None = None
    """Why it is not fetched although it is open: its dead letters cannot be written, say."""


@dataclass(frozen=True, slots=True)
class HandlerStatus:
    """One handler within one group."""

    group: str
    name: str
    topics: tuple[str, ...]
    executor: str
    concurrency: int
    running: int
    ready: int
    """Virtual partitions whose next record only waits for a slot."""
    parked: int
    succeeded: int
    failed: int
    """Failed attempts."""
    skipped: int
    oldest_task_duration_seconds: float
    workers_retired: int
    """Workers replaced because a handler changed its context."""
    uncancellable: int
    """Calls that outlived their cancellation and still hold their key."""
    timeouts: int = 0
    """Calls cancelled at a time limit."""
    dead_letters: int = 0
    """Records that its dead-letter topic has acknowledged."""
    sent_to_retry_topics: int = 0
    breaker_state: str | None = None
    """closed | half_open | open; None without a breaker."""
    poisoned_keys: int = 0
    """Keys whose records are not run for now."""
    children: int | None = None
    """Child processes that are ready; None for a handler that runs in this process."""
    busy_children: int = 0
    """Those of them that have records."""
    no_child_starts: str | None = None
    """Why, while none is left and none can be started."""


@dataclass(frozen=True, slots=True)
class GroupStatus:
    """One consumer group of this process."""

    group: str
    state: str
    """starting | joining | joined | rebalancing | stopping | stopped | failed"""
    member_id: str
    group_generation: int
    lease_closed: bool
    in_flight: int
    max_in_flight: int
    bytes_in_flight: int
    max_in_flight_bytes: int
    rebalances: int
    consumer_replacements: int
    partitions: tuple[PartitionStatus, ...]
    handlers: tuple[HandlerStatus, ...]


@dataclass(frozen=True, slots=True)
class AppStatus:
    """The whole app. `not_live` and `not_ready` hold the reasons, one sentence each."""

    name: str
    version: str
    uptime_seconds: float
    live: bool
    ready: bool
    not_live: tuple[str, ...]
    not_ready: tuple[str, ...]
    loop_lag_seconds: float
    groups: tuple[GroupStatus, ...]
