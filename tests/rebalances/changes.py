"""Members join and leave one after the other while records keep coming; then peace, and a verdict.

What lives here: the order of a run and its outcome. What never does: processes (`tests.chaos.crew`), records
(`tests.chaos.load`), laws (the checkers). Called by `__main__.py` and `test_changes.py`. Always: nobody is
killed and no handler outlasts the grace, so there is no excuse for a record that runs twice; every wait is
bounded; no process and no topic is left.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from asyncpar.testing.checkers import Report, Rules, check
from asyncpar.testing.history import HistoryFile, decode
from tests.chaos.crew import Crew
from tests.chaos.judging import TOLERANCE_NS, WORLD_ERRORS, Ground, broken_laws, whole_history
from tests.chaos.load import Load
from tests.chaos.plan import DRAIN_MS, GRACE_MS, MAX_IN_FLIGHT, MemberPlan
from tests.rebalances.stillness import Stillness, Window, stillness

PARTITIONS = 6
KEYS = 150
FEWEST, MOST = 3, 4
SESSION_TIMEOUT_MS = 10_000
"""Long: on a busy machine nobody may be taken for dead, for then the change would not be clean."""
_CALM_SECONDS = 2.0
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.1, 0.7
_EFFECT_SECONDS = 30.0
_DRAIN_SECONDS = 60.0
_LOOK_SECONDS = 0.05
_AT_ONCE = 0.2
"""The share of steps in which one joins and another leaves at the same time."""

Step = tuple[str, ...]
Say = Callable[[str], None]


class NoEffectError(RuntimeError):
    """A change did not lead to what it must lead to: the run is over, and asyncpar is to blame."""


@dataclass
class Outcome:
    """How a run went. `void` says why it proves nothing: the world, not asyncpar, failed."""

    folder: Path
    changes: int = 0
    seconds: float = 0.0
    records: int = 0
    report: Report | None = None
    calm: Stillness | None = None
    steps: list[Stillness] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    void: str | None = None

    @property
    def faults_found(self) -> list[str]:
        """All that is wrong, one text each."""
        if self.report is None:
            return self.findings
        # Each of them could excuse a duplicate, and must not exist where all changes are clean.
        unclean = [
            f"{self.report.counts[name]} {name}, where there must be none"
            for name in ("duplicates", "stragglers", "late starts", "unclean losses")
            if self.report.counts[name]
        ]
        return [*broken_laws(self.report), *unclean, *self.findings]


def steps(times: int, seed: int) -> Iterator[Step]:
    """What happens one after the other: `times` changes in all, between FEWEST and MOST members."""
    chance = random.Random(f"changes {seed}")
    members, left = FEWEST, times
    while left:
        if left > 1 and chance.random() < _AT_ONCE:
            step: Step = ("join", "leave")
        elif members == FEWEST or (members < MOST and chance.random() < 1 / 2):
            step = ("join",)
            members += 1
        else:
            step = ("leave",)
            members -= 1
        left -= len(step)
        yield step


class Progress:
    """What the members' file says so far: who has started something, and who was given something when."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        self.started: set[str] = set()
        self.assigned_ns: dict[str, int] = {}

    def look(self) -> None:
        """Read on from where the last look ended."""
        with self._path.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.split(b"\n"):
            if line.startswith((b"start\t", b"assign\t")):
                event = decode(line.decode())
                if event.kind == "start":
                    self.started.add(event.member)
                else:
                    self.assigned_ns[event.member] = event.at_ns


