"""The Prometheus adapter: what a scraper reads is what the snapshot holds, under the registry's names."""

from __future__ import annotations

import pytest
from prometheus_client import REGISTRY as GLOBAL_REGISTRY
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_classic

from asyncpar.adapters.prometheus import SnapshotCollector, render
from asyncpar.metrics import HISTOGRAM_BOUNDS, REGISTRY, Histogram, MetricsSnapshot, SnapshotBuilder

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def one_of_each() -> MetricsSnapshot:
    """A snapshot with one sample of every registered metric; label values are the labels' names."""
    builder = SnapshotBuilder()
    counts = (*range(1, len(HISTOGRAM_BOUNDS) + 1), 2)
    for metric in REGISTRY:
        value = Histogram(counts, 1.5) if metric.kind == "histogram" else 7
        builder.add(metric.name, metric.labels, value)
    return builder.snapshot()


def partitions(*numbers: int) -> MetricsSnapshot:
    """A snapshot in which these partitions of `orders` have a high-water mark."""
    builder = SnapshotBuilder()
    for number in numbers:
        builder.add("hwm", ("billing", "orders", str(number)), 100 + number)
    return builder.snapshot()


def text(snapshot: MetricsSnapshot, accept: str | None = None) -> str:
    """The body of one scrape."""
    return render(lambda: snapshot, accept)[0].decode()


@pytest.mark.parametrize("accept", [None, OPENMETRICS])
def test_every_metric_is_exposed_under_its_registered_name(accept: str | None) -> None:
    """Each name of the registry appears once, prefixed, in both formats, with its labels."""
    lines = text(one_of_each(), accept).splitlines()
    for metric in REGISTRY:
        suffix = "_count" if metric.kind == "histogram" else ""
        found = [
            line for line in lines if line.split("{")[0].split(" ")[0] == f"asyncpar_{metric.name}{suffix}"
        ]
        assert len(found) == 1, metric.name
        assert all(f'{label}="{label}"' in found[0] for label in metric.labels)


def test_no_other_name_is_exposed() -> None:
    """Nothing but the registry's metrics is rendered: no `_created` series, no process metrics."""
    registered = {f"asyncpar_{metric.name}" for metric in REGISTRY}
    parts = ("", "_bucket", "_count", "_sum")
    allowed = {name + part for name in registered for part in parts}
    for line in text(one_of_each()).splitlines():
        if not line.startswith("#"):
            assert line.split("{")[0].split(" ")[0] in allowed


def test_both_formats_are_valid() -> None:
    """prometheus_client's own parsers read what is rendered, with the kinds and help of the registry."""
    classic = {family.name: family for family in parse_classic(text(one_of_each()))}
    modern = {family.name: family for family in parse_openmetrics(text(one_of_each(), OPENMETRICS))}
    for metric in REGISTRY:
        name = f"asyncpar_{metric.name}".removesuffix("_total")
        for families in (classic, modern):
            assert families[name].type == metric.kind
            assert families[name].documentation == metric.help


def test_content_type_follows_the_accept_header() -> None:
    """OpenMetrics for who asks for it, the classic text format for everybody else."""
    assert render(one_of_each, OPENMETRICS)[1].startswith("application/openmetrics-text")
    assert render(one_of_each, None)[1].startswith("text/plain")
    assert render(one_of_each, "text/html")[1].startswith("text/plain")


def test_histogram_buckets_are_cumulative() -> None:
    """Each bucket holds all below it, `+Inf` equals the count, and the sum is the total time."""
    builder = SnapshotBuilder()
    counts = [0] * (len(HISTOGRAM_BOUNDS) + 1)
    counts[0], counts[3], counts[-1] = 5, 2, 1
    builder.add("commit_seconds", ("billing",), Histogram(tuple(counts), 2048.25))
    family = next(
        family for family in parse_classic(text(builder.snapshot())) if family.name.endswith("commit_seconds")
    )
    buckets = [sample for sample in family.samples if sample.name.endswith("_bucket")]
    assert [float(sample.labels["le"]) for sample in buckets] == [*HISTOGRAM_BOUNDS, float("inf")]
    assert [sample.value for sample in buckets] == [5, 5, 5, *[7] * (len(HISTOGRAM_BOUNDS) - 3), 8]
    rest = {sample.name: sample.value for sample in family.samples if not sample.name.endswith("_bucket")}
    assert rest == {"asyncpar_commit_seconds_count": 8, "asyncpar_commit_seconds_sum": 2048.25}


def test_series_of_a_revoked_partition_disappear() -> None:
    """A partition that left the snapshot is gone with the next scrape of the same collector."""
    snapshots = [partitions(0, 1), partitions(1)]
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SnapshotCollector(lambda: snapshots.pop(0)))

    def scraped() -> set[str]:
        samples = [sample for family in registry.collect() for sample in family.samples]
        return {sample.labels["partition"] for sample in samples if sample.name == "asyncpar_hwm"}

    assert scraped() == {"0", "1"}
    assert scraped() == {"1"}


def test_odd_label_values_survive() -> None:
    """Quotes, backslashes and line breaks in a group's name are escaped, not broken."""
    builder = SnapshotBuilder()
    odd = 'a "quoted"\\\nname'
    builder.add("in_flight_bytes", (odd,), 1)
    families = parse_classic(text(builder.snapshot()))
    family = next(family for family in families if family.name == "asyncpar_in_flight_bytes")
    assert family.samples[0].labels == {"group": odd}


def test_registering_takes_no_snapshot_and_the_global_registry_is_left_alone() -> None:
    """A host may register the collector before the app runs; rendering never touches the default registry."""

    def not_yet() -> MetricsSnapshot:
        raise AssertionError("no snapshot may be taken before the first scrape")

    before = {family.name for family in GLOBAL_REGISTRY.collect()}
    CollectorRegistry(auto_describe=True).register(SnapshotCollector(not_yet))
    render(one_of_each, None)
    assert {family.name for family in GLOBAL_REGISTRY.collect()} == before
