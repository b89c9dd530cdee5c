"""A simulated world: a cluster, the members of one group, a producer, and what is done to members.

First chaos: records are sent and the planned faults strike. Then everything heals, and the group has
to come to rest. Whoever does something to the world notes it in the history.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from asyncpar.adapters.aiokafka_config import ClientConfig
from asyncpar.errors import ConfigurationError
from asyncpar.ports import ConsumerFactory, ProducerFactory
from asyncpar.testing.history import FAILED, History
from asyncpar.testing.simulation.children import Tallies
from asyncpar.testing.simulation.cluster import Cluster
from asyncpar.testing.simulation.faults import FAULTS
from asyncpar.testing.simulation.handlers import BROKEN, Fates
from asyncpar.testing.simulation.member import Member
from asyncpar.testing.simulation.plan import Plan, PlannedFault
from asyncpar.testing.simulation.watch import Watch
from asyncpar.testing.virtual_time import VirtualLoop

LIFE_SECONDS = 90.0
"""A life goes on for at least this long."""
REST_SECONDS = 300.0
"""After it has healed, everything must be done within this time: sessions, rebalances and retries fit in, and
all records of a partition, one after the other.
"""
_STOP_SECONDS = 60.0
_LOOK_SECONDS = 0.5
_RETRY_SHARE = 0.05
"""Of the looks."""
_METADATA_MAX_AGE_MS = 5_000


class World:
    """One life's world. `struck` counts the faults that really struck, `states` what members went through."""

    def __init__(self, plan: Plan, loop: VirtualLoop) -> None:
        self.plan = plan
        self.loop = loop
        self.history = History(loop.time_ns)
        self.struck: Counter[str] = Counter()
        self.states: Counter[str] = Counter()
        self.problems: list[str] = []
        self.healed = asyncio.Event()
        self.fates = Fates(plan, self.healed)
        self.cluster = Cluster(plan, self.history, self.later, loop.time)
        self.members: list[Member] = []
        """Those that live; the last joined last."""
        self.max_members = plan.members + 2
        self.tallies = Tallies()
        self._topics = tuple(plan.partitions)
        self._began = loop.time()
        self._born = 0
        self._sent = 0
        self._ending = False

    # -- the life ----------------------------------------------------------------------------

    async def live(self) -> None:
        """Chaos, heal, rest, and a clean stop of everybody."""
        begin = self.loop.time()
        self.cluster.create_topics()
        for _ in range(self.plan.members):
            self.start_member()
        for fault in self.plan.faults:
            self.later(fault.at, self._striker(fault))
        watching = self.loop.create_task(self._watch())
        await self._produce()
        await asyncio.sleep(max(0.0, begin + self.plan.chaos_seconds - self.loop.time()))
        self._heal()
        await self._come_to_rest()
        await asyncio.sleep(max(0.0, begin + LIFE_SECONDS - self.loop.time()))
        watching.cancel()
        await self._stop_all()

    async def _watch(self) -> None:
        """Look at the members until cancelled; and in between somebody retries what has halted."""
        watch, rng = Watch(), self.plan.rng("retries")
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self.problems += watch.look(self.members)
            if rng.random() < _RETRY_SHARE:
                self.states["retried amid chaos"] += sum(member.retry_halted() for member in self.members)
            self.states["records held back"] += sum(member.holds_back() for member in self.members)
            for member in self.members:
                self.states.update(member.holds())

    def _striker(self, fault: PlannedFault) -> Callable[[], None]:
        _, strike = FAULTS[fault.kind]

        def act() -> None:
            if not self.healed.is_set():
                strike(self, fault)

        return act

    async def _produce(self) -> None:
        """Send the records in bursts over the time of chaos."""
        plan, rng = self.plan, self.plan.rng("producer")
        bursts = max(1, plan.records // 20)
        pause = (plan.chaos_seconds - 5) / bursts
        for burst in range(bursts):
            await asyncio.sleep(pause * rng.uniform(0.2, 1.8))
            upto = plan.records * (burst + 1) // bursts
            while self._sent < upto and not self.cluster.broker.is_down:
                self._send_one(rng.random(), rng.random(), rng.random())
        await self.cluster.is_up.wait()
        while self._sent < plan.records:
            self._send_one(rng.random(), rng.random(), rng.random())

    def _send_one(self, key_draw: float, keyless_draw: float, broken_draw: float) -> None:
        plan = self.plan
        self._sent += 1
        topic = self._topics[self._sent % len(self._topics)]
        # Squared: some keys come much more often than others.
        key = None if keyless_draw < plan.keyless_share else b"k%d" % int(plan.keys * key_draw * key_draw)
        open_ones = self.cluster.open[topic]
        partition = open_ones[(self._sent if key is None else int(key[1:])) % len(open_ones)]
        size = int(plan.payload_bytes * broken_draw)
        value = BROKEN if broken_draw < plan.mix.skipped else (b"v%d" % self._sent).ljust(size, b".")
        self.cluster.broker.send(topic, value, key, partition=partition)

    def _heal(self) -> None:
        """End every fault; whoever is missing comes back."""
        self.healed.set()
        self.cluster.heal()
        for member in self.members:
            self._thaw(member)
        self.history.note("heal")
        self.replenish()

    async def _come_to_rest(self) -> None:
        deadline = self.loop.time() + REST_SECONDS
        while not self._is_at_rest():
            if self.loop.time() > deadline:
                return  # the checkers will say what is stuck
            for member in self.members:
                self.states["partition halted"] += member.retry_halted()
            self.replenish()
            await asyncio.sleep(_LOOK_SECONDS)

    def _is_at_rest(self) -> bool:
        finals = self.cluster.finals().values()
        return all(final.committed == final.end or not final.end for final in finals)

    async def _stop_all(self) -> None:
        self._ending = True
        for member in self.members:
            member.stop()
        ends = [asyncio.create_task(member.ended.wait()) for member in self.members]
        if ends:
            await asyncio.wait(ends, timeout=_STOP_SECONDS)
        for member in list(self.members):
            if not member.ended.is_set():
                self.problems.append(f"{member.name} did not end within {_STOP_SECONDS:.0f} s of its stop")
            elif member.error is not None:
                self.problems.append(f"{member.name} ended with {member.error!r} in a healed world")
            self._bury(member)

    # -- members -----------------------------------------------------------------------------

    def start_member(self) -> Member:
        """A process is started."""
        self._born += 1
        taken = {member.number for member in self.members}
        number = next(number for number in range(self._born) if number not in taken)
        member = Member(self, f"m{self._born}", number)
        self.members.append(member)
        member.when_ended(self._member_ended)
        return member

    def consumers_of(self, member: Member) -> ConsumerFactory:
        """How `member` reads."""
        config = self._client_config(member)
        return self.cluster.broker.consumers(member.name, config, cooperative=self.plan.cooperative)

    def producers_of(self, member: Member) -> ProducerFactory:
        """How `member` writes dead letters."""
        return self.cluster.broker.producers(member.name, self._client_config(member))

    def _client_config(self, member: Member) -> ClientConfig:
        plan = self.plan
        known = {
            name: plan.settings[name] for name in ClientConfig.__dataclass_fields__ if name in plan.settings
        }
        return ClientConfig(
            metadata_max_age_ms=_METADATA_MAX_AGE_MS,
            group_instance_id=f"i{member.number}" if plan.static else None,
            **known,  # type: ignore[arg-type]
        )

    def stop_member(self, member: Member) -> None:
        """SIGTERM to a process, if it still lives."""
        if member in self.members and len(self.members) > 1:
            member.stop()

    def kill_member(self, member: Member) -> None:
        """SIGKILL."""
        self.history.note("dead", member.name)
        self._bury(member)

    def freeze_member(self, member: Member, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after `seconds`."""
        if not self.loop.is_frozen(member.name):
            self.history.note("freeze", member.name)
            self.loop.freeze(member.name)
            self.later(seconds, lambda: self._thaw(member))

    def _thaw(self, member: Member) -> None:
        if member in self.members and self.loop.is_frozen(member.name):
            self.history.note("thaw", member.name)
            self.loop.thaw(member.name)

    def replenish(self) -> None:
        """Start members until there are as many as planned."""
        while len(self.members) < self.plan.members:
            self.start_member()

    def _member_ended(self, member: Member) -> None:
        """A process has come to its end of itself: nothing of it runs on."""
        if member not in self.members:
            return
        crash = member.error if isinstance(member.error, ConfigurationError) else member.crash
        # A late JoinGroup of the one whose place and id it has taken ends it, as the protocol wants it.
        if crash is not None and not (self.plan.static and "group_instance_id" in str(crash)):
            self.problems.append(f"{member.name} crashed: {crash!r}")
        if self._ending:
            return
        if member.error is not None or member.crash is not None:
            self.history.note("dead", member.name, detail="" if not member.drained else FAILED)
        self._bury(member)
        if member.error is not None:
            self.later(2.0, self.replenish)

    def _bury(self, member: Member) -> None:
        self.states.update(member.states())
        for name in member.processes():
            self.loop.kill(name)
        self.members.remove(member)

    # -- what faults need --------------------------------------------------------------------

    def later(self, seconds: float, act: Callable[[], object]) -> None:
        """Do something in `seconds`, whoever is frozen then."""
        self.loop.call_later(seconds, act, context=VirtualLoop.context_of(""))

    @property
    def age(self) -> float:
        """Seconds since the life began."""
        return self.loop.time() - self._began

    @property
    def session_seconds(self) -> float:
        """How long a silent member stays a member."""
        found = self.plan.settings["session_timeout_ms"]
        assert isinstance(found, int)
        return found / 1000

    def pick(self, fault: PlannedFault) -> Member | None:
        """The member that a fault hits; None when nobody is there."""
        return self.members[int(fault.pick * len(self.members))] if self.members else None
