"""Lanes that die again and again leave nothing behind: no descriptor, thread, zombie or semaphore.

`LANE_TEST_CYCLES` sets how many die; the suite's own number is small, for time.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import multiprocessing.forkserver
import os
import threading
from pathlib import Path

import pytest

from tests.executors.lane_rig import Rig, batch, is_running, until, work

_SEMAPHORES = f"mp{os.getpid()}"
"""How multiprocessing is to name those that this process makes."""
_COLLECTED_AFTER = 20
"""Cycles. A dead lane is left to the collector, which seldom runs in a large process. Too many of them fill
the first page of shared memory with their words, and multiprocessing never gives back the second one."""
CYCLES = int(os.environ.get("LANE_TEST_CYCLES", "200"))


def _left_behind() -> dict[str, int]:
    """How much of each kind there is now, of this process and its fork server."""
    server = multiprocessing.forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    parents = {os.getpid(), server}
    zombies = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        zombies += state == "Z" and int(parent) in parents
    return {
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "descriptors of the fork server": len(list(Path(f"/proc/{server}/fd").iterdir())),
        "threads": threading.active_count(),
        "zombies": zombies,
        "semaphores": len(list(Path("/dev/shm").glob(f"sem.{_SEMAPHORES}-*"))),
        "shared memory": Path("/proc/self/maps").read_text().count("pym-"),
    }


async def _crash(start_method: str, deed: str) -> int:
    one = Rig(work(), start_method)
    await one.start()
    one.lane.send(batch(1, "ok", deed))
    if deed == "spin":
        await one.running(1, 1)
        one.lane.kill()
    assert (await one.death()).index == 1
    assert one.lane.pid is not None
    return one.lane.pid


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("start_method", "cycles"), [("forkserver", CYCLES), ("spawn", max(3, CYCLES // 40))]
)
async def test_crashes_leak_nothing(start_method: str, cycles: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What there is after many crashes is what there was after the first few."""
    me = multiprocessing.current_process()
    monkeypatch.setitem(me._config, "semprefix", f"/{_SEMAPHORES}")  # type: ignore[attr-defined]
    for _ in range(3):
        await _crash(start_method, "kill")
    gc.collect()
    await until(lambda: threading.active_count() < 10, "threads of the first ones")
    before = _left_behind()
    pids = []
    for number in range(cycles):
        pids.append(await _crash(start_method, ("kill", "os exit", "spin")[number % 3]))
        if number % _COLLECTED_AFTER == 0:
            gc.collect()

    def is_as_before() -> bool:
        gc.collect()  # each time: what has outlived one collection is not looked at again by itself
        return _grown(before) == {}

    with contextlib.suppress(AssertionError):
        await until(is_as_before, "nothing that grew")
    assert _grown(before) == {}
    assert not any(is_running(pid) for pid in pids)


def _grown(before: dict[str, int]) -> dict[str, tuple[int, int]]:
    """What there is more of now, then and now."""
    return {kind: (before[kind], now) for kind, now in _left_behind().items() if now > before[kind]}
