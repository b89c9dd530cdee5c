"""The benchmarks run, check what they measure, and fail when a contender is wrong."""

import json
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from benchmarks import harness, p1, p4, p7
from benchmarks.harness import Run, Task
from benchmarks.load import Load, check, place
from benchmarks.p7_work import Entry
from tests.cli.program import ROOT, environment
from tests.conftest import Broker

RECORDS = 5_000
P1_OWN = ["raw aiokafka", "raw async for", "asyncpar"]
"""P1's contenders that need no environment of their own."""


def measured(script: str, broker: Broker, folder: Path, *sizes: str) -> tuple[str, Any]:
    """What a small run as a script, which must end well, prints and writes."""
    found = folder / "found.json"
    command = [sys.executable, f"benchmarks/{script}", "--bootstrap-servers", broker.bootstrap, *sizes]
    done = subprocess.run(
        [*command, "--json", found],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads(found.read_text())


def test_p1_measures_on_a_real_broker(broker: Broker, tmp_path: Path):
    """A small run as a script: every round right, versions and settings printed, the same as JSON."""
    sizes = ["--records", str(RECORDS), "--rounds", "2", "--contenders", ",".join(P1_OWN)]
    printed, written = measured("p1.py", broker, tmp_path, *sizes)
    for words in ("aiokafka", "machine", "value_bytes", "median_records_per_second", "ratio_spread"):
        assert words in printed, words
    assert written["settings"]["records"] == RECORDS
    assert written["result"]["faults"] == dict.fromkeys(P1_OWN, 0)
    assert [run["records"] for run in written["runs"]["asyncpar"]] == [RECORDS] * 2 * p1.PASSES
    assert written["result"]["ratio"] > 0


def test_p4_measures_on_a_real_broker(broker: Broker, tmp_path: Path):
    """Two rows; in each as many records fail and are retried as the load was made to have, or none."""
    printed, written = measured("p4.py", broker, tmp_path, "--records", "3000", "--rounds", "1")
    for words in ("spread: settings", "hot: result", "machine", "slowest key", "ratio_of_floors"):
        assert words in printed, words
    assert list(written["rows"]) == ["spread", "hot"]
    for row, records in (written["rows"]["spread"], 3000), (written["rows"]["hot"], 300):
        asked_for = int(row["settings"]["failures"].split()[0])
        assert row["settings"]["records"] == records
        assert row["result"]["faults"] == {"no failures": 0, "failures": 0}
        assert [run["failures"] for run in row["runs"]["no failures"]] == [0]
        assert [run["failures"] for run in row["runs"]["failures"]] == [asked_for]
        assert row["result"]["ratio"] > 0
    assert written["rows"]["spread"]["result"]["retry_wait_ms"] > 0
    assert "target_ratio" not in written["rows"]["hot"]["result"]


def test_p7_measures_on_a_real_broker(broker: Broker, tmp_path: Path):
    """Two of its rows, all contenders that need no other Python: each record ran once, wherever that was."""
    output = tmp_path / "found.json"
    sizes = ["--records", "200", "--rounds", "1", "--json", str(output), "--rows", "cpu,no-op"]
    own = ["--contenders", "plain loop,asyncpar,2 plain loops,submit,async"]
    assert p7.main(["--bootstrap-servers", broker.bootstrap, *sizes, *own]) == 0
    measured = json.loads(output.read_text())["rows"]
    names = {"cpu": {"plain loop", "asyncpar", "2 plain loops", "submit"}, "no-op": {"async", "asyncpar"}}
    for row, records in ("cpu", 200), ("no-op", 4_000):
        runs = measured[row]["runs"]
        assert runs.keys() == names[row]
        assert all([run["records"] for run in found] == [records] for found in runs.values())
        assert set(measured[row]["result"]["faults"].values()) == {0}
    assert measured["cpu"]["result"]["target_ratio"] == p7.TARGET_RATIO
    assert measured["no-op"]["result"]["share_of_wanted"] > 0
    assert measured["no-op"]["result"]["targets"].keys() == {"no-op records per second"}


# -- the check of a run --------------------------------------------------------------------------


def values(*places: tuple[int, int]) -> list[bytes]:
    """Values as the load makes them, by (key, number)."""
    return [place(*one) + b"....." for one in places]


def test_a_right_run_has_no_faults():
    """Keys may mix; each key's numbers run up."""
    assert check(values((0, 0), (1, 0), (0, 1)), [2, 1]) == (0, [])


def test_a_repeat_is_counted_and_no_fault():
    """At least once allows it."""
    assert check(values((0, 0), (0, 1), (0, 0), (0, 1)), [2]) == (2, [])


@pytest.mark.parametrize(
    ("seen", "per_key", "fault"),
    [
        (values((0, 0)), [2], "1 records are missing"),
        (values((0, 1)), [2], "1 records overtook"),
        (values((0, 1), (0, 0)), [2], "1 records overtook"),
        (values((0, 0), (0, 2), (0, 1)), [3], "1 records overtook"),
        ([], [1], "1 records are missing"),
    ],
)
def test_lost_and_reordered_records_are_faults(seen: list[bytes], per_key: list[int], fault: str):
    """The last one missing, the first one missing, two swapped, nothing at all."""
    assert fault in check(seen, per_key)[1][0]


@pytest.mark.parametrize(
    ("seen", "failed", "fault"),
    [
        (values((0, 0), (0, 1)), 1, None),
        (values((0, 0), (0, 1), (0, 0)), 1, "more than once"),
        (values((0, 0), (0, 1)), 0, "0 records failed and ran again instead of 1"),
        (values((0, 0)), 1, "missing"),
    ],
)
def test_p4_wants_each_record_once_after_its_failures(seen: list[bytes], failed: int, fault: str | None):
    """Nobody crashes there, so a repeat is a fault, and so are failures that were not retried, and a loss."""
    found = p4.judge(seen, failed, [2], 1)[1]
    assert (found == []) is (fault is None)
    assert fault is None or fault in found[0]


def calls(*times: tuple[int, int, int, int]) -> list[Entry]:
    """Entries of P7's journal, by (key, number, began, ended)."""
    return [Entry(place(key, number), began, ended) for key, number, began, ended in times]


@pytest.mark.parametrize(
    ("seen", "is_ordered", "fault"),
    [
        (calls((0, 0, 1, 2), (1, 0, 1, 9), (0, 1, 2, 3)), True, None),
        (calls((0, 0, 1, 3), (1, 0, 1, 9), (0, 1, 2, 4)), True, "1 records began before another one"),
        (calls((0, 1, 1, 2), (1, 0, 1, 9), (0, 0, 2, 3)), True, "1 records overtook"),
        (calls((0, 0, 1, 2), (1, 0, 1, 9), (0, 1, 2, 3), (0, 1, 3, 4)), True, "1 records ran more than once"),
        (calls((0, 0, 1, 2), (1, 0, 1, 9)), True, "1 records are missing"),
        (calls((0, 1, 1, 3), (1, 0, 1, 9), (0, 0, 2, 3)), False, None),
        (calls((0, 1, 1, 3), (1, 0, 1, 9), (0, 1, 2, 3)), False, "missing"),
    ],
    ids=["right", "overlap", "order", "twice", "lost", "no order asked for", "lost, no order asked for"],
)
def test_p7_wants_each_record_once_and_a_keys_one_at_a_time(
    seen: list[Entry], is_ordered: bool, fault: str | None
):
    """By the times at which calls began and ended, in whichever process; a plain pool need not keep order."""
    found = p7.judge(seen, [2, 1], is_ordered=is_ordered)[1]
    assert (found == []) is (fault is None)
    assert fault is None or any(fault in one for one in found)


def test_a_wrong_run_ends_with_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Whatever the rates: a contender that was wrong once fails the benchmark."""
    wrong = {
        "raw aiokafka": [Run(10, 1.0, 2.0)],
        "asyncpar": [Run(10, 0.5, 2.0, faults=["1 record is missing"])],
    }
    monkeypatch.setattr(harness, "AdminClient", Mock())
    monkeypatch.setattr(harness, "measure", lambda *_: wrong)
    assert p1.main(["--bootstrap-servers", "nowhere:1", "--contenders", ",".join(P1_OWN)]) == 1
    assert "FAILED: asyncpar lost" in capsys.readouterr().out


def test_a_wrong_run_of_any_row_ends_with_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Also of a row without a target, when all others are right."""

    def measure(_: str, row: harness.Row, rounds: int) -> harness.Results:
        faults = ["1 record is missing"] if row.target is None else []
        return {
            "no failures": [p4.RetriedRun(10, 1.0, 2.0)],
            "failures": [p4.RetriedRun(10, 1.0, 2.0, faults=faults)],
        }

    monkeypatch.setattr(harness, "AdminClient", Mock())
    monkeypatch.setattr(harness, "measure", measure)
    assert p4.main(["--bootstrap-servers", "nowhere:1", "--records", "1000"]) == 1
    assert "FAILED: failures lost" in capsys.readouterr().out


def sleep_for_ever(_: Task) -> Run:
    """A contender that hangs."""
    while True:
        time.sleep(60)


def test_a_contender_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch):
    """The benchmark ends with a message and leaves no process behind."""
    monkeypatch.setattr(harness, "RUN_TIMEOUT_SECONDS", 0.1)
    with pytest.raises(SystemExit, match="group-0 had not read all records after"):
        harness.one_run(sleep_for_ever, Task("nowhere:1", "topic", "group-0", 1, (1,)))
    assert multiprocessing.active_children() == []


