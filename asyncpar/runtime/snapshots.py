"""One group's figures at one moment: its status, and its samples of the metric registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asyncpar.core.assignment import Partition, State
from asyncpar.core.backpressure import bytes_held
from asyncpar.core.breaker import BreakerState
from asyncpar.core.virtual_partitions import NO_OFFSET
from asyncpar.metrics import SnapshotBuilder
from asyncpar.records import TopicPartition
from asyncpar.runtime.admission import Gate
from asyncpar.runtime.group_state import GroupState
from asyncpar.runtime.runtime import GroupRuntime
from asyncpar.runtime.tally import count
from asyncpar.runtime.worker import Worker
from asyncpar.runtime.workers import HandlerPool
from asyncpar.status import GroupStatus, HandlerStatus, PartitionStatus

if TYPE_CHECKING:
    from asyncpar.executors.process_statistics import BridgeStatistics

_WAITS = {
    "": "waiting for a retry",
    "delay": "waiting for its time",
    "key_rate_limit": "waiting for the rate limit of its key",
    "rate_limit": "waiting for the rate limit",
    "breaker": "waiting for the breaker",
}
"""What a gate calls them, in words."""
_BREAKER_STATES = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}


def group_status(runtime: GroupRuntime) -> GroupStatus:
    """Everything that is known of the group now."""
    state = runtime.state
    token = state.token
    partitions = [partition_status(runtime, partition) for partition in state.partitions.values()]
    return GroupStatus(
        group=state.group,
        state=state.phase,
        member_id="" if token is None else token.member_id,
        group_generation=-1 if token is None else token.generation,
        lease_closed=state.lease_closed,
        in_flight=sum(partition.in_flight for partition in partitions),
        max_in_flight=state.config.limits.max_in_flight,
        bytes_in_flight=bytes_held(state.partitions.values()),
        max_in_flight_bytes=state.config.limits.max_in_flight_bytes,
        rebalances=state.counters.rebalances.get("assigned", 0),
        consumer_replacements=state.counters.consumer_replacements,
        partitions=tuple(sorted(partitions, key=lambda one: (one.topic, one.partition))),
        handlers=tuple(handler_status(pool) for pool in state.pools),
    )


def partition_status(runtime: GroupRuntime, partition: Partition) -> PartitionStatus:
    """One partition, with the reason why its commit stands where it stands."""
    state, tracker = runtime.state, partition.tracker
    now = state.clock.monotonic()
    blocking, blocked_for = _blocking(partition, now)
    running = _running(state, partition)
    parked = _parked(state, partition)
    runs = [] if tracker is None else tracker.done_runs()
    log_end, held_back = _log_end(runtime, partition.tp)
    reason, handler = _blocking_reason(state, partition, blocking, running, now)
    hwm = None if tracker is None else tracker.hwm
    acknowledged = partition.acknowledged
    return PartitionStatus(
        group=state.group,
        topic=partition.tp.topic,
        partition=partition.tp.partition,
        state=partition.state.value,
        generation=partition.generation,
        hwm=hwm,
        committed=None if acknowledged is None else acknowledged.offset,
        position=None if tracker is None else tracker.position,
        blocking_offset=blocking,
        blocking_duration_seconds=blocked_for,
        blocking_reason=reason,
        blocking_handler=handler,
        blocking_attempts=_attempts(partition, blocking),
        gap_count=len(runs),
        done_above_hwm=sum(end - first for first, end in runs),
        in_flight=partition.in_flight,
        queued=max(0, partition.in_flight - len(running) - len(parked)),
        running=len(running),
        parked=len(parked),
        log_end=log_end,
        true_lag=None if log_end is None or hwm is None else max(0, log_end - hwm),
        held_by_transactions=held_back,
        backpressure=_is_held_back(runtime, partition),
        metadata_chars=0 if acknowledged is None else len(acknowledged.metadata),
        metadata_truncated=partition.metadata_truncated,
        halt_reason=partition.halt_reason,
        hold_reason="; ".join(state.holds.get(partition.tp, {}).values()) or None,
    )


def _running(state: GroupState, partition: Partition) -> list[Worker]:
    queues = partition.queues
    return [
        worker
        for pool in state.pools
        for worker in pool.busy()
        if worker.vp is not None and worker.vp.queues is queues
    ]


def _parked(state: GroupState, partition: Partition) -> set[int]:
    return {
        vp.head.offset
        for vp in state.parking.parked()
        if vp.queues is partition.queues and vp.head is not None
    }


def _attempts(partition: Partition, offset: int | None) -> int:
    if offset is None or partition.queues is None:
        return 0
    return partition.queues.attempts.get(offset, 0)


def _is_held_back(runtime: GroupRuntime, partition: Partition) -> bool:
    session = runtime.session
    group_wide = session is not None and (
        session.poller.backpressure.records_active or session.poller.backpressure.bytes_active
    )
    return partition.backpressure or (group_wide and partition.is_open)


def _blocking(partition: Partition, now: float) -> tuple[int | None, float]:
    """The lowest unfinished offset, and for how long; a halt has dropped it and blocks at its HWM."""
    tracker = partition.tracker
    if tracker is None:
        return None, 0.0
    if partition.state is State.HALTED:
        return tracker.hwm, now - partition.halted_at
    return tracker.blocking_offset, tracker.blocked_for(now)


def _blocking_reason(
    state: GroupState, partition: Partition, blocking: int | None, running: list[Worker], now: float
) -> tuple[str | None, str | None]:
    """Why the lowest unfinished offset is unfinished, and whose it is."""
    if partition.state is State.HALTED:
        return "halted", None
    queues = partition.queues
    if blocking is None or queues is None:
        return None, None
    record = queues.unfinished[blocking]
    route = queues.route_at(blocking)
    handler = None if route is None else route.name
    if any(worker.record is record for worker in running):
        return "running", handler
    gate = next((pool.gate for pool in state.pools if pool.queue is route), None)
    for vp in state.parking.parked():
        if vp.head is record:
            return _WAITS["" if gate is None else gate.wait_of(vp, now)[1]], handler
    if state.outbox is not None and blocking in state.outbox.waiting(partition.tp):
        return "leaving", handler
    if state.lease_closed or queues.start_below == NO_OFFSET or blocking >= queues.start_below:
        return "held", handler
    wait, why = (0.0, "") if gate is None else gate.closed_for(now)
    return (_WAITS[why] if wait > 0 else "queued"), handler


def _log_end(runtime: GroupRuntime, tp: TopicPartition) -> tuple[int | None, int | None]:
    """The end that lag is measured to, and what open transactions hold back of it."""
    if runtime.session is None:
        return None, None
    high_watermark, stable = runtime.session.consumer.end_seen(tp)
    end = high_watermark if stable is None else stable
    held = None if high_watermark is None or stable is None else max(0, high_watermark - stable)
    return end, held


def handler_status(pool: HandlerPool) -> HandlerStatus:
    """One handler's slots and counts."""
    handler, busy, gate = pool.handler, pool.busy(), pool.gate
    now = pool.state.clock.monotonic()
    trouble = (pool.children and pool.children.trouble()) or (gate and gate.trouble())
    tallies = pool.tallies.values()
    return HandlerStatus(
        group=pool.state.group,
        name=handler.name,
        topics=(*handler.topics, *(() if handler.pattern is None else (handler.pattern.pattern,))),
        executor=handler.executor,
        concurrency=handler.concurrency,
        running=len(busy),
        ready=len(pool.queue.ready),
        parked=_parked_of(pool),
        succeeded=sum(tally.succeeded for tally in tallies),
        failed=sum(tally.failed for tally in tallies),
        skipped=sum(tally.skipped for tally in tallies),
        oldest_task_duration_seconds=max((now - worker.started for worker in busy), default=0.0),
        workers_retired=pool.retired,
        uncancellable=sum(1 for worker in busy if worker.cancel_reason is not None),
        timeouts=pool.timeouts,
        dead_letters=_departed(pool, "dead_letter", "sent"),
        sent_to_retry_topics=_departed(pool, "retry", "sent"),
        breaker_state=None if gate is None or gate.breaker is None else gate.breaker.state.value,
        hold_reason=trouble.why if trouble else None,
        hold_duration_seconds=now - trouble.since if trouble else 0.0,
        poisoned_keys=0 if gate is None else gate.count_poisoned(),
        **_children(pool),
    )


