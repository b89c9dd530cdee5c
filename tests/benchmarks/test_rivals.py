"""Rivals run as programs, bounded in time, and are judged by their journals; what is missing is said."""

from __future__ import annotations

import asyncio
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks import rivals, rivals_run, work
from benchmarks.choice import LeftOut
from benchmarks.harness import Run, Task
from benchmarks.load import place
from benchmarks.rivals import JavaEnvironment, PythonEnvironment
from benchmarks.rivals_run import Rival, judged
from benchmarks.work import ALL, IDLE, LATE, Entry
from tests.cli.program import ROOT

TASK = Task("nowhere:1", "topic", "group", 3, (2, 1), 1)
# The program of a rival without Kafka: it runs the records that it is told, each for 1 us of a made-up clock.
PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from benchmarks import work
words = dict(word.split("=", 1) for word in sys.argv[1:])
assert (words["topic"], words["records"], words["work"], words["seconds"]) == ("topic", "3", "sleep", "20.0")
write = work.writer(Path(words["journal"]), int(words["lines"]))
for number, at in enumerate(words["runs"].split(",")):
    write(b"%06d%08d" % tuple(map(int, at.split(":"))), 1000 * number, 1000 * number + 1000)
{end}
"""


@dataclass(frozen=True)
class Program:
    """An environment whose program is the test's."""

    command: list[str]


def rival(runs: str, end: str) -> Rival:
    """One that runs these records, `key:number`, and ends like that."""
    program = Program([sys.executable, "-c", PROGRAM.format(root=str(ROOT), end=end)])
    return Rival("fake", program, {"runs": runs}, "as it is")  # type: ignore[arg-type]


# -- a run ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("runs", "end", "faults", "notes"),
    [
        ("0:0,1:0,0:1", "print('all')", [], []),
        ("0:0,1:0", "print('late')", [], ["stopped after 20 s"]),
        ("0:0,1:0", "print('idle')", ["1 records are missing", "after 2 records none came for 5 s"], []),
        (
            "0:0,1:0",
            "sys.exit('no such broker')",
            ["ended with code 1: no such broker", "1 records are mis"],
            [],
        ),
        ("0:0,1:0,0:1", "", ["ended without saying how"], []),
        ("0:0,0:1,1:0,0:1", "print('all')", ["1 records ran more than once"], []),
    ],
    ids=["right", "stopped", "lossy", "crashed", "silent", "twice"],
)
def test_a_rival_is_judged_by_its_journal_and_its_last_word(
    runs: str, end: str, faults: list[str], notes: list[str]
):
    """A loss is one unless the time was over; a crash is a fault of the run and no error of the benchmark."""
    found = rivals_run.run(rival(runs, end), work.SLEEP, TASK)
    assert len(found.faults) == len(faults)
    assert all(any(fault in one for one in found.faults) for fault in faults), found.faults
    assert found.notes == notes
    assert found.is_stopped is bool(notes)
    assert found.records == runs.count(":")
    assert found.rate == pytest.approx(1e6)


def test_a_rival_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch):
    """And what it wrote until then is looked at."""
    monkeypatch.setattr(rivals_run, "START_SECONDS", -20.0)  # with 20 s to run: 1 s to end
    monkeypatch.setattr(rivals_run, "_LEAVE_SECONDS", 1.0)
    found = rivals_run.run(rival("0:0,1:0", "import time; time.sleep(60)"), work.SLEEP, TASK)
    assert found.faults[0] == "killed, as it had not ended after 1 s"
    assert found.records == 2


def test_a_rival_that_wrote_nothing_lost_everything():
    """No journal, no rate, no division by zero."""
    found = judged([], IDLE, [], 30.0, TASK)
    assert found.rate == 0.0
    assert found.faults == ["3 records are missing, 2 keys end early", "after 0 records none came for 30 s"]


@pytest.mark.parametrize(
    ("entries", "fault"),
    [
        ([Entry(place(0, 0), 1, 2), Entry(place(0, 1), 2, 3)], None),
        (
            [Entry(place(0, 0), 1, 3), Entry(place(0, 1), 2, 4)],
            "1 records began before another one of their key",
        ),
        ([Entry(place(0, 1), 1, 2)], "1 records overtook"),
    ],
    ids=["in order", "side by side", "one left out"],
)
def test_order_is_judged_also_when_the_time_was_over(entries: list[Entry], fault: str | None):
    """What is missing at the end of each key is not held against it, what is missing before that is."""
    found = judged(entries, LATE, [], 20.0, TASK)
    assert (found.faults == []) is (fault is None)
    assert fault is None or any(fault in one for one in found.faults)


def test_times_are_told_of_the_rivals_that_ran():
    """The median over the rounds, what is wanted where something is, and what anyone could reach."""
    results = {
        "ours": [Run(100, 1.0, 2.0), Run(300, 1.0, 2.0), Run(200, 1.0, 2.0)],
        "faststream": [Run(10, 1.0, 2.0), Run(10, 1.0, 2.0), Run(10, 1.0, 2.0)],
        "pyrallel": [Run(0, 0.0, 30.0)] * 3,
    }
    wanted = {rivals_run.ACK_FIRST: 30, rivals_run.PYRALLEL: None, rivals_run.PARALLEL_100: 8}
    assert rivals_run.times("ours", wanted, results) == {
        "faststream": {"times": 20.0, "wanted": 30},
        "pyrallel": {"times": 0.0},
    }
    possible = rivals_run.times("ours", wanted, results, possible=250.0)
    assert possible["faststream"] == {"times": 20.0, "wanted": 30, "possible": 25.0}
    assert possible["pyrallel"] == {"times": 0.0}


