"""Prometheus: a snapshot of `asyncpar.metrics`, rendered in the format that the scraper asks for.

What lives here: the collector over a source of snapshots, and one rendered answer. What never does:
names of metrics (`asyncpar/metrics.py` has them all) and state of its own. Called by the HTTP adapter and by
hosts that serve `/metrics` themselves. Always: nothing outlives its snapshot, so the series of a revoked
partition are gone with the next scrape; nothing touches prometheus_client's global registry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from asyncpar.metrics import HISTOGRAM_BOUNDS, REGISTRY, Family, Histogram, MetricsSnapshot
from asyncpar.metrics import Metric as RegisteredMetric

PREFIX = "asyncpar_"

_BOUND_LABELS = (*(repr(bound) for bound in HISTOGRAM_BOUNDS), "+Inf")


class SnapshotCollector(Collector):
    """What prometheus_client scrapes: calls `source` once per scrape and keeps nothing."""

    def __init__(self, source: Callable[[], MetricsSnapshot]) -> None:
        self._source = source

    def collect(self) -> Iterator[Metric]:
        """Every family of the snapshot, named as in the registry, with `asyncpar_` in front."""
        return map(_rendered, self._source())

    def describe(self) -> Iterator[Metric]:
        """The registry's names without samples, so that registering takes no snapshot."""
        return map(_empty, REGISTRY)


def render(snapshot_source: Callable[[], MetricsSnapshot], accept: str | None) -> tuple[bytes, str]:
    """One scrape: the body and its content type, in the format that the Accept header prefers.

    OpenMetrics or the classic text format; the latter when `accept` is None or names neither.
    """
    encode, content_type = choose_encoder(accept or "")
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SnapshotCollector(snapshot_source))
    return encode(registry), content_type


def _empty(metric: RegisteredMetric) -> Metric:
    name = PREFIX + metric.name
    match metric.kind:
        case "counter":
            return CounterMetricFamily(name, metric.help, labels=metric.labels)
        case "histogram":
            return HistogramMetricFamily(name, metric.help, labels=metric.labels)
        case _:
            return GaugeMetricFamily(name, metric.help, labels=metric.labels)


def _rendered(family: Family) -> Metric:
    rendered = _empty(family.metric)
    for sample in family.samples:
        labels = dict(zip(family.metric.labels, sample.labels, strict=True))
        if isinstance(sample.value, Histogram):
            _add_histogram(rendered, labels, sample.value)
        else:
            # A counter family drops `_total` from its name; its samples carry it in both formats.
            suffix = "_total" if rendered.type == "counter" else ""
            rendered.add_sample(rendered.name + suffix, labels, sample.value)
    return rendered


def _add_histogram(rendered: Metric, labels: dict[str, str], histogram: Histogram) -> None:
    """Our counts are per bucket, Prometheus wants each to hold all below it."""
    cumulated = list(accumulate(histogram.counts))
    for bound, count in zip(_BOUND_LABELS, cumulated, strict=True):
        rendered.add_sample(f"{rendered.name}_bucket", {**labels, "le": bound}, count)
    rendered.add_sample(f"{rendered.name}_count", labels, cumulated[-1])
    rendered.add_sample(f"{rendered.name}_sum", labels, histogram.total)
