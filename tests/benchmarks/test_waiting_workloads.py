"""P2, P3 and S2: the floor, what is possible, the rows, and small runs on a real broker."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import p1, p2, p3, s2, sleepers
from benchmarks.harness import Run, Task
from benchmarks.load import VALUE_BYTES, Load
from benchmarks.work import PLACE_BYTES, SLEEP_END
from tests.conftest import Broker


def task(load: Load) -> Task:
    return Task("nowhere:1", "topic", "group", load.records, load.per_key, load.partitions)


@pytest.mark.parametrize("loop", [sleepers.STOCK, sleepers.UVLOOP])
def test_the_floor_runs_each_record_once_in_order_without_a_broker(loop: str):
    """On either loop, with fewer slots than keys; there is nothing to commit."""
    if loop == sleepers.UVLOOP:
        pytest.importorskip("uvloop")
    load = Load(300, 40, sleep_us=(2_000, 2_000))
    run = sleepers.floor(loop, load, slots=7)(task(load))
    assert (run.records, run.duplicates, run.faults, run.has_group) == (300, 0, [], False)
    # 7 slots need longer than the slowest key. uvloop counts in whole milliseconds and may be early by one.
    assert loop == sleepers.UVLOOP or run.seconds >= load.records / sleepers.possible(load, 7)


def test_the_busiest_keys_come_first_and_no_record_is_missing():
    """As lists of values, each key's in order."""
    load = Load(200, 30)
    keys = sleepers.by_key(load)
    assert [len(values) for values in keys] == sorted(filter(None, load.per_key), reverse=True)
    assert all(values == sorted(values) for values in keys)
    assert sorted(value for values in keys for value in values) == sorted(value for _, value in load.values())


def test_what_is_possible_is_bound_by_the_slots_or_by_the_slowest_key():
    """1,000 records of 10 ms: 4 slots take 2.5 s; one key alone takes 10 s, however many slots there are."""
    fixed = (10_000, 10_000)
    assert sleepers.possible(Load(1_000, 500, sleep_us=fixed), 4) == pytest.approx(400)
    assert sleepers.possible(Load(1_000, 1, sleep_us=fixed), 100) == pytest.approx(100)


def test_sleeps_are_drawn_once_and_are_in_the_values():
    """The same for all contenders; values keep their size."""
    load = Load(500, 10, sleep_us=(0, 5_000))
    values = [value for _, value in load.values()]
    assert values == [value for _, value in Load(500, 10, sleep_us=(0, 5_000)).values()]
    sleeps = [int(value[PLACE_BYTES:SLEEP_END]) for value in values]
    assert min(sleeps) >= 0 and max(sleeps) <= 5_000
    assert sum(sleeps) / len(sleeps) == pytest.approx(2_500, rel=0.1)
    assert {len(value) for value in values} == {VALUE_BYTES}


def test_shares_are_told_of_the_pairs_that_ran():
    """Each contender beside its own floor: the median over the rounds."""
    results = {
        "ours": [Run(80, 1.0, 2.0), Run(90, 1.0, 2.0), Run(70, 1.0, 2.0)],
        "floor": [Run(100, 1.0, 2.0)] * 3,
        "ours uvloop": [Run(80, 1.0, 2.0)] * 3,
    }
    assert sleepers.shares({"ours": "floor", "ours uvloop": "floor uvloop"}, results) == {"ours": 0.8}


@pytest.mark.parametrize("workload", [p1, p2, p3, s2], ids=lambda one: one.__name__)
def test_rows_have_their_subject_baseline_and_rivals_among_their_contenders(workload: ModuleType):
    """Each rival can be left out, and may be wrong; what is ours may not."""
    for row in workload.rows(1_000):
        assert {row.subject, row.baseline, *row.rivals, *row.preparations} <= row.contenders.keys()
        assert row.rivals <= row.preparations.keys()
        assert not row.rivals & {row.subject, row.baseline}
        assert row.rivals <= row.settings.keys()


def test_targets_of_p3_are_for_keys_that_can_run_side_by_side():
    """From 100 keys on, 1.10 times the floor's time."""
    targets = {row.name: row.target for row in p3.rows(1_000)}
    assert targets == {"1keys": None, "10keys": None} | dict.fromkeys(
        ("100keys", "1000keys", "10000keys"), 0.909
    )


@pytest.mark.parametrize(
    ("workload", "row", "own", "words"),
    [
        (p2, "10ms", "floor,asyncpar,asyncpar defaults,floor uvloop,asyncpar uvloop", "share_of_floor"),
        (p3, "100keys", "floor,asyncpar", "times_the_floor"),
        (s2, "s2", "floor,asyncpar,plain loop", "possible_per_second"),
    ],
    ids=["p2", "p3", "s2"],
)
def test_they_measure_on_a_real_broker(
    workload: ModuleType,
    row: str,
    own: str,
    words: str,
    broker: Broker,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    """All contenders that need no environment of their own: each record once, in order, committed."""
    output = tmp_path / "found.json"
    sizes = ["--records", "300", "--rounds", "1", "--rows", row, "--contenders", own]
    arguments = ["--bootstrap-servers", broker.bootstrap, *sizes, "--json", str(output)]
    assert workload.main(arguments) == 0
    assert words in capsys.readouterr().out
    written = json.loads(output.read_text())
    assert [run["records"] for runs in written["runs"].values() for run in runs] == [300] * len(
        written["runs"]
    )
    assert set(written["result"]["faults"].values()) == {0}
    assert written["result"]["ratio"] > 0
