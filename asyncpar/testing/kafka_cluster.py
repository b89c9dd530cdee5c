"""A real Kafka for a `TestApp`: a consumer group that nobody else has, which begins where its topics end.

Lives here: topics, the group's first commit, sending, and which commits were acknowledged. Never here:
records of others; what they send to the same topics meanwhile is handled too, and is not known here. Called
by `TestApp`. Always: no topic and no record is ever deleted; an empty group is left to expire.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaConnectionError, KafkaError, for_code

from asyncpar.adapters.aiokafka_security import security_options
from asyncpar.assembly import client_config, kafka_consumers, kafka_producers
from asyncpar.errors import BrokerError, BrokerUnreachableError, ConfigurationError, UnknownTopicError
from asyncpar.ports import Consumer, ConsumerFactory, ProducerFactory
from asyncpar.records import CommitAnswer, Record, TopicPartition
from asyncpar.settings import Settings
from asyncpar.testing.checkers import Letter
from asyncpar.testing.cluster import Outgoing
from asyncpar.testing.history import Event, History
from asyncpar.testing.memory_topics import RecordPlace
from asyncpar.testing.witness import Histories

_TOPIC_SECONDS = 20.0
_LOOK_SECONDS = 0.05
_EXISTS = 36
_MOST_REPLICAS = 3
_MOST_PORT = 65_535


class KafkaCluster:
    """A `Cluster` at the `bootstrap_servers` of `settings`."""

    settled_seconds = 30.0

    def __init__(self, settings: Settings) -> None:
        self.histories = Histories()
        self._servers = settings.bootstrap_servers
        self._startup_seconds = settings.startup_timeout_ms / 1000
        config = client_config(settings)
        for host, port in config.servers():
            if not 0 < port <= _MOST_PORT or any(map(str.isspace, host)):
                raise ConfigurationError(
                    f"bootstrap_servers is {self._servers!r}: {host}:{port} is no address; give host:port, "
                    "or several by commas"
                )
        security = security_options(config)
        self._options: dict[str, Any] = {
            "bootstrap_servers": self._servers,
            "client_id": settings.client_id,
            **security,
        }
        self._suffix = uuid.uuid4().hex[:8]
        self._admin: Any = None
        self._producer: Any = None
        self._counts: dict[str, int] = {}
        """The partitions of each topic, when it was last looked up."""
        self._ends: dict[TopicPartition, int] = {}
        """One past the last record that we sent."""
        self._begins: dict[tuple[str, TopicPartition], int] = {}
        self._looked_from: dict[TopicPartition, int] = {}
        """Where `records` begins, where that is not at the beginning."""
        self._acknowledged: dict[str, _Acknowledged] = {}

    async def open(self) -> None:
        """See `Cluster`."""
        self._admin = AIOKafkaAdminClient(**self._options)
        self._producer = AIOKafkaProducer(acks="all", **self._options)
        try:
            async with _in_our_words("connecting"), asyncio.timeout(self._startup_seconds):
                await self._admin.start()
                await self._producer.start()
        except BaseException as error:
            await self.close()
            if isinstance(error, TimeoutError) or isinstance(error.__cause__, KafkaConnectionError):
                # Without the client's own traceback, which says less.
                raise BrokerUnreachableError(
                    f"no broker answers at {self._servers}: start one, or test in memory without a bootstrap"
                ) from None
            raise

    async def close(self) -> None:
        """See `Cluster`."""
        async with _in_our_words("hanging up"):
            await self._producer.stop()
            await self._admin.close()

    # -- topics ------------------------------------------------------------------------------

    async def partition_counts(self) -> dict[str, int]:
        """See `Cluster`."""
        async with _in_our_words("looking topics up"):
            topics = await self._admin.describe_topics()
        self._counts = {one["topic"]: len(one["partitions"]) for one in topics}
        return dict(self._counts)

    async def create_topic(self, topic: str, partitions: int) -> None:
        """See `Cluster`. Up to three replicas; returns when each partition has a leader."""
        async with _in_our_words(f"creating topic {topic}"):
            brokers = (await self._admin.describe_cluster())["brokers"]
            new = NewTopic(topic, partitions, min(len(brokers), _MOST_REPLICAS))
            answer = await self._admin.create_topics([new])
            code = answer.topic_errors[0][1]
            if code not in (0, _EXISTS):
                raise for_code(code)(f"the broker refused {topic}")
            try:
                async with asyncio.timeout(_TOPIC_SECONDS):
                    await self._led(topic)
            except TimeoutError:
                raise BrokerError(f"topic {topic} has no leaders after {_TOPIC_SECONDS:.0f} s") from None
            self._counts[topic] = partitions

    async def _led(self, topic: str) -> None:
        """Returns when each partition has a leader."""
        while True:
            # All topics are asked for: a question for one by name would create it.
            for found in await self._admin.describe_topics():
                parts = found["partitions"] if found["topic"] == topic else ()
                if parts and all(one["leader"] >= 0 for one in parts):
                    return
            await asyncio.sleep(_LOOK_SECONDS)

    # -- the group ---------------------------------------------------------------------------

    def _name_of(self, group: str) -> str:
        return f"{group}-test-{self._suffix}"

    async def begin(self, group: str, topics: Sequence[str], made: Sequence[str]) -> None:  # noqa: ARG002 - new ones end at 0
        """See `Cluster`. The group commits the ends of its topics before its first member joins."""
        counts = await self.partition_counts()
        parts = [TopicPartition(topic, number) for topic in topics for number in range(counts[topic])]
        if not parts:
            return
        consumer: Any = AIOKafkaConsumer(
            group_id=self._name_of(group), enable_auto_commit=False, **self._options
        )
        async with _in_our_words(f"preparing group {group}"):
            try:
                await consumer.start()
                ends: dict[TopicPartition, int] = await consumer.end_offsets(parts)
                consumer.assign(parts)
                await consumer.commit(ends)
            finally:
                await consumer.stop()
        self._begins.update({(group, TopicPartition(*tp)): end for tp, end in ends.items()})

    def consumers(self, member: str, settings: Settings) -> ConsumerFactory:  # noqa: ARG002 - the broker names members
        """See `Cluster`. The engine knows a group by its own name, the brokers by the test's."""
        make = kafka_consumers(settings)

        def consumer(group: str) -> Consumer:
            return make(self._name_of(group))

        return consumer

    def producers(self, member: str, settings: Settings) -> ProducerFactory:  # noqa: ARG002 - as above
        """See `Cluster`."""
        return kafka_producers(settings)

    # -- records -----------------------------------------------------------------------------

    async def send(self, record: Outgoing) -> RecordPlace:
        """See `Cluster`."""
        async with _in_our_words(f"sending to topic {record.topic}"):
            known = await self._producer.partitions_for(record.topic)
            if record.partition is not None and record.partition not in known:
                raise UnknownTopicError(
                    f"topic {record.topic!r} has no partition {record.partition}: it has {len(known)}"
                )
            # The handler may have it before the producer hears that it arrived.
            at_ns = self.histories.clock()
            sent = await self._producer.send_and_wait(
                record.topic,
                record.value,
                record.key,
                record.partition,
                record.timestamp_ms,
                list(record.headers),
            )
        tp = TopicPartition(sent.topic, sent.partition)
        size = len(record.key or b"") + len(record.value or b"")
        self.histories.append(Event("send", at_ns, "", tp, sent.offset, record.key, str(size)))
        self._ends[tp] = max(self._ends.get(tp, 0), sent.offset + 1)
        return RecordPlace(sent.topic, sent.partition, sent.offset)

    async def look_from_here(self, topics: Sequence[str]) -> None:
        """See `Cluster`."""
        counts = await self.partition_counts()
        parts = [TopicPartition(topic, number) for topic in topics for number in range(counts.get(topic, 0))]
        async with _in_our_words("looking for the ends of topics"), self._reader() as consumer:
            ends = await consumer.end_offsets(parts)
        self._looked_from.update({TopicPartition(*tp): end for tp, end in ends.items()})

    @asynccontextmanager
    async def _reader(self) -> AsyncIterator[Any]:
        """A consumer of no group."""
        consumer: Any = AIOKafkaConsumer(
            enable_auto_commit=False, isolation_level="read_committed", **self._options
        )
        try:
            await consumer.start()
            yield consumer
        finally:
            await consumer.stop()

    async def records(self, topic: str) -> list[Record]:
        """See `Cluster`. Of topics that were told to `look_from_here`: what came since then."""
        found: list[Record] = []
        counts = await self.partition_counts()
        if topic not in counts:
            raise UnknownTopicError(f"there is no topic {topic!r}")
        parts = [TopicPartition(topic, number) for number in range(counts[topic])]
        async with _in_our_words(f"reading topic {topic}"), self._reader() as consumer:
            ends = await consumer.end_offsets(parts)
            starts = await consumer.beginning_offsets(parts)
            consumer.assign(parts)
            for tp in parts:
                consumer.seek(tp, max(starts[tp], self._looked_from.get(tp, 0)))
            async with asyncio.timeout(self.settled_seconds):
                while [tp for tp in parts if await consumer.position(tp) < ends[tp]]:
                    for batch in (await consumer.getmany(timeout_ms=100)).values():
                        found += [_record(one) for one in batch]
        return sorted(found, key=lambda one: (one.partition, one.offset))

    def letters(self, topics: Collection[str], group: str, source: str) -> Sequence[Letter] | None:  # noqa: ARG002 - as `Cluster`
        """See `Cluster`: not without asking the brokers, which only `records` does."""
        return None

    def partitions_known(self, topic: str) -> int | None:
        """See `Cluster`."""
        return self._counts.get(topic)

    def has_members(self, group: str) -> bool:  # noqa: ARG002 - nobody else has a group of this name
        """See `Cluster`: all of them belong to one `TestApp`, which stops them together."""
        return False

    def committed(self, group: str, tp: TopicPartition) -> int | None:
        """See `Cluster`: what the broker acknowledged, or what the group began with."""
        if group not in self._acknowledged:
            self._acknowledged[group] = _Acknowledged(self.histories.of(group))
        return self._acknowledged[group].read().get(tp, self._begins.get((group, tp)))

    def topics_sent_to(self) -> Sequence[str]:
        """See `Cluster`."""
        return list({tp.topic for tp in self._ends})

    def first_open(self, group: str, topic: str, settings: Settings) -> list[tuple[TopicPartition, int]]:  # noqa: ARG002 - all of ours are visible
        """See `Cluster`. Records that others sent are not waited for."""
        found = []
        for tp, end in self._ends.items():
            committed = self.committed(group, tp) or 0
            if tp.topic == topic and committed < end:
                found.append((tp, committed))
        return found


def _record(found: Any) -> Record:
    """What the client read, as we name it."""
    place = (found.topic, found.partition, found.offset)
    return Record(*place, found.key, found.value, found.headers, found.timestamp, found.timestamp_type)


class _Acknowledged:
    """The offsets that the broker acknowledged, by a group's history."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._next = 0
        self._sent: dict[tuple[str, TopicPartition], int] = {}
        self._offsets: dict[TopicPartition, int] = {}

    def read(self) -> dict[TopicPartition, int]:
        """Those of now."""
        events = self._history.events
        for event in events[self._next :]:
            if event.kind == "commit":
                self._sent[event.member, event.tp] = event.offset
            elif event.kind == "answer" and event.detail == CommitAnswer.ACKNOWLEDGED.value:
                self._offsets[event.tp] = self._sent[event.member, event.tp]
        self._next = len(events)
        return self._offsets


@asynccontextmanager
async def _in_our_words(what: str) -> AsyncIterator[None]:
    """The client's errors as BrokerError."""
    try:
        yield
    except KafkaError as error:
        raise BrokerError(f"{what} failed: {type(error).__name__}: {error}") from error
