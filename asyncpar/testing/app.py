"""`TestApp`: an app in a test, the whole engine over a broker in memory, or over a real one.

    async def test_an_order_is_billed() -> None:
        async with TestApp(app) as kafka:
            await kafka.send("orders", Order(customer="alice", cents=250), key="alice")
            await kafka.settled()
        assert billed == {"alice": 250}

Lives here: sending, waiting, looking. Never here: apps and their settings (`rig`), clusters (`cluster`,
`kafka_cluster`), reasons (`unsettled`). Used by tests. Always: every wait is bounded, and records are
handled by the same code as in production.
"""

from __future__ import annotations

import asyncio
import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from asyncpar.app import App
from asyncpar.errors import ConfigurationError
from asyncpar.groups import DeclaredGroup
from asyncpar.ports import Subscription
from asyncpar.records import TopicPartition
from asyncpar.settings import Settings
from asyncpar.testing.checkers import Fault, Report, check
from asyncpar.testing.cluster import Cluster, MemoryCluster, Outgoing
from asyncpar.testing.history import NO_PARTITION, History
from asyncpar.testing.memory_broker import MemoryBroker
from asyncpar.testing.memory_topics import RecordPlace
from asyncpar.testing.outgoing import Headers, Text, header_pairs, key_bytes, payload
from asyncpar.testing.rig import Rig, Target, apps_of, settings_for
from asyncpar.testing.rules import passes_over, rules_for
from asyncpar.testing.unsettled import Open, halted, partition_status, unsettled
from asyncpar.testing.witness import Handled

_LOOK_SECONDS = 0.005


