"""A simulated world: a broker, the members of one group, a producer, and what is done to them.

First chaos: records are sent and the planned faults strike. Then everything heals, and the group has
to come to rest. Whoever does something to the world notes it in the history.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Sequence

from asyncpar.adapters.aiokafka_config import ClientConfig
from asyncpar.errors import ConfigurationError
from asyncpar.ports import ConsumerFactory
from asyncpar.records import Committed, TopicPartition
from asyncpar.testing.checker_model import Final
from asyncpar.testing.history import DELETE_RECORDS, FAILED, OVERWRITE, TRUNCATE, History
from asyncpar.testing.memory_broker import MemoryBroker
from asyncpar.testing.memory_link import Code, RefusedError, Request
from asyncpar.testing.simulation.faults import FAULTS
from asyncpar.testing.simulation.handlers import BROKEN, Fates
from asyncpar.testing.simulation.link import Refusal, TroubledLink
from asyncpar.testing.simulation.member import GROUP, Member
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
        self.link = TroubledLink(plan.rng("link"), VirtualLoop.context_of(""))
        self.broker = MemoryBroker(
            link=self.link,
            recorder=self.history,
            wall=loop.time,
            metadata_max_bytes=plan.metadata_max_bytes,
        )
        self.members: list[Member] = []
        """Those that live; the last joined last."""
        self.max_members = plan.members + 2
        self._topics = tuple(plan.partitions)
        self._born = 0
        self._rng = plan.rng("world")
        self._sent = 0
        self._open = {topic: list(range(count)) for topic, count in plan.partitions.items()}
        """By topic: the partitions that the producer uses."""
        self._ending = False
        self._broker_is_up = asyncio.Event()
        self._broker_is_up.set()

    # -- the life ----------------------------------------------------------------------------

    async def live(self) -> None:
        """Chaos, heal, rest, and a clean stop of everybody."""
        begin = self.loop.time()
        for topic, partitions in self.plan.partitions.items():
            self.broker.create_topic(topic, partitions)
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
            while self._sent < upto and not self.broker.is_down:
                self._send_one(rng.random(), rng.random(), rng.random())
        await self._broker_is_up.wait()
        while self._sent < plan.records:
            self._send_one(rng.random(), rng.random(), rng.random())

    def _send_one(self, key_draw: float, keyless_draw: float, broken_draw: float) -> None:
        plan = self.plan
        self._sent += 1
        topic = self._topics[self._sent % len(self._topics)]
        # Squared: some keys come much more often than others.
        key = None if keyless_draw < plan.keyless_share else b"k%d" % int(plan.keys * key_draw * key_draw)
        open_ones = self._open[topic]
        partition = open_ones[(self._sent if key is None else int(key[1:])) % len(open_ones)]
        size = int(plan.payload_bytes * broken_draw)
        value = BROKEN if broken_draw < plan.mix.skipped else (b"v%d" % self._sent).ljust(size, b".")
        self.broker.send(topic, value, key, partition=partition)

    def _heal(self) -> None:
        """End every fault; whoever is missing comes back."""
        self.healed.set()
        self.link.troubles.clear()
        self.link.refusals.clear()
        self._bring_broker_up()
        self.broker.metadata_max_bytes = self.plan.metadata_max_bytes
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
        return all(final.committed == final.end or not final.end for final in self.finals().values())

    def finals(self) -> dict[TopicPartition, Final]:
        """What the broker holds of each partition now."""
        committed = self.broker.committed(GROUP)
        found = {}
        for topic in self.broker.partition_counts():
            for tp in self.broker.partitions(topic):
                stored = committed.get(tp)
                found[tp] = Final(None if stored is None else stored.offset, self.broker.log(tp).end)
        return found

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
        """How `member` reaches the broker."""
        plan = self.plan
        known = {
            name: plan.settings[name] for name in ClientConfig.__dataclass_fields__ if name in plan.settings
        }
        config = ClientConfig(
            metadata_max_age_ms=_METADATA_MAX_AGE_MS,
            group_instance_id=f"i{member.number}" if plan.static else None,
            **known,  # type: ignore[arg-type]
        )
        return self.broker.consumers(member.name, config, cooperative=plan.cooperative)

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
        self.loop.kill(member.name)
        self.members.remove(member)

    # -- what faults need --------------------------------------------------------------------

    def later(self, seconds: float, act: Callable[[], object]) -> None:
        """Do something in `seconds`, whoever is frozen then."""
        self.loop.call_later(seconds, act, context=VirtualLoop.context_of(""))

    @property
    def session_seconds(self) -> float:
        """How long a silent member stays a member."""
        found = self.plan.settings["session_timeout_ms"]
        assert isinstance(found, int)
        return found / 1000

    def pick(self, fault: PlannedFault) -> Member | None:
        """The member that a fault hits; None when nobody is there."""
        return self.members[int(fault.pick * len(self.members))] if self.members else None

    def pick_partition(self, fault: PlannedFault) -> TopicPartition:
        """The partition that a fault hits."""
        every: Sequence[TopicPartition] = [
            tp for topic in self.broker.partition_counts() for tp in self.broker.partitions(topic)
        ]
        return every[int(fault.pick * len(every))]

    def kick(self, member: Member) -> bool:
        """Remove a member at the coordinator; False when it is none now."""
        for member_id in list(self.broker.group(GROUP).members):
            if member_id.startswith(f"{member.name}-"):
                with contextlib.suppress(RefusedError):
                    self.broker.kick(GROUP, member_id)
                    self.history.note("fault", member.name, detail="kicked")
                    return True
        return False

    def refuse(self, request: Request, code: Code, times: int, member: Member | None = None) -> bool:
        """The broker answers the next `times` requests (of `member`) with `code`; False while it is down."""
        if not self.broker.is_down:
            self.link.refusals += [Refusal(request, code, None if member is None else member.name)] * times
        return not self.broker.is_down

    def move_coordinator(self) -> None:
        """Another node coordinates the group, now or after it has loaded."""
        loading = self._rng.random() < 0.5
        self.broker.move_coordinator(GROUP, loading=loading)
        if loading:
            self.later(self._rng.uniform(0.1, 4.0), lambda: self.broker.loaded(GROUP))

    def restart_broker(self, seconds: float) -> None:
        """Down now, up after `seconds`."""
        self.broker.down()
        self.link.refusals.clear()  # it will have forgotten why
        self._broker_is_up.clear()
        self.later(seconds, self._bring_broker_up)

    def _bring_broker_up(self) -> None:
        self.broker.up()
        self._broker_is_up.set()

    def truncate(self, tp: TopicPartition, share: float) -> bool:
        """Lose the last records of a log; False when it has none, or is the last one open to the producer.

        Later records would take their offsets, and whoever had not heard of the loss would miss them
        (no client can tell): the producer leaves the partition alone from here on.
        """
        log = self.broker.log(tp)
        end = max(log.start, log.end - 1 - int(share * 30))
        others = [number for number in self._open[tp.topic] if number != tp.partition]
        if end >= log.end or not others:
            return False
        self._open[tp.topic] = others
        self.history.note("fault", tp=tp, offset=end, detail=TRUNCATE)
        self.broker.truncate(tp, end)
        return True

    def delete_beginning(self, tp: TopicPartition, share: float) -> bool:
        """Delete a log's first records, up to a little beyond what is committed; False when it has none."""
        log = self.broker.log(tp)
        stored = self.broker.committed(GROUP).get(tp, Committed(0, ""))
        before = min(log.end, stored.offset + int(share * 20))
        if before <= log.start:
            return False
        self.history.note("fault", tp=tp, offset=before, detail=DELETE_RECORDS)
        self.broker.delete_records(tp, before)
        return True

    def run_transaction(self, tp: TopicPartition, records: int, seconds: float, *, commits: bool) -> bool:
        """Records that become visible at its end, or never; until then nothing behind them does.

        False when there can be none: the broker is down, or the partition is closed to producers.
        """
        if self.broker.is_down or (commits and tp.partition not in self._open[tp.topic]):
            return False
        transaction = self.broker.transaction()
        for _ in range(records):
            transaction.send(tp.topic, b"late", b"k1", partition=tp.partition)

        def end() -> None:
            # A broker that is down when the producer commits gives the transaction up later.
            is_lost = self.broker.is_down or tp.partition not in self._open[tp.topic]
            transaction.commit() if commits and not is_lost else transaction.abort()

        self.later(seconds, end)
        return True

    def limit_metadata(self, max_bytes: int, seconds: float) -> None:
        """The broker takes at most so much metadata for a while."""
        usual = self.plan.metadata_max_bytes
        self.broker.metadata_max_bytes = min(max_bytes, usual)
        self.later(seconds, lambda: setattr(self.broker, "metadata_max_bytes", usual))

    def write_foreign_metadata(self, tp: TopicPartition, *, is_copy: bool) -> bool:
        """Put another tool's string beside the committed offset; False when there is none to put.

        `is_copy`: asyncpar's own, of another partition, as tools do that copy offsets.
        """
        committed = self.broker.committed(GROUP)
        stored = committed.get(tp)
        own = [one.metadata for other, one in committed.items() if other != tp and one.metadata]
        if stored is None or (is_copy and not own):
            return False
        text = max(own, key=len) if is_copy else "bm90IG91cnM="
        self.history.note("fault", tp=tp, offset=stored.offset, detail=OVERWRITE)
        self.broker.group(GROUP).offsets[tp] = Committed(stored.offset, text)
        return True

    def grow(self, topic: str) -> None:
        """One more partition; the producer does not use it, but the group has to be given it."""
        self.broker.add_partitions(topic, self.broker.partition_counts()[topic] + 1)
