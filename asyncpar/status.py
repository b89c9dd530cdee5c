"""Frozen snapshots of a running app: what `app.status()` returns and the probes are judged by; and as text.

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
    """queued | running | waiting for a retry | waiting for its time (in a retry topic) |
    waiting for the rate limit | waiting for the rate limit of its key | waiting for the breaker |
    leaving (for a dead-letter or a retry topic) | held (gate, lease, metadata cap) | halted
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
    """Why it is not fetched although it is open: the breaker of its handler is open, or its dead letters
    cannot be written, say.
    """


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
    """Failed attempts, but for those that `on_error` passed over."""
    skipped: int
    """Records passed over: by `Skip`, by a setting, or by `on_error` after an attempt that failed."""
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
    hold_reason: str | None = None
    """Why nothing of it starts, or none of its dead letters leaves: its breaker is not closed, the budget of
    its dead letters is used up, or no child process can be started.
    """
    hold_duration_seconds: float = 0.0
    """For how long; a breaker's since it opened, probes or not."""


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


def blocked_text(partition: PartitionStatus, last_error: str = "") -> str:
    """Why the lowest unfinished offset is unfinished, for how long, in which handler; on one line.

    `last_error`: what the last attempt failed with, where that is known.
    """
    attempts = partition.blocking_attempts
    failed = f", {attempts} {'attempt' if attempts == 1 else 'attempts'} failed" if attempts else ""
    last = f", the last with {last_error}" if last_error else ""
    held = f"; the partition is held: {partition.hold_reason}" if partition.hold_reason else ""
    whose = f" in handler {partition.blocking_handler}" if partition.blocking_handler else ""
    seconds = partition.blocking_duration_seconds
    return f"{partition.blocking_reason}{whose} for {seconds:.1f} s{failed}{last}{held}"


def as_text(status: AppStatus) -> str:
    """`status` for people: what is wrong first, then each group with its handlers and partitions."""
    verdict = f"{'live' if status.live else 'NOT LIVE'}, {'ready' if status.ready else 'NOT READY'}"
    lines = [f"{status.name} {status.version}, up for {status.uptime_seconds:.0f} s: {verdict}"]
    lines += [f"  not live: {reason}" for reason in status.not_live]
    lines += [f"  not ready: {reason}" for reason in status.not_ready]
    for group in status.groups:
        lines += _group_lines(group)
    return "\n".join(lines) + "\n"


def _group_lines(group: GroupStatus) -> list[str]:
    held = ", nothing starts: heartbeats are not answered" if group.lease_closed else ""
    flight = f"{group.in_flight} of {group.max_in_flight} records in flight"
    lines = ["", f"group {group.group}: {group.state}, generation {group.group_generation}, {flight}{held}"]
    for handler in group.handlers:
        lines += _handler_lines(handler)
    for partition in group.partitions:
        lines += _partition_lines(partition)
    return lines


def _handler_lines(handler: HandlerStatus) -> list[str]:
    counted = {
        "succeeded": handler.succeeded,
        "failed": handler.failed,
        "skipped": handler.skipped,
        "timed out": handler.timeouts,
        "dead letters": handler.dead_letters,
        "sent to retry topics": handler.sent_to_retry_topics,
        "poisoned keys": handler.poisoned_keys,
        "calls that ignore their cancellation": handler.uncancellable,
    }
    figures = (
        ", ".join(f"{number} {what}" for what, number in counted.items() if number) or "nothing done yet"
    )
    children = "" if handler.children is None else f", {handler.children} child processes"
    what = f"handler {handler.name} of {', '.join(handler.topics)} ({handler.executor}{children})"
    now = f"{handler.running} of {handler.concurrency} run, {handler.parked} wait for a retry"
    lines = [f"  {what}: {now}; {figures}"]
    if handler.hold_reason is not None:
        lines.append(f"    for {handler.hold_duration_seconds:.0f} s: {handler.hold_reason}")
    return lines


def _partition_lines(partition: PartitionStatus) -> list[str]:
    lag = "lag not known" if partition.true_lag is None else f"lag {partition.true_lag}"
    committed = "nothing committed" if partition.committed is None else f"committed {partition.committed}"
    what = f"{partition.topic}[{partition.partition}]: {partition.state}"
    lines = [f"  {what}, {committed}, {lag}, {partition.in_flight} in flight"]
    if partition.halt_reason is not None:
        lines.append(f"    halted for {partition.blocking_duration_seconds:.0f} s, {partition.halt_reason}")
    elif partition.blocking_offset is not None:
        lines.append(f"    offset {partition.blocking_offset}: {blocked_text(partition)}")
    elif partition.hold_reason is not None:
        lines.append(f"    held: {partition.hold_reason}")
    return lines
