"""A soak: what can a member do, then half of that for as long as asked, then a verdict on every series.

What lives here: the order of a soak and its outcome. What never does: processes (`tests.chaos.crew`), samples
(`sampling.py`), slopes (`trend.py`). Called by `__main__.py` and `test_soak.py`. Always: nothing that grows
with the run is kept but a sample each second; every wait is bounded; no process and no topic is left.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from confluent_kafka import KafkaError, Message

from asyncpar.testing.history import HistoryFile
from tests import kafka_tools
from tests.chaos.crew import Crew
from tests.chaos.judging import WORLD_ERRORS, Ground
from tests.chaos.load import Load
from tests.kafka_broker import free_port
from tests.soak import trend
from tests.soak.plan import SoakPlan, Vitals
from tests.soak.sampling import Sample, SampleError, last_vitals, take
from tests.soak.trend import Judged, Point

PARTITIONS = 8
KEYS = 1000
_MODULE = "tests.soak.member"
_RETENTION = {"retention.ms": "300000", "segment.bytes": "16777216"}
"""A topic keeps five minutes: half an hour of records would fill small disks."""
_AHEAD, _BATCH = 60_000, 20_000
_VALUE = b"." * 100
_READY_SECONDS = 60.0
_DRAIN_SECONDS = 120.0
_LOOK_SECONDS = 0.1
_NEWS_SECONDS = 60.0
_MOST_MISSED = 0.05

Say = Callable[[str], None]


class NoSoakError(RuntimeError):
    """The member does not work at all: there is nothing to soak, and asyncpar is to blame."""


@dataclass(frozen=True)
class Shape:
    """How long and how hard. `rss_share`: how much of its memory at the beginning a member may gain."""

    minutes: float = 30.0
    rate_share: float = 0.5
    measure_seconds: float = 25.0
    sample_seconds: float = 1.0
    rss_share: float = 0.05


@dataclass
class Outcome:
    """How a soak went. Rates are records per second; `cpu_share` is of a core.

    `void` says why it proves nothing: the world, not asyncpar, failed.
    """

    folder: Path
    capacity: float = 0.0
    rate: int = 0
    seconds: float = 0.0
    samples: int = 0
    missed: int = 0
    records: int = 0
    cpu_share: float = 0.0
    judged: list[Judged] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    void: str | None = None

    @property
    def faults_found(self) -> list[str]:
        """All that is wrong, one text each."""
        grown = [
            f"{one.name}: {one.growth:.4g} {one.unit}".rstrip() + f" of {one.allowed:.4g} ({one.rule})"
            for one in self.judged
            if not one.is_ok
        ]
        return [*grown, *self.findings]


class CountedLoad(Load):
    """A load that only counts what was acknowledged: a set of all would be larger than what is soaked."""

    def __init__(self, bootstrap: str, topic: str, per_second: int, seed: int) -> None:
        super().__init__(bootstrap, [topic], per_second, KEYS, str(seed), keyless=0.0)
        self.counts: Counter[int] = Counter()

    def note(self, error: KafkaError | None, message: Message) -> None:
        """Take down what became of a record."""
        if error is not None:
            self.refused.append(str(error))
        else:
            self.counts[message.partition() or 0] += 1


class Bench:
    """One member on a topic of its own, alone in its group."""

    def __init__(self, bootstrap: str, folder: Path, name: str) -> None:
        own = folder / name
        own.mkdir()
        unique = f"soak-{name}-{uuid.uuid4().hex[:12]}"
        self.topic = unique
        self.ground = Ground(bootstrap, f"{unique}-group", (unique,))
        self.plan = SoakPlan("", bootstrap, self.ground.group, unique, free_port(), str(own / "vitals"))
        self._history = HistoryFile(own / "noted")
        self._crew = Crew(self.plan, self._history, own, _MODULE)

    @asynccontextmanager
    async def working(self) -> AsyncIterator[int]:
        """Inside, the member runs and holds its partitions; yields its process id."""
        try:
            await self.ground.prepare(PARTITIONS, _RETENTION)
            member = self._crew.hire()
            deadline = time.monotonic() + _READY_SECONDS
            while not member.is_ready:
                self.check_running()
                if time.monotonic() > deadline:
                    raise NoSoakError(f"the member is not ready within {_READY_SECONDS:.0f} s")
                await asyncio.sleep(_LOOK_SECONDS)
            yield member.pid
        finally:
            self._crew.close()
            self._history.close()
            await self.ground.forget()

    def check_running(self) -> None:
        """NoSoakError when the member has ended by itself."""
        self._crew.reap()
        if self._crew.findings or not self._crew.members:
            raise NoSoakError("; ".join(self._crew.findings) or "the member reached no broker")

    def vitals(self) -> Vitals:
        """What the member said last."""
        try:
            return last_vitals(Path(self.plan.vitals))
        except (OSError, ValueError) as error:
            raise NoSoakError(f"the member says nothing about itself: {error}") from error

    async def stop(self) -> list[str]:
        """SIGTERM, and the end; what was wrong with it."""
        for member in list(self._crew.members):
            await self._crew.end(member)
        left = ["the stop left work unfinished"] * self._crew.unfinished_stops
        return [*self._crew.findings, *left]


class Soak:
    """One soak on a running broker; use once."""

    def __init__(self, bootstrap: str, shape: Shape, seed: int, folder: Path, say: Say) -> None:
        self.outcome = Outcome(folder)
        self._bootstrap = bootstrap
        self._shape = shape
        self._seed = seed
        self._folder = folder
        self._say = say

    async def run(self) -> Outcome:
        """From the measurement to the verdict. Raises nothing that a soak may run into: see `Outcome`."""
        outcome = self.outcome
        try:
            outcome.capacity = await self._measure()
            outcome.rate = max(int(outcome.capacity * self._shape.rate_share), 1)
            self._say(
                f"one member handles {outcome.capacity:.0f} records/s; "
                f"{outcome.rate} records/s for {self._shape.minutes:g} min"
            )
            await self._soak()
        except (NoSoakError, ValueError) as error:
            outcome.findings.append(str(error))
        except WORLD_ERRORS as error:
            outcome.void = f"{type(error).__name__}: {error}"
        return outcome

    # -- capacity ----------------------------------------------------------------------------

    async def _measure(self) -> float:
        """What the member handles when there is always more, in records per second."""
        bench = Bench(self._bootstrap, self._folder, "measure")
        async with bench.working():
            sent = 0
            began: Vitals | None = None
            deadline = time.monotonic() + _READY_SECONDS + self._shape.measure_seconds
            while True:
                bench.check_running()
                now = bench.vitals()
                if began is None and now.total:
                    began = now
                if began is not None and now.at - began.at >= self._shape.measure_seconds:
                    return (now.total - began.total) / (now.at - began.at)
                if time.monotonic() > deadline:
                    raise NoSoakError("the member handles nothing")
                if sent - now.total < _AHEAD:
                    records = kafka_tools.keyed(_BATCH, KEYS, _VALUE)
                    sent += len(await kafka_tools.produce(self._bootstrap, bench.topic, records))
                else:
                    await asyncio.sleep(_LOOK_SECONDS)

    # -- the soak ----------------------------------------------------------------------------

    async def _soak(self) -> None:
        bench = Bench(self._bootstrap, self._folder, "soak")
        load = CountedLoad(self._bootstrap, bench.topic, self.outcome.rate, self._seed)
        async with bench.working() as pid:
            loading = asyncio.create_task(load.run())
            try:
                samples = await self._sample(bench, pid)
                await load.finish()
            finally:
                loading.cancel()
            finals = await bench.ground.until_at_rest(_DRAIN_SECONDS)
            self.outcome.findings += await bench.stop()
            ends = {tp.partition: final.end for tp, final in finals.items()}
            commits = {tp.partition: final.committed or 0 for tp, final in finals.items()}
            self.outcome.records = sum(ends.values())
            self.outcome.findings += incomplete(load.counts, ends, commits, bench.vitals())
        self._judge(samples)

    async def _sample(self, bench: Bench, pid: int) -> list[tuple[float, Sample]]:
        """A sample each moment, until the time is over."""
        began = time.monotonic()
        samples: list[tuple[float, Sample]] = []
        news = _NEWS_SECONDS
        turn = 0
        while (now := time.monotonic() - began) < 60 * self._shape.minutes:
            bench.check_running()
            try:
                samples.append((now, await asyncio.to_thread(take, pid, bench.plan)))
            except SampleError as error:
                self.outcome.missed += 1
                self._say(str(error))
            if now >= news and samples:
                news += _NEWS_SECONDS
                self._say(_news(*samples[-1]))
            turn += 1
            await asyncio.sleep(max(began + turn * self._shape.sample_seconds - time.monotonic(), 0))
        self.outcome.seconds = time.monotonic() - began
        return samples

    def _judge(self, samples: Sequence[tuple[float, Sample]]) -> None:
        outcome = self.outcome
        outcome.samples = len(samples)
        if outcome.missed > _MOST_MISSED * (outcome.missed + outcome.samples):
            outcome.findings.append(f"{outcome.missed} times the member did not answer")
        outcome.judged = judged(samples, outcome.rate, self._shape.rss_share)
        (began, first), (ended, last) = samples[0], samples[-1]
        outcome.cpu_share = (last.cpu_seconds - first.cpu_seconds) / (ended - began)


def _news(seconds: float, sample: Sample) -> str:
    return (
        f"{seconds / 60:4.0f} min: {sample.rss_mb:.1f} MB, {sample.descriptors} descriptors, "
        f"{sample.threads} threads, {sample.vitals.tasks} tasks, lag {sample.lag}, "
        f"{sample.in_flight} in flight, {sample.vitals.total} handled"
    )


# -- verdict -------------------------------------------------------------------------------------


def judged(samples: Sequence[tuple[float, Sample]], rate: int, rss_share: float) -> list[Judged]:
    """Each series through its gate. ValueError when there are too few samples."""

    def series(value_of: Callable[[Sample], float]) -> list[Point]:
        return [Point(seconds, value_of(sample)) for seconds, sample in samples]

    rates = [
        Point(seconds, (later.vitals.total - earlier.vitals.total) / (later.vitals.at - earlier.vitals.at))
        for (_, earlier), (seconds, later) in pairwise(samples)
        if later.vitals.at > earlier.vitals.at
    ]
    return [
        trend.may_grow_by_share("resident memory", "MB", series(lambda one: one.rss_mb), rss_share),
        trend.may_not_grow("open descriptors", "", series(lambda one: one.descriptors)),
        trend.may_not_grow("threads", "", series(lambda one: one.threads)),
        trend.may_not_grow("asyncio tasks", "", series(lambda one: one.vitals.tasks)),
        trend.may_not_pile_up("true lag", "", series(lambda one: one.lag), rate),
        trend.may_not_pile_up("in flight", "", series(lambda one: one.in_flight), rate),
        trend.may_not_fall("handled", "/s", rates, 0.05),
    ]


def incomplete(
    acknowledged: Counter[int], ends: dict[int, int], commits: dict[int, int], vitals: Vitals
) -> list[str]:
    """What is wrong with the sums: by partition what was sent, committed and handled."""
    found = [
        f"{vitals.fault_count} steps back or overlaps of a key, such as: {text}" for text in vitals.faults[:1]
    ]
    for number, end in sorted(ends.items()):
        handled = vitals.handled.get(number, 0)
        if acknowledged[number] > end:
            found.append(f"[{number}] has {end} records, but {acknowledged[number]} were acknowledged")
        if commits.get(number) != end:
            found.append(f"[{number}] is committed up to {commits.get(number)}, and ends at {end}")
        if handled != end:
            found.append(f"[{number}] has {end} records, and {handled} were handled")
    return found