# -- loads and floors ----------------------------------------------------------------------------


def test_the_busiest_key_has_the_share_that_zipf_gives_it():
    """With exponent 1 over 100 keys: 1 of 5.19; the second key half of that; the same load each time."""
    load = Load(50_000, keys=100, exponent=1.0)
    assert load.per_key == Load(50_000, keys=100, exponent=1.0).per_key
    assert sum(load.per_key) == 50_000
    assert load.per_key[0] / 50_000 == pytest.approx(1 / 5.187, rel=0.05)
    assert load.per_key[1] / 50_000 == pytest.approx(1 / 5.187 / 2, rel=0.05)


def test_without_an_exponent_all_keys_are_alike():
    """Each of ten keys gets a tenth."""
    assert all(count == pytest.approx(1_000, rel=0.15) for count in Load(10_000, keys=10).per_key)


def test_one_record_in_a_hundred_fails_the_same_ones_each_time():
    """One of each hundred of a key; of keys with fewer records as many of them as chance wants."""
    assert p4.failing_per_key([300] * 100) == [3] * 100
    assert sum(p4.failing_per_key([10] * 10_000)) == pytest.approx(1_000, rel=0.2)
    places = p4.failing_places([300, 50])
    assert places == p4.failing_places([300, 50])
    assert [int(where[-8:]) // 100 for where in places[:3]] == [0, 1, 2]
    assert set(places) <= {place(0, number) for number in range(300)} | {
        place(1, number) for number in range(50)
    }
    assert len(places) == sum(p4.failing_per_key([300, 50]))


def test_the_floor_counts_repeated_sleeps_and_mean_delays():
    """100 slots of 10 ms: 30,000 records take 3 s; one key's 200 take 2 s, and 60 ms more per failure."""
    per_key = [200] * 150
    assert p4.floor(per_key, [0] * 150) == p4.Floor(pytest.approx(3.0), pytest.approx(2.0))
    failing = [20, *[0] * 149]
    assert p4.floor(per_key, failing) == p4.Floor(pytest.approx(3.002), pytest.approx(3.2))
    assert p4.floor(per_key, failing).seconds == pytest.approx(3.2)


def test_rows_of_p4_are_bound_as_they_say():
    """`spread` by its slots, with and without failures; `hot` by its busiest key."""
    spread, hot = p4.rows(20_000)
    for row, is_bound_by_slots in (spread, True), (hot, False):
        per_key = row.load.per_key
        for failing in [0] * len(per_key), p4.failing_per_key(per_key):
            found = p4.floor(per_key, failing)
            assert (found.slots > found.key) is is_bound_by_slots
    assert spread.target == p4.TARGET_RATIO and hot.target is None
