"""The benchmarks run, check what they measure, and fail when a contender is wrong."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import p1
from tests.cli.program import ROOT, environment
from tests.conftest import Broker

RECORDS = 5_000


def test_p1_measures_on_a_real_broker(broker: Broker, tmp_path: Path):
    """A small run as a script: every round right, versions and settings printed, the same as JSON."""
    found = tmp_path / "p1.json"
    sizes = ("--records", str(RECORDS), "--rounds", "2")
    done = subprocess.run(
        [
            sys.executable,
            "benchmarks/p1.py",
            "--bootstrap-servers",
            broker.bootstrap,
            *sizes,
            "--json",
            found,
        ],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("aiokafka", "machine", "value_bytes", "median_records_per_second", "ratio_spread"):
        assert words in done.stdout, words
    written = json.loads(found.read_text())
    assert written["settings"]["records"] == RECORDS
    assert written["result"]["faults"] == {"raw aiokafka": 0, "asyncpar": 0}
    assert [run["records"] for run in written["runs"]["asyncpar"]] == [RECORDS, RECORDS]
    assert written["result"]["ratio"] > 0


def values(*places: tuple[int, int]) -> list[bytes]:
    """Values as the load makes them, by (key, number)."""
    return [b"%04d%08d....." % place for place in places]


def test_a_right_run_has_no_faults():
    """Keys may mix; each key's numbers run up."""
    assert p1.check(values((0, 0), (1, 0), (0, 1)), [2, 1]) == (0, [])


def test_a_repeat_is_counted_and_no_fault():
    """At least once allows it."""
    assert p1.check(values((0, 0), (0, 1), (0, 0), (0, 1)), [2]) == (2, [])


@pytest.mark.parametrize(
    ("seen", "per_key"),
    [
        (values((0, 0)), [2]),
        (values((0, 1)), [2]),
        (values((0, 1), (0, 0)), [2]),
        (values((0, 0), (0, 2), (0, 1)), [3]),
        ([], [1]),
    ],
)
def test_lost_and_reordered_records_are_faults(seen: list[bytes], per_key: list[int]):
    """The last one missing, the first one missing, two swapped, nothing at all."""
    assert p1.check(seen, per_key)[1]


def test_a_wrong_run_ends_with_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Whatever the rates: a contender that was wrong once fails the benchmark."""
    wrong = {
        "raw aiokafka": [p1.Run(10, 1.0, 2.0)],
        "asyncpar": [p1.Run(10, 0.5, 2.0, faults=["1 record is missing"])],
    }
    monkeypatch.setattr(p1, "measure", lambda *_: wrong)
    assert p1.main(["--bootstrap-servers", "nowhere:1"]) == 1
    assert "FAILED: asyncpar" in capsys.readouterr().out
