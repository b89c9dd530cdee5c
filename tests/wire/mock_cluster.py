"""librdkafka's mock cluster, driven by ctypes: real sockets, Kafka's protocol, and errors on request.

What lives here: the library in the confluent-kafka wheel, and `MockCluster` over it. What never does: what a
fault should lead to. Called by the tests of the wire. Always: a cluster is closed by whoever made it. `fail`,
`unused`, `fail_always` and `heal` take no time; all others may block for a second, because the mock's thread
is not always woken up for them: call those in a thread of their own.

What the mock does not do is told in `asyncpar/adapters/mock_cluster.py`. Beyond that: an error for Fetch or
OffsetFetch stands twice, beside the whole and beside each partition; Metadata takes `set_topic_error` only;
a refused JoinGroup carries no member id, and one that asks without any crashes the process.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import enum
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import confluent_kafka
from confluent_kafka import Consumer, Producer, TopicPartition

TRANSPORT = -195
"""In place of an error code: the broker hangs up when it sees the request, and answers nothing."""

_PRODUCER = 0
_ERROR_TEXT_BYTES = 512
_ANSWER_SECONDS = 10.0
_MANY = 10_000
"""More than a test can use up."""


class Request(enum.IntEnum):
    """What the client sends, by Kafka's API key."""

    FETCH = 1
    LIST_OFFSETS = 2
    METADATA = 3
    OFFSET_COMMIT = 8
    OFFSET_FETCH = 9
    FIND_COORDINATOR = 10
    JOIN_GROUP = 11
    HEARTBEAT = 12
    LEAVE_GROUP = 13
    SYNC_GROUP = 14
    API_VERSIONS = 18


class MockError(RuntimeError):
    """librdkafka refused a call: the test asked for something that does not exist."""


def _library_path() -> str:
    """librdkafka as the installed confluent-kafka loads it: from its wheel, else the system's."""
    package = Path(confluent_kafka.__file__).parent
    for folder in (package.parent / "confluent_kafka.libs", package / ".dylibs"):
        for found in sorted(folder.glob("librdkafka*")):
            return str(found)
    system = ctypes.util.find_library("rdkafka")
    if system is None:
        raise MockError("no librdkafka beside confluent_kafka and none in the system")
    return system


@functools.cache
def _library() -> Any:
    """The library with the types of the calls that take or give more than ints."""
    library = ctypes.CDLL(_library_path())
    handle, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "conf_new": (handle, []),
        "conf_set": (ctypes.c_int, [handle, text, text, text, size]),
        "new": (handle, [ctypes.c_int, handle, text, size]),
        "destroy": (None, [handle]),
        "mock_cluster_new": (handle, [handle, ctypes.c_int]),
        "mock_cluster_destroy": (None, [handle]),
        "mock_cluster_bootstraps": (text, [handle]),
        "mock_group_initial_rebalance_delay_ms": (None, [handle, ctypes.c_int32]),
        "mock_topic_create": (ctypes.c_int, [handle, text, ctypes.c_int, ctypes.c_int]),
        "mock_topic_set_error": (None, [handle, text, ctypes.c_int]),
        "mock_partition_set_leader": (ctypes.c_int, [handle, text, ctypes.c_int32, ctypes.c_int32]),
        "mock_coordinator_set": (ctypes.c_int, [handle, text, text, ctypes.c_int32]),
        "mock_push_request_errors_array": (None, [handle, ctypes.c_int16, size, handle]),
        "mock_clear_request_errors": (None, [handle, ctypes.c_int16]),
        # Followed by pairs of error and delay, as ints.
        "mock_broker_push_request_error_rtts": (
            ctypes.c_int,
            [handle, ctypes.c_int32, ctypes.c_int16, size],
        ),
        "mock_broker_error_stack_cnt": (ctypes.c_int, [handle, ctypes.c_int32, ctypes.c_int16, handle]),
        "mock_broker_set_down": (ctypes.c_int, [handle, ctypes.c_int32]),
        "mock_broker_set_up": (ctypes.c_int, [handle, ctypes.c_int32]),
        "mock_broker_set_rtt": (ctypes.c_int, [handle, ctypes.c_int32, ctypes.c_int]),
        "mock_broker_set_host_port": (None, [handle, ctypes.c_int32, text, ctypes.c_int]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, f"rd_kafka_{name}")
        function.restype, function.argtypes = result, arguments
    return library


