"""`ClientInternals` on a real aiokafka consumer whose network is a script: requests in, answers out."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import aiokafka
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    KafkaConnectionError,
    NodeNotReadyError,
    NoOffsetForPartitionError,
    RequestTimedOutError,
    TopicAuthorizationFailedError,
)
from aiokafka.protocol.group import HeartbeatRequest, JoinGroupRequest, SyncGroupRequest
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.structs import BrokerMetadata

from asyncpar.adapters import aiokafka_network
from asyncpar.adapters.aiokafka_chunks import Chunks
from asyncpar.adapters.aiokafka_errors import FencedInstanceIdError
from asyncpar.adapters.aiokafka_lease import MembershipClock
from asyncpar.adapters.aiokafka_private import ClientInternals
from asyncpar.adapters.aiokafka_stop import close_consumer

TP = TopicPartition("t", 0)


class Offline:
    """A started consumer without a network. `answer` is called with each request that the client sends."""

    def __init__(self) -> None:
        self.consumer = AIOKafkaConsumer(group_id="g", enable_auto_commit=False, auto_offset_reset="none")
        self.client = self.consumer._client
        self.client.bootstrap = self._nothing
        self.client.send = self._send
        self.client.ready = self._ready
        self.answer: Callable[[Any], Any] = lambda request: SimpleNamespace(error_code=0)
        self.inside = ClientInternals(self.consumer, "g")
        self.clock = MembershipClock(10.0)

    async def _nothing(self) -> None: ...

    async def _ready(self, node: Any, *, group: Any = None) -> bool:
        return True

    async def _send(self, node: Any, request: Any, *, group: Any = None) -> Any:
        answer = self.answer(request)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def start(self, *, client_records: bool = False) -> None:
        await self.consumer.start()
        self.inside.attach(self.clock, client_records=client_records)
        self.coordinator = self.consumer._coordinator
        self.coordinator.coordinator_id = 1
        self.coordinator._coordinator_dead_fut = asyncio.get_running_loop().create_future()

    def assign(self) -> None:
        self.consumer._subscription.subscribe({"t"})
        self.consumer._subscription.assign_from_subscribed({TP})


@pytest.fixture
async def offline() -> AsyncIterator[Offline]:
    """A consumer that was started offline, closed after the test."""
    made = Offline()
    await made.start()
    yield made
    await close_consumer(made.consumer, made.inside, leave=False, timeout_s=1.0)


class Connection:
    """Notes what is sent over it, with the time-out that held then."""

    def __init__(self, answer: Any = None) -> None:
        self._request_timeout = 15.0
        self._writer = None
        self.sent: list[tuple[Any, float]] = []
        self.closed: list[Any] = []
        self.answer = answer

    def send(self, request: Any, expect_response: bool = True) -> Any:
        self.sent.append((request, self._request_timeout))

        async def later() -> Any:
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

        return later()

    def connected(self) -> bool:
        return True

    def close(self, reason: Any = None) -> Any:
        self.closed.append(reason)
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


@pytest.mark.parametrize(
    ("version", "asked", "direct"), [("", False, True), ("", True, False), ("0.14.9", False, False)]
)
async def test_records_are_read_directly_where_the_client_is_known(
    monkeypatch: pytest.MonkeyPatch, version: str, asked: bool, direct: bool
) -> None:
    """Unless `client_records` asks for the client's own, or the client has another version."""
    monkeypatch.setattr(aiokafka, "__version__", version or aiokafka.__version__)
    offline = Offline()
    await offline.start(client_records=asked)
    assert isinstance(offline.consumer._fetcher._records, Chunks) is direct
    await close_consumer(offline.consumer, offline.inside, leave=False, timeout_s=1.0)


async def test_shares_are_in_the_fetch_that_the_client_builds(offline: Offline) -> None:
    """Of one partition so many times the setting, of the answer no more; and while nothing is buffered."""
    fetcher, inside = offline.consumer._fetcher, offline.inside
    before = fetcher._max_partition_fetch_bytes, fetcher._fetch_max_bytes
    assert before == (1 << 20, 50 << 20)

    def limits() -> tuple[int, int]:
        state = SimpleNamespace(has_valid_position=True, paused=False, position=7)
        assignment = SimpleNamespace(tps=[TP], state_value=lambda _: state)
        fetcher._select_read_replica = lambda _: 1
        [(_, request)], *_ = fetcher._get_actions_per_node(assignment)
        [(_, [(_, _, of_one)])] = request.topics
        return of_one, request._max_bytes

    assert limits() == before
    inside.take_shares(8)
    assert limits() == (8 << 20, 8 << 20)
    fetcher._records[TopicPartition("t", 1)] = "what nobody has taken"
    assert limits() == before
    fetcher._records.clear()
    inside.take_shares(64)
    assert limits() == (50 << 20, 50 << 20)
    inside.take_shares(1)
    assert limits() == before


