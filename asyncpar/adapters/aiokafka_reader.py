"""Reading a topic without being a member of a group, and what goes with it: bounds, offsets, deletion.

Lives here: raw requests over aiokafka's network client, each sent again while that may help. Never here: what
the records mean, or which offsets are committed and why. Called by the command line, which hands it to
`asyncpar.admin`. Always: one request is answered before the next, nothing is read ahead, no request creates a
topic, and every wait ends after `request_timeout_ms`.
"""

from __future__ import annotations

import asyncio
import difflib
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, TypeVar

from aiokafka import TopicPartition as ClientPartition
from aiokafka.client import ConnectionGroup, CoordinationType
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.errors import KafkaError
from aiokafka.protocol.admin import DeleteRecordsRequest
from aiokafka.protocol.commit import OffsetCommitRequest, OffsetFetchRequest
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.record.memory_records import MemoryRecords

from asyncpar.adapters.aiokafka_config import ClientConfig
from asyncpar.adapters.aiokafka_errors import (
    code_name,
    final_error,
    no_right_on_topic,
    one_line,
)
from asyncpar.adapters.aiokafka_groupless import GrouplessClient
from asyncpar.adapters.aiokafka_reader_answers import (
    INVALID_TOPIC,
    NO_RIGHT,
    OUT_OF_RANGE,
    PASSING,
    UNKNOWN_TOPIC,
    AgainError,
    check_commit,
    check_deletion,
    check_group,
    check_partition,
)
from asyncpar.errors import (
    BrokerError,
    BrokerUnreachableError,
    FetchError,
    OffsetOutOfRangeError,
    UnknownTopicError,
)
from asyncpar.records import Committed, RawRecord, TopicPartition

T = TypeVar("T")

CLIENT_ID_SUFFIX = "-reader"
PAUSE_SECONDS = 0.1
FETCH_BYTES = 8 * 1024 * 1024
_CONSUMER, _NOBODYS_GENERATION, _BROKERS_RETENTION = -1, -1, -1
_BEGINNING, _END = -2, -1
_CHECK_SUMS = True
_ISOLATION = {"read_uncommitted": 0, "read_committed": 1}


