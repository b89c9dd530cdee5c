"""Topics in memory, and producing to them: which partition a record goes to, transactions, batches.

Lives here: the topics' half of `MemoryBroker`. Never here: groups, requests of consumers. Called by tests
and by `memory_broker`. Always: a change of a log is told to those who watch it.
"""

from __future__ import annotations

import difflib
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from aiokafka.partitioner import murmur2

from asyncpar.adapters.aiokafka_producer_lane import BATCH_HEADER_BYTES, Batch, Numbers
from asyncpar.adapters.aiokafka_producer_wire import record_bytes
from asyncpar.errors import BrokerError, UnknownTopicError
from asyncpar.records import TopicPartition
from asyncpar.testing.history import Recorder
from asyncpar.testing.memory_link import Code
from asyncpar.testing.memory_log import MemoryRecord, PartitionLog

Watcher = Callable[[TopicPartition], None]

MAX_MESSAGE_BYTES = 1024 * 1024 + 12
"""The broker's `message.max.bytes`, which is a topic's `max.message.bytes` unless it says otherwise."""


class RecordPlace(NamedTuple):
    """Where a record was appended."""

    topic: str
    partition: int
    offset: int


class _Written(NamedTuple):
    """The last batch that a producer has written to a partition."""

    numbers: Numbers
    records: int
    offset: int


class MemoryTopics:
    """All topics. `recorder` notes what is sent; `wall` gives timestamps, in seconds since the epoch."""

    def __init__(self, recorder: Recorder | None = None, wall: Callable[[], float] = time.time) -> None:
        self.recorder = recorder
        self.is_down = False
        """Whether the brokers are down: nothing can be sent, and no request is answered."""
        self._wall = wall
        self._topics: dict[str, list[PartitionLog]] = {}
        self._turns: dict[str, int] = {}
        self._watchers: defaultdict[TopicPartition, list[Watcher]] = defaultdict(list)
        self._transactions = 0
        self._most_bytes: dict[str, int] = {}
        self._forbidden: set[str] = set()
        self._written: dict[TopicPartition, dict[int, _Written]] = {}
        self._producer_ids = 0

    # -- topics ------------------------------------------------------------------------------

    def create_topic(
        self, topic: str, partitions: int = 1, *, max_message_bytes: int = MAX_MESSAGE_BYTES
    ) -> None:
        """Make `topic`, which takes batches of `max_message_bytes` at most. ValueError when it exists."""
        if topic in self._topics:
            raise ValueError(f"topic {topic!r} exists already")
        self._topics[topic] = [self._new_log(topic, at) for at in range(partitions)]
        self._turns[topic] = 0
        self._most_bytes[topic] = max_message_bytes

    def add_partitions(self, topic: str, total: int) -> None:
        """Let `topic` have `total` partitions; members see the new ones at their next metadata refresh."""
        logs = self._logs(topic)
        if total < len(logs):
            raise ValueError(f"topic {topic!r} has {len(logs)} partitions; Kafka takes none away")
        logs += [self._new_log(topic, at) for at in range(len(logs), total)]

    def _new_log(self, topic: str, partition: int) -> PartitionLog:
        tp = TopicPartition(topic, partition)
        return PartitionLog(tp, self._watchers[tp])

    def delete_topic(self, topic: str) -> None:
        """Forget `topic` and everything in it."""
        logs = self._logs(topic)
        del self._topics[topic]
        for log in logs:
            self._written.pop(log.tp, None)
            log.changed()

    def partition_counts(self) -> dict[str, int]:
        """How many partitions each topic has."""
        return {topic: len(logs) for topic, logs in self._topics.items()}

    def partitions(self, topic: str) -> list[TopicPartition]:
        """The partitions of `topic`."""
        return [log.tp for log in self._logs(topic)]

    def log(self, tp: TopicPartition) -> PartitionLog:
        """The log of one partition. Raises UnknownTopicError."""
        logs = self._logs(tp.topic)
        if not 0 <= tp.partition < len(logs):
            raise UnknownTopicError(f"topic {tp.topic!r} has no partition {tp.partition}: it has {len(logs)}")
        return logs[tp.partition]

    def watch(self, tp: TopicPartition, watcher: Watcher) -> None:
        """Call `watcher` after each change of the partition's log, in the context of who changes it."""
        self._watchers[tp].append(watcher)

    def unwatch(self, tp: TopicPartition, watcher: Watcher) -> None:
        """Call it no more."""
        if watcher in self._watchers[tp]:
            self._watchers[tp].remove(watcher)

    def _logs(self, topic: str) -> list[PartitionLog]:
        logs = self._topics.get(topic)
        if logs is None:
            near = difflib.get_close_matches(topic, list(self._topics), n=1)
            hint = f"did you mean {near[0]!r}?" if near else "make it with create_topic"
            raise UnknownTopicError(f"topic {topic!r} does not exist in the in-memory broker; {hint}")
        return logs

    def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> RecordPlace:
        """Append one record. The key decides the partition, as Kafka's producers do; without one, turns.

        Raises UnknownTopicError, and BrokerError while the broker is down.
        """
        log = self.log_for(topic, key, partition)
        record = log.append(key, value, headers, self.stamp(timestamp_ms))
        self.note_sent(log.tp, record)
        return RecordPlace(topic, log.tp.partition, record.offset)

    def log_for(self, topic: str, key: bytes | None, partition: int | None) -> PartitionLog:
        """Where a record goes. Raises UnknownTopicError, and BrokerError while the broker is down."""
        if self.is_down:
            raise BrokerError("the in-memory broker is down: nothing can be sent; bring it up() first")
        logs = self._logs(topic)
        if partition is not None:
            return self.log(TopicPartition(topic, partition))
        if key is not None:
            return logs[_hash(key) % len(logs)]
        turn = self._turns[topic]
        self._turns[topic] = turn + 1
        return logs[turn % len(logs)]

    # -- batches of producers ----------------------------------------------------------------

    def forbid_writing(self, topic: str) -> None:
        """Take the right to write to `topic` from all producers."""
        self._forbidden.add(topic)

    def allow_writing(self, topic: str) -> None:
        """Give it back."""
        self._forbidden.discard(topic)

    def new_producer_id(self) -> int:
        """InitProducerId: one that nobody has."""
        self._producer_ids += 1
        return self._producer_ids

    def write(self, tp: TopicPartition, batch: Batch) -> tuple[int, int]:
        """Produce: an error code, 0 when all records are there, and the offset of the first one.

        A repeated batch is answered like the first time and not written again; one that comes later than
        batches of a newer epoch, or too early, is refused.
        """
        logs = self._topics.get(tp.topic, [])
        if tp.partition >= len(logs):
            return Code.UNKNOWN_TOPIC_OR_PARTITION, -1
        if tp.topic in self._forbidden:
            return Code.TOPIC_AUTHORIZATION_FAILED, -1
        size = BATCH_HEADER_BYTES + sum(map(record_bytes, batch.records))
        if size > self._most_bytes[tp.topic]:
            return Code.MESSAGE_TOO_LARGE, -1
        producers = self._written.setdefault(tp, {})
        last = producers.get(batch.numbers.producer_id)
        if last is not None and last.numbers == batch.numbers:
            return 0, last.offset
        code = _refusal(last, batch.numbers)
        if code is not None:
            return code, -1
        log = logs[tp.partition]
        offset = log.end
        for one in batch.records:
            record = log.append(one.key, one.value, one.headers, self.stamp(one.timestamp))
            self.note_sent(tp, record)
        producers[batch.numbers.producer_id] = _Written(batch.numbers, len(batch.records), offset)
        return 0, offset

    def stamp(self, timestamp_ms: int | None) -> int:
        """A record's timestamp in ms: the one given, else now."""
        return int(self._wall() * 1000) if timestamp_ms is None else timestamp_ms

    def note_sent(self, tp: TopicPartition, record: MemoryRecord) -> None:
        """Tell the recorder that consumers will be given `record`."""
        if self.recorder is not None:
            size = len(record.key or b"") + len(record.value or b"")
            self.recorder.note("send", tp=tp, offset=record.offset, key=record.key, detail=str(size))

    def transaction(self) -> MemoryTransaction:
        """A transaction to send records in; they hold the last stable offset back until it ends."""
        self._transactions += 1
        return MemoryTransaction(self, self._transactions)