async def test_heartbeats_and_syncs_extend_the_lease(offline: Offline) -> None:
    """The send time of an answered Heartbeat or SyncGroup counts, and an answer of 25 does not."""
    for request in (HeartbeatRequest("g", 1, "m"), SyncGroupRequest("g", 1, "m", None, [])):
        before = asyncio.get_running_loop().time()
        await offline.coordinator._send_req(request)
        assert offline.clock.lease_from >= before - 0.05
        offline.clock.lease_from = offline.clock.calm = float("-inf")
    offline.answer = lambda request: SimpleNamespace(error_code=25)
    await offline.coordinator._send_req(HeartbeatRequest("g", 1, "m"))
    assert offline.clock.lease_from == float("-inf")


async def test_a_join_may_take_minutes() -> None:
    """JoinGroup waits for the slowest member of the group, all other requests for our own time-out."""
    offline = Offline()
    connection = Connection(answer="joined")
    offline.client._conns[(1, 1)] = connection
    request = JoinGroupRequest("g", 1, 1, "m", None, "consumer", [])
    assert await offline.client.send(1, request, group=1) == "joined"
    assert connection.sent == [(request, aiokafka_network.JOIN_TIMEOUT_SECONDS)]
    assert connection._request_timeout == 15.0
    connection.answer = TimeoutError()
    with pytest.raises(RequestTimedOutError):
        await offline.client.send(1, request, group=1)
    assert len(connection.closed) == 1
    await offline.consumer.stop()


async def test_metadata_requests_create_no_topic() -> None:
    """Each metadata request that the client sends by itself forbids the creation of topics."""
    consumer = AIOKafkaConsumer(group_id="g")
    connection = Connection(answer=SimpleNamespace(brokers=[]))
    consumer._client._conns[(0, 0)] = connection
    consumer._client.cluster._brokers = {0: BrokerMetadata(0, "127.0.0.1", 9, None)}
    ClientInternals(consumer, "g")
    await consumer._client._metadata_update(consumer._client.cluster, {"t"})
    ((request, _),) = connection.sent
    assert isinstance(request, MetadataRequest)
    assert (request._topics, request._allow_auto_topic_creation) == (["t"], False)
    await consumer.stop()


async def test_metadata_is_asked_for_with_a_pause_in_between() -> None:
    """While a partition has no leader the client asks again at once: the next question has to wait."""
    consumer = AIOKafkaConsumer(group_id="g")
    connection = Connection(answer=SimpleNamespace(brokers=[]))
    consumer._client._conns[(0, 0)] = connection
    consumer._client.cluster._brokers = {0: BrokerMetadata(0, "127.0.0.1", 9, None)}
    ClientInternals(consumer, "g")
    begin = time.monotonic()
    for _ in range(3):
        await consumer._client._metadata_update(consumer._client.cluster, {"t"})
    assert len(connection.sent) == 3
    assert time.monotonic() - begin >= 1.9 * aiokafka_network.METADATA_SPACING_SECONDS
    await consumer.stop()


async def test_whatever_a_connect_raises_is_a_failed_connection() -> None:
    """An error that the client does not expect (SCRAM raises ValueErrors) must not end its tasks."""
    consumer = AIOKafkaConsumer(group_id="g")

    async def connect(node_id: Any, **how: Any) -> Any:
        raise ValueError("server nonce does not match")

    consumer._client._get_conn = connect
    ClientInternals(consumer, "g")
    assert not await consumer._client.ready(1)
    await consumer.stop()


async def test_a_lookup_that_loses_its_connection_is_retried() -> None:
    """A connection lost while looking for the coordinator must not end the heartbeats for good."""
    offline = Offline()
    offline.client.get_random_node = lambda: 0
    offline.answer = lambda request: KafkaConnectionError("gone")
    with pytest.raises(NodeNotReadyError) as caught:
        await offline.client.coordinator_lookup(0, "g")
    assert caught.value.retriable
    await offline.consumer.stop()


