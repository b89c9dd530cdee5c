"""What tests do to a Kafka cluster from outside: topics, records in, offsets and commits read back.

What lives here: short async helpers around independent clients (librdkafka for everything but commits,
whose metadata its admin client over-reads). What never does: brokers as processes (`kafka_broker.py`) and
asyncpar itself, so that a wrong answer of the engine cannot hide here. Called by `conftest.py` and
integration tests. Always: each wait of a call ends within its `timeout_seconds`, else it raises TimeoutError
or KafkaException; each opens a client of its own, so that a killed broker leaves no stale connection behind.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError as BrokerError
from aiokafka.errors import for_code
from aiokafka.protocol.commit import OffsetFetchRequest
from confluent_kafka import (
    OFFSET_END,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]
from confluent_kafka.cimpl import NewPartitions, NewTopic

TIMEOUT_SECONDS = 30.0
_EARLIEST, _LATEST = OffsetSpec.earliest(), OffsetSpec.latest()  # type: ignore[no-untyped-call]


class Record(NamedTuple):
    """A record to produce. Without a partition the key decides, as in Java's and aiokafka's producers."""

    key: bytes | None = None
    value: bytes | None = b""
    headers: Sequence[tuple[str, bytes | None]] = ()
    partition: int | None = None
    timestamp_ms: int | None = None


class Produced(NamedTuple):
    """Where a record went."""

    topic: str
    partition: int
    offset: int
    key: bytes | None


class Committed(NamedTuple):
    """A group's committed position in one partition: the next offset to read, and the string beside it."""

    offset: int
    metadata: str


def keyed(count: int, keys: int = 100, value: bytes | None = None) -> list[Record]:
    """`count` records over `keys` keys in turn; values number them (`b"0"`, `b"1"`, ...) unless given."""
    return [Record(b"k%d" % (i % keys), b"%d" % i if value is None else value) for i in range(count)]