class Changes:
    """One run on a running broker; use once. `per_second`: records sent."""

    def __init__(
        self, bootstrap: str, times: int, seed: int, per_second: int, folder: Path, say: Say
    ) -> None:
        self.outcome = Outcome(folder)
        self._times = times
        self._seed = seed
        self._per_second = per_second
        self._folder = folder
        self._say = say
        self._chance = random.Random(f"victims {seed}")
        noted = folder / "noted"
        self._noted_path = noted
        self._history = HistoryFile(noted)
        self._progress = Progress(noted)
        name = f"rebalances-{uuid.uuid4().hex[:12]}"
        group, quick, slow = f"{name}-group", f"{name}-quick", f"{name}-slow"
        self._ground = Ground(bootstrap, group, (quick, slow))
        plan = MemberPlan(
            "",
            bootstrap,
            group,
            quick,
            slow,
            history=str(noted),
            is_kind=True,
            settings={"session_timeout_ms": SESSION_TIMEOUT_MS},
        )
        self._crew = Crew(plan, self._history, folder)

    async def run(self) -> Outcome:
        """From topics to verdict. Raises nothing that a run may run into: see `Outcome`."""
        began = time.monotonic()
        ground = self._ground
        load = Load(ground.bootstrap, ground.topics, self._per_second, KEYS, str(self._seed))
        loading: asyncio.Task[None] | None = None
        windows: list[Window] = []
        try:
            await ground.prepare(PARTITIONS)
            loading = asyncio.create_task(load.run())
            await self._begin()
            windows.append(await self._calm())
            await self._change(windows)
            await load.finish()
            await ground.until_at_rest(_DRAIN_SECONDS)
            await asyncio.gather(*(self._crew.end(member) for member in list(self._crew.members)))
            await self._judge(load, windows)
        except NoEffectError as error:
            self.outcome.findings.append(str(error))
        except WORLD_ERRORS as error:
            self.outcome.void = f"{type(error).__name__}: {error}"
        finally:
            if loading is not None:
                loading.cancel()
            self._crew.close()
            self._history.close()
            await ground.forget()
        self.outcome.findings += self._crew.findings
        if self._crew.unfinished_stops:
            self.outcome.findings.append(f"{self._crew.unfinished_stops} stops left work unfinished")
        self.outcome.seconds = time.monotonic() - began
        return self.outcome

    # -- changes -----------------------------------------------------------------------------

    async def _begin(self) -> None:
        names = {self._crew.hire().name for _ in range(FEWEST)}
        await self._until(lambda: names <= self._progress.started, f"{FEWEST} members work")

    async def _calm(self) -> Window:
        """Some time without a change, to compare with."""
        from_ns = self._history.clock()
        await asyncio.sleep(_CALM_SECONDS)
        return Window("calm", from_ns, self._history.clock())

    async def _change(self, windows: list[Window]) -> None:
        for number, step in enumerate(steps(self._times, self._seed), 1):
            from_ns = self._history.clock()
            what = await self._take(step, from_ns)
            took = (self._history.clock() - from_ns) / 1e9
            self.outcome.changes += len(step)
            self._say(
                f"step {number}: {what}, done after {took:.1f} s; {self.outcome.changes} of {self._times}"
            )
            await asyncio.sleep(self._chance.uniform(_SHORTEST_PAUSE, _LONGEST_PAUSE))
            windows.append(Window(what, from_ns, self._history.clock()))

    async def _take(self, step: Step, from_ns: int) -> str:
        """Do it, and wait until the group is whole again: all of its members were given partitions."""
        said: list[str] = []
        leaving = None
        if "leave" in step:
            victim = self._chance.choice(self._crew.free())
            leaving = asyncio.create_task(self._crew.end(victim))
            said.append(f"{victim.name} leaves")
        if "join" in step:
            said.append(f"{self._crew.hire().name} joins")
        if leaving is not None:
            await leaving
        what = " and ".join(said)
        await self._until(lambda: self._is_whole_since(from_ns), f"{what}: everybody has partitions")
        return what

    def _is_whole_since(self, from_ns: int) -> bool:
        progress = self._progress
        names = [member.name for member in self._crew.members]
        return all(name in progress.started and progress.assigned_ns.get(name, 0) > from_ns for name in names)

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _EFFECT_SECONDS
        while True:
            self._crew.reap()
            self._progress.look()
            if condition():
                return
            if self._crew.findings or self._crew.refused_starts:
                raise NoEffectError(f"a member ended by itself before: {what}")
            if time.monotonic() > deadline:
                raise NoEffectError(f"not within {_EFFECT_SECONDS:.0f} s: {what}")
            await asyncio.sleep(_LOOK_SECONDS)

    # -- verdict -----------------------------------------------------------------------------

    async def _judge(self, load: Load, windows: Sequence[Window]) -> None:
        finals = await self._ground.finals()
        log = await self._ground.read_log(load, finals)
        self.outcome.records = len(log)
        events = await asyncio.to_thread(whole_history, log, self._noted_path, self._folder / "history")
        rules = Rules(
            max_in_flight=MAX_IN_FLIGHT,
            max_revoke_grace_ms=GRACE_MS,
            session_timeout_ms=SESSION_TIMEOUT_MS,
            shutdown_drain_timeout_ms=DRAIN_MS,
            tolerance_ns=TOLERANCE_NS,
            finals=finals,
        )
        self.outcome.report = await asyncio.to_thread(check, events, rules)
        self.outcome.calm, *self.outcome.steps = await asyncio.to_thread(stillness, events, windows)
