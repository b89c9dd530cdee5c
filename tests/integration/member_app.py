"""The app of a member process: run by `python -m asyncpar run tests.integration.member_app:app`.

Does what the plan in its environment says; its consumer and its calls go into the plan's history. Never
imported by tests. Always: it dies with the process that started it, however that one ends.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import time

from asyncpar import App, Record, Retry
from asyncpar.testing.history import HistoryFile
from tests.integration.plan import Plan
from tests.integration.watch import Watch

if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

plan = Plan.from_environment()
watch = Watch(HistoryFile(plan.history), str(os.getpid()))
watch.app = app = App(consumers=watch.consumers)

_LOOK_SECONDS = 0.02


async def _wait_for_release() -> None:
    while not plan.release.exists():  # noqa: ASYNC110 - what ends it happens in another process
        await asyncio.sleep(_LOOK_SECONDS)


async def _refuse_to_end() -> None:
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            continue


async def work(record: Record) -> None:
    """Take as long as the plan says."""
    with watch.handling(record):
        if record.offset in plan.stuck:
            await _wait_for_release()
        if record.offset in plan.failing and not plan.release.exists():
            raise RuntimeError(f"offset {record.offset} fails by plan")
        if record.offset in plan.deaf:
            await _refuse_to_end()
        await asyncio.sleep(plan.work_ms / 1000)


def work_in_thread(record: Record) -> None:
    """The same in a thread."""
    with watch.handling(record):
        if record.offset in plan.sleepers:
            time.sleep(3600)
        time.sleep(plan.work_ms / 1000)


app.topic(
    plan.topic,
    name="work",
    concurrency=plan.concurrency,
    retry=Retry(attempts=plan.attempts, base_ms=20, max_ms=100),
)(work_in_thread if plan.threads else work)
