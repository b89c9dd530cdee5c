"""A member whose children are killed one after the other under load; then peace, and a verdict.

What lives here: the order of a run, and its outcome. What never does: laws (`journal.py`, the checkers).
Called by `__main__.py` and the tests of the process pool. Always: every wait is bounded; no process and no
topic is left.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from asyncpar.testing.checkers import Report
from asyncpar.testing.history import read
from tests import kafka_tools
from tests.chaos.judging import broken_laws
from tests.integration.members import Member
from tests.integration.waiting import eventually, until_committed_to_end
from tests.integration.watch import judge
from tests.workers import journal
from tests.workers.journal import Journal
from tests.workers.plan import WorkersPlan
from tests.workers.processes import children_of

PARTITIONS = 4
KEYS = 200
CHILDREN = 4
KILL_EVERY_SECONDS = 0.2
_CALM_SECONDS = 20.0
"""The undisturbed phase lasts no longer, however long the other one does."""
_BATCH, _AHEAD = 500, 8000
_LOOK_SECONDS = 0.05
_EFFECT_SECONDS = 60.0


class WorkersMember(Member):
    """A member with child processes."""

    APP = "tests.workers.app:app"


@dataclass
class Outcome:
    """How a run went. Rates are records per second. `void` says why it proves nothing."""

    folder: Path
    records: int = 0
    kills: int = 0
    cut_off: int = 0
    """Runs that a kill ended."""
    given_up: int = 0
    """Records whose child was killed twice."""
    calm_rate: float = 0.0
    killed_rate: float = 0.0
    findings: list[str] = field(default_factory=list)
    report: Report | None = None
    void: str | None = None

    @property
    def ratio(self) -> float:
        """The rate under kills over the undisturbed one."""
        return self.killed_rate / self.calm_rate if self.calm_rate else 0.0

    @property
    def faults_found(self) -> list[str]:
        """All that is wrong, one text each."""
        return [*broken_laws(self.report), *self.findings]


class Killing:
    """One run on a running broker; use once."""

    def __init__(
        self, bootstrap: str, seconds: float, seed: int, folder: Path, say: Callable[[str], None]
    ) -> None:
        self.outcome = Outcome(folder)
        self._bootstrap = bootstrap
        self._seconds = seconds
        self._chance = random.Random(f"victims {seed}")
        self._say = say
        name = f"workers-{uuid.uuid4().hex[:12]}"
        self._topic, self._group = name, f"{name}-group"
        self._folder = folder
        self._history = folder / "history"
        self._history.touch()
        self._plan = WorkersPlan(name, str(self._history), str(folder / "journal"), dead_letter=".dlq")
        self._journal = Journal(folder / "journal")
        self._produced: list[kafka_tools.Produced] = []
        self._killed_ns: dict[int, int] = {}
        self._enough = asyncio.Event()
        self._member: Member | None = None

    async def run(self) -> Outcome:
        """From topics to verdict."""
        topics = [self._topic, f"{self._topic}.dlq"]
        loading: asyncio.Task[None] | None = None
        try:
            await kafka_tools.create_topic(self._bootstrap, topics[0], PARTITIONS)
            await kafka_tools.create_topic(self._bootstrap, topics[1], 1)
            loading = asyncio.create_task(self._load())
            self._member = WorkersMember(
                self._plan,
                self._bootstrap,
                self._group,
                self._folder / "member.log",
                worker_pool_size=CHILDREN,
            )
            await self._until(2 * _BATCH)
            await eventually(lambda: self._ahead() > _AHEAD - _BATCH, "records wait", _EFFECT_SECONDS)
            await self._phases()
            self._enough.set()
            await loading
            finals = await until_committed_to_end(self._bootstrap, self._group, self._topic, _EFFECT_SECONDS)
            blamed = self._blamed()
            code = await asyncio.to_thread(self._member.stop)
            await asyncio.to_thread(self._judge, finals, blamed, code)
        finally:
            self._enough.set()
            if loading is not None:
                loading.cancel()
            if self._member is not None:
                self._member.kill()
            await asyncio.to_thread(kafka_tools.delete_topics_now, self._bootstrap, topics)
        return self.outcome

    async def _load(self) -> None:
        """Records keep coming, so many ahead of the children that those never wait."""
        while not self._enough.is_set():
            if self._ahead() < _AHEAD:
                records = kafka_tools.keyed(_BATCH, KEYS, b"")
                self._produced += await kafka_tools.produce(self._bootstrap, self._topic, records)
            else:
                await asyncio.sleep(_LOOK_SECONDS)

    def _ahead(self) -> int:
        """How many records wait."""
        return len(self._produced) - self._journal.look()

    async def _until(self, ended: int) -> None:
        await eventually(lambda: self._journal.look() >= ended, f"{ended} records ended", _EFFECT_SECONDS)

    # -- phases ------------------------------------------------------------------------------

    async def _phases(self) -> None:
        calm = min(self._seconds, _CALM_SECONDS)
        self.outcome.calm_rate = await self._rate_of(asyncio.sleep(calm))
        self._say(f"undisturbed: {self.outcome.calm_rate:.0f} records per second")
        self.outcome.killed_rate = await self._rate_of(self._kill())
        self._say(f"{self.outcome.kills} kills: {self.outcome.killed_rate:.0f} records per second")

    async def _rate_of(self, phase: asyncio.Future[None] | object) -> float:
        ended, began = self._journal.look(), time.monotonic()
        await phase  # type: ignore[misc]
        return (self._journal.look() - ended) / (time.monotonic() - began)

    async def _kill(self) -> None:
        """One child after the other, whatever it is doing."""
        assert self._member is not None
        ends = time.monotonic() + self._seconds
        due = time.monotonic()
        while (now := time.monotonic()) < ends:
            if now < due:
                self._journal.look()
                await asyncio.sleep(min(_LOOK_SECONDS, due - now))
                continue
            due += KILL_EVERY_SECONDS
            children = children_of(self._member.pid)
            if children:
                victim = self._chance.choice(children)
                self._killed_ns.setdefault(victim, time.monotonic_ns())
                os.kill(victim, signal.SIGKILL)
        self.outcome.kills = len(self._killed_ns)

    # -- verdict -----------------------------------------------------------------------------

    def _blamed(self) -> float | None:
        """How many attempts the engine counted for crashes; None when it does not say."""
        assert self._member is not None
        labels = {"group": self._group, "handler": "work", "how": "crash"}
        return self._member.metrics(labels).get("asyncpar_process_pool_blamed_total")

    def _judge(self, finals: object, blamed: float | None, code: int) -> None:
        self._journal.look()
        runs, killed, found = self._journal.runs, self._killed_ns, self.outcome.findings
        found += journal.overlaps(runs, killed)
        found += journal.reordered(runs)
        found += journal.miscounted(runs, killed)
        history = read(self._history)
        given_up = {(one.tp.partition, one.offset) for one in history if one.kind == "done"}
        done = {run.place for run in runs if run.end_ns is not None}
        lost = {(one.partition, one.offset) for one in self._produced} - done - given_up
        found += [f"[{partition}] offset {offset} was lost" for partition, offset in sorted(lost)]
        for place in given_up:
            cut = [run for run in runs if run.place == place and run.pid in killed]
            if len(cut) < 1 or max(run.attempt for run in cut) > 2:
                found.append(f"{place} was given up without two kills: {[str(run) for run in cut]}")
        again = sum(max(run.attempt for run in of) - 1 for of in _by_place(runs).values()) + len(given_up)
        if blamed != again:
            found.append(f"{blamed} attempts were counted as crashes, children saw {again}")
        if code:
            found.append(f"the member ended with code {code}")
        self.outcome.records = len(self._produced)
        self.outcome.cut_off = sum(run.end_ns is None for run in runs)
        self.outcome.given_up = len(given_up)
        all_events = [*history, *journal.events(self._topic, runs, killed)]
        self.outcome.report = judge(all_events, self._produced, finals)  # type: ignore[arg-type]


def _by_place(runs: list[journal.Run]) -> dict[tuple[int, int], list[journal.Run]]:
    found: dict[tuple[int, int], list[journal.Run]] = {}
    for run in runs:
        found.setdefault(run.place, []).append(run)
    return found
