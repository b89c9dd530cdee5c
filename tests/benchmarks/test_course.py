"""The course of the workloads with a course of their own, and the command that runs all workloads."""

from __future__ import annotations

import json
import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from benchmarks import all as all_workloads
from benchmarks import course, harness
from benchmarks.course import Course, Measured


@dataclass
class Figure(Measured):
    figure: float = 0.0


def sums(runs: course.Measurements) -> dict[str, object]:
    return {"total": sum(one.figure for found in runs.values() for one in found if isinstance(one, Figure))}


def test_what_was_measured_is_shown_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Environment, settings, runs and result, in the shape of all workloads' JSON; no broker is started."""
    path = tmp_path / "found.json"
    options = course.parsed(course.parser("test", needs_broker=False), ["--rounds", "2", "--json", str(path)])
    runs = {"ours": [Figure(figure=1.0), Figure(figure=2.5)]}
    asked: list[str] = []

    def measure(bootstrap: str) -> course.Measurements:
        asked.append(bootstrap)
        return runs

    assert course.conduct(options, Course({"records": 7}, measure, sums)) == 0
    assert asked == [""]
    printed = capsys.readouterr().out
    for words in ("machine", "records", "total"):
        assert words in printed
    written = json.loads(path.read_text())
    assert written.keys() == {"environment", "settings", "runs", "result"}
    assert written["settings"] == {"rounds": 2, "records": 7}
    assert written["runs"]["ours"] == [{"faults": [], "figure": 1.0}, {"faults": [], "figure": 2.5}]
    assert written["result"] == {"total": 3.5, "faults": {"ours": 0}}


def test_a_fault_in_any_round_ends_with_exit_code_1(capsys: pytest.CaptureFixture[str]):
    """Whatever the figures, and it is said whose it was."""
    options = course.parsed(course.parser("test"), ["--bootstrap-servers", "nowhere:1"])
    runs = {"bare": [Figure(), Figure()], "ours": [Figure(), Figure(faults=["1 record is missing"])]}
    assert course.conduct(options, Course({}, lambda _: runs, sums)) == 1
    assert "FAILED: ours did not" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--seconds", "-1"]])
def test_sizes_must_be_above_0(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    """Else the command ends, and names the option."""
    made = course.parser("test")
    made.add_argument("--seconds", type=float, default=1.0)
    with pytest.raises(SystemExit):
        course.parsed(made, arguments)
    assert f"{arguments[0]} must be above 0" in capsys.readouterr().err


def test_nested_results_have_a_line_each():
    """A mapping of plain values stays on one line; those above it become parts of its name."""
    nested = {"loads": {"50%": {"rate": 5, "ours": {"p50": 1.0}}}, "ratio": 2}
    assert course.flat(nested) == {"loads: 50%: rate": 5, "loads: 50%: ours": {"p50": 1.0}, "ratio": 2}


def test_targets_say_whether_they_are_met():
    """Equal is met, on either side."""
    assert [course.at_most(2, found)["is_met"] for found in (1, 2, 3)] == [True, True, False]
    assert [course.at_least(2, found)["is_met"] for found in (1, 2, 3)] == [False, True, True]


def test_a_function_that_hangs_in_its_process_is_ended():
    """With a message that names it, and no process is left."""
    with pytest.raises(SystemExit, match="sleep did not end within"):
        course.in_own_process(0.1, time.sleep, 60)
    assert multiprocessing.active_children() == []


# -- all of them ---------------------------------------------------------------------------------


def test_every_workload_is_a_script():
    """The list names no script that is not there, and none that is there is missing from it."""
    found = {path.stem for path in all_workloads.HERE.glob("*.py") if "def main(" in path.read_text()}
    assert found - {"all", "page"} == set(all_workloads.WORKLOADS)


def test_all_goes_on_after_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Each gets its file and the rounds, the failed one is named, and the exit code is 1."""
    into = tmp_path / "found"
    into.mkdir()
    script = (
        "import sys, pathlib; pathlib.Path(sys.argv[2]).write_text(' '.join(sys.argv[3:])); print('done')\n"
    )
    (tmp_path / "good.py").write_text(script)
    (tmp_path / "bad.py").write_text(f"{script}sys.exit(1)\n")
    assert all_workloads.run_all(["bad", "good"], into, 5, "host:1", tmp_path) == 1
    for name in "bad", "good":
        assert (into / f"{name}.json").read_text() == "--rounds 5 --bootstrap-servers host:1"
        assert (into / f"{name}.txt").read_text() == "done\n"
    printed = capsys.readouterr().out
    assert "1 of 2 workloads ended well" in printed
    assert "FAILED: bad (exit code 1)" in printed
    assert all_workloads.run_all(["good"], into, 1, None, tmp_path) == 0
    assert (into / "good.json").read_text() == "--rounds 1"


def test_a_workload_that_hangs_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The others go on, and it counts as failed."""
    monkeypatch.setattr(all_workloads, "MOST_SECONDS", 0.2)
    (tmp_path / "hangs.py").write_text("import time; time.sleep(60)\n")
    assert all_workloads.run_all(["hangs"], tmp_path, 1, None, tmp_path) == 1


def test_a_broker_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is measured."""
    monkeypatch.setattr(harness, "AdminClient", AdminClient)
    monkeypatch.setattr(harness, "_ANSWER_SECONDS", 0.2)
    with pytest.raises(SystemExit, match="no Kafka answers at 127.0.0.1:9"), harness.broker_at("127.0.0.1:9"):
        raise AssertionError