class AiokafkaReader(GrouplessClient):
    """A client that is in no group. Single-use: start once, stop once. `config` is that of a consumer.

    A request that fails in a way that may pass is sent again for `request_timeout_ms`. All methods raise
    BrokerUnreachableError after that, and AuthorizationError where a right is missing.
    """

    def __init__(self, config: ClientConfig) -> None:
        super().__init__(config, CLIENT_ID_SUFFIX)
        self._isolation = _ISOLATION[config.isolation_level]
        self._leaders: dict[TopicPartition, int] = {}

    # -- life --------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect. Raises BrokerUnreachableError, AuthenticationError, ConfigurationError."""
        await self._connect("a reader", "no broker answered a second time")

    async def stop(self, timeout_s: float) -> None:
        """Close, within about `timeout_s`, also with the broker down. Never raises."""
        closing = asyncio.get_running_loop().create_task(self.close())
        try:
            await asyncio.wait([closing], timeout=timeout_s)
        finally:
            closing.cancel()
            self.abort()
        if closing.done() and not closing.cancelled():
            closing.exception()  # seen: there is nobody left to tell

    # -- topics ------------------------------------------------------------------------------

    async def partitions(self, topic: str) -> tuple[TopicPartition, ...]:
        """The partitions of `topic`, by number. Raises UnknownTopicError, which names similar topics."""
        await self._until_answered(f"looking topic {topic!r} up", lambda: self._learn(topic))
        return tuple(sorted(tp for tp in self._leaders if tp.topic == topic))

    async def _learn(self, topic: str) -> None:
        """Ask for the leaders of `topic`."""
        answer = await self._network.ask_any(MetadataRequest([topic], allow_auto_topic_creation=False))
        found = {entry[1]: entry for entry in answer.topics}
        code = found[topic][0] if topic in found else UNKNOWN_TOPIC
        if code == NO_RIGHT:
            raise no_right_on_topic(repr(topic))
        if code in (UNKNOWN_TOPIC, INVALID_TOPIC):
            raise await self._unknown(topic)
        if code and code not in PASSING:
            raise BrokerError(f"looking topic {topic!r} up failed: the broker answered {code_name(code)}")
        for tp in [tp for tp in self._leaders if tp.topic == topic]:
            del self._leaders[tp]
        for part in found[topic][3]:
            self._leaders[TopicPartition(topic, part[1])] = part[2]
        # The client keeps the brokers' addresses; the topics are ours.
        answer.topics = []
        self._client.cluster.update_metadata(answer)
        if not any(tp.topic == topic for tp in self._leaders):
            raise AgainError(f"topic {topic!r} is just being made")

    async def _unknown(self, topic: str) -> UnknownTopicError:
        answer = await self._network.ask_any(MetadataRequest(None, allow_auto_topic_creation=False))
        existing = [entry[1] for entry in answer.topics if not entry[2]]
        near = difflib.get_close_matches(topic, sorted(existing), n=2)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "check its name and the cluster"
        where = self._config.bootstrap_servers
        return UnknownTopicError(f"topic {topic!r} does not exist at {where}; {hint}")

    async def bounds(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, tuple[int, int]]:
        """First offset and end of each: under read_committed the end is the last stable offset."""
        first = await self._offsets(partitions, _BEGINNING)
        end = await self._offsets(partitions, _END)
        return {tp: (first[tp], max(first[tp], end[tp])) for tp in partitions}

    async def offsets_at(
        self, partitions: Collection[TopicPartition], time_ms: int
    ) -> dict[TopicPartition, int | None]:
        """Of each the first offset whose record has a timestamp of `time_ms` or later, or None."""
        found = await self._offsets(partitions, time_ms)
        return {tp: None if offset < 0 else offset for tp, offset in found.items()}

    async def _offsets(
        self, partitions: Collection[TopicPartition], moment: int
    ) -> dict[TopicPartition, int]:
        found: dict[TopicPartition, int] = {}

        async def ask() -> None:
            for node, tps in self._by_leader(tp for tp in partitions if tp not in found).items():
                topics = _by_topic((tp, (tp.partition, moment)) for tp in tps)
                answer = await self._client.send(node, OffsetRequest(_CONSUMER, self._isolation, topics))
                for topic, parts in answer.topics:
                    for partition, code, _, offset, *_ in parts:
                        tp = TopicPartition(topic, partition)
                        check_partition(code, tp, "reading its bounds")
                        found[tp] = offset
            if missing := [tp for tp in partitions if tp not in found]:
                raise AgainError(f"the answer leaves out {missing[0]}")

        await self._until_answered("reading the bounds of partitions", ask)
        return found

    # -- records -----------------------------------------------------------------------------

    async def read(self, tp: TopicPartition, offset: int) -> tuple[list[RawRecord], int]:
        """Records of `tp` from `offset` on, about `max_partition_fetch_bytes` of them, and where to go on.

        `offset` must lie below the end. The records may be none although there are more: markers and aborted
        records were passed. Raises OffsetOutOfRangeError, and FetchError for records that cannot be read.
        """
        what = f"reading {tp} from offset {offset} on"
        return await self._until_answered(what, lambda: self._read(tp, offset))

    async def _read(self, tp: TopicPartition, offset: int) -> tuple[list[RawRecord], int]:
        node = next(iter(self._by_leader([tp])))
        asked = (tp.partition, offset, self._config.max_partition_fetch_bytes)
        request = FetchRequest(
            self._config.fetch_max_wait_ms, 1, FETCH_BYTES, self._isolation, [(tp.topic, [asked])]
        )
        answer = await self._client.send(node, request)
        parts = [part for _, found in answer.topics for part in found]
        if len(parts) != 1:
            raise AgainError(f"the answer leaves out {tp}")
        _, code, _, *data = parts[0]
        if code == OUT_OF_RANGE:
            raise OffsetOutOfRangeError({tp: offset})
        check_partition(code, tp, "reading it")
        # The last field is the batches; aborted transactions are before it, but for v11's preferred replica.
        aborted = data[2] if answer.API_VERSION >= 11 else data[-2]
        try:
            batches = MemoryRecords(data[-1])
            parser = PartitionRecords(
                ClientPartition(*tp), batches, aborted, offset, None, None, _CHECK_SUMS, self._isolation
            )
            records, going_on = list(parser), int(parser.next_fetch_offset)
        except Exception as err:
            raise final_error(err, "") or FetchError(
                f"the records of {tp} from offset {offset} on cannot be read: {type(err).__name__}: "
                f"{one_line(err)}; look at the broker's disk and at who wrote them",
                partition=tp,
                offset=offset,
                unreadable=True,
            ) from err
        if going_on == offset:
            raise AgainError("the broker gave nothing, though there is more")
        return records, going_on

    async def delete_before(self, offsets: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """Delete the records below the offset given for each; the first offsets that are left."""
        left: dict[TopicPartition, int] = {}

        async def ask() -> None:
            for node, tps in self._by_leader(tp for tp in offsets if tp not in left).items():
                topics = _by_topic((tp, (tp.partition, offsets[tp])) for tp in tps)
                request = DeleteRecordsRequest(topics, self._config.request_timeout_ms // 2)
                answer = await self._client.send(node, request)
                for topic, parts, *_tags in answer.topics:
                    for partition, watermark, code, *_ in parts:
                        tp = TopicPartition(topic, partition)
                        check_deletion(code, tp, offsets[tp])
                        check_partition(code, tp, "deleting records of it")
                        left[tp] = watermark

        await self._until_answered("deleting records", ask)
        return left

    # -- offsets of a group ------------------------------------------------------------------

    async def committed(
        self, group: str, partitions: Collection[TopicPartition]
    ) -> dict[TopicPartition, Committed | None]:
        """What `group` has committed; None where it has nothing."""
        found: dict[TopicPartition, Committed | None] = dict.fromkeys(partitions)
        topics = _by_topic((tp, tp.partition) for tp in partitions)

        async def ask() -> None:
            answer = await self._ask_coordinator(group, OffsetFetchRequest(group, topics))
            check_group(getattr(answer, "error_code", 0), group, None)
            for name, parts in answer.topics:
                for partition, offset, metadata, code in parts:
                    tp = TopicPartition(name, partition)
                    check_group(code, group, tp)
                    found[tp] = Committed(offset, metadata or "") if offset >= 0 else None

        await self._until_answered(f"reading the offsets of group {group!r}", ask, group)
        return found

    async def commit(self, group: str, offsets: Mapping[TopicPartition, Committed]) -> None:
        """Commit as nobody: only for a group without members. Raises ConfigurationError while it has some.

        ConfigurationError also where the metadata is too long for the broker's `offset.metadata.max.bytes`.
        """
        topics = _by_topic((tp, (tp.partition, at.offset, at.metadata)) for tp, at in offsets.items())
        request = OffsetCommitRequest(group, _NOBODYS_GENERATION, "", _BROKERS_RETENTION, topics)

        async def ask() -> None:
            answer = await self._ask_coordinator(group, request)
            for topic, parts in answer.topics:
                for partition, code in parts:
                    check_commit(code, group, TopicPartition(topic, partition))

        await self._until_answered(f"committing offsets of group {group!r}", ask, group)

    async def _ask_coordinator(self, group: str, request: Any) -> Any:
        node = await self._client.coordinator_lookup(CoordinationType.GROUP, group)
        return await self._client.send(node, request, group=ConnectionGroup.COORDINATION)

    # -- asking ------------------------------------------------------------------------------

    def _by_leader(self, partitions: Any) -> dict[int, list[TopicPartition]]:
        found: defaultdict[int, list[TopicPartition]] = defaultdict(list)
        for tp in partitions:
            leader = self._leaders.get(tp, -1)
            if leader < 0:
                raise AgainError(f"{tp} has no leader")
            found[leader].append(tp)
        return found

    async def _until_answered(self, what: str, ask: Callable[[], Awaitable[T]], group: str = "") -> T:
        """What `ask` gives, asked again for `request_timeout_ms` while it fails in a way that may pass."""
        deadline = time.monotonic() + self._config.request_timeout_ms / 1000
        while True:
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    return await ask()
            except (AgainError, KafkaError, TimeoutError, OSError) as err:
                error = err
            final = final_error(error, group)
            if final is not None:
                raise final from error
            if time.monotonic() + PAUSE_SECONDS >= deadline:
                raise BrokerUnreachableError(
                    f"{what} failed for {self._config.request_timeout_ms} ms ({one_line(error)}): check that "
                    f"the brokers at {self._config.bootstrap_servers} run"
                ) from error
            await asyncio.sleep(PAUSE_SECONDS)
            await self._learn_again(deadline)

    async def _learn_again(self, deadline: float) -> None:
        """Ask who leads now; in vain is no matter, what is gone for good raises."""
        for topic in {tp.topic for tp in self._leaders}:
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    await self._learn(topic)
            except (AgainError, KafkaError, TimeoutError, OSError, BrokerError):
                return


def _by_topic(entries: Any) -> list[tuple[str, list[Any]]]:
    topics: defaultdict[str, list[Any]] = defaultdict(list)
    for tp, entry in entries:
        topics[tp.topic].append(entry)
    return list(topics.items())