def _children(pool: HandlerPool) -> dict[str, Any]:
    if pool.children is None:
        return {}
    bridge = pool.children.bridge
    found = bridge.statistics
    return {"children": found.lanes, "busy_children": found.busy, "no_child_starts": bridge.refusal}


def _departed(pool: HandlerPool, kind: str, result: str) -> int:
    outbox = pool.state.outbox
    return 0 if outbox is None else outbox.sent.get((kind, pool.handler.name, result), 0)


def _parked_of(pool: HandlerPool) -> int:
    return sum(
        1
        for vp in pool.state.parking.parked()
        if vp.head is not None and vp.queues.route_of(vp.head) is pool.queue
    )


def add_metrics(builder: SnapshotBuilder, runtime: GroupRuntime) -> None:
    """This group's samples of every registered metric but the process's own."""
    state = runtime.state
    status = group_status(runtime)
    for partition in status.partitions:
        _add_partition(builder, partition)
    for pool, handler in zip(state.pools, status.handlers, strict=True):
        _add_handler(builder, pool, handler)
    _add_group(builder, state, status)


def _add_partition(builder: SnapshotBuilder, status: PartitionStatus) -> None:
    labels = (status.group, status.topic, str(status.partition))
    blocking = -1 if status.blocking_offset is None else status.blocking_offset
    figures: dict[str, float | None] = {
        "in_flight": status.in_flight,
        "queued": status.queued,
        "parked": status.parked,
        "hwm": status.hwm,
        "committed_offset": status.committed,
        "true_lag": status.true_lag,
        "held_by_transactions": status.held_by_transactions,
        "gap_count": status.gap_count,
        "blocking_offset": blocking,
        "blocking_duration_seconds": status.blocking_duration_seconds,
        "backpressure_active": int(status.backpressure),
        "paused": int(status.hold_reason is not None),
        "commit_metadata_chars": status.metadata_chars,
    }
    for name, value in figures.items():
        if value is not None:
            builder.add(name, labels, value)


