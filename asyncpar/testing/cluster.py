"""Where a `TestApp` runs: what it needs of a cluster, and the one in memory.

Lives here: `Cluster`, and `MemoryCluster` over a `MemoryBroker`. The real one is `kafka_cluster`. Never
here: apps. Called by `TestApp`. Always: `first_open` is judged by what the cluster has stored, not by what
an engine says of itself.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

from asyncpar import headers
from asyncpar.assembly import client_config
from asyncpar.errors import UnknownTopicError
from asyncpar.ports import ConsumerFactory, ProducerFactory
from asyncpar.records import Committed, RawRecord, Record, TopicPartition
from asyncpar.settings import Settings
from asyncpar.testing.checker_letters import letter_of
from asyncpar.testing.checkers import Letter
from asyncpar.testing.memory_broker import MemoryBroker
from asyncpar.testing.memory_topics import RecordPlace
from asyncpar.testing.witness import Histories


class Outgoing(NamedTuple):
    """A record to send; without a partition the cluster's producer chooses one."""

    topic: str
    value: bytes | None
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes]] = ()
    partition: int | None = None
    timestamp_ms: int | None = None


class Cluster(Protocol):
    """What a `TestApp` asks of a cluster."""

    @property
    def histories(self) -> Histories:
        """What is seen here, by group."""

    @property
    def settled_seconds(self) -> float:
        """How long it may take to come to rest."""

    async def open(self) -> None:
        """Connect. Raises ConnectError."""

    async def close(self) -> None:
        """Hang up."""

    async def partition_counts(self) -> dict[str, int]:
        """How many partitions each topic has."""

    async def create_topic(self, topic: str, partitions: int) -> None:
        """Make a topic that does not exist."""

    async def begin(self, group: str, topics: Sequence[str], made: Sequence[str]) -> None:
        """Let `group` handle what is sent from now on; `made` are those of `topics` that are new."""

    async def look_from_here(self, topics: Sequence[str]) -> None:
        """`records` of `topics` shall be those that come from now on, where others write to them too."""

    def consumers(self, member: str, settings: Settings) -> ConsumerFactory:
        """Makes consumers."""

    def producers(self, member: str, settings: Settings) -> ProducerFactory:
        """Makes producers, for dead letters and retry topics."""

    async def send(self, record: Outgoing) -> RecordPlace:
        """Send one record; returns when the cluster has it. Raises UnknownTopicError, BrokerError."""

    async def records(self, topic: str) -> list[Record]:
        """What `topic` holds, by partition and offset. Raises UnknownTopicError, BrokerError."""

    def letters(self, topics: Collection[str], group: str, source: str) -> Sequence[Letter] | None:
        """The dead letters of `group`, of records of topic `source`, in `topics`; None: nobody can look."""

    def partitions_known(self, topic: str) -> int | None:
        """How many partitions `topic` has, as last heard; None where nobody has heard of it."""

    def has_members(self, group: str) -> bool:
        """Whether `group` has members, as far as one can see without asking."""

    def committed(self, group: str, tp: TopicPartition) -> int | None:
        """The offset that `group` has committed."""

    def topics_sent_to(self) -> Sequence[str]:
        """The topics that may hold records to wait for."""

    def first_open(self, group: str, topic: str, settings: Settings) -> list[tuple[TopicPartition, int]]:
        """Of each partition of `topic` the first record that `group` has not committed, if any."""