async def test_a_lookup_before_any_broker_is_known_is_retried() -> None:
    """A broker that starts names no broker at all: no defect, and no end with a traceback."""
    offline = Offline()
    offline.client.get_random_node = lambda: None
    with pytest.raises(NodeNotReadyError) as caught:
        await offline.client.coordinator_lookup(0, "g")
    assert caught.value.retriable
    await offline.consumer.stop()


@pytest.mark.parametrize("sync_code", [25, 82])
async def test_a_heartbeat_refused_for_a_rival_is_told_from_a_late_one(
    offline: Offline, sync_code: int
) -> None:
    """An unknown static member asks whether its id has a new holder: only then it may not join again."""
    offline.coordinator._group_instance_id = "a"
    offline.coordinator.generation, offline.coordinator.member_id = 3, "a-1"
    sent: list[Any] = []

    def answer(request: Any) -> Any:
        sent.append(request)
        return SimpleNamespace(error_code=25 if isinstance(request, HeartbeatRequest) else sync_code)

    offline.answer = answer
    response = await offline.coordinator._send_req(HeartbeatRequest("g", 3, "a-1"))
    assert response.error_code == 25
    probe = sent[1]
    assert isinstance(probe, SyncGroupRequest)
    assert (probe._generation_id, probe._member_id, probe._group_instance_id) == (3, "a-1", "a")
    assert offline.clock.lease_from == float("-inf")
    if sync_code == 25:
        offline.inside.check_errors()
        return
    with pytest.raises(FencedInstanceIdError):
        offline.inside.check_errors()
    with pytest.raises(FencedInstanceIdError):
        await offline.client.send(1, JoinGroupRequest("g", 1, 1, "", "a", "consumer", []), group=1)


async def test_a_coordinator_that_loads_its_group_does_not_end_the_heartbeats(offline: Offline) -> None:
    """The client has no branch for error 14, and its heartbeats would die of it: they are sent again."""
    coordinator = offline.coordinator
    coordinator.generation, coordinator.member_id = 3, "m"
    codes = [14, 0]
    offline.answer = lambda request: SimpleNamespace(error_code=codes.pop(0))
    assert await coordinator._do_heartbeat() is False
    assert offline.inside.coordinator_node == 1
    assert await coordinator._do_heartbeat() is True
    assert (coordinator.generation, coordinator.member_id) == (3, "m")


async def test_an_error_of_the_group_is_for_the_one_who_fetches(offline: Offline) -> None:
    """Who waits for an assignment is told first; the client's own fetch task leaves the error to others."""
    coordinator = offline.coordinator
    pushed = asyncio.ensure_future(coordinator._push_error_to_user(GroupAuthorizationFailedError("g")))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not pushed.done()
    with pytest.raises(GroupAuthorizationFailedError):
        offline.consumer._subscription.wait_for_assignment()
    await asyncio.wait_for(pushed, 1)
    waiting = offline.consumer._subscription.wait_for_assignment()
    assert not waiting.done()


async def test_a_topic_that_became_invisible_is_told(offline: Offline) -> None:
    """A topic of ours that metadata calls forbidden is a matter of rights; those of others are not."""
    offline.assign()
    cluster = offline.consumer._client.cluster
    cluster.unauthorized_topics = {"of-others"}
    offline.inside.check_errors()
    cluster.unauthorized_topics = {"of-others", "t"}
    with pytest.raises(TopicAuthorizationFailedError) as caught:
        offline.inside.check_errors()
    assert caught.value.args == ("t",)


async def test_a_lost_connection_marks_the_coordinator(offline: Offline) -> None:
    """A request of ours that loses its connection has the coordinator looked up again; a refusal does not."""
    await offline.inside.ask_coordinator("request")
    assert offline.inside.coordinator_node == 1
    offline.answer = lambda request: KafkaConnectionError("gone")
    with pytest.raises(KafkaConnectionError):
        await offline.inside.ask_coordinator("request")
    assert offline.inside.coordinator_node is None


