"""Workload P5: latencies from the intended sending, percentiles, ratios, and a tiny run."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks import p5, p5_work
from benchmarks.load import VALUE_BYTES, check
from tests.conftest import Broker


def test_percentiles_are_by_nearest_rank():
    """Of 1,000 values the 990th is p99 and the 999th p99.9; no value is made up between two."""
    found = p5_work.percentiles([float(number) for number in range(1000, 0, -1)])
    assert found == {"p50": 500.0, "p90": 900.0, "p99": 990.0, "p99.9": 999.0, "max": 1000.0}
    assert p5_work.percentiles([3.0]) == {"p50": 3.0, "p90": 3.0, "p99": 3.0, "p99.9": 3.0, "max": 3.0}
    assert p5_work.percentiles([]) == {}


def test_a_latency_goes_from_the_intended_sending():
    """What a value says of it, and the warm-up counts for nothing."""
    values = [p5_work.value_of(1, 0, 0), p5_work.value_of(1, 1, 5_000_000), p5_work.value_of(0, 0, 7_000_000)]
    assert all(len(value) == VALUE_BYTES for value in values)
    assert check(values, [1, 2]) == (0, [])
    assert p5_work.latencies_ms(values, [1_000_000, 9_000_000, 9_500_000]) == [4.0, 2.5]


class Polled:
    def __init__(self):
        self.polls = 0

    def poll(self, timeout: float) -> int:
        self.polls += 1
        return 0


def test_the_producer_keeps_to_its_timetable():
    """Stamps are evenly spaced whatever the sending costs, no record is early, and lateness is said."""
    sent: list[tuple[int, int, int]] = []

    def produce(key: int, due: int) -> None:
        if len(sent) == 3:
            time.sleep(0.02)  # the world stands still: those behind it are late, not moved
        sent.append((key, due, time.monotonic_ns()))

    late = p5_work._keep_timetable(range(10), 1000, produce, Polled())
    assert [key for key, _, _ in sent] == [*range(10)]
    assert {later[1] - earlier[1] for earlier, later in pairwise(sent)} == {1_000_000}
    assert all(at >= due for _, due, at in sent)
    assert len(late) == 10
    assert min(late) >= 0
    assert late[3] >= 20
    assert late[4] >= 15


def opened(p99: float) -> p5.Opened:
    return p5.Opened(
        asked_rate=100.0, records=9, latency_ms={"p50": 1.0, "p99": p99}, sent_late_ms={"p50": 0.1}
    )


def test_the_result_has_percentiles_by_load_and_judges_p99():
    """Ratios round by round, medians of them; the absolute target at 70 % alone."""
    runs: dict[str, list[p5.Measured]] = {p5.CLOSED: [p5.Closed(rate=rate) for rate in (90.0, 100.0, 140.0)]}
    for share in p5.SHARES:
        runs[f"{p5.label(share)} asyncpar"] = [opened(10.0), opened(12.0), opened(30.0)]
        runs[f"{p5.label(share)} asyncpar, 1000 slots"] = [opened(9.0)] * 3
        runs[f"{p5.label(share)} bare loop"] = [opened(10.0), opened(8.0), opened(20.0)]
        runs[f"{p5.label(share)} bare loop in order"] = [opened(12.0)] * 3
    found = p5.result(runs)
    assert found["closed_loop_records_per_second"] == 100
    loads = found["loads"]
    assert isinstance(loads, dict)
    assert list(loads) == ["50%", "70%", "90%"]
    assert loads["90%"]["asyncpar"] == {"p50": 1.0, "p99": 12.0}
    assert loads["90%"]["p99_of_bare_loop"] == 1.5
    assert loads["90%"]["p99_of_bare_loop_spread"] == [1.0, 1.5]
    targets = found["targets"]
    assert isinstance(targets, dict)
    assert targets["p99 of the bare loop's at 50%"] == {"at_most": 1.0, "measured": 1.5, "is_met": False}
    assert targets["p99 in ms at 70%"] == {"at_most": 25.0, "measured": 12.0, "is_met": True}
    assert len(targets) == 4


def test_p5_measures_on_a_real_broker(broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One load: all contenders get what a process of its own sends, and each record is timed once."""
    monkeypatch.setattr(p5, "SHARES", (0.7,))
    path = tmp_path / "found.json"
    sizes = ["--records", "500", "--seconds", "0.2", "--rounds", "1", "--json", str(path)]
    assert p5.main(["--bootstrap-servers", broker.bootstrap, *sizes]) == 0
    written = json.loads(path.read_text())
    assert written["runs"]["closed loop"][0]["records"] == 500
    timed = {name: runs[0]["records"] for name, runs in written["runs"].items() if name != "closed loop"}
    assert timed.keys() == {f"70% {name}" for name in p5.CONTENDERS}
    assert len(set(timed.values())) == 1
    assert min(timed.values()) > 0
    assert written["result"]["loads"]["70%"]["asyncpar"]["p99.9"] >= 5.0
