"""One round: a group under load, faults from a seed, then peace, and a verdict on all that happened.

What lives here: the order of a round, and its outcome. What never does: what a fault is. Called by
`campaign.py`. Always: every phase has a bound; when it ends there are no members and no topics of it, and
network and brokers are well.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from asyncpar.testing.checkers import Report, Rules, check
from asyncpar.testing.history import HistoryFile
from tests.chaos.cluster import ChaosCluster
from tests.chaos.crew import Crew
from tests.chaos.faults import (
    BROKER_KINDS,
    MEMBER_KINDS,
    NEEDS_SEVERAL_BROKERS,
    NETWORK_KINDS,
    Fault,
    Pace,
    pace_of,
    series,
)
from tests.chaos.judging import TOLERANCE_NS, WORLD_ERRORS, Ground, broken_laws, whole_history
from tests.chaos.load import Load
from tests.chaos.plan import (
    DRAIN_MS,
    GRACE_MS,
    MAX_IN_FLIGHT,
    SESSION_TIMEOUT_MS,
    MemberPlan,
)
from tests.chaos.striking import FEWEST, Striker

PARTITIONS = 6
KEYS = 150
WARM_SECONDS = 30.0
CHAOS_SECONDS = 240.0
DRAIN_SECONDS = 90.0
REST_SECONDS = 10.0
_LOOK_SECONDS = 0.2
_NETWORK_PACE = Pace(0.2, 1.0)
_BROKER_PACE = Pace(0.3, 1.5)


@dataclass(frozen=True)
class Shape:
    """How much happens in a round: it lasts until `broker_faults` have struck the brokers."""

    broker_faults: int = 6
    records_per_second: int = 300


@dataclass
class Outcome:
    """How a round went. `void` says why it proves nothing: the world, not asyncpar, failed."""

    seed: str
    folder: Path
    seconds: float = 0.0
    struck: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    records: int = 0
    report: Report | None = None
    findings: list[str] = field(default_factory=list)
    refused_starts: int = 0
    unfinished_stops: int = 0
    void: str | None = None

    @property
    def faults_found(self) -> list[str]:
        """All that is wrong, one text each."""
        return [*broken_laws(self.report), *self.findings]


def broker_kinds(cluster: ChaosCluster) -> list[str]:
    """The kinds of broker faults that this cluster on this machine can have."""
    left_out = set() if len(cluster.brokers) > 1 else set(NEEDS_SEVERAL_BROKERS)
    if cluster.no_disk is not None:
        left_out.add("disk full")
    return [kind for kind in BROKER_KINDS if kind not in left_out]


class Round:
    """One round on a running cluster; use once. `number`: where in the series of broker faults it begins."""

    def __init__(self, cluster: ChaosCluster, seed: int, number: int, shape: Shape, folder: Path) -> None:
        self._cluster = cluster
        self._seed = f"{seed}/{number}"
        self._shape = shape
        self.outcome = Outcome(self._seed, folder)
        self.history_path = folder / "history"
        self._noted_path = folder / "noted"
        self._history = HistoryFile(self._noted_path)
        name = f"chaos-{seed}-{number}"
        group, quick, slow = f"{name}-group", f"{name}-quick", f"{name}-slow"
        self._ground = Ground(cluster.inside, group, (quick, slow))
        plan = MemberPlan("", cluster.outside, group, quick, slow, history=str(self._noted_path))
        self._crew = Crew(plan, self._history, folder)
        self._striker = Striker(cluster, self._crew)
        kinds = broker_kinds(cluster)
        ahead = number * shape.broker_faults
        self._broker_series = islice(
            series(f"{seed} brokers", kinds, _BROKER_PACE), ahead, ahead + shape.broker_faults
        )

    async def run(self) -> Outcome:
        """From topics to verdict. Raises nothing that a round may run into: see `Outcome.void`."""
        began = time.monotonic()
        load = Load(
            self._ground.bootstrap, self._ground.topics, self._shape.records_per_second, KEYS, self._seed
        )
        loading: asyncio.Task[None] | None = None
        try:
            await self._ground.prepare(PARTITIONS)
            loading = asyncio.create_task(load.run())
            if await self._begins():
                await self._chaos()
                self._history.note("heal")
                await load.finish()
                await self._settle()
                await self._judge(load)
        except WORLD_ERRORS as error:
            self.outcome.void = f"{type(error).__name__}: {error}"
        finally:
            if loading is not None:
                loading.cancel()
            self._crew.close()
            self._history.close()
            await self._ground.forget()
        outcome = self.outcome
        outcome.findings += self._crew.findings
        outcome.refused_starts = self._crew.refused_starts
        outcome.unfinished_stops = self._crew.unfinished_stops
        outcome.seconds = time.monotonic() - began
        return outcome

    # -- chaos -------------------------------------------------------------------------------

    async def _begins(self) -> bool:
        """Start the members; whether they handle anything while nothing disturbs them."""
        for _ in range(FEWEST + 1):
            self._crew.hire()
        deadline = time.monotonic() + WARM_SECONDS
        while b"\nend\t" not in self._noted_path.read_bytes():
            self._crew.reap()
            if time.monotonic() > deadline or not self._crew.members:
                self.outcome.findings.append(f"nothing was handled in {WARM_SECONDS:.0f} s of a calm start")
                return False
            await asyncio.sleep(_LOOK_SECONDS)
        return True

    async def _chaos(self) -> None:
        lanes = [
            asyncio.create_task(self._keep_up()),
            asyncio.create_task(
                self._lane(series(f"members {self._seed}", MEMBER_KINDS, pace_of(self._seed)), at_once=True)
            ),
            asyncio.create_task(
                self._lane(series(f"network {self._seed}", NETWORK_KINDS, _NETWORK_PACE), at_once=False)
            ),
        ]
        try:
            async with asyncio.timeout(CHAOS_SECONDS):
                await self._lane(self._broker_series, at_once=False)
            for lane in lanes:
                if lane.done():
                    lane.result()
        finally:
            for lane in lanes:
                lane.cancel()
            await asyncio.wait(lanes)
            await self._cluster.heal()

    async def _keep_up(self) -> None:
        """A supervisor, as there is one in any deployment: members that are missing are started again."""
        while True:
            self._crew.reap()
            while len(self._crew.members) < FEWEST:
                self._crew.hire()
            await asyncio.sleep(_LOOK_SECONDS)

    async def _lane(self, faults: Iterator[Fault], *, at_once: bool) -> None:
        """Strike with one fault after the other; `at_once`: without waiting for the end of any."""
        running: set[asyncio.Task[None]] = set()
        try:
            for fault in faults:
                await asyncio.sleep(fault.pause)
                task = asyncio.create_task(self._strike(fault))
                running.add(task)
                if not at_once:
                    await task
                for done in [one for one in running if one.done()]:
                    running.discard(done)
                    done.result()
        finally:
            for task in running:
                task.cancel()
            if running:
                await asyncio.wait(running)

    async def _strike(self, fault: Fault) -> None:
        self._history.note("fault", detail=f"{fault.kind} begins")
        has_struck = await self._striker.strike(fault)
        self._history.note("fault", detail=f"{fault.kind} {'ends' if has_struck else 'met nobody'}")
        (self.outcome.struck if has_struck else self.outcome.missed)[fault.kind] += 1

    # -- peace -------------------------------------------------------------------------------

    async def _settle(self) -> None:
        """Wait until all is handled and committed, for as long as that may take, then stop the members."""
        keeping = asyncio.create_task(self._keep_up())
        try:
            await self._ground.until_at_rest(DRAIN_SECONDS)
        finally:
            keeping.cancel()
        await asyncio.gather(*(self._crew.end(member) for member in list(self._crew.members)))

    # -- verdict -----------------------------------------------------------------------------

    async def _judge(self, load: Load) -> None:
        # A coordinator that has just taken over may show an older commit until its copies follow.
        finals = await self._ground.until_at_rest(REST_SECONDS)
        log = await self._ground.read_log(load, finals)
        self.outcome.records = len(log)
        events = await asyncio.to_thread(whole_history, log, self._noted_path, self.history_path)
        rules = Rules(
            max_in_flight=MAX_IN_FLIGHT,
            max_revoke_grace_ms=GRACE_MS,
            session_timeout_ms=SESSION_TIMEOUT_MS,
            shutdown_drain_timeout_ms=DRAIN_MS,
            tolerance_ns=TOLERANCE_NS,
            finals=finals,
        )
        self.outcome.report = await asyncio.to_thread(check, events, rules)