# -- how a rival's program waits -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("done", "seconds", "idle", "end"), [(3, 9.0, 9.0, ALL), (2, 0.0, 9.0, LATE), (2, 9.0, 0.0, IDLE)]
)
def test_the_wait_ends_with_all_records_or_late_or_idle(
    done: int, seconds: float, idle: float, end: str, monkeypatch: pytest.MonkeyPatch
):
    """Of 3 records, of which repeats are none; the time counts from the first one."""
    monkeypatch.setattr(work, "IDLE_SECONDS", idle)
    progress = work.Progress(3, seconds)
    for number in range(done):
        progress.did(place(0, number))
        progress.did(place(0, number))
    assert asyncio.run(progress.ended()) == end
    assert progress.is_late is (end == LATE)


def test_the_wait_for_the_first_record_is_bounded(monkeypatch: pytest.MonkeyPatch):
    """No time is over before it."""
    monkeypatch.setattr(work, "START_SECONDS", 0.0)
    monkeypatch.setattr(work, "IDLE_SECONDS", 3_600.0)
    progress = work.Progress(3, 0.0)
    assert not progress.is_late
    assert asyncio.run(asyncio.wait_for(progress.ended(), 5)) == IDLE


# -- environments --------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "asyncpar-benchmarks"


def test_an_environment_is_made_once_and_whole_or_not_at_all(cache: Path, monkeypatch: pytest.MonkeyPatch):
    """What failed leaves nothing behind, and is tried again; what is there is not made again."""
    commands: list[str] = []

    def run(command: list[str], what: str, seconds: float = 0.0) -> str:
        commands.append(what)
        if what.startswith("install") and len(commands) < 3:
            raise LeftOut("could not install: no network")
        return "faststream 0.7.8, Python 3.11.7\n"

    monkeypatch.setattr(rivals, "_run", run)
    rivals.find_python.cache_clear()
    monkeypatch.setattr(rivals, "find_python", lambda oldest: sys.executable)
    environment = PythonEnvironment("faststream", "rivals_faststream.py", ("faststream",))
    with pytest.raises(LeftOut, match="no network"):
        environment.prepare()
    assert list(cache.iterdir()) == []
    assert environment.prepare() == environment.prepare() == "faststream 0.7.8, Python 3.11.7"
    assert commands.count("install faststream by pip") == 2
    assert [Path(environment.python).parent.parent] == list(cache.iterdir())


def test_without_a_new_enough_python_the_reason_says_which(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Neither this one, nor on PATH, nor with pyenv."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    with pytest.raises(LeftOut, match=r"no Python 3\.99 or newer"):
        rivals.find_python((3, 99))


def test_pyenvs_interpreters_are_found_where_none_is_on_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The first one that is new enough."""
    for number in "3.9.18", "3.98.1", "3.99.0", "3.100.2":
        home = tmp_path / "versions" / number / "bin"
        home.mkdir(parents=True)
        (home / "python").write_text(f"#!/bin/sh\necho {' '.join(number.split('.')[:2])}\n")
        (home / "python").chmod(0o755)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    rivals.find_python.cache_clear()
    assert rivals.find_python((3, 99)) == str(tmp_path / "versions" / "3.99.0" / "bin" / "python")
    rivals.find_python.cache_clear()


@pytest.mark.parametrize("tool", ["java", "javac", "mvn"])
def test_without_java_and_maven_the_reason_says_which(tool: str, monkeypatch: pytest.MonkeyPatch):
    """Before anything is fetched."""
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == tool else which("true"))
    monkeypatch.setattr(rivals, "_made", lambda *_: pytest.fail("went on"))
    with pytest.raises(LeftOut, match=f"no `{tool}` on PATH"):
        JavaEnvironment("rivals_java", "ParallelConsumerRival", ()).prepare()


def test_a_change_of_the_java_program_is_compiled_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Its folder of the cache is named after what it is made from."""
    shutil.copytree(rivals.HERE / "rivals_java", tmp_path / "rivals_java")
    monkeypatch.setattr(rivals, "HERE", tmp_path)
    environment = rivals_run.PARALLEL_CONSUMER
    before = environment.command
    source = tmp_path / "rivals_java" / "ParallelConsumerRival.java"
    source.write_text(source.read_text() + "// changed\n")
    assert environment.command != before


def test_a_tool_that_fails_or_hangs_is_a_reason_to_leave_a_rival_out():
    """With its last words, or that it took too long, or that it is not there."""
    with pytest.raises(LeftOut, match="could not ask: no such package"):
        rivals._run([sys.executable, "-c", "import sys; sys.exit('no such package')"], "ask")
    with pytest.raises(LeftOut, match="could not ask: .*timed out"):
        rivals._run([sys.executable, "-c", "import time; time.sleep(60)"], "ask", seconds=0.1)
    with pytest.raises(LeftOut, match="could not ask: .*nowhere"):
        rivals._run(["/nowhere/python"], "ask")