class MockCluster:
    """Brokers 1 to `brokers`, which live until `close()`. Use as a context manager.

    A first join is answered at once, a later one after the members' session timeout less one second. Raises
    MockError for what librdkafka refuses.
    """

    def __init__(self, brokers: int = 1) -> None:
        self.brokers = range(1, brokers + 1)
        library = _library()
        why = ctypes.create_string_buffer(_ERROR_TEXT_BYTES)
        options = library.rd_kafka_conf_new()
        # A mock broker that refuses requests on purpose is no news.
        library.rd_kafka_conf_set(options, b"log_level", b"0", why, _ERROR_TEXT_BYTES)
        self._client = library.rd_kafka_new(_PRODUCER, options, why, _ERROR_TEXT_BYTES)
        if not self._client:
            raise MockError(f"librdkafka makes no client: {why.value.decode()}")
        self._cluster = library.rd_kafka_mock_cluster_new(self._client, brokers)
        if not self._cluster:
            library.rd_kafka_destroy(self._client)
            raise MockError("librdkafka makes no mock cluster")
        library.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, 0)
        self.bootstrap: str = library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the brokers and all that they hold. A second call does nothing."""
        if self._cluster:
            _library().rd_kafka_mock_cluster_destroy(self._cluster)
            _library().rd_kafka_destroy(self._client)
            self._cluster = self._client = None

    def _call(self, name: str, *arguments: object) -> None:
        if not self._cluster:
            raise MockError("the mock cluster is closed")
        code = getattr(_library(), f"rd_kafka_mock_{name}")(self._cluster, *arguments)
        if code:
            raise MockError(f"rd_kafka_mock_{name}{arguments} was answered with error {code}")

    # --- what is in it

    def create_topic(self, name: str, partitions: int = 2) -> None:
        """Make a topic; each partition has a replica on every broker."""
        self._call("topic_create", name.encode(), partitions, len(self.brokers))

    def produce(self, topic: str, records: Iterable[tuple[int, bytes, bytes]]) -> None:
        """Append `(partition, key, value)` and return when all are in the log."""
        refused: list[object] = []

        def told(error: object, _message: object) -> None:
            if error is not None:
                refused.append(error)

        producer = Producer({"bootstrap.servers": self.bootstrap, "log_level": 0, "linger.ms": 0})
        for partition, key, value in records:
            producer.produce(topic, value, key, partition=partition, on_delivery=told)
        left = producer.flush(_ANSWER_SECONDS)
        if left or refused:
            raise MockError(f"records for {topic} were not taken: {left} unanswered, refused: {refused[:1]}")

    def committed(self, group: str, topic: str, partitions: int = 2) -> dict[int, int]:
        """What `group` has committed, by partition and asked by another client; none is -1001."""
        outsider = Consumer({"bootstrap.servers": self.bootstrap, "group.id": group, "log_level": 0})
        try:
            asked = [TopicPartition(topic, partition) for partition in range(partitions)]
            return {one.partition: one.offset for one in outsider.committed(asked, timeout=_ANSWER_SECONDS)}
        finally:
            outsider.close()

    # --- faults

    def fail(self, request: Request, *codes: int, delay_ms: int = 0, broker: int = 1) -> None:
        """Answer the next requests of this kind with `codes`, one each, after `delay_ms`. 0 is no error.

        `TRANSPORT` hangs up instead. From then on `fail_always` has no effect on this kind at `broker`.
        """
        pairs = [value for code in codes for value in (ctypes.c_int(code), ctypes.c_int(delay_ms))]
        self._call("broker_push_request_error_rtts", broker, request, len(codes), *pairs)

    def unused(self, request: Request, broker: int = 1) -> int:
        """How many codes given to `fail` have not been answered yet."""
        count = ctypes.c_size_t(0)
        self._call("broker_error_stack_cnt", broker, request, ctypes.byref(count))
        return count.value

    def fail_always(self, request: Request, code: int) -> None:
        """Answer every request of this kind with `code`, until `heal`."""
        codes = (ctypes.c_int * _MANY)(*[code] * _MANY)
        self._call("push_request_errors_array", request, _MANY, codes)

    def heal(self, request: Request) -> None:
        """End `fail_always`."""
        self._call("clear_request_errors", request)

    def set_topic_error(self, topic: str, code: int) -> None:
        """What Metadata says of `topic` from now on; 0 is no error."""
        self._call("topic_set_error", topic.encode(), code)

    def set_leaders(self, topic: str, leaders: Mapping[int, int]) -> None:
        """Give partitions of `topic` other leaders, by partition; -1 is none."""
        for partition, broker in leaders.items():
            self._call("partition_set_leader", topic.encode(), partition, broker)

    def set_coordinator(self, group: str, broker: int) -> None:
        """Let `broker` coordinate `group`."""
        self._call("coordinator_set", b"group", group.encode(), broker)

    def set_down(self, broker: int) -> None:
        """Close the broker's connections and take no new ones. Its partitions keep it as their leader."""
        self._call("broker_set_down", broker)

    def set_up(self, broker: int) -> None:
        """End `set_down`."""
        self._call("broker_set_up", broker)

    def set_delay(self, broker: int, delay_ms: int) -> None:
        """Hold every answer of `broker` back for that long."""
        self._call("broker_set_rtt", broker, delay_ms)

    def advertise(self, broker: int, port: int) -> None:
        """Let Metadata and FindCoordinator name another port of this host, such as a proxy's."""
        self._call("broker_set_host_port", broker, b"127.0.0.1", port)