class TestApp:
    """Runs `target` while the block lasts: an `App`, a module, a `@topic` function, or a list of these.

    Settings are, the first one wins: `settings` given here; `env` and `toml`, which are not read unless
    given; the app's own, without its servers, credentials, HTTP port and log file; the profile "test". An
    app without a group gets "test". Missing topics are made, with one partition or as many as `partitions`
    says.

    With `bootstrap_servers` it runs on a real Kafka: each group under a name of its own, which begins where
    its topics end. With `broker` it runs on that one in memory; several can share it, as members of their
    groups.

    Raises ConfigurationError, SettingError; at the start of the block also what the app raises.
    """

    __test__ = False  # no class of tests, whatever its name says to pytest

    def __init__(
        self,
        target: Target | Sequence[Target],
        *,
        partitions: Mapping[str, int] | None = None,
        broker: MemoryBroker | None = None,
        bootstrap_servers: str | None = None,
        env: Mapping[str, str] | None = None,
        toml: Path | None = None,
        **settings: object,
    ) -> None:
        if broker is not None and bootstrap_servers is not None:
            raise ConfigurationError("TestApp(...): give broker= or bootstrap_servers=, not both")
        self.handled: list[Handled] = []
        """Every attempt that has ended, in the order of the ends."""
        self._partitions = dict(partitions or {})
        if bootstrap_servers is not None:
            settings["bootstrap_servers"] = bootstrap_servers
        self._apps = apps_of(target)
        self._loaded = [settings_for(app, settings, env or {}, toml) for app in self._apps]
        self._broker = None if bootstrap_servers is not None else broker or MemoryBroker()
        self._cluster = self._cluster_for(self._loaded[0].settings)
        self._rigs: list[Rig] = []
        self._stack: AsyncExitStack | None = None

    def _cluster_for(self, settings: Settings) -> Cluster:
        if self._broker is not None:
            return MemoryCluster(self._broker)
        from asyncpar.testing.kafka_cluster import KafkaCluster

        return KafkaCluster(settings)

    # -- its life ----------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Make the topics, then start; returns when every group has connected."""
        if self._stack is not None:
            raise ConfigurationError("a TestApp runs once at a time: make another one")
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigurationError("TestApp runs on asyncio only: choose it as the backend") from None
        async with AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()
        return self

    async def _start(self, stack: AsyncExitStack) -> None:
        cluster = self._cluster
        self._rigs = [
            Rig(app, loaded, cluster, self.handled)
            for app, loaded in zip(self._apps, self._loaded, strict=True)
        ]
        for rig in self._rigs:
            rig.prepare(stack)
        await cluster.open()
        stack.push_async_callback(cluster.close)
        made = await self._make_topics()
        existing = await cluster.partition_counts()
        for group in self._groups:
            topics = [topic for topic in existing if _takes(group.subscription, topic)]
            await cluster.begin(group.name, topics, made)
        for rig in self._rigs:
            await rig.start(stack)

    async def _make_topics(self) -> list[str]:
        """The topics that did not exist."""
        existing = await self._cluster.partition_counts()
        wanted = {topic: 1 for group in self._groups for topic in sorted(group.subscription.topics)}
        made = []
        for topic, partitions in {**wanted, **self._partitions}.items():
            if topic not in existing:
                await self._cluster.create_topic(topic, partitions)
                made.append(topic)
            elif existing[topic] < partitions:
                raise ConfigurationError(
                    f"topic {topic!r} exists and has {existing[topic]} partitions, not {partitions}"
                )
        return made

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop with a full drain; raises what ended an app, unless the body raised itself."""
        stack, self._stack = self._stack, None
        if stack is not None:
            await stack.__aexit__(kind, error, trace)

    def _check_running(self) -> None:
        if self._stack is None:
            raise ConfigurationError("this TestApp does not run: use it inside `async with TestApp(...)`")
        for rig in self._rigs:
            rig.check_alive()

    @property
    def _groups(self) -> list[DeclaredGroup]:
        return [group for rig in self._rigs for group in rig.groups]

    # -- sending -----------------------------------------------------------------------------

    async def send(
        self,
        topic: str,
        value: object,
        *,
        key: Text | None = None,
        headers: Headers = (),
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> RecordPlace:
        """Send one record; returns where it is.

        `value` is bytes, str, None (a tombstone), or anything that JSON can hold: dicts and lists,
        dataclasses, pydantic models, msgspec Structs. `headers` is a mapping or pairs. Without `partition`
        the key decides. Raises ConfigurationError for a topic that nobody reads, UnknownTopicError,
        BrokerError, TypeError.
        """
        self._check_running()
        record = Outgoing(
            topic, payload(value), key_bytes(key), header_pairs(headers), partition, timestamp_ms
        )
        if topic not in await self._cluster.partition_counts():
            self._check_read(topic)
            await self._cluster.create_topic(topic, 1)
        return await self._cluster.send(record)

    def _check_read(self, topic: str) -> None:
        if any(_takes(group.subscription, topic) for group in self._groups):
            return
        known = sorted({name for group in self._groups for name in group.subscription.topics})
        near = difflib.get_close_matches(topic, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "name it in partitions= to have it all the same"
        raise ConfigurationError(f"no handler reads topic {topic!r}; {hint}")

    # -- waiting -----------------------------------------------------------------------------

    async def settled(self, timeout_s: float | None = None, *, raise_on_halt: bool = True) -> None:
        """Wait until every record sent is done and committed, by every group that reads it.

        `timeout_s`: 5 in memory, 30 on a real Kafka. Raises HaltedError as soon as a partition halts, with
        what the handler raised as its cause (`raise_on_halt=False`: does not wait for halted partitions),
        and UnsettledError after `timeout_s`, with the place and the reason of what is open. Raises what
        ends an app.
        """
        self._check_running()
        loop = asyncio.get_running_loop()
        bound = self._cluster.settled_seconds if timeout_s is None else timeout_s
        deadline = loop.time() + bound
        while True:
            self._check_running()
            places = self._open(raise_on_halt)
            if not places:
                return
            if loop.time() >= deadline:
                statuses = {rig.app: rig.app.status() for rig in self._rigs}
                raise unsettled([(one, statuses[rig.app]) for one, rig in places], bound, self.handled)
            await asyncio.sleep(_LOOK_SECONDS)

    def _open(self, raise_on_halt: bool) -> list[tuple[Open, Rig]]:
        """What is open, once per group and partition; what has halted is raised or left out."""
        found: dict[tuple[str, TopicPartition], tuple[Open, Rig]] = {}
        stopped: set[tuple[str, TopicPartition]] = set()
        for rig in self._rigs:
            status = rig.app.status()
            for group in rig.groups:
                for place in self._first_open(rig, group):
                    partition = partition_status(status, place.group, place.tp)
                    if partition is not None and partition.halt_reason is not None:
                        if raise_on_halt:
                            raise halted(partition, self.handled)
                        stopped.add((place.group, place.tp))
                    # Of several members the one that has the partition knows the reason.
                    if (place.group, place.tp) not in found or partition is not None:
                        found[place.group, place.tp] = place, rig
        return [one for where, one in found.items() if where not in stopped]

    def _first_open(self, rig: Rig, group: DeclaredGroup) -> list[Open]:
        return [
            Open(group.name, tp, offset)
            for topic in self._cluster.topics_sent_to()
            if _takes(group.subscription, topic)
            for tp, offset in self._cluster.first_open(group.name, topic, rig.settings)
        ]

    # -- looking -----------------------------------------------------------------------------

    @property
    def app(self) -> App:
        """The app that runs, for its `status()` and `retry_halted()`; of several the first."""
        return self._apps[0]

    @property
    def broker(self) -> MemoryBroker:
        """The broker in memory, to look at and to make fail. ConfigurationError on a real Kafka."""
        if self._broker is None:
            raise ConfigurationError("this TestApp runs on a real Kafka: there is no broker in memory")
        return self._broker

    @property
    def errors(self) -> list[BaseException]:
        """What handlers raised, in the order of `handled`; cancellations are left out."""
        return [one.error for one in self.handled if one.error is not None and one.outcome != "cancelled"]

    def committed(self, topic: str, partition: int = 0, *, group: str | None = None) -> int | None:
        """The offset that the group has committed: one past the last record done. None without a commit.

        `group` is needed only where several groups read the topic.
        """
        readers = sorted({one.name for one in self._groups if _takes(one.subscription, topic)})
        if group is None and len(readers) > 1:
            raise ConfigurationError(
                f"several groups read {topic!r}; give group=, one of {', '.join(readers)}"
            )
        if not readers or group not in (None, *readers):
            raise ConfigurationError(f"no group {group or ''} reads {topic!r}".replace("  ", " "))
        return self._cluster.committed(group or readers[0], TopicPartition(topic, partition))

    @property
    def history(self) -> History:
        """What the world saw, event by event. Of several groups each has its own: `history_of`."""
        names = sorted({group.name for group in self._groups})
        if len(names) != 1:
            raise ConfigurationError(f"there are several groups; use history_of, with {' or '.join(names)}")
        return self.history_of(names[0])

    def history_of(self, group: str) -> History:
        """The history of one group."""
        return self._cluster.histories.of(group)

    def check(self) -> Report:
        """Let the checkers judge what happened; returns their counts. AssertionError for a broken guarantee.

        Judges LOST, ORDER, SERIAL, COMMIT, DUPLICATES and BUDGET, by topic, with the app's settings. LOST
        is not judged for a topic where records are passed over before a handler is called
        (`unmatched="skip"`).
        """
        faults: list[Fault] = []
        counts: Counter[str] = Counter()
        for name in dict.fromkeys(group.name for group in self._groups):
            report = self._report(name)
            faults += report.faults
            counts.update(report.counts)
        whole = Report(tuple(faults), dict(counts))
        if not whole.is_ok:
            raise AssertionError(whole.explain())
        return whole

    def _report(self, name: str) -> Report:
        """One group's. Its topics may be ordered differently, so each is judged by itself."""
        rig, group = next((rig, one) for rig in self._rigs for one in rig.groups if one.name == name)
        events = self.history_of(name).events
        faults: list[Fault] = []
        counts: Counter[str] = Counter()
        for topic in dict.fromkeys(event.tp.topic for event in events if event.tp != NO_PARTITION):
            if not _takes(group.subscription, topic):
                continue
            about = [event for event in events if event.tp.topic in (topic, NO_PARTITION.topic)]
            report = check(about, rules_for(group, topic, rig.settings))
            blind = passes_over(group, topic)
            faults += [fault for fault in report.faults if not (blind and fault.check == "LOST")]
            counts.update(report.counts)
        return Report(tuple(faults), dict(counts))


def _takes(subscription: Subscription, topic: str) -> bool:
    pattern = subscription.pattern
    return topic in subscription.topics or (pattern is not None and pattern.fullmatch(topic) is not None)
