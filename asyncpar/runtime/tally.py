"""Counters of the hot path: plain integers and histograms, read when somebody asks.

Nothing here locks, allocates per record or knows Prometheus.
"""

from __future__ import annotations

from typing import TypeVar

from asyncpar.metrics import SecondsHistogram

K = TypeVar("K")


class Tally:
    """What one handler did with one topic's records."""

    __slots__ = ("end_to_end", "failed", "processing", "queue_wait", "skipped", "succeeded", "undecodable")

    def __init__(self) -> None:
        self.succeeded = 0
        self.failed = 0
        self.undecodable = 0
        self.skipped = 0
        self.processing = SecondsHistogram()
        self.queue_wait = SecondsHistogram()
        self.end_to_end = SecondsHistogram()


class GroupCounters:
    """What one group's runtime counts besides its handlers."""

    __slots__ = (
        "commit_seconds",
        "commits",
        "consumer_replacements",
        "metadata_ignored",
        "offset_resets",
        "rebalance_seconds",
        "rebalances",
        "redelivered",
        "stale_completions",
        "stragglers",
    )

    def __init__(self) -> None:
        self.commits: dict[str, int] = {}
        self.commit_seconds = SecondsHistogram()
        self.metadata_ignored: dict[str, int] = {}
        self.offset_resets: dict[str, int] = {}
        self.rebalances: dict[str, int] = {}
        self.rebalance_seconds = SecondsHistogram()
        self.stragglers: dict[str, int] = {}
        self.stale_completions = 0
        self.redelivered = 0
        self.consumer_replacements = 0


def count(counter: dict[K, int], label: K, by: int = 1) -> None:
    """Add `by` to `label`."""
    counter[label] = counter.get(label, 0) + by
