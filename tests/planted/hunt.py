"""Lives with a bug until one of them fails, each bug in a fresh process.

`hunt` and `passes_without` are what such a process runs; `hunt_all` starts them, and imports nothing of
asyncpar. A life that fails without the bug as well is no evidence: it is passed over, and told.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from multiprocessing import active_children
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Self

from tests.planted.bug import Bug
from tests.planted.finder import plant


@dataclass(frozen=True, slots=True)
class Hunt:
    """How the hunt for one bug ended."""

    bug: Bug
    lives: int
    """How many were lived; the last one failed, if any."""
    seed: int | None = None
    """Of the life that failed; None: none did."""
    found: frozenset[str] = frozenset()
    """The checks that failed it."""
    problem: str = ""
    """What the first of the expected ones says, or else the first."""

    @property
    def caught_by(self) -> frozenset[str]:
        """Of the checks that failed the life, those that the bug has to be caught by."""
        return self.found.intersection(self.bug.checks)


def hunt(bug: Bug, seeds: range) -> Hunt:
    """Plant `bug` and live the lives of `seeds` until one fails. In a fresh process only."""
    plant(bug)
    from asyncpar.testing.simulation.life import live, plan_of

    logging.disable()
    for lives, seed in enumerate(seeds, 1):
        outcome = live(plan_of(seed))
        if not outcome.is_ok:
            problems = sorted(outcome.problems, key=lambda problem: problem.check not in bug.checks)
            return Hunt(bug, lives, seed, outcome.failed_checks, str(problems[0]))
    return Hunt(bug, len(seeds))


def passes_without(seed: int) -> bool:
    """True when the life of `seed` passes without any bug of ours."""
    from asyncpar.testing.simulation.life import live, plan_of

    logging.disable()
    return live(plan_of(seed)).is_ok


class Hunters:
    """Up to `workers` hunts at a time, each in a new process. Use as a context."""

    def __init__(self, workers: int) -> None:
        self.unsound: set[int] = set()
        """Seeds of lives that fail without a bug."""
        self._sound: set[int] = set()
        self._hunting = _fresh_processes(workers)
        self._control = _fresh_processes(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            for process in active_children():  # in the middle of their lives: nobody waits for them
                process.terminate()
        self._hunting.shutdown(cancel_futures=True)
        self._control.shutdown(cancel_futures=True)

    def hunt_all(self, bugs: Iterable[Bug], seeds: range) -> Iterator[Hunt]:
        """What became of each bug, as they end."""
        running = {self._hunting.submit(hunt, bug, seeds) for bug in bugs}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for one in done:
                found = one.result()
                if found.seed is None or self._is_sound(found.seed):
                    yield replace(
                        found, lives=(seeds.stop if found.seed is None else found.seed + 1) - seeds.start
                    )
                else:
                    rest = range(found.seed + 1, seeds.stop)
                    running.add(self._hunting.submit(hunt, found.bug, rest))

    def _is_sound(self, seed: int) -> bool:
        if seed not in self._sound and seed not in self.unsound:
            passes = self._control.submit(passes_without, seed).result()
            (self._sound if passes else self.unsound).add(seed)
        return seed in self._sound


class _DeafProcess(SpawnProcess):
    """Ctrl-C reaches all processes of a terminal; what becomes of this one is for its parent to say."""

    def start(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a new process inherits it
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Deaf(SpawnContext):
    Process = _DeafProcess


def _fresh_processes(workers: int) -> ProcessPoolExecutor:
    """A new process for each call."""
    return ProcessPoolExecutor(workers, mp_context=_Deaf(), max_tasks_per_child=1)
