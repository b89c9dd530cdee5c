"""The service behind a handler is out for a while, and comes back: nothing is lost, and little is given up.

What lives here: the order of a run and its outcome. What never does: processes (`tests.chaos.crew`), the
service (`downstream.py`), verdicts on letters (`accounting.py`) and on calls and commits (the checkers).
Called by `__main__.py` and `test_outage.py`. Always: every wait is bounded; no process and no topic is left.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from asyncpar import Breaker
from asyncpar.headers import origin
from asyncpar.testing.checkers import Report, Rules, check
from asyncpar.testing.history import Event, HistoryFile
from tests import kafka_tools
from tests.chaos.crew import Crew
from tests.chaos.judging import TOLERANCE_NS, WORLD_ERRORS, Ground, broken_laws, whole_history
from tests.chaos.plan import DRAIN_MS, GRACE_MS, MAX_IN_FLIGHT
from tests.kafka_broker import free_port
from tests.letters.accounting import disorder, for_checkers, over_budget
from tests.letters.downstream import Downstream, Heard
from tests.letters.looking import look
from tests.letters.plan import SESSION_TIMEOUT_MS, OutagePlan, Policy, Shape
from tests.letters.records import NumberedLoad, Written, read_topic

PARTITIONS, LETTER_PARTITIONS = 4, 2
MEMBERS = ("m1", "m2")
FULL_SPEED = 0.8
"""The share of its rate before the outage that a rate must reach to count as full speed."""
_WHY = {"breaker": "the breaker of ", "budget": "the dead-letter budget of "}
_MODULE = "tests.letters.caller"
_READY_SECONDS = 60.0
_REST_SECONDS = 60.0
_LOOK_SECONDS = 0.25
_NEWS_SECONDS = 60.0

Say = Callable[[str], None]


class NoWorkError(RuntimeError):
    """The members do not work at all: the run is over, and asyncpar is to blame."""


@dataclass(frozen=True)
class Rates:
    """Records per second that the service heard of: before the outage, and settled after it.

    `best`: in the best second after the return, while the backlog is worked off. `first_seconds`: from the
    return to the first call that it heard of; `all_partitions_seconds`: until it has heard of each partition
    again. -1 for what never came.
    """

    before: float
    after: float
    best: int
    first_seconds: float
    all_partitions_seconds: float


@dataclass
class Outcome:
    """How a run went. `held`: the partitions that said so in the outage; `held_share`: of all looks.

    `calls`: those that began in the outage. `late_letters`: those that were sent after the return, because
    they had been given up before. `rest_seconds`: from the return until all is done; the last records are
    sent when `settle_seconds` and `after_seconds` have passed. `void` says why it proves nothing.
    """

    folder: Path
    policy: Policy
    records: int = 0
    letters: int = 0
    late_letters: int = 0
    calls: int = 0
    held: set[int] = field(default_factory=set)
    paused: set[int] = field(default_factory=set)
    held_share: float = 0.0
    rates: Rates | None = None
    rest_seconds: float = 0.0
    report: Report | None = None
    findings: list[str] = field(default_factory=list)
    void: str | None = None

    @property
    def faults_found(self) -> list[str]:
        """All that is wrong, one text each."""
        return [*broken_laws(self.report), *self.findings]


class Outage:
    """One run on a running broker; use once."""

    def __init__(
        self, bootstrap: str, policy: Policy, shape: Shape, seed: int, folder: Path, say: Say
    ) -> None:
        self.outcome = Outcome(folder, policy)
        self._shape = shape
        self._folder = folder
        self._say = say
        self._noted = folder / "noted"
        self._history = HistoryFile(self._noted)
        topic = f"outage-{uuid.uuid4().hex[:12]}"
        self._topic, self._dead = topic, f"{topic}.dlq"
        self._ground = Ground(bootstrap, f"{topic}-group", (topic,))
        self._service = Downstream()
        self._load = NumberedLoad(bootstrap, topic, shape.per_second, shape.keys, str(seed))
        self._ports = {name: free_port() for name in MEMBERS}
        plan = OutagePlan(
            "",
            bootstrap,
            self._ground.group,
            topic,
            history=str(self._noted),
            port=self._service.port,
            policy=policy,
            shape=shape,
            http_ports=self._ports,
        )
        self._crew = Crew(plan, self._history, folder, _MODULE)
        self._back_ms = 0.0
        """When the service came back, milliseconds since the epoch."""

    async def run(self) -> Outcome:
        """From topics to verdict. Raises nothing that a run may run into: see `Outcome`."""
        outcome, ground = self.outcome, self._ground
        loading: asyncio.Task[None] | None = None
        try:
            await ground.prepare(PARTITIONS)
            await kafka_tools.create_topic(ground.bootstrap, self._dead, LETTER_PARTITIONS)
            await self._service.up()
            loading = asyncio.create_task(self._load.run())
            for _ in MEMBERS:
                self._crew.hire()
            await self._until_working()
            moments = await self._go_through_it()
            await self._load.finish()
            await self._judge(*moments)
        except NoWorkError as error:
            outcome.findings.append(str(error))
        except WORLD_ERRORS as error:
            outcome.void = f"{type(error).__name__}: {error}"
        finally:
            if loading is not None:
                loading.cancel()
            self._crew.close()
            await self._service.down()
            self._history.close()
            outcome.findings += self._crew.findings
            await Ground(ground.bootstrap, ground.group, (self._topic, self._dead)).forget()
        return outcome

    # -- before, in and after the outage -----------------------------------------------------

    async def _until_working(self) -> None:
        """Both members hold partitions, and the service has heard of each partition since."""
        deadline = time.monotonic() + _READY_SECONDS
        since = 0.0
        while True:
            self._check_running()
            looks = [await asyncio.to_thread(look, port) for port in self._ports.values()]
            if not all(one is not None and one.holds for one in looks):
                since = 0.0
            elif not since:
                since = time.monotonic()
            elif len({one.partition for one in self._service.heard if one.at > since}) == PARTITIONS:
                return
            if time.monotonic() > deadline:
                raise NoWorkError(f"the members do not share the work within {_READY_SECONDS:.0f} s")
            await asyncio.sleep(_LOOK_SECONDS)

    def _check_running(self) -> None:
        self._crew.reap()
        if self._crew.findings or self._crew.refused_starts:
            raise NoWorkError("a member ended by itself")

    async def _go_through_it(self) -> tuple[float, float]:
        """The moments at which the service went and came back, time.monotonic() seconds."""
        shape = self._shape
        await asyncio.sleep(shape.calm_seconds)
        await self._service.down()
        down_at = time.monotonic()
        self._say(f"{self.outcome.policy}: the service is out for {shape.outage_seconds:.0f} s")
        await self._watch_until(down_at + shape.outage_seconds)
        await self._service.up()
        up_at, self._back_ms = time.monotonic(), time.time() * 1000
        self._say(f"{self.outcome.policy}: it is back")
        await asyncio.sleep(shape.settle_seconds + shape.after_seconds)
        self._check_running()
        return down_at, up_at

    async def _watch_until(self, end: float) -> None:
        """Look how the members show the outage, until it is over."""
        outcome, why = self.outcome, _WHY[self.outcome.policy]
        looks = held = 0
        news_at = time.monotonic() + _NEWS_SECONDS
        while (now := time.monotonic()) < end:
            self._check_running()
            for port in self._ports.values():
                one = await asyncio.to_thread(look, port)
                if one is None:
                    continue
                holds = {number for number, reason in one.holds.items() if (reason or "").startswith(why)}
                outcome.held |= holds
                outcome.paused |= {number for number, is_paused in one.paused.items() if is_paused}
                looks += len(one.holds)
                held += len(holds)
            if now > news_at:
                news_at += _NEWS_SECONDS
                self._say(f"{outcome.policy}: {(end - now):.0f} s to go, held in {held} of {looks} looks")
            await asyncio.sleep(_LOOK_SECONDS)
        outcome.held_share = held / max(looks, 1)

    # -- verdict -----------------------------------------------------------------------------

    async def _judge(self, down_at: float, up_at: float) -> None:
        outcome, ground, shape = self.outcome, self._ground, self._shape
        finals = await ground.until_at_rest(_REST_SECONDS + shape.outage_seconds)
        outcome.rest_seconds = time.monotonic() - up_at
        await self._crew_ends()
        log = await ground.read_log(self._load, finals)
        outcome.records = len(log)
        ends = await kafka_tools.end_offsets(ground.bootstrap, self._dead)
        letters = await asyncio.to_thread(read_topic, ground.bootstrap, self._dead, ends)
        outcome.letters = len(letters)
        outcome.late_letters = sum(one.timestamp_ms > self._back_ms for one in letters)
        events = await asyncio.to_thread(whole_history, log, self._noted, self._folder / "history")
        rules = Rules(
            max_in_flight=MAX_IN_FLIGHT,
            max_revoke_grace_ms=GRACE_MS,
            session_timeout_ms=SESSION_TIMEOUT_MS,
            shutdown_drain_timeout_ms=DRAIN_MS,
            tolerance_ns=TOLERANCE_NS,
            finals=finals,
            letters=for_checkers(letters),
        )
        outcome.report = await asyncio.to_thread(check, events, rules)
        outcome.calls = _calls(events, down_at, up_at)
        heard = self._service.heard
        outcome.rates = rates(heard, shape, down_at, up_at)
        places = [(sent.tp.partition, sent.offset) for sent in log]
        outcome.findings += unheard(places, heard, letters)
        outcome.findings += [f"partition {number} did not say that it is held" for number in self._unheld()]
        if outcome.policy == "breaker":
            outcome.findings += gave_up(len(letters), outcome.rates, shape.per_second)
            outcome.findings += called_on(outcome.calls, shape)
        else:
            outcome.findings += over_budget(letters, shape.at_least, shape.window_ms)
            outcome.findings += disorder(letters)
            if len(letters) < shape.at_least:
                outcome.findings.append(f"{len(letters)} letters: the budget was never used up")

    async def _crew_ends(self) -> None:
        for member in list(self._crew.members):
            await self._crew.end(member)
        self.outcome.findings += ["a stop left work unfinished"] * self._crew.unfinished_stops

    def _unheld(self) -> list[int]:
        return sorted(set(range(PARTITIONS)) - (self.outcome.held & self.outcome.paused))


def _calls(events: Iterable[Event], down_at: float, up_at: float) -> int:
    return sum(event.kind == "start" and down_at < event.at_ns / 1e9 < up_at for event in events)


def rates(heard: Sequence[Heard], shape: Shape, down_at: float, up_at: float) -> Rates:
    """How fast it went before and after."""

    def rate(begin: float, seconds: float) -> float:
        return sum(begin <= one.at < begin + seconds for one in heard) / seconds

    again: dict[int, float] = {}
    for one in heard:
        if one.at >= up_at:
            again.setdefault(one.partition, one.at - up_at)
    return Rates(
        before=rate(down_at - shape.calm_seconds, shape.calm_seconds),
        after=rate(up_at + shape.settle_seconds, shape.after_seconds),
        best=max(Counter(int(one.at - up_at) for one in heard if one.at >= up_at).values(), default=0),
        first_seconds=min(again.values(), default=-1.0),
        all_partitions_seconds=max(again.values()) if len(again) == PARTITIONS else -1.0,
    )


def gave_up(letters: int, seen: Rates, per_second: int) -> list[str]:
    """What a breaker must not let happen, where `per_second` records come."""
    found = [f"{letters} dead letters: an outage is no fault of the records"] * (letters > 0)
    # What had piled up before the members came may have made it faster than records come.
    if seen.after < FULL_SPEED * min(seen.before, per_second):
        found.append(f"{seen.after:.0f} records/s after the outage, {seen.before:.0f} before it")
    return found


def called_on(calls: int, shape: Shape) -> list[str]:
    """More calls in an outage than open a breaker, run when it opens, and are its probes; of all members."""
    probes = shape.outage_seconds * 1000 / shape.open_ms + 1
    most = int(len(MEMBERS) * (Breaker().min_calls + shape.keys + probes))
    return [f"{calls} calls while the service was out, at most {most} are to be"] * (calls > most)


def unheard(
    places: Iterable[tuple[int, int]], heard: Iterable[Heard], letters: Iterable[Written]
) -> list[str]:
    """Records, as (partition, offset), that came nowhere, or into two letters."""
    told = {(one.partition, one.offset) for one in heard}
    given_up: Counter[tuple[int, int]] = Counter()
    for letter in letters:
        place = origin(letter.headers)
        if place is not None:
            given_up[place[0].partition, place[1]] += 1
    lost = [place for place in places if place not in told and place not in given_up]
    found = [f"{len(lost)} records are lost, such as [{lost[0][0]}] offset {lost[0][1]}"] if lost else []
    found += [
        f"[{number}] offset {offset} is in {count} letters"
        for (number, offset), count in given_up.items()
        if count > 1
    ]
    return found
