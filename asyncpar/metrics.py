"""The metric registry: every metric that asyncpar exports, and the snapshot that carries values.

The registry is the only place where a metric is named; `app.metrics()` fills it, the Prometheus
adapter renders it, and the docs page is generated from it. Counters are plain integers that are
read at scrape time; of what is here only `SecondsHistogram` is touched while records run.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

HISTOGRAM_BOUNDS: tuple[float, ...] = tuple(2.0**power for power in range(-20, 11))
"""Upper bounds in seconds of every histogram: powers of two from 0.95 us to 17 minutes."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One entry of the registry. `kind` is counter, gauge or histogram. Name without `asyncpar_`."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts per bucket of HISTOGRAM_BOUNDS, plus one for what lies above; `total` is the sum."""

    counts: tuple[int, ...]
    total: float


class SecondsHistogram:
    """Durations in seconds, counted in the buckets of HISTOGRAM_BOUNDS as they happen."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(HISTOGRAM_BOUNDS) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        """One observation. A negative one (a clock that was set back) counts as 0."""
        seconds = max(seconds, 0.0)
        self.counts[bisect_left(HISTOGRAM_BOUNDS, seconds)] += 1
        self.total += seconds

    def snapshot(self) -> Histogram:
        """The counts of this moment."""
        return Histogram(tuple(self.counts), self.total)


@dataclass(frozen=True, slots=True)
class Sample:
    """One value with its label values, in the order of the metric's `labels`."""

    labels: tuple[str, ...]
    value: float | Histogram


@dataclass(frozen=True, slots=True)
class Family:
    """One metric with all its samples at one moment."""

    metric: Metric
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True)
class MetricsSnapshot:
    """All metrics of an app at one moment, in the registry's order."""

    families: tuple[Family, ...]

    def __iter__(self) -> Iterator[Family]:
        return iter(self.families)

    def value(self, name: str, **labels: str) -> float | Histogram:
        """The sample of metric `name` with exactly these labels. KeyError when there is none."""
        for family in self.families:
            if family.metric.name == name:
                wanted = tuple(labels[label] for label in family.metric.labels)
                for sample in family.samples:
                    if sample.labels == wanted:
                        return sample.value
        raise KeyError(f"no sample of {name} with labels {labels}")


_G = ("group",)
_PARTITION = ("group", "topic", "partition")
_HANDLER = ("group", "handler")
_PROCESSING = ("group", "topic", "handler")

