"""Status and metrics of a running group: every registered metric, and why an offset is not moving."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from asyncpar.core.assignment import State
from asyncpar.core.breaker import BreakerRules
from asyncpar.core.poison import PoisonRules
from asyncpar.core.rate_limit import RateRules
from asyncpar.executors.lane_port import Job
from asyncpar.executors.process_bridge import BridgeRules, ProcessBridge
from asyncpar.metrics import REGISTRY, Histogram, SnapshotBuilder
from asyncpar.records import Committed, RawRecord, TopicPartition
from asyncpar.runtime import snapshots
from asyncpar.runtime.handlers import Admissions
from asyncpar.testing.modelled_lanes import ModelledLanes
from tests.runtime.fakes import FakeConsumer, Running, handler, log, until

T0 = TopicPartition("t", 0)
PROCESS_METRICS = {"loop_lag_seconds", "build_info"}
EVENTS = {"commit_metadata_ignored_total", "offset_resets_total", "stragglers_total"}


async def test_the_status_names_the_blocking_offset_its_reason_and_the_gaps() -> None:
    """One record runs for ever, ten above it are done: the status says which, since when and whose."""
    consumer = FakeConsumer(log("t", "stuck", *(f"k{at}" for at in range(10)), "stuck"))
    release = asyncio.Event()

    async def handle(record: RawRecord) -> None:
        if record.offset == 0:
            await release.wait()

    async with Running(consumer, handler(handle, name="bill")) as run:
        await until(lambda: T0 in consumer.stored and run.runtime.state.pools[0].completed() == 10)
        (status,) = snapshots.group_status(run.runtime).partitions
        assert (status.hwm, status.blocking_offset, status.blocking_reason) == (0, 0, "running")
        assert status.blocking_handler == "bill"
        assert (status.gap_count, status.done_above_hwm) == (1, 10)
        assert (status.in_flight, status.running, status.queued) == (2, 1, 1)
        assert (status.log_end, status.true_lag) == (12, 12)
        seen = status.blocking_duration_seconds
        await until(
            lambda: snapshots.group_status(run.runtime).partitions[0].blocking_duration_seconds > seen
        )
        release.set()
        await until(lambda: consumer.stored.get(T0) == Committed(12, ""))
        (status,) = snapshots.group_status(run.runtime).partitions
        assert (status.blocking_offset, status.blocking_reason, status.true_lag) == (None, None, 0)
        await run.stop()


async def test_a_halted_partition_names_the_offset_it_halted_at_and_since_when() -> None:
    """An alert on the blocking offset or on its duration fires for a halt as well."""
    consumer = FakeConsumer(log("t", "good", "bad", "other"))

    async def handle(record: RawRecord) -> None:
        if record.offset == 1:
            raise ValueError("no")

    async with Running(consumer, handler(handle, attempts=1)) as run:
        partitions = run.runtime.state.partitions
        await until(lambda: T0 in partitions and partitions[T0].state is State.HALTED)
        (status,) = snapshots.group_status(run.runtime).partitions
        assert (status.blocking_offset, status.blocking_reason) == (1, "halted")
        seen = status.blocking_duration_seconds
        await until(
            lambda: snapshots.group_status(run.runtime).partitions[0].blocking_duration_seconds > seen
        )
        await run.stop()


async def test_a_parked_record_is_named_as_waiting_for_a_retry() -> None:
    """The blocking offset that waits says so, with its failed attempts."""
    consumer = FakeConsumer(log("t", "bad"))

    async def handle(record: RawRecord) -> None:
        raise ValueError("no")

    slow = handler(handle)
    rules = type(slow.rules)(None, 60_000, 60_000, skip_undecodable=False)
    import dataclasses

    async with Running(consumer, dataclasses.replace(slow, rules=rules)) as run:
        await until(lambda: len(run.runtime.state.parking) == 1)
        (status,) = snapshots.group_status(run.runtime).partitions
        assert (status.blocking_reason, status.blocking_attempts, status.parked) == (
            "waiting for a retry",
            1,
            1,
        )
        (pool,) = snapshots.group_status(run.runtime).handlers
        assert (pool.parked, pool.failed, pool.running) == (1, 1, 0)
        await run.stop()


async def test_every_metric_of_the_registry_has_samples_of_a_running_group() -> None:
    """Nothing in the registry is decoration: after some work each one carries a value."""
    consumer = FakeConsumer(log("t", *(f"k{at}" for at in range(64))))

    async def handle(record: RawRecord) -> None:
        raise AssertionError("it runs in a child")

    async def run_job(job: Job) -> None:
        await asyncio.sleep(0)

    bridge = ProcessBridge("handle", BridgeRules(1, 8, 64, 0), ModelledLanes(run_job))
    await bridge.start()
    limited = Admissions(BreakerRules(), poison=PoisonRules(), rate=RateRules(per_second=500, burst=1))
    in_children = replace(handler(handle, admissions=limited), bridge=bridge, invoke=bridge.run)
    async with Running(consumer, in_children) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(64, ""))
        builder = SnapshotBuilder()
        snapshots.add_metrics(builder, run.runtime)
        found = {family.metric.name for family in builder.snapshot() if family.samples}
        (status,) = snapshots.group_status(run.runtime).handlers
        assert (status.children, status.no_child_starts) == (1, None)
        await run.stop()
    await bridge.close(1.0)
    expected = {metric.name for metric in REGISTRY} - PROCESS_METRICS - EVENTS
    assert expected - found == set(), "registered, but never exported"


async def test_counters_and_histograms_count_what_happened() -> None:
    """64 records of one handler: 64 successes, 64 observations, sampled waits, one commit at least."""
    consumer = FakeConsumer(log("t", *(f"k{at}" for at in range(64))))

    async def handle(record: RawRecord) -> None:
        return None

    async with Running(consumer, handler(handle)) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(64, ""))
        builder = SnapshotBuilder()
        snapshots.add_metrics(builder, run.runtime)
        snapshot = builder.snapshot()
        assert (
            snapshot.value(
                "records_processed_total", group="g", topic="t", handler="handle", outcome="success"
            )
            == 64
        )
        processing = snapshot.value("processing_seconds", group="g", topic="t", handler="handle")
        assert isinstance(processing, Histogram) and sum(processing.counts) == 64
        waits = snapshot.value("queue_wait_seconds", group="g", topic="t", handler="handle")
        assert isinstance(waits, Histogram) and sum(waits.counts) == 2
        commits = snapshot.value("commits_total", group="g", result="acknowledged")
        assert isinstance(commits, int) and commits >= 1
        assert snapshot.value("committed_offset", group="g", topic="t", partition="0") == 64
        await run.stop()


async def test_a_revoked_partition_leaves_no_series_behind() -> None:
    """After a revoke its samples are gone, not frozen."""
    consumer = FakeConsumer(log("t", "a"))

    async def handle(record: RawRecord) -> None:
        return None

    async with Running(consumer, handler(handle)) as run:
        await until(lambda: consumer.stored.get(T0) == Committed(1, ""))
        await consumer.revoke()
        builder = SnapshotBuilder()
        snapshots.add_metrics(builder, run.runtime)
        assert not any(
            "partition" in family.metric.labels and family.samples for family in builder.snapshot()
        )
        await run.stop()
