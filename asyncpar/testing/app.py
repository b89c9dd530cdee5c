"""`TestApp`: an app in a test, the whole engine over a broker in memory, or over a real one.

    async def test_an_order_is_billed() -> None:
        async with TestApp(app) as kafka:
            await kafka.send("orders", Order(customer="alice", cents=250), key="alice")
            await kafka.settled()
        assert billed == {"alice": 250}

Lives here: its life, sending, looking. Never here: apps and their settings (`rig`), clusters (`cluster`,
`kafka_cluster`), waiting (`waiting`) and its reasons (`unsettled`). Used by tests. Always: every wait is
bounded, and records are handled by the same code as in production.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, get_args

from asyncpar.app import App
from asyncpar.errors import ConfigurationError
from asyncpar.groups import DeclaredGroup
from asyncpar.records import Record, TopicPartition
from asyncpar.settings import Settings
from asyncpar.testing import arguments
from asyncpar.testing.checkers import Fault, Report
from asyncpar.testing.cluster import Cluster, MemoryCluster, Outgoing
from asyncpar.testing.history import History
from asyncpar.testing.memory_broker import MemoryBroker
from asyncpar.testing.memory_topics import RecordPlace
from asyncpar.testing.outgoing import Headers, Text, header_pairs, key_bytes, payload
from asyncpar.testing.rig import Rig, Target, apps_of, dead_letter_topics, settings_for, takes
from asyncpar.testing.rules import judge
from asyncpar.testing.waiting import Waiting
from asyncpar.testing.witness import Handled

WhenUnsettled = Literal["raise", "ignore"]


class TestApp:
    """Runs `target` while the block lasts: an `App`, a module, a `@topic` function, or a list of these.

    Settings are, the first one wins: `settings` given here; `env` and `toml`, which are not read unless
    given; the app's own, without its servers, credentials, HTTP port and log file; the profile "test". An
    app without a group gets "test". Missing topics are made, with one partition or as many as `partitions`
    says.

    With `bootstrap_servers` it runs on a real Kafka: each group under a name of its own, which begins where
    its topics end. With `broker` it runs on that one in memory; several can share it, as members of their
    groups (each with an App of its own).

    `unsettled`: whether the end of the block raises HaltedError or UnsettledError when something was sent
    here that is not done, and nobody awaited `settled()` since.

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
        toml: Path | str | None = None,
        unsettled: WhenUnsettled = "raise",
        **settings: object,
    ) -> None:
        broker = arguments.checked_broker(broker)
        if broker is not None and bootstrap_servers is not None:
            raise ConfigurationError("TestApp(...): give broker= or bootstrap_servers=, not both")
        arguments.check_env(env)
        arguments.check_choice("unsettled", unsettled, get_args(WhenUnsettled))
        self.handled: list[Handled] = []
        """Every attempt that has ended, in the order of the ends."""
        self._partitions = arguments.checked_partitions(partitions)
        self._must_settle = unsettled == "raise"
        self._awaits_settled = False
        """Something was sent, and nobody has awaited `settled` since."""
        if bootstrap_servers is not None:
            settings["bootstrap_servers"] = bootstrap_servers
        self._apps = apps_of(target)
        path = arguments.checked_path(toml)
        self._loaded = [settings_for(app, settings, env or {}, path) for app in self._apps]
        self._broker = None if bootstrap_servers is not None else broker or MemoryBroker()
        self._cluster = self._cluster_for(self._loaded[0].settings)
        self._rigs: list[Rig] = []
        self._waiting = Waiting(self._rigs, self._cluster, self.handled)
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
        self._waiting = Waiting(self._rigs, cluster, self.handled)
        self._awaits_settled = False
        for rig in self._rigs:
            rig.prepare(stack)
        await cluster.open()
        stack.push_async_callback(cluster.close)
        made = await self._make_topics()
        existing = await cluster.partition_counts()
        for group in self._groups:
            topics = [topic for topic in existing if takes(group, topic)]
            await cluster.begin(group.name, topics, made)
        letters = {topic for group in self._groups for topic in dead_letter_topics(group)}
        await cluster.look_from_here(
            [topic for topic in existing if self._readers(topic) or topic in letters]
        )
        for rig in self._rigs:
            await rig.start(stack)

    async def _make_topics(self) -> list[str]:
        """The topics that did not exist."""
        existing = await self._cluster.partition_counts()
        wanted = {topic: 1 for group in self._groups for topic in sorted(group.subscription.topics)}
        wanted |= {topic: 1 for group in self._groups for topic in dead_letter_topics(group)}
        unread = [topic for topic in self._partitions if not self._readers(topic)]
        arguments.refuse_misspelt(unread, wanted.keys() - self._partitions.keys())
        made = []
        for topic, partitions in {**wanted, **self._partitions}.items():
            if topic not in existing:
                await self._cluster.create_topic(topic, partitions)
                made.append(topic)
            elif existing[topic] < partitions:
                has = arguments.counted(existing[topic], "partition")
                raise ConfigurationError(f"topic {topic!r} exists and has {has}, not {partitions}")
        return made

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop with a full drain; raises what ended an app, unless the body raised itself.

        Also HaltedError and UnsettledError, see `unsettled`: of what is not done when all has stopped.
        """
        stack, self._stack = self._stack, None
        if stack is None:
            return
        before = self._waiting.statuses()
        await stack.__aexit__(kind, error, trace)
        if error is None and self._must_settle and self._awaits_settled:
            self._waiting.check_settled(before)

    def _check_started(self, what: str) -> None:
        if not self._rigs:
            raise ConfigurationError(
                f"this TestApp has not run: use {what} inside or after `async with TestApp(...)`"
            )

    def _check_running(self) -> None:
        if self._stack is None:
            raise ConfigurationError("this TestApp does not run: use it inside `async with TestApp(...)`")
        self._waiting.check_alive()

    @property
    def _groups(self) -> list[DeclaredGroup]:
        return [group for rig in self._rigs for group in rig.groups]

    @property
    def _group_names(self) -> list[str]:
        return sorted({group.name for group in self._groups})

    def _readers(self, topic: str) -> list[str]:
        """The groups that read `topic`."""
        return sorted({group.name for group in self._groups if takes(group, topic)})

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
        arguments.check_whole_number("partition", partition)
        arguments.check_whole_number("timestamp_ms", timestamp_ms, " of milliseconds since 1970")
        record = Outgoing(
            topic, payload(value), key_bytes(key), header_pairs(headers), partition, timestamp_ms
        )
        if topic not in await self._cluster.partition_counts():
            self._check_read(topic, "name it in partitions= to have it all the same")
            await self._cluster.create_topic(topic, 1)
        place = await self._cluster.send(record)
        self._awaits_settled = True
        return place

    def _check_read(self, topic: str, otherwise: str) -> None:
        if not self._readers(topic):
            known = sorted({name for group in self._groups for name in group.subscription.topics})
            hint = arguments.did_you_mean(topic, known, otherwise)
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
        try:
            await self._waiting.settled(self._seconds(timeout_s), raise_on_halt=raise_on_halt)
        finally:
            self._awaits_settled = False

    async def assigned(self, at_least: int = 1, *, timeout_s: float | None = None) -> list[TopicPartition]:
        """Wait until each group of each app here holds `at_least` partitions; returns all that are held here.

        For tests with several members: await it of the one that came last, and of those that take over
        when one has left. `timeout_s` as for `settled`; UnsettledError says who holds what.
        """
        self._check_running()
        arguments.check_whole_number("at_least", at_least, " of partitions")
        return await self._waiting.assigned(at_least, self._seconds(timeout_s))

    def _seconds(self, timeout_s: float | None) -> float:
        arguments.check_seconds("timeout_s", timeout_s)
        return self._cluster.settled_seconds if timeout_s is None else timeout_s

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

    async def records(self, topic: str) -> list[Record]:
        """What `topic` holds, by partition and offset: dead letters, or what handlers have sent.

        On a real Kafka, inside the block only; of topics that the apps here read and of their dead letters:
        what came since it began. Raises UnknownTopicError, BrokerError.
        """
        self._check_started("records()")
        if self._broker is None:
            self._check_running()
        return await self._cluster.records(topic)

    def committed(self, topic: str, partition: int = 0, *, group: str | None = None) -> int | None:
        """The offset that the group has committed: one past the last record done. None without a commit.

        `group` is needed only where several groups read the topic.
        """
        self._check_started("committed()")
        arguments.check_whole_number("partition", partition)
        self._check_read(topic, "so nobody commits it")
        readers = self._readers(topic)
        if group is None and len(readers) > 1:
            raise ConfigurationError(
                f"several groups read {topic!r}; give group=, one of {', '.join(readers)}"
            )
        if group not in (None, *readers):
            hint = f"it is read by {' and '.join(readers)}"
            raise ConfigurationError(f"no group {group!r} reads topic {topic!r}; {hint}")
        has = self._cluster.partitions_known(topic)
        if has is not None and partition >= has:
            raise ConfigurationError(
                f"topic {topic!r} has no partition {partition}: it has {has}, and the first is 0"
            )
        return self._cluster.committed(group or readers[0], TopicPartition(topic, partition))

    @property
    def history(self) -> History:
        """What the world saw, event by event. Of several groups each has its own: `history_of`."""
        self._check_started("history")
        names = self._group_names
        if len(names) != 1:
            raise ConfigurationError(f"there are several groups; use history_of, with {' or '.join(names)}")
        return self.history_of(names[0])

    def history_of(self, group: str) -> History:
        """The history of one group."""
        self._check_started("history_of()")
        names = self._group_names
        if group not in names:
            hint = arguments.did_you_mean(group, names, f"there is {' and '.join(names)}")
            raise ConfigurationError(f"there is no group {group!r} in this test; {hint}")
        return self._cluster.histories.of(group)

    def check(self) -> Report:
        """Let the checkers judge what happened; returns their counts. AssertionError for a broken guarantee.

        Judges LOST, ORDER, SERIAL, COMMIT, DUPLICATES, BUDGET and DEAD LETTER, by topic, with the app's
        settings. LOST is not judged for a topic where records are passed over before a handler is called
        (`unmatched="skip"`), DEAD LETTER neither on a real Kafka nor with retry topics.
        """
        self._check_started("check()")
        faults: list[Fault] = []
        counts: Counter[str] = Counter()
        for name in dict.fromkeys(group.name for group in self._groups):
            rig, group = next((rig, one) for rig in self._rigs for one in rig.groups if one.name == name)
            report = judge(self.history_of(name).events, group, rig.settings, self._cluster.letters)
            faults += report.faults
            counts.update(report.counts)
        whole = Report(tuple(faults), dict(counts))
        if not whole.is_ok:
            raise AssertionError(whole.explain())
        return whole