async def test_the_client_never_reads_commits_by_itself(offline: Offline) -> None:
    """A new assignment starts no task that asks for committed offsets."""
    offline.assign()
    offline.coordinator.start_commit_offsets_refresh_task(
        offline.consumer._subscription.subscription.assignment
    )
    assert offline.coordinator._commit_refresh_task is None


async def test_positions_and_ends(offline: Offline) -> None:
    """What is not assigned, not sought or not fetched yet is None."""
    assert offline.inside.position(TP) is None
    assert offline.inside.end_seen(TP) == (None, None)
    offline.assign()
    assert offline.inside.is_assigned(TP)
    assert offline.inside.position(TP) is None
    offline.consumer.seek(TP, 7)
    state = offline.consumer._subscription.subscription.assignment.state_value(TP)
    state.highwater, state.lso = 9, -1
    assert offline.inside.position(TP) == 7
    assert offline.inside.end_seen(TP) == (9, None)


async def test_a_raising_getmany_leaks_no_counter(offline: Offline) -> None:
    """With the counter put back, idle time runs again."""
    offline.assign()
    offline.consumer.seek(TP, 0)
    offline.consumer._fetcher._set_error(TP, NoOffsetForPartitionError(TP))
    count = offline.inside.fetch_count()
    with pytest.raises(NoOffsetForPartitionError):
        await offline.consumer.getmany(TP, timeout_ms=0)
    assert offline.inside.fetch_count() == count + 1
    offline.inside.restore_fetch_count(count)
    await asyncio.sleep(0.01)
    assert offline.consumer._subscription.fetcher_idle_time > 0


@pytest.mark.parametrize("name", ["_heartbeat_task", "_coordination_task", "_fetch_task", "_sync_task"])
async def test_a_dead_task_is_named(offline: Offline, name: str) -> None:
    """A background task of the client that died is noticed, with its reason."""
    assert offline.inside.dead_task() is None

    async def die() -> None:
        raise RuntimeError("bug")

    dying = asyncio.create_task(die())
    await asyncio.wait([dying], timeout=1)
    owner = {"_fetch_task": offline.consumer._fetcher, "_sync_task": offline.client}.get(
        name, offline.coordinator
    )
    real = getattr(owner, name)
    setattr(owner, name, dying)
    dead = offline.inside.dead_task()
    setattr(owner, name, real)
    assert dead is not None
    assert dead[0] == name.strip("_").replace("_", " ").replace("sync", "metadata")
    assert str(dead[1]) == "bug"


async def test_heartbeats_that_end_in_order_are_no_fault(offline: Offline) -> None:
    """A member that must join again stops its heartbeats without an error."""
    ended = asyncio.create_task(asyncio.sleep(0))
    await ended
    offline.coordinator._heartbeat_task = ended
    assert offline.inside.dead_task() is None


async def test_a_pattern_matches_whole_names(offline: Offline) -> None:
    """The client would take `audit-.*` for a prefix of what follows; we match the whole name."""
    offline.consumer._client.cluster._partitions = {"audit-1": {}, "audit-12": {}, "my-audit-1": {}}
    offline.inside.subscribe_pattern(re.compile(r"audit-\d"), None)  # type: ignore[arg-type]
    offline.coordinator._handle_metadata_update(offline.consumer._client.cluster)
    assert offline.consumer.subscription() == {"audit-1"}


async def test_partition_counts_are_watched(offline: Offline) -> None:
    """New partitions make a member rejoin that has no watch of its own."""
    cluster = offline.consumer._client.cluster
    cluster._partitions = {"t": {0: None}}
    offline.inside.watch_partition_counts({"t", "unknown"})
    offline.coordinator._rejoin_needed_fut = asyncio.get_running_loop().create_future()
    for listener in cluster._listeners:
        listener(cluster)
    assert not offline.coordinator._rejoin_needed_fut.done()
    cluster._partitions = {"t": {0: None, 1: None}}
    for listener in cluster._listeners:
        listener(cluster)
    assert offline.coordinator._rejoin_needed_fut.done()


async def test_a_waiting_getmany_is_released(offline: Offline) -> None:
    """A fetch that waits for an assignment which never comes ends when the consumer is stopped."""
    waiting = asyncio.create_task(offline.consumer.getmany(TP, timeout_ms=10))
    await asyncio.sleep(0)
    offline.inside.release_fetch()
    done, _ = await asyncio.wait([waiting], timeout=1)
    assert waiting in done
    assert waiting.exception() is not None
