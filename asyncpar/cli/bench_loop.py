"""How busy the event loop is: how late it comes to a timer, and what its thread and the process compute.

Lives here: `LoopWatch`, a task that asks for a timer and looks how late it is, beside a thread that does the
same. Never here: what that means (`bench_limits.py`). Called by `bench_run.py`, on the loop that it watches.
Always: 50 looks a second, each a few microseconds.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from asyncpar.cli.bench_figures import Durations

_LOOK_SECONDS = 0.02
LATE_SECONDS = 0.002
"""A timer that comes later than this found the loop at work: its own resolution is a millisecond."""


class LoopFigures(NamedTuple):
    """Shares are of the time watched, from 0 to 1; `process_share` counts cores and can be more."""

    late_share: float
    """Of the looks: those for which the loop came late, which is about the share of time it was at work."""
    late_p99_seconds: float
    machine_late_share: float
    """The same of a thread that does nothing else: when it is late, other programs have the cores."""
    thread_share: float
    """How long the loop's thread computed."""
    process_share: float
    """How long all threads of this process computed, without child processes."""


class LoopWatch:
    """Watches from `begin` on; `run` is the task."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        thread_seconds: Callable[[], float] = time.thread_time,
        process_seconds: Callable[[], float] = time.process_time,
    ) -> None:
        self._clock = clock
        self._thread_seconds = thread_seconds
        self._process_seconds = process_seconds
        self._of_loop = Durations()
        self._of_machine = Durations()
        self._late_loop = self._late_machine = 0
        self._began: tuple[float, float, float] | None = None
        self._ended = threading.Event()

    def begin(self) -> None:
        """Count from now on; a second call does nothing."""
        if self._began is None:
            self._began = self._clock(), self._thread_seconds(), self._process_seconds()

    async def run(self) -> None:
        """Look until cancelled."""
        threading.Thread(target=self._look_beside, name="asyncpar-bench-looks", daemon=True).start()
        try:
            while True:
                asked_at = self._clock()
                await asyncio.sleep(_LOOK_SECONDS)
                self.loop_came(self._clock() - asked_at - _LOOK_SECONDS)
        finally:
            self._ended.set()

    def _look_beside(self) -> None:
        """The same in a thread: what it is late by is not the loop's fault."""
        asked_at = self._clock()
        while not self._ended.wait(_LOOK_SECONDS):
            self.thread_came(self._clock() - asked_at - _LOOK_SECONDS)
            asked_at = self._clock()

    def loop_came(self, late_seconds: float) -> None:
        """One look, and how late the loop was."""
        if self._began is not None:
            self._of_loop.add(late_seconds)
            self._late_loop += late_seconds > LATE_SECONDS

    def thread_came(self, late_seconds: float) -> None:
        """One look, and how late a thread was that does nothing."""
        if self._began is not None:
            self._of_machine.add(late_seconds)
            self._late_machine += late_seconds > LATE_SECONDS

    def figures(self) -> LoopFigures:
        """Of the time until now; zeros while nothing was counted."""
        if self._began is None:
            return LoopFigures(0.0, 0.0, 0.0, 0.0, 0.0)
        clock, thread, process = self._began
        seconds = max(self._clock() - clock, 1e-9)
        return LoopFigures(
            self._late_loop / max(1, self._of_loop.number),
            self._of_loop.at(0.99),
            self._late_machine / max(1, self._of_machine.number),
            (self._thread_seconds() - thread) / seconds,
            (self._process_seconds() - process) / seconds,
        )