async def produce(
    bootstrap: str,
    topic: str,
    records: Iterable[Record],
    idempotent: bool = False,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> list[Produced]:
    """Produce all records, in order per partition; returns where each went, in the order given.

    Nothing is sent twice: what fails is raised. With `idempotent` the producer retries over broken
    connections and moved leaders instead, still without duplicates; that costs half a second.
    """
    return await asyncio.to_thread(_produce, bootstrap, topic, list(records), idempotent, timeout_seconds)


async def produce_transaction(
    bootstrap: str,
    topic: str,
    records: Iterable[Record],
    transactional_id: str,
    commit: bool = True,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> list[Produced]:
    """Produce all records in one transaction and commit or abort it; where each went, aborted ones too."""
    args = (bootstrap, topic, list(records), transactional_id, commit, timeout_seconds)
    return await asyncio.to_thread(_produce_transaction, *args)


def _producer(bootstrap: str, **settings: Any) -> Producer:
    return Producer(
        {
            "bootstrap.servers": bootstrap,
            "partitioner": "murmur2_random",
            "linger.ms": 5,
            "queue.buffering.max.messages": 1_000_000,
            "log_level": 0,
            **settings,
        }
    )


def _produce(
    bootstrap: str, topic: str, records: list[Record], idempotent: bool, timeout_seconds: float
) -> list[Produced]:
    retries = {"enable.idempotence": True} if idempotent else {"message.send.max.retries": 0}
    return _send(_producer(bootstrap, **retries), topic, records, time.monotonic() + timeout_seconds)


def _send(producer: Producer, topic: str, records: list[Record], deadline: float) -> list[Produced]:
    places: dict[int, Produced] = {}
    failed: list[KafkaError] = []

    def note(index: int, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            failed.append(error)
            return
        partition, offset = message.partition(), message.offset()
        assert partition is not None
        assert offset is not None
        places[index] = Produced(topic, partition, offset, records[index].key)

    for index, record in enumerate(records):
        options: dict[str, Any] = {"on_delivery": partial(note, index)}
        if record.headers:
            options["headers"] = list(record.headers)
        if record.partition is not None:
            options["partition"] = record.partition
        if record.timestamp_ms is not None:
            options["timestamp"] = record.timestamp_ms
        _enqueue(producer, topic, record, options, deadline)
        if index % 10_000 == 0:
            producer.poll(0)
    left = producer.flush(max(deadline - time.monotonic(), 0.0))
    if failed:
        raise KafkaException(failed[0])
    if left:
        producer.purge()
        raise TimeoutError(
            f"{left} of {len(records)} records for topic {topic} were not acknowledged in time"
        )
    return [places[index] for index in range(len(records))]


def _enqueue(
    producer: Producer, topic: str, record: Record, options: dict[str, Any], deadline: float
) -> None:
    while True:
        try:
            producer.produce(topic, record.value, record.key, **options)
            return
        except BufferError:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the producer's queue for topic {topic} stayed full") from None
            producer.poll(0.05)


def _produce_transaction(
    bootstrap: str,
    topic: str,
    records: list[Record],
    transactional_id: str,
    commit: bool,
    timeout_seconds: float,
) -> list[Produced]:
    deadline = time.monotonic() + timeout_seconds
    producer = _producer(bootstrap, **{"transactional.id": transactional_id})
    producer.init_transactions(timeout_seconds)
    producer.begin_transaction()
    places = _send(producer, topic, records, deadline)
    left = max(deadline - time.monotonic(), 0.1)
    if commit:
        producer.commit_transaction(left)
    else:
        producer.abort_transaction(left)
    return places


def _admin(bootstrap: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})


def _ask(
    bootstrap: str,
    question: Callable[[AdminClient], Mapping[Any, Future[Any]]],
    timeout_seconds: float,
    allowed_code: int | None = None,
) -> dict[Any, Any]:
    """The answers of an admin client that lives until the last; refusals with `allowed_code` are left out."""
    admin = _admin(bootstrap)
    answers: dict[Any, Any] = {}
    for part, future in question(admin).items():
        try:
            # librdkafka ends it by the request's timeout; the second bound is for one that it forgot.
            answers[part] = future.result(timeout_seconds + 5)
        except KafkaException as error:
            if error.args[0].code() != allowed_code:
                raise
    return answers


def create_topic_now(
    bootstrap: str,
    topic: str,
    partitions: int = 1,
    config: Mapping[str, str] | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> None:
    """Create a topic with the cluster's default replication; return when it has its leaders. Blocks."""
    new = NewTopic(topic, num_partitions=partitions, config=dict(config or {}))
    _ask(
        bootstrap, lambda admin: admin.create_topics([new], request_timeout=timeout_seconds), timeout_seconds
    )
    _wait_for_leaders(bootstrap, topic, partitions, timeout_seconds)


def _wait_for_leaders(bootstrap: str, topic: str, partitions: int, timeout_seconds: float) -> None:
    admin = _admin(bootstrap)
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        # All topics are asked for: a question for one by name would create it.
        found = admin.list_topics(timeout=timeout_seconds).topics.get(topic)
        if found is not None and sum(part.leader >= 0 for part in found.partitions.values()) == partitions:
            return
        time.sleep(0.02)
    raise TimeoutError(
        f"topic {topic} has no leader for each of {partitions} partitions after {timeout_seconds} s"
    )


async def create_topic(
    bootstrap: str,
    topic: str,
    partitions: int = 1,
    config: Mapping[str, str] | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> None:
    """Create a topic with the cluster's default replication; return when each partition has a leader."""
    await asyncio.to_thread(create_topic_now, bootstrap, topic, partitions, config, timeout_seconds)


def delete_topics_now(
    bootstrap: str, topics: Sequence[str], timeout_seconds: float = TIMEOUT_SECONDS
) -> None:
    """Delete topics; those that are gone already are no error. Blocks."""
    if not topics:
        return

    def delete(admin: AdminClient) -> Mapping[Any, Future[Any]]:
        return admin.delete_topics(list(topics), request_timeout=timeout_seconds)

    _ask(bootstrap, delete, timeout_seconds, allowed_code=KafkaError.UNKNOWN_TOPIC_OR_PART)


async def delete_topics(
    bootstrap: str, topics: Sequence[str], timeout_seconds: float = TIMEOUT_SECONDS
) -> None:
    """Delete topics; those that are gone already are no error."""
    await asyncio.to_thread(delete_topics_now, bootstrap, topics, timeout_seconds)


async def add_partitions(
    bootstrap: str, topic: str, total: int, timeout_seconds: float = TIMEOUT_SECONDS
) -> None:
    """Grow a topic to `total` partitions; return when each has a leader."""

    def grow(admin: AdminClient) -> Mapping[Any, Future[Any]]:
        return admin.create_partitions([NewPartitions(topic, total)], request_timeout=timeout_seconds)

    await asyncio.to_thread(_ask, bootstrap, grow, timeout_seconds)
    await asyncio.to_thread(_wait_for_leaders, bootstrap, topic, total, timeout_seconds)


async def list_topics(bootstrap: str, timeout_seconds: float = TIMEOUT_SECONDS) -> set[str]:
    """The names of all topics, Kafka's own too; creates none, so it proves that nobody else did."""
    metadata = await asyncio.to_thread(_admin(bootstrap).list_topics, timeout=timeout_seconds)
    return set(metadata.topics)


async def end_offsets(
    bootstrap: str, topic: str, read_committed: bool = False, timeout_seconds: float = TIMEOUT_SECONDS
) -> dict[int, int]:
    """The offset after the last record, per partition; with `read_committed` the last stable offset."""
    return await asyncio.to_thread(_offsets, bootstrap, topic, _LATEST, read_committed, timeout_seconds)


async def start_offsets(
    bootstrap: str, topic: str, timeout_seconds: float = TIMEOUT_SECONDS
) -> dict[int, int]:
    """The first offset that still exists, per partition."""
    return await asyncio.to_thread(_offsets, bootstrap, topic, _EARLIEST, False, timeout_seconds)


def _offsets(
    bootstrap: str, topic: str, spec: OffsetSpec, read_committed: bool, timeout_seconds: float
) -> dict[int, int]:
    level = IsolationLevel.READ_COMMITTED if read_committed else IsolationLevel.READ_UNCOMMITTED

    def ask(admin: AdminClient) -> Mapping[Any, Future[Any]]:
        asked = {TopicPartition(topic, number): spec for number in _partitions(admin, topic, timeout_seconds)}
        return admin.list_offsets(asked, isolation_level=level, request_timeout=timeout_seconds)

    return {place.partition: info.offset for place, info in _ask(bootstrap, ask, timeout_seconds).items()}


def _partitions(admin: AdminClient, topic: str, timeout_seconds: float) -> list[int]:
    found = admin.list_topics(timeout=timeout_seconds).topics.get(topic)
    if found is None:
        raise KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART, f"topic {topic} does not exist"))
    return sorted(found.partitions)


async def delete_records(
    bootstrap: str, topic: str, before: Mapping[int, int | None], timeout_seconds: float = TIMEOUT_SECONDS
) -> dict[int, int]:
    """Delete each partition's records below the given offset (None: all); the new first offsets."""
    places = [
        TopicPartition(topic, p, OFFSET_END if offset is None else offset) for p, offset in before.items()
    ]

    def delete(admin: AdminClient) -> Mapping[Any, Future[Any]]:
        return admin.delete_records(places, request_timeout=timeout_seconds)

    answers = await asyncio.to_thread(_ask, bootstrap, delete, timeout_seconds)
    return {place.partition: done.low_watermark for place, done in answers.items()}


async def delete_group(bootstrap: str, group: str, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
    """Delete a group and its commits; none of that name is no error, one with members is (KafkaException)."""

    def delete(admin: AdminClient) -> Mapping[Any, Future[Any]]:
        return admin.delete_consumer_groups([group], request_timeout=timeout_seconds)

    await asyncio.to_thread(_ask, bootstrap, delete, timeout_seconds, KafkaError.GROUP_ID_NOT_FOUND)


async def group_members(
    bootstrap: str, group: str, timeout_seconds: float = TIMEOUT_SECONDS
) -> dict[str, list[tuple[str, int]]]:
    """The group's members by member id, each with its (topic, partition)s; empty when it has none."""

    def describe(admin: AdminClient) -> Mapping[Any, Future[Any]]:
        return admin.describe_consumer_groups([group], request_timeout=timeout_seconds)

    answers = await asyncio.to_thread(
        _ask, bootstrap, describe, timeout_seconds, KafkaError.GROUP_ID_NOT_FOUND
    )
    return {
        member.member_id: [(place.topic, place.partition) for place in member.assignment.topic_partitions]
        for answer in answers.values()
        for member in answer.members
    }


async def committed(
    bootstrap: str, group: str, topic: str, timeout_seconds: float = TIMEOUT_SECONDS
) -> dict[int, Committed]:
    """What the group has committed, per partition of the topic that has a commit."""
    async with asyncio.timeout(timeout_seconds):
        admin = AIOKafkaAdminClient(
            bootstrap_servers=bootstrap, request_timeout_ms=int(timeout_seconds * 1000)
        )
        try:
            await admin.start()
            return await _fetch_committed(admin, group, topic)
        finally:
            await admin.close()


async def _fetch_committed(admin: AIOKafkaAdminClient, group: str, topic: str) -> dict[int, Committed]:
    answer: Any = None
    while answer is None or answer.error_code:
        try:
            answer = await admin._send_request(
                OffsetFetchRequest(group, None), await admin.find_coordinator(group)
            )
            # The client's own method overlooks an error of the whole group and then shows no commits at all.
            if answer.error_code:
                raise for_code(answer.error_code)(f"commits of group {group} could not be read")
        except BrokerError as error:  # a coordinator that loads, moves or is being replaced
            if not error.retriable:
                raise
            await asyncio.sleep(0.05)
    return {
        number: Committed(offset, metadata)
        for name, partitions in answer.topics
        for number, offset, metadata, _ in partitions
        if name == topic and offset >= 0
    }
