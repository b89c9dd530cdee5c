"""How a member shows that it is held back: what its own endpoints say.

What lives here: one look. What never does: what it means. Called by `outage.py`.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from tests.kafka_broker import LOOPBACK

_HTTP_SECONDS = 5.0


@dataclass(frozen=True)
class Look:
    """By partition: why it is not fetched (status), None where it is; whether the metric says so, too."""

    holds: dict[int, str | None]
    paused: dict[int, bool]


def look(port: int) -> Look | None:
    """The member that serves `port`; None while it does not answer. Blocks for some seconds at most."""
    status, metrics = _get(port, "/status"), _get(port, "/metrics")
    if status is None or metrics is None:
        return None
    holds = {
        part["partition"]: part["hold_reason"]
        for group in json.loads(status)["groups"]
        for part in group["partitions"]
    }
    paused = {
        int(sample.labels["partition"]): bool(sample.value)
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name == "asyncpar_paused"
    }
    return Look(holds, paused)


def _get(port: int, path: str) -> str | None:
    try:
        with urllib.request.urlopen(f"http://{LOOPBACK}:{port}{path}", timeout=_HTTP_SECONDS) as answer:
            body: bytes = answer.read()
    except OSError:
        return None
    return body.decode()