def _add_handler(builder: SnapshotBuilder, pool: HandlerPool, status: HandlerStatus) -> None:
    for topic, tally in pool.tallies.items():
        labels = (status.group, topic, status.name)
        for outcome, number in (
            ("success", tally.succeeded),
            ("failed", tally.failed),
            ("undecodable", tally.undecodable),
            ("skipped", tally.skipped),
        ):
            builder.add("records_processed_total", (*labels, outcome), number)
        builder.add("processing_seconds", labels, tally.processing.snapshot())
        builder.add("queue_wait_seconds", labels, tally.queue_wait.snapshot())
        builder.add("end_to_end_seconds", labels, tally.end_to_end.snapshot())
    labels2 = (status.group, status.name)
    builder.add("oldest_task_duration_seconds", labels2, status.oldest_task_duration_seconds)
    builder.add("slots_available", labels2, status.concurrency - status.running)
    builder.add("retries_total", labels2, pool.retries)
    builder.add("timeouts_total", labels2, status.timeouts)
    for result in ("sent", "failed"):
        builder.add("retry_topics_total", (*labels2, result), _departed(pool, "retry", result))
        builder.add("dead_letters_total", (*labels2, result), _departed(pool, "dead_letter", result))
    if pool.gate is not None:
        _add_gate(builder, pool.gate, labels2)
    if pool.children is not None:
        _add_children(builder, pool.children.bridge.statistics, labels2)
    builder.add("uncancellable_handlers", labels2, status.uncancellable)
    builder.add("workers_retired_total", labels2, pool.retired)


def _add_gate(builder: SnapshotBuilder, gate: Gate, labels: tuple[str, str]) -> None:
    for reason, times in gate.held_back.items():
        builder.add("admission_refusals_total", (*labels, reason), times)
    if gate.breaker is not None:
        builder.add("breaker_state", labels, _BREAKER_STATES[gate.breaker.state])
        builder.add("breaker_openings_total", labels, gate.openings)
    if gate.poison is not None:
        builder.add("poison_keys", labels, gate.count_poisoned())
        builder.add("poisonings_total", labels, gate.poisonings)


def _add_children(builder: SnapshotBuilder, found: BridgeStatistics, labels: tuple[str, str]) -> None:
    builder.add("process_pool_lanes", labels, found.lanes)
    builder.add("process_pool_busy", labels, found.busy)
    builder.add("process_pool_pending", labels, found.pending)
    sizes: dict[int, int] = {}
    for records, batches in found.batch_sizes.items():
        count(sizes, 1 << (records - 1).bit_length(), batches)
    for size, batches in sorted(sizes.items()):
        builder.add("process_pool_batches_total", (*labels, str(size)), batches)
    builder.add("process_pool_transit_seconds", labels, found.transit_seconds)
    builder.add("process_pool_handler_seconds", labels, found.handler_seconds)
    builder.add("process_pool_restarts_total", labels, found.restarts)
    builder.add("process_pool_recycled_total", labels, found.recycled)
    builder.add("process_pool_failed_starts_total", labels, found.failed_starts)
    for reason, times in found.kills.items():
        builder.add("process_pool_kills_total", (*labels, reason), times)
    for how, times in found.blamed.items():
        builder.add("process_pool_blamed_total", (*labels, how), times)


def _add_group(builder: SnapshotBuilder, state: GroupState, status: GroupStatus) -> None:
    group, counters = (state.group,), state.counters
    halted = sum(1 for partition in status.partitions if partition.state == State.HALTED.value)
    builder.add("in_flight_bytes", group, status.bytes_in_flight)
    builder.add("partitions_halted", group, halted)
    waiting = 0 if state.outbox is None else state.outbox.count_waiting()
    builder.add("dead_letters_waiting", group, waiting)
    builder.add("commit_seconds", group, counters.commit_seconds.snapshot())
    builder.add("rebalance_seconds", group, counters.rebalance_seconds.snapshot())
    builder.add("stale_completions_total", group, counters.stale_completions)
    builder.add("redelivered_total", group, counters.redelivered)
    builder.add("lease_closed", group, int(state.lease_closed))
    builder.add("consumer_replacements_total", group, counters.consumer_replacements)
    for name, counter in (
        ("commits_total", counters.commits),
        ("commit_metadata_ignored_total", counters.metadata_ignored),
        ("offset_resets_total", counters.offset_resets),
        ("rebalances_total", counters.rebalances),
        ("stragglers_total", counters.stragglers),
    ):
        for label, number in counter.items():
            builder.add(name, (*group, label), number)