class MemoryTransaction:
    """Records that a read_committed consumer sees once `commit` was called, and never after `abort`."""

    def __init__(self, topics: MemoryTopics, number: int) -> None:
        self._topics = topics
        self._number = number
        self._sent: list[tuple[PartitionLog, MemoryRecord]] = []

    def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> RecordPlace:
        """Append one record within the transaction; see `MemoryTopics.send`."""
        log = self._topics.log_for(topic, key, partition)
        record = log.append(key, value, headers, self._topics.stamp(timestamp_ms), self._number)
        self._sent.append((log, record))
        return RecordPlace(topic, log.tp.partition, record.offset)

    def commit(self) -> None:
        """Make its records visible, and write a marker into each partition. Raises BrokerError while down."""
        if self._topics.is_down:
            raise BrokerError("the in-memory broker is down: nothing can be committed; bring it up() first")
        for log, record in self._sent:
            if log.holds(record):
                self._topics.note_sent(log.tp, record)
        self._end(commit=True)

    def abort(self) -> None:
        """Hide its records for good, and write a marker into each partition: also what a time-out does."""
        self._end(commit=False)

    def _end(self, commit: bool) -> None:
        for log in dict.fromkeys(log for log, _ in self._sent):
            log.end_transaction(self._number, commit)
        self._sent.clear()


def _refusal(last: _Written | None, numbers: Numbers) -> Code | None:
    """Why a batch that is not the last one again does not follow it; None when it does."""
    if last is None:
        return None  # a broker that has forgotten a producer takes whatever comes
    if numbers.epoch < last.numbers.epoch:
        return Code.INVALID_PRODUCER_EPOCH
    is_same = numbers.epoch == last.numbers.epoch
    expected = last.numbers.sequence + last.records if is_same else 0
    return None if numbers.sequence == expected else Code.OUT_OF_ORDER_SEQUENCE_NUMBER


@lru_cache(maxsize=65536)
def _hash(key: bytes) -> int:
    return int(murmur2(key)) & 0x7FFFFFFF