REGISTRY: tuple[Metric, ...] = (
    Metric(
        "records_processed_total",
        "counter",
        ("group", "topic", "handler", "outcome"),
        "Attempts that ended, by outcome: success, failed, undecodable, skipped.",
    ),
    Metric(
        "processing_seconds",
        "histogram",
        _PROCESSING,
        "Time from the start of a handler call to its end.",
    ),
    Metric(
        "queue_wait_seconds",
        "histogram",
        _PROCESSING,
        "Time from the arrival of a record in the process to its start (sampled).",
    ),
    Metric(
        "end_to_end_seconds",
        "histogram",
        _PROCESSING,
        "Time from a record's timestamp to its completion, by the wall clock (sampled).",
    ),
    Metric("in_flight", "gauge", _PARTITION, "Records held: queued, running or parked."),
    Metric("queued", "gauge", _PARTITION, "Records held that neither run nor wait for a retry."),
    Metric("parked", "gauge", _PARTITION, "Records that wait for a retry."),
    Metric("in_flight_bytes", "gauge", _G, "Payload bytes held by records in flight."),
    Metric("hwm", "gauge", _PARTITION, "Every delivered offset below it is done."),
    Metric("committed_offset", "gauge", _PARTITION, "The last acknowledged committed offset."),
    Metric("true_lag", "gauge", _PARTITION, "Last stable offset minus HWM."),
    Metric(
        "held_by_transactions",
        "gauge",
        _PARTITION,
        "High watermark minus last stable offset: held back by open transactions.",
    ),
    Metric("gap_count", "gauge", _PARTITION, "Runs of done offsets above the HWM."),
    Metric("blocking_offset", "gauge", _PARTITION, "The lowest unfinished offset; -1 for none."),
    Metric(
        "blocking_duration_seconds",
        "gauge",
        _PARTITION,
        "How long the lowest unfinished offset has been the lowest one.",
    ),
    Metric("partitions_halted", "gauge", _G, "Partitions that stopped at a failed record."),
    Metric("backpressure_active", "gauge", _PARTITION, "1 while a limit keeps it from being fetched."),
    Metric("paused", "gauge", _PARTITION, "1 while it is held: not fetched, for the reason in its status."),
    Metric("oldest_task_duration_seconds", "gauge", _HANDLER, "Age of the longest running call."),
    Metric("slots_available", "gauge", _HANDLER, "Free slots of the handler's concurrency."),
    Metric("retries_total", "counter", _HANDLER, "Records parked for another attempt."),
    Metric(
        "breaker_state",
        "gauge",
        _HANDLER,
        "0 closed, 1 half-open (few calls try), 2 open; for handlers that have a breaker.",
    ),
    Metric("breaker_openings_total", "counter", _HANDLER, "How often it opened."),
    Metric("process_pool_lanes", "gauge", _HANDLER, "Child processes of the handler that are ready."),
    Metric("process_pool_busy", "gauge", _HANDLER, "Those of them that have records."),
    Metric("process_pool_pending", "gauge", _HANDLER, "Records that wait for a child."),
    Metric(
        "process_pool_batches_total",
        "counter",
        (*_HANDLER, "size"),
        "Batches sent to children, by their number of records: up to 1, 2, 4, 8, ...",
    ),
    Metric(
        "process_pool_transit_seconds",
        "histogram",
        _HANDLER,
        "Time from sending a batch to its answer, without the handler's; of batches that no other held up.",
    ),
    Metric(
        "process_pool_handler_seconds", "histogram", _HANDLER, "What the handler took for a batch in a child."
    ),
    Metric("process_pool_restarts_total", "counter", _HANDLER, "Children that died and were replaced."),
    Metric(
        "process_pool_recycled_total",
        "counter",
        _HANDLER,
        "Children that were replaced after max_tasks_per_child records.",
    ),
    Metric("process_pool_failed_starts_total", "counter", _HANDLER, "Children that could not be started."),
    Metric(
        "process_pool_kills_total",
        "counter",
        (*_HANDLER, "reason"),
        "Children that asyncpar ended: timeout, cancelled, stuck (no sign of life), close.",
    ),
    Metric(
        "process_pool_blamed_total",
        "counter",
        (*_HANDLER, "how"),
        "Records that a crash or a timeout of their child was put down to.",
    ),
    Metric("poison_keys", "gauge", _HANDLER, "Keys whose records are not run for now."),
    Metric("poisonings_total", "counter", _HANDLER, "How often a key was poisoned."),
    Metric(
        "admission_refusals_total",
        "counter",
        ("group", "handler", "reason"),
        "How often records were kept from starting: breaker, rate_limit, key_rate_limit, delay, poison_key.",
    ),
    Metric("retry_topics_total", "counter", ("group", "handler", "result"), "Records sent to retry topics."),
    Metric("timeouts_total", "counter", _HANDLER, "Calls cancelled at a time limit."),
    Metric(
        "dead_letters_total",
        "counter",
        ("group", "handler", "result"),
        "Records given up: sent (acknowledged by their dead-letter topic), failed (one try to send them).",
    ),
    Metric("dead_letters_waiting", "gauge", _G, "Records given up that no topic has acknowledged yet."),
    Metric("uncancellable_handlers", "gauge", _HANDLER, "Calls that outlived their cancellation."),
    Metric("workers_retired_total", "counter", _HANDLER, "Workers replaced for a changed context."),
    Metric("commits_total", "counter", ("group", "result"), "Partition commits by result."),
    Metric("commit_seconds", "histogram", _G, "Time of one commit request."),
    Metric("commit_metadata_chars", "gauge", _PARTITION, "Length of the last commit's metadata."),
    Metric(
        "commit_metadata_ignored_total",
        "counter",
        ("group", "reason"),
        "Restored commit metadata that was not ours, damaged, of another place, or beyond the log's end.",
    ),
    Metric(
        "offset_resets_total",
        "counter",
        ("group", "reason"),
        "Positions set by offset_reset: no_commit, out_of_range.",
    ),
    Metric("rebalances_total", "counter", ("group", "kind"), "Rebalances: assigned, revoked, lost."),
    Metric("rebalance_seconds", "histogram", _G, "Time spent draining in a revoke."),
    Metric(
        "stragglers_total", "counter", ("group", "kind"), "Handlers that outlived a revoke: left, adopted."
    ),
    Metric("stale_completions_total", "counter", _G, "Completions of an older generation, dropped."),
    Metric("redelivered_total", "counter", _G, "Records delivered again and known to be done: not run."),
    Metric("lease_closed", "gauge", _G, "1 while nothing starts because heartbeats are not answered."),
    Metric("consumer_replacements_total", "counter", _G, "Dead clients that were replaced."),
    Metric("loop_lag_seconds", "gauge", (), "Delay of the event loop's last tick."),
    Metric("build_info", "gauge", ("version", "client", "python"), "1; its labels say what runs."),
)

_BY_NAME: Mapping[str, Metric] = {metric.name: metric for metric in REGISTRY}


@dataclass(slots=True)
class SnapshotBuilder:
    """Collects samples by name and yields a snapshot in the registry's order."""

    _samples: dict[str, list[Sample]] = field(default_factory=dict)

    def add(self, name: str, labels: Sequence[str], value: float | Histogram) -> None:
        """One sample of registered metric `name`; KeyError for a name that is not registered."""
        metric = _BY_NAME[name]
        if len(labels) != len(metric.labels):
            raise ValueError(f"{name} has labels {metric.labels}, got {tuple(labels)}")
        self._samples.setdefault(name, []).append(Sample(tuple(labels), value))

    def snapshot(self) -> MetricsSnapshot:
        """Every registered metric, also those without a sample."""
        return MetricsSnapshot(
            tuple(Family(metric, tuple(self._samples.get(metric.name, ()))) for metric in REGISTRY)
        )