class MemoryCluster:
    """A `Cluster` over `broker`."""

    settled_seconds = 5.0

    def __init__(self, broker: MemoryBroker) -> None:
        self.broker = broker
        if isinstance(broker.recorder, Histories):
            self.histories = broker.recorder
            return
        self.histories = Histories()
        for topic in broker.partition_counts():
            for tp in broker.partitions(topic):
                for record in broker.log(tp).read(0, broker.log(tp).end, committed=True).records:
                    self.histories.by_hand.add((tp, record.offset))
                    size = str(len(record.key or b"") + len(record.value or b""))
                    self.histories.note("send", "", tp, record.offset, record.key, size)
        self.histories.also, broker.recorder = broker.recorder, self.histories

    async def open(self) -> None:
        """See `Cluster`."""

    async def close(self) -> None:
        """See `Cluster`."""

    async def partition_counts(self) -> dict[str, int]:
        """See `Cluster`."""
        return self.broker.partition_counts()

    async def create_topic(self, topic: str, partitions: int) -> None:
        """See `Cluster`."""
        self.broker.create_topic(topic, partitions)

    async def begin(self, group: str, topics: Sequence[str], made: Sequence[str]) -> None:
        """See `Cluster`. What was in the broker before is left to `offset_reset`, as in production."""
        new = {
            tp: Committed(0, "") for topic in topics if topic in made for tp in self.broker.partitions(topic)
        }
        if new and not self.broker.group(group).members:
            self.broker.store_offsets(group, new)

    async def look_from_here(self, topics: Sequence[str]) -> None:
        """See `Cluster`: nobody else writes here."""

    def consumers(self, member: str, settings: Settings) -> ConsumerFactory:
        """See `Cluster`."""
        return self.broker.consumers(member, client_config(settings))

    def producers(self, member: str, settings: Settings) -> ProducerFactory:
        """See `Cluster`."""
        return self.broker.producers(member, client_config(settings))

    async def send(self, record: Outgoing) -> RecordPlace:
        """See `Cluster`."""
        place = self.broker.send(*record)
        self.histories.by_hand.add((TopicPartition(place.topic, place.partition), place.offset))
        return place

    async def records(self, topic: str) -> list[Record]:
        """See `Cluster`. What a transaction hides is left out."""
        counts = self.broker.partition_counts()
        if topic not in counts:
            raise UnknownTopicError(f"there is no topic {topic!r}; there is {', '.join(sorted(counts))}")
        return [
            Record(*tp, record.offset, record.key, record.value, tuple(record.headers), record.timestamp)
            for tp in self.broker.partitions(topic)
            for record in self._visible(tp)
        ]

    def _visible(self, tp: TopicPartition) -> Sequence[RawRecord]:
        log = self.broker.log(tp)
        return log.read(log.start, max(1, len(log)), committed=True).records

    def letters(self, topics: Collection[str], group: str, source: str) -> Sequence[Letter] | None:
        """See `Cluster`. Not those that a test has sent itself, or that were there before anybody watched.

        None once some were deleted.
        """
        values = {
            (tp, record.offset): record.value
            for tp in self.broker.partitions(source)
            for record in self.broker.log(tp).records
        }
        existing = [topic for topic in topics if topic in self.broker.partition_counts()]
        places = [tp for topic in existing for tp in self.broker.partitions(topic)]
        if any(self.broker.log(tp).start for tp in places):
            return None
        found = []
        for tp in places:
            for record in self._visible(tp):
                place = headers.origin(record.headers)
                ours = headers.text(record.headers, headers.GROUP) == group
                if (
                    ours
                    and place
                    and place[0].topic == source
                    and (tp, record.offset) not in self.histories.by_hand
                ):
                    whole = headers.text(record.headers, headers.PAYLOAD) != headers.METADATA_ONLY
                    value = values.get(place, record.value)
                    found.append(letter_of(tp, record, is_intact=not whole or record.value == value))
        return found

    def partitions_known(self, topic: str) -> int | None:
        """See `Cluster`."""
        return self.broker.partition_counts().get(topic)

    def has_members(self, group: str) -> bool:
        """See `Cluster`."""
        return bool(self.broker.group(group).members)

    def committed(self, group: str, tp: TopicPartition) -> int | None:
        """See `Cluster`."""
        stored = self.broker.group(group).offsets.get(tp)
        return None if stored is None else stored.offset

    def topics_sent_to(self) -> Sequence[str]:
        """See `Cluster`."""
        return list(self.broker.partition_counts())

    def first_open(self, group: str, topic: str, settings: Settings) -> list[tuple[TopicPartition, int]]:
        """See `Cluster`. Records that the group cannot see are nobody's work."""
        found = []
        for tp in self.broker.partitions(topic):
            log = self.broker.log(tp)
            begin = max(log.start, self.committed(group, tp) or 0)
            sees_committed = settings.isolation_level == "read_committed"
            records = log.read(begin, 1, committed=sees_committed).records
            found += [(tp, record.offset) for record in records]
        return found
