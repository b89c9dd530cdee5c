"""What children do when something happens to their parent: killed, frozen, signalled, left without a word."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.executors.lane_rig import SECONDS, is_running, let_go, wait_on_the_loop

ROOT = Path(__file__).parents[2]


class Parent:
    """The process of `lane_parent.py`, leader of a group of its own, and what it said."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self.log = log
        self.pids: list[int] = []

    def said(self) -> list[dict[str, Any]]:
        """Its lines so far; the last one may not be there in full yet."""
        return [json.loads(line) for line in self.log.read_text().splitlines(True) if line.endswith("\n")]

    def wait_for(self, condition: Callable[[list[dict[str, Any]]], object], what: str) -> None:
        """Until its lines are so."""
        wait_on_the_loop(lambda: condition(self.said()), f"{what}; it said {self.log.read_text()}")

    def write(self, line: str) -> None:
        """To its stdin."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[Callable[..., Parent]]:
    """Starts a parent with two busy children; ends them all after the test."""
    started: list[Parent] = []

    def start(start_method: str, handler: str, *values: str, lease_seconds: float = 600) -> Parent:
        log = tmp_path / "said"
        arguments = [start_method, handler, str(lease_seconds), *values]
        with log.open("w") as out, (tmp_path / "stderr").open("w") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.executors.lane_parent", *arguments],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                text=True,
                start_new_session=True,
            )
        one = Parent(process, log)
        started.append(one)
        one.wait_for(lambda said: said or process.poll() is not None, "two busy children")
        assert one.said(), (tmp_path / "stderr").read_text()
        one.pids = one.said()[0]["pids"]
        return one

    yield start
    for one in started:
        assert one.process.stdin is not None
        with contextlib.suppress(OSError):
            one.process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.process.pid, signal.SIGKILL)
        one.process.wait(SECONDS)


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
@pytest.mark.parametrize("deed", ["spin", "sleep", "hold the lock"])
def test_no_child_outlives_its_parent(parent: Callable[..., Parent], start_method: str, deed: str) -> None:
    """Killed with -9 while its children loop in Python, sleep, or hold the interpreter's lock in C."""
    if deed == "hold the lock" and sys.platform != "linux":
        pytest.skip("only Linux ends a process that holds the interpreter's lock")
    one = parent(start_method, "obey", deed)
    assert all(is_running(pid) for pid in one.pids)
    os.kill(one.process.pid, signal.SIGKILL)
    wait_on_the_loop(lambda: not any(is_running(pid) for pid in one.pids), "the children's end")


def test_idle_children_end_with_their_parent_too(parent: Callable[..., Parent]) -> None:
    """They have replied and wait for more."""
    one = parent("forkserver", "obey", "ok", "nap")
    one.wait_for(lambda said: len(said) == 3, "both replies")
    os.kill(one.process.pid, signal.SIGKILL)
    wait_on_the_loop(lambda: not any(is_running(pid) for pid in one.pids), "the children's end")


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_signals_to_the_group_reach_no_child(
    parent: Callable[..., Parent], start_method: str, tmp_path: Path
) -> None:
    """As from Ctrl-C or a service manager: what runs ends as ever, the next record too, then all in order."""
    names = [str(tmp_path / name) for name in "ab"]
    one = parent(start_method, "gated", *names)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.killpg(one.process.pid, number)
        one.wait_for(lambda said, number=number: {"signal": number} in said, "the signal")
    for name in names:
        let_go(name)
    one.wait_for(lambda said: said.count({"run": 2, "failures": 0}) == 2, "both replies")
    one.write("close")
    one.wait_for(lambda said: {"closed": True} in said, "the end")
    assert one.process.wait(SECONDS) == 0
    assert not any("death" in line for line in one.said())
    assert not any(is_running(pid) for pid in one.pids)


def test_nothing_starts_past_the_lease_while_the_parent_is_frozen(
    parent: Callable[..., Parent], tmp_path: Path
) -> None:
    """The children end what they run, start nothing more, and say so when the parent is back."""
    journal = tmp_path / "journal"
    one = parent("forkserver", "journal", *[str(journal)] * 500, lease_seconds=1)
    lease_until = one.said()[0]["lease_until"]
    os.kill(one.process.pid, signal.SIGSTOP)
    try:
        # Both are idle again when neither has burnt a tick of the processor between two looks past the lease.
        wait_on_the_loop(lambda: time.monotonic_ns() > lease_until, "the end of the lease")
        seen: list[int] = []
        wait_on_the_loop(lambda: _has_settled(journal, seen), "the children's rest")
    finally:
        os.kill(one.process.pid, signal.SIGCONT)
    one.wait_for(lambda said: len(said) == 3, "both replies")
    starts = [int(line.split()[0]) for line in journal.read_text().splitlines()]
    assert len(starts) == sum(line["run"] for line in one.said()[1:]) < 1000
    assert (
        max(starts) <= lease_until + 50_000_000
    )  # the clock is read before the lease, and again in the handler
    assert any(start > lease_until - 500_000_000 for start in starts)


def test_a_parent_that_forgets_its_children_ends_all_the_same(parent: Callable[..., Parent]) -> None:
    """It fails without closing its lanes: neither it nor they stay behind."""
    one = parent("forkserver", "obey", "sleep")
    one.write("forget")
    assert one.process.wait(SECONDS) == 1
    wait_on_the_loop(lambda: not any(is_running(pid) for pid in one.pids), "the children's end")


def _has_settled(journal: Path, seen: list[int]) -> bool:
    """The journal has not grown for 100 looks."""
    seen.append(journal.stat().st_size)
    return len(seen) > 100 and len(set(seen[-100:])) == 1
