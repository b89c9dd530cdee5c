"""Batches in Kafka's bytes, over aiokafka's network client: connecting, producer ids, metadata, Produce.

aiokafka's own producer is not used: its idempotent form repeats for ever, its stop() never ends with the
broker down, and one failed batch puts its sequence numbers out of order for good. Its network client, its
record format and its requests are. Never here: what an answer means, what is sent when
(`aiokafka_producer_batching`). Always: no request creates a topic.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

from aiokafka.errors import KafkaError, NodeNotReadyError
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import InitProducerIdRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from asyncpar.adapters.aiokafka_config import ClientConfig
from asyncpar.adapters.aiokafka_errors import code_name, one_line
from asyncpar.adapters.aiokafka_groupless import GrouplessClient
from asyncpar.adapters.aiokafka_producer_lane import Batch, Numbers
from asyncpar.adapters.aiokafka_producer_port import Answer, NotSentError
from asyncpar.adapters.aiokafka_producer_topics import UNKNOWN, Described
from asyncpar.errors import AuthorizationError
from asyncpar.records import OutgoingRecord, TopicPartition

CLIENT_ID_SUFFIX = "-producer"
ID_PAUSE_SECONDS = 0.1
_ALL_IN_SYNC = -1
_RECORD_FORMAT, _UNCOMPRESSED = 2, 0
_UNNUMBERED = Numbers(-1, -1, -1)
_UNBOUNDED = 2**31 - 1
_NO_RIGHT_AT_ALL = frozenset({31, 53})


class KafkaWire(GrouplessClient):
    """A `Wire` to the cluster of `config`. Nothing connects before `connect`."""

    def __init__(self, config: ClientConfig) -> None:
        super().__init__(config, CLIENT_ID_SUFFIX)
        # The broker's own patience with slow replicas ends before ours with the broker.
        self._acks_timeout_ms = config.request_timeout_ms * 2 // 3

    async def connect(self) -> None:
        """Reach a server, learn the brokers, and see that we may write idempotently."""
        await self._connect("a producer", "no broker gave out a producer id", self._try_producer_id)

    async def _try_producer_id(self) -> None:
        """Idempotent writing has a right of its own: see at once whether we have it. The caller bounds it."""
        while True:
            code, _ = await self._ask_for_id()
            if code in _NO_RIGHT_AT_ALL:
                raise AuthorizationError(
                    "no right to write idempotently: grant WRITE on the topics to write to, and on brokers "
                    "before Kafka 3.0 IDEMPOTENT_WRITE on the cluster, to this user"
                )
            if code == 0:
                return
            await asyncio.sleep(ID_PAUSE_SECONDS)  # the brokers' own store of ids is just starting

    # -- requests ----------------------------------------------------------------------------

    async def producer_id(self) -> int:
        """A producer id that nobody else has. Raises ConnectionError."""
        try:
            code, producer_id = await self._ask_for_id()
        except (KafkaError, OSError) as err:
            raise NotSentError(f"asking for a producer id failed: {one_line(err)}") from err
        if code:
            raise NotSentError(f"asking for a producer id failed: the broker answered {code_name(code)}")
        return producer_id

    async def _ask_for_id(self) -> tuple[int, int]:
        answer = await self._network.ask_any(InitProducerIdRequest(None, _UNBOUNDED))
        return int(answer.error_code), int(answer.producer_id)

    async def describe(self, topics: Collection[str]) -> Mapping[str, Described]:
        """What the cluster says of each of `topics`. Raises ConnectionError."""
        request = MetadataRequest(list(topics), allow_auto_topic_creation=False)
        try:
            answer = await self._network.ask_any(request)
        except (KafkaError, OSError) as err:
            raise ConnectionError(one_line(err)) from err
        found = {
            entry[1]: Described(entry[0], {part[1]: part[2] for part in entry[3]}) for entry in answer.topics
        }
        # The client keeps the brokers' addresses; the topics are ours, and it would log those that are not.
        answer.topics = []
        self._client.cluster.update_metadata(answer)
        return {topic: found.get(topic, Described(UNKNOWN, {})) for topic in topics}

    async def produce(
        self, node: int, batches: Mapping[TopicPartition, Batch]
    ) -> Mapping[TopicPartition, Answer]:
        """Send all in one request; see the port."""
        by_topic: defaultdict[str, list[tuple[int, bytearray]]] = defaultdict(list)
        for tp, batch in batches.items():
            by_topic[tp.topic].append((tp.partition, encoded(batch)))
        request = ProduceRequest(
            transactional_id=None,
            required_acks=_ALL_IN_SYNC,
            timeout=self._acks_timeout_ms,
            topics=list(by_topic.items()),
        )
        try:
            answer = await self._client.send(node, request)
        except NodeNotReadyError as err:
            raise NotSentError(f"node {node} cannot be reached") from err
        except (KafkaError, OSError) as err:
            raise ConnectionError(f"no answer from node {node}: {one_line(err)}") from err
        answers = {
            TopicPartition(topic, part[0]): Answer(part[1], part[2])
            for topic, parts in answer.topics
            for part in parts
        }
        if missing := batches.keys() - answers.keys():
            raise ConnectionError(f"the answer of node {node} leaves out {min(missing)}")
        return answers

    def size_bytes(self, record: OutgoingRecord) -> int:
        """How long it is in a batch; see the port."""
        return record_bytes(record)


def record_bytes(record: OutgoingRecord) -> int:
    """How long `record` is in a batch. Raises TypeError and others for what cannot be encoded."""
    return _append(_builder(_UNNUMBERED), 0, record)


def encoded(batch: Batch) -> bytearray:
    """`batch` in Kafka's record format."""
    builder = _builder(batch.numbers)
    for at, record in enumerate(batch.records):
        _append(builder, at, record)
    data: bytearray = builder.build()
    return data


def _builder(numbers: Numbers) -> Any:
    is_transactional = 0
    return DefaultRecordBatchBuilder(
        _RECORD_FORMAT, _UNCOMPRESSED, is_transactional, *numbers, batch_size=_UNBOUNDED
    )


def _append(builder: Any, at: int, record: OutgoingRecord) -> int:
    """Put `record` at place `at`; how many bytes it took."""
    headers = list(record.headers)
    return int(builder.append(at, record.timestamp, record.key, record.value, headers).size)
