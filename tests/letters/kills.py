"""Kill -9 between failure, send, acknowledgement and commit, again and again; then peace, and a verdict.

What lives here: the order of a run and its outcome. What never does: processes (`tests.chaos.crew`), the
verdict on letters (`accounting.py`) and on calls and commits (the checkers). Called by `__main__.py` and
`test_kills.py`. Always: one process at a time; every wait is bounded; no process and no topic is left.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from asyncpar.testing.checkers import Report, Rules, check
from asyncpar.testing.history import HistoryFile
from tests import kafka_tools
from tests.chaos.crew import Crew, CrewMember
from tests.chaos.judging import TOLERANCE_NS, WORLD_ERRORS, Ground, broken_laws, whole_history
from tests.chaos.plan import DRAIN_MS, GRACE_MS, MAX_IN_FLIGHT
from tests.letters.accounting import Account, account, for_checkers
from tests.letters.plan import ATTEMPTS, SESSION_TIMEOUT_MS, STEPS, KillPlan, aim_of, is_bad
from tests.letters.records import NumberedLoad, Written, read_topic

PARTITIONS, LETTER_PARTITIONS = 4, 2
KEYS = 100
_MODULE = "tests.letters.killed"
_REACH_SECONDS = 30.0
_REST_SECONDS = 60.0
_LOOK_SECONDS = 0.1
_EVERY = 10

Say = Callable[[str], None]


class NotReachedError(RuntimeError):
    """A member did not come to where it was to be killed: the run is over, and asyncpar is to blame."""


@dataclass
class Outcome:
    """How a run went. `struck`: kills by step; `stood`: those at a process that stood still right there.

    `void` says why it proves nothing: the world, not asyncpar, failed.
    """

    folder: Path
    times: int
    struck: Counter[str] = field(default_factory=Counter)
    stood: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    records: int = 0
    letters: Account | None = None
    report: Report | None = None
    findings: list[str] = field(default_factory=list)
    void: str | None = None

    @property
    def faults_found(self) -> list[str]:
        """All that is wrong, one text each."""
        about_letters = [] if self.letters is None else self.letters.findings
        return [*about_letters, *broken_laws(self.report), *self.findings]


class Kills:
    """One run on a running broker; use once. `per_second`: records sent."""

    def __init__(
        self, bootstrap: str, times: int, seed: int, per_second: int, folder: Path, say: Say
    ) -> None:
        self.outcome = Outcome(folder, times)
        self._seed = seed
        self._per_second = per_second
        self._folder = folder
        self._say = say
        self._noted = folder / "noted"
        self._history = HistoryFile(self._noted)
        topic = f"kills-{uuid.uuid4().hex[:12]}"
        self._topic, self._dead = topic, f"{topic}.dlq"
        self._ground = Ground(bootstrap, f"{topic}-group", (topic,))
        told, group = str(folder / "told"), self._ground.group
        self._plan = KillPlan("", bootstrap, group, topic, str(self._noted), told, seed, times)
        self._crew = Crew(self._plan, self._history, folder, _MODULE)
        self._names: list[str] = []
        self._spoken = asyncio.Event()

    async def run(self) -> Outcome:
        """From topics to verdict. Raises nothing that a run may run into: see `Outcome`."""
        ground, plan = self._ground, self._plan
        load = NumberedLoad(ground.bootstrap, plan.topic, self._per_second, KEYS, str(self._seed))
        loading: asyncio.Task[None] | None = None
        try:
            await ground.prepare(PARTITIONS)
            await kafka_tools.create_topic(ground.bootstrap, self._dead, LETTER_PARTITIONS)
            loading = asyncio.create_task(load.run())
            with self._listening():
                await self._kill_them()
            await load.finish()
            await self._settle(load)
        except NotReachedError as error:
            self.outcome.findings.append(str(error))
        except WORLD_ERRORS as error:
            self.outcome.void = f"{type(error).__name__}: {error}"
        finally:
            if loading is not None:
                loading.cancel()
            self._crew.close()
            self._history.close()
            self.outcome.findings += self._crew.findings
            await Ground(ground.bootstrap, ground.group, (self._topic, self._dead)).forget()
        return self.outcome

    # -- killing -----------------------------------------------------------------------------

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Inside, the names that members tell are taken down at once."""
        os.mkfifo(self._plan.told)
        told = os.open(self._plan.told, os.O_RDWR | os.O_NONBLOCK)
        loop = asyncio.get_running_loop()
        loop.add_reader(told, self._hear, told)
        try:
            yield
        finally:
            loop.remove_reader(told)
            os.close(told)

    def _hear(self, told: int) -> None:
        self._names += os.read(told, 4096).decode().split()
        self._spoken.set()

    async def _kill_them(self) -> None:
        outcome = self.outcome
        began = time.monotonic()
        for number in range(outcome.times):
            aim = aim_of(self._seed, number)
            member = self._crew.hire()
            await self._until_told(member)
            if aim.delay_ms is not None:
                await asyncio.sleep(aim.delay_ms / 1000)
            self._crew.kill(member)
            outcome.struck[aim.step] += 1
            outcome.stood[aim.step] += aim.delay_ms is None
            outcome.seconds = time.monotonic() - began
            if (number + 1) % _EVERY == 0:
                self._say(f"{number + 1} of {outcome.times} kills in {outcome.seconds:.0f} s")

    async def _until_told(self, member: CrewMember) -> None:
        """Wait until `member` is where it is to die."""
        await self._until(member, lambda: bool(self._names), "is at its step")
        assert self._names == [member.name], f"{self._names} spoke, and {member.name} lives"
        self._names.clear()

    async def _until(self, member: CrewMember, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _REACH_SECONDS
        while not condition():
            self._crew.reap()
            if self._crew.findings or self._crew.refused_starts:
                raise NotReachedError(f"{member.name} ended before it {what}")
            if time.monotonic() > deadline:
                raise NotReachedError(
                    f"not within {_REACH_SECONDS:.0f} s: {member.name} {what}; it wrote:\n{member.log_end()}"
                )
            self._spoken.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._spoken.wait()

    # -- verdict -----------------------------------------------------------------------------

    async def _settle(self, load: NumberedLoad) -> None:
        """The last member does all that is left, and stops; then everything is read and judged."""
        outcome, ground = self.outcome, self._ground
        last = self._crew.hire()
        await self._until(last, lambda: last.is_ready, "is ready")
        finals = await ground.until_at_rest(_REST_SECONDS)
        await self._crew.end(last)
        log = await ground.read_log(load, finals)
        outcome.records = len(log)
        records = await self._read(self._topic)
        letters = await self._read(self._dead)
        events = await asyncio.to_thread(whole_history, log, self._noted, self._folder / "history")
        rules = Rules(
            max_in_flight=MAX_IN_FLIGHT,
            max_revoke_grace_ms=GRACE_MS,
            session_timeout_ms=SESSION_TIMEOUT_MS,
            shutdown_drain_timeout_ms=DRAIN_MS,
            tolerance_ns=TOLERANCE_NS,
            attempts=ATTEMPTS,
            finals=finals,
            letters=for_checkers(letters),
        )
        outcome.report = await asyncio.to_thread(check, events, rules)
        killed_at = {f"m{number + 1}": aim_of(self._seed, number).step for number in range(outcome.times)}
        outcome.letters = account(records, letters, is_bad, killed_at)
        outcome.findings += _miscounted(outcome, self._crew.unfinished_stops)

    async def _read(self, topic: str) -> list[Written]:
        ends = await kafka_tools.end_offsets(self._ground.bootstrap, topic)
        return await asyncio.to_thread(read_topic, self._ground.bootstrap, topic, ends)


def _miscounted(outcome: Outcome, unfinished_stops: int) -> Iterator[str]:
    """Sums that do not come out."""
    assert outcome.report is not None
    assert outcome.letters is not None
    good = outcome.records - outcome.letters.failing
    if outcome.report.counts["handled"] != good:
        yield f"{good} records do not fail, and {outcome.report.counts['handled']} were handled"
    if unfinished_stops:
        yield "the last member's stop left work unfinished"
    for step in STEPS:
        if outcome.struck[step] < outcome.times // 10:
            yield f"killed {outcome.struck[step]} times at {step!r}, fewer than a tenth of {outcome.times}"
