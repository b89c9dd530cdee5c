"""How a member is at a moment: what the kernel says, what its own endpoints say, what it writes down.

What lives here: one sample. What never does: what it means (`trend.py`). Called by `soaking.py`. Always: the
kernel is asked first, so that our own question over HTTP is not among the open descriptors.
"""

from __future__ import annotations

import json
import os
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.soak.plan import SoakPlan, Vitals

PROC = Path("/proc")
_HTTP_SECONDS = 5.0
_TAIL_BYTES = 8192
_MB = 1e6
_CPU_FIELDS = slice(11, 13)  # utime and stime, counted from behind the name of the program


class SampleError(RuntimeError):
    """The member could not be looked at: it is gone, or does not answer."""


@dataclass(frozen=True)
class Sample:
    """Resident memory in MB (10^6 bytes); CPU in seconds since the member began; lag in records."""

    rss_mb: float
    descriptors: int
    threads: int
    cpu_seconds: float
    lag: int
    in_flight: int
    vitals: Vitals


def take(pid: int, plan: SoakPlan) -> Sample:
    """Look at the member once; SampleError when that fails. Blocks for some seconds at most."""
    try:
        memory, threads = _memory_and_threads(pid)
        descriptors = sum(1 for _ in (PROC / str(pid) / "fd").iterdir())
        cpu = _cpu_seconds(pid)
        groups = json.loads(_get(plan, "/status"))["groups"]
        _get(plan, "/metrics")  # as a scraper does: a leak there is a leak
        vitals = last_vitals(Path(plan.vitals))
    except (OSError, ValueError) as error:
        raise SampleError(f"the member cannot be looked at: {error}") from error
    partitions: list[dict[str, Any]] = [part for group in groups for part in group["partitions"]]
    return Sample(
        rss_mb=memory,
        descriptors=descriptors,
        threads=threads,
        cpu_seconds=cpu,
        lag=sum(part["true_lag"] or 0 for part in partitions),
        in_flight=sum(part["in_flight"] for part in partitions),
        vitals=vitals,
    )


def last_vitals(path: Path) -> Vitals:
    """The last whole line of a file of vitals. OSError or ValueError when there is none yet."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - _TAIL_BYTES, 0))
        lines = file.read().split(b"\n")[:-1]
    if not lines:
        raise ValueError(f"nothing in {path} yet")
    return Vitals.from_line(lines[-1].decode())


def _memory_and_threads(pid: int) -> tuple[float, int]:
    fields = dict(
        line.split(":", 1) for line in (PROC / str(pid) / "status").read_text().splitlines() if ":" in line
    )
    if "VmRSS" not in fields:
        raise ValueError(f"process {pid} has ended")
    return int(fields["VmRSS"].split()[0]) * 1024 / _MB, int(fields["Threads"])


def _cpu_seconds(pid: int) -> float:
    fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[_CPU_FIELDS])) / os.sysconf("SC_CLK_TCK")


def _get(plan: SoakPlan, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{plan.http_port}{path}", timeout=_HTTP_SECONDS) as answer:
        body: bytes = answer.read()
    return body
