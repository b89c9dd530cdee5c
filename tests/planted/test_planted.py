"""Planted bugs fit the source and are caught, and what is not is said. All: `python -m tests.planted`."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from concurrent.futures import Future
from dataclasses import replace
from typing import get_args

import pytest

from asyncpar.testing.checker_model import Check
from tests.planted import __main__ as command
from tests.planted.bug import ROOT, Bug, RottenPatchError
from tests.planted.bugs import BUGS
from tests.planted.finder import plant
from tests.planted.hunt import Hunt, Hunters

QUICK = ("hwm-one-too-high", "lifo-within-a-key", "next-head-not-armed")
OTHER_CHECKS = {"PROBLEM", "UNHANDLED", "SIMULATION"}
BUG = Bug("too-many", "It counts one too many.", "core.offsets", "count + 1", "count + 2", ("LOST",))


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_bug_fits_the_present_source(bug: Bug) -> None:
    """The text of each bug occurs once in its module, and what comes of it is another program."""
    source = bug.path.read_text(encoding="utf-8")
    planted = bug.planted_in(source)
    assert ast.dump(ast.parse(planted)) != ast.dump(ast.parse(source))
    compile(planted, bug.path, "exec")


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_bug_is_described(bug: Bug) -> None:
    """Each bug says in a sentence what is wrong, and names checks that there are."""
    assert bug.wrong.endswith(".")
    assert bug.checks
    assert set(bug.checks) <= set(get_args(Check)) | OTHER_CHECKS


def test_there_are_enough_bugs() -> None:
    """At least 25, of as many names: in the core, in the runtime, and in what both rely on."""
    assert len({bug.name for bug in BUGS}) == len(BUGS) >= 25
    assert {bug.module.partition(".")[0] for bug in BUGS} == {"core", "runtime", "adapters", "executors"}


@pytest.mark.parametrize(("source", "times"), [("count = 1\n", 0), ("count + 1\ncount + 1\n", 2)])
def test_rotten_patch_is_refused(source: str, times: int) -> None:
    """A text that is gone, or that occurs twice, ends in an error that names the bug and the file."""
    with pytest.raises(RottenPatchError, match=rf"too-many: its text occurs {times} times in .*offsets\.py"):
        BUG.planted_in(source)


def test_late_bug_is_refused() -> None:
    """Nothing is planted in a process that has imported asyncpar: others would hold what was true."""
    before = list(sys.meta_path)
    with pytest.raises(RuntimeError, match="too-many: asyncpar was imported before"):
        plant(BUG)
    assert sys.meta_path == before


def test_rotten_patch_fails_the_import() -> None:
    """A bug that does not fit stops the import of its module; nothing is lived without it by mistake."""
    code = (
        "from tests.planted.bug import Bug\n"
        "from tests.planted.finder import plant\n"
        "plant(Bug('gone', 'Gone.', 'core.offsets', 'no such text', '', ('LOST',)))\n"
        "import asyncpar.core.offsets\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, timeout=60, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "RottenPatchError: planted bug gone: its text occurs 0 times" in done.stderr


@pytest.mark.timeout(300)
def test_quick_bugs_are_caught() -> None:
    """Three bugs are planted in fresh processes, caught within a few lives, and told in a table."""
    named = [word for name in QUICK for word in ("--bug", name)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.planted", "--lives", "20", "--workers", "2", *named],
        cwd=ROOT,
        timeout=280,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3 bugs caught" in done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines() if line.startswith(QUICK)] == list(QUICK)


def test_command_refuses_a_rotten_patch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is lived when a bug does not fit: exit code 2, and the reason."""
    monkeypatch.setattr(command, "BUGS", (BUG,))
    assert command.main([]) == command.EXIT_ROTTEN
    assert "too-many: its text occurs 0 times" in capsys.readouterr().out


def test_command_knows_its_bugs(capsys: pytest.CaptureFixture[str]) -> None:
    """`--list` names each bug; a name that there is not is refused."""
    assert command.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(f"{bug.name} ({bug.module}): {bug.wrong}\n" in listed for bug in BUGS)
    with pytest.raises(SystemExit):
        command.main(["--bug", "no-such-bug"])


@pytest.mark.parametrize("option", ["--lives=0", "--lives=-1", "--workers=0", "--workers=two"])
def test_command_refuses_numbers_below_one(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """No bug is caught by nobody, or in no life."""
    with pytest.raises(SystemExit):
        command.main([option])
    assert "is no whole number from 1" in capsys.readouterr().err


def test_ctrl_c_ends_it() -> None:
    """At once, with exit code 130 and how far it came; no hunter tells its own end."""
    hunting = [sys.executable, "-m", "tests.planted", "--workers", "2"]
    named = [word for name in QUICK for word in ("--bug", name)]
    with subprocess.Popen(
        [*hunting, *named],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "3 bugs, up to 500 lives each from seed 1\n"
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == command.EXIT_INTERRUPTED
    assert said.splitlines()[-1] == "stopped after 0 of 3 bugs"
    assert "Traceback" not in said


CAUGHT = Hunt(BUG, 3, 12, frozenset({"LOST", "STUCK"}), "LOST orders[0]: offset 7")


def test_verdict_on_a_bug_that_is_caught() -> None:
    """One of the expected checks is enough; the row names it, the lives and the seed."""
    assert command.verdict([CAUGHT]) == []
    assert command.row(CAUGHT).split() == ["too-many", "LOST", "3", "12"]


def test_verdict_on_a_bug_that_escapes() -> None:
    """A bug that no life fails with is said, with what is wrong with it."""
    escaped = Hunt(BUG, 500)
    assert command.verdict([escaped]) == ["too-many: not caught in 500 lives: It counts one too many."]
    assert command.row(escaped).split() == ["too-many", "NOT", "CAUGHT", "500"]


def test_verdict_on_a_bug_that_others_catch() -> None:
    """A bug that only other checks find is as bad as one that nobody finds."""
    other = replace(CAUGHT, found=frozenset({"STUCK"}), problem="STUCK orders[0]")
    assert command.verdict([other]) == ["too-many: caught in life 12, but not by LOST: STUCK orders[0]"]
    assert "ONLY STUCK" in command.row(other)


class _Control:
    """Stands in for the process that lives lives without a bug: that of seed 12 fails."""

    def submit(self, passes_without: object, seed: int) -> Future[bool]:
        done: Future[bool] = Future()
        done.set_result(seed != 12)
        return done


class _Hunting:
    """Stands in for the processes that hunt: the next even seed fails."""

    def submit(self, hunt: object, bug: Bug, seeds: range) -> Future[Hunt]:
        seed = next((seed for seed in seeds if seed % 2 == 0), None)
        done: Future[Hunt] = Future()
        done.set_result(Hunt(bug, len(seeds)) if seed is None else replace(CAUGHT, lives=1, seed=seed))
        return done


def test_life_that_fails_anyway_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A life that fails without the bug as well is no evidence: it is passed over, and told."""
    with Hunters(1) as hunters:
        monkeypatch.setattr(hunters, "_hunting", _Hunting())
        monkeypatch.setattr(hunters, "_control", _Control())
        assert [(found.seed, found.lives) for found in hunters.hunt_all([BUG], range(11, 20))] == [(14, 4)]
        assert hunters.unsound == {12}
        assert [(found.seed, found.lives) for found in hunters.hunt_all([BUG], range(11, 14))] == [(None, 3)]
        monkeypatch.undo()
