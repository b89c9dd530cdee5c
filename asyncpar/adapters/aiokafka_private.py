"""The one file that touches private parts of aiokafka: `ClientInternals`, the inside of one consumer.

Never here: decisions about offsets, errors or time-outs. Called by the other aiokafka files. Always: the
parts are checked first (`aiokafka_shape`), and patches are made on one consumer's own objects, so that
other clients of the process keep theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Collection, Iterable
from typing import Any

from aiokafka import TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.client import ConnectionGroup
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.consumer.subscription_state import TopicPartitionState
from aiokafka.errors import (
    GroupCoordinatorNotAvailableError,
    KafkaConnectionError,
    KafkaError,
    NodeNotReadyError,
    RequestTimedOutError,
    TopicAuthorizationFailedError,
)
from aiokafka.protocol.group import HeartbeatRequest, JoinGroupRequest, LeaveGroupRequest, SyncGroupRequest
from aiokafka.protocol.metadata import MetadataRequest

from asyncpar.adapters.aiokafka_errors import FencedInstanceIdError, one_line
from asyncpar.adapters.aiokafka_lease import MembershipClock
from asyncpar.adapters.aiokafka_shape import require_parts

# The broker answers a JoinGroup when every other member has given its partitions back, and the slowest of
# them decides: Java clients allow themselves 5 minutes.
JOIN_TIMEOUT_SECONDS = 300.0
# While a partition has no leader the client asks for metadata as fast as it is answered: thousands of times a
# second. Java clients wait this long in between.
METADATA_SPACING_SECONDS = 0.1
_UNKNOWN_MEMBER, _FENCED_INSTANCE = 25, 82

log = logging.getLogger(__name__)


class _FullMatch:
    """A pattern as the client uses one, but matching whole names: the client calls `match`."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self._pattern = pattern

    def match(self, topic: str) -> bool:
        return self._pattern.fullmatch(topic) is not None


class _ModestConnection:
    """A connection whose metadata requests never create a topic; everything else passes through."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def send(self, request: Any, expect_response: bool = True) -> Any:
        if isinstance(request, MetadataRequest):
            request = MetadataRequest(request._topics, allow_auto_topic_creation=False)
        return self._connection.send(request, expect_response)


class ClientInternals:
    """The inside of one consumer. Made before it starts; `attach` once it has started."""

    def __init__(self, consumer: Any, group: str) -> None:
        self._consumer = consumer
        self._group = group
        self._fetcher: Any = None
        self._coordinator: Any = None
        self._counts: dict[str, int] = {}
        self._transports: list[Any] = []
        self._fenced: FencedInstanceIdError | None = None
        require_parts(consumer)
        self._client = consumer._client
        self._subscription = consumer._subscription
        for part in (self._client, self._subscription, AIOKafkaConnection("", 0), TopicPartitionState(None)):
            require_parts(part)
        self._patch_client()

    # --- start

    def _patch_client(self) -> None:
        client = self._client
        connect, send, lookup = client._get_conn, client.send, client.coordinator_lookup
        update, updated = client._metadata_update, -METADATA_SPACING_SECONDS

        async def modest_connect(node_id: Any, **how: Any) -> Any:
            try:
                connection = await connect(node_id, **how)
            except Exception as err:  # noqa: BLE001 - SCRAM raises ValueError, a host name UnicodeError
                # To the client such an error is no failed connection: it would end its background tasks.
                log.error("cannot connect to node %s: %s: %s", node_id, type(err).__name__, one_line(err))
                client.force_metadata_update()
                return None
            return None if connection is None else _ModestConnection(connection)

        async def spaced_update(cluster: Any, topics: Any) -> Any:
            nonlocal updated
            await asyncio.sleep(updated + METADATA_SPACING_SECONDS - time.monotonic())
            try:
                return await update(cluster, topics)
            finally:
                updated = time.monotonic()

        async def patient_send(node_id: Any, request: Any, *, group: Any = ConnectionGroup.DEFAULT) -> Any:
            if isinstance(request, JoinGroupRequest):
                return await self._send_join(node_id, request, group)
            return await send(node_id, request, group=group)

        async def retried_lookup(kind: Any, key: str) -> Any:
            # A connection that breaks under this request is "not retriable" to the client: its heartbeats
            # would end for good, with nobody told.
            try:
                return await lookup(kind, key)
            except KafkaConnectionError as err:
                raise NodeNotReadyError(f"connection lost while looking for the coordinator: {err}") from err

        client._get_conn = modest_connect
        client._metadata_update = spaced_update
        client.send = patient_send
        client.coordinator_lookup = retried_lookup

    async def _send_join(self, node_id: Any, request: Any, group: Any) -> Any:
        client = self._client
        if self._fenced is not None:
            # Joining would take the id back from its new holder, who would take it back from us, for ever.
            self._subscription.abort_waiters(self._fenced)
            raise self._fenced
        if not await client.ready(node_id, group=group):
            raise NodeNotReadyError(f"node {node_id} cannot be reached for a JoinGroup")
        connection = client._conns[(node_id, group)]
        # `send` reads the time-out while it is called and does not suspend: no other request sees this one.
        usual, connection._request_timeout = connection._request_timeout, JOIN_TIMEOUT_SECONDS
        try:
            answer = connection.send(request)
        finally:
            connection._request_timeout = usual
        try:
            return await answer
        except TimeoutError as err:
            connection.close(reason=CloseReason.CONNECTION_TIMEOUT)
            raise RequestTimedOutError from err

    def bootstrap_from(self, host: str, port: int) -> None:
        """Let the consumer's start dial this server only: it is the one that just answered."""
        self._client._bootstrap_servers = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def attach(self, clock: MembershipClock) -> None:
        """Take hold of the fetcher and the coordinator, which exist since the consumer's start()."""
        self._fetcher, self._coordinator = self._consumer._fetcher, self._consumer._coordinator
        require_parts(self._fetcher)
        require_parts(self._coordinator)
        coordinator = self._coordinator
        send = coordinator._send_req

        async def watched_send(request: Any) -> Any:
            sent = time.monotonic()
            response = await send(request)
            if isinstance(request, HeartbeatRequest | SyncGroupRequest):
                clock.heard(sent, response.error_code)
            if await self._is_fenced(request, getattr(response, "error_code", None), send):
                self._fenced = FencedInstanceIdError(coordinator._group_instance_id)
            return response

        coordinator._send_req = watched_send
        # The client's own reading of committed offsets takes "group loading" for "nothing committed".
        # Positions come from the runtime; without this task the client never looks.
        coordinator.start_commit_offsets_refresh_task = lambda _assignment: None

    async def _is_fenced(self, request: Any, code: int | None, send: Any) -> bool:
        """Whether another member has taken our group_instance_id."""
        coordinator = self._coordinator
        instance = coordinator._group_instance_id
        if instance is not None and code == _UNKNOWN_MEMBER and isinstance(request, HeartbeatRequest):
            # The client's Heartbeat does not carry the id: the answer leaves open whether we came too late or
            # somebody took our place. That of a SyncGroup tells.
            probe = SyncGroupRequest(self._group, coordinator.generation, coordinator.member_id, instance, [])
            with contextlib.suppress(KafkaError):
                code = (await send(probe)).error_code
        return code == _FENCED_INSTANCE

    def subscribe_pattern(self, pattern: re.Pattern[str], listener: ConsumerRebalanceListener) -> None:
        """Subscribe to every topic whose whole name matches, now and after each metadata refresh."""
        self._subscription.subscribe_pattern(pattern=_FullMatch(pattern), listener=listener)
        self._client.set_topics([])

    async def refresh_metadata(self) -> None:
        """Ask for metadata now and wait for the answer."""
        await self._client.force_metadata_update()

    async def find_coordinator(self) -> None:
        """Wait until the group's coordinator is known and connected. Raises the client's KafkaError."""
        await self._coordinator.ensure_coordinator_known()

    # --- requests

    async def ask_any(self, request: Any) -> Any:
        """Send `request` to a random broker. Raises the client's KafkaError."""
        node = self._client.get_random_node()
        if node is None:
            raise NodeNotReadyError("no broker is known")
        return await self._client.send(node, request)

    async def ask_coordinator(self, request: Any) -> Any:
        """Send `request` to the group's coordinator, looked up first if need be; raises KafkaError.

        A lost connection marks the coordinator as unknown, which makes the client look it up again; what the
        answer says changes nothing.
        """
        await self._coordinator.ensure_coordinator_known()
        node = self._coordinator.coordinator_id
        if node is None:
            raise GroupCoordinatorNotAvailableError
        try:
            return await self._client.send(node, request, group=ConnectionGroup.COORDINATION)
        except KafkaError:
            self.coordinator_moved(node)
            raise

    @property
    def coordinator_node(self) -> Any:
        """The node id of the group's coordinator; None while it is unknown."""
        return self._coordinator.coordinator_id

    def coordinator_moved(self, node: Any) -> None:
        """`node` coordinates the group no longer: have it looked up again, unless that happened already."""
        if node is not None and self._coordinator.coordinator_id == node:
            self._coordinator.coordinator_dead()

    def leader_known(self, partition: tuple[str, int]) -> bool:
        """Whether metadata names a leader of `partition`."""
        return self._client.cluster.leader_for_partition(TopicPartition(*partition)) is not None

    # --- membership

    def token(self) -> tuple[int, str]:
        """`(group generation, member id)` as of now; generation -1 or an empty id: no member."""
        return self._coordinator.generation, self._coordinator.member_id

    def watch_partition_counts(self, topics: Iterable[str]) -> None:
        """From now on rejoin the group when one of `topics` changes its number of partitions.

        For static members: after a restart the group's leader does not know that it leads, and nobody else
        looks. The client's own watch, if it has one, is left to itself.
        """
        cluster = self._client.cluster
        self._counts = {
            topic: len(found) for topic in topics if (found := cluster.partitions_for_topic(topic))
        }
        cluster.add_listener(self._compare_counts)

    def _compare_counts(self, cluster: Any) -> None:
        changed = False
        for topic, count in self._counts.items():
            found = cluster.partitions_for_topic(topic)
            if found and len(found) != count:
                self._counts[topic] = len(found)
                changed = True
        if changed and self._coordinator._group_subscription is None:
            self._coordinator.request_rejoin()

    def dead_task(self) -> tuple[str, BaseException | None] | None:
        """`(name, exception)` of a background task that ended though it never should; None while all live."""
        heartbeat = self._coordinator._heartbeat_task
        # Heartbeats end in order when the member has to join again; only an exception is a fault.
        if heartbeat is not None and heartbeat.done() and not heartbeat.cancelled() and heartbeat.exception():
            return "heartbeat task", heartbeat.exception()
        for name, task in (
            ("fetch task", self._fetcher._fetch_task),
            ("coordination task", self._coordinator._coordination_task),
            ("metadata task", self._client._sync_task),
        ):
            if task is not None and task.done():
                return name, None if task.cancelled() else task.exception()
        return None

    def check_errors(self) -> None:
        """Raise what stands against going on; what the coordinator has to say lets it go on."""
        if self._coordinator._coordination_task.cancelled():
            # The client would raise this task's CancelledError, which the caller would take for its own.
            raise KafkaError("the coordination task was cancelled")
        if self._fenced is not None:
            raise self._fenced
        # A topic that we may not see any more is rebalanced away, as if it did not exist.
        forbidden = self._client.cluster.unauthorized_topics & self._subscription.topics
        if forbidden:
            raise TopicAuthorizationFailedError(*sorted(forbidden))
        self._coordinator.check_errors()

    # --- positions and buffers

    def _state(self, partition: tuple[str, int]) -> Any:
        subscription = self._subscription.subscription
        if subscription is None or subscription.assignment is None:
            return None
        return subscription.assignment.state_value(partition)

    def is_assigned(self, partition: tuple[str, int]) -> bool:
        """Whether the current assignment holds `partition`."""
        return self._state(partition) is not None

    def position(self, partition: tuple[str, int]) -> int | None:
        """The next offset of `partition`; None when it is not assigned or not known."""
        state = self._state(partition)
        return state.position if state is not None and state.has_valid_position else None

    def end_seen(self, partition: tuple[str, int]) -> tuple[int | None, int | None]:
        """`(high watermark, last stable offset)` of the last fetch; None where unknown."""
        state = self._state(partition)
        if state is None:
            return None, None
        return tuple(None if end is None or end < 0 else end for end in (state.highwater, state.lso))  # type: ignore[return-value]

    def buffered(self, wanted: Collection[tuple[str, int]]) -> list[Any]:
        """Those of `wanted` with something fetched (records, markers, an error), the next to serve first."""
        among = set(wanted)
        return [partition for partition in self._fetcher._records if partition in among]

    def has_buffer(self, partition: tuple[str, int]) -> bool:
        """Whether something fetched of `partition` is left."""
        return partition in self._fetcher._records

    def rotate(self, partition: tuple[str, int]) -> None:
        """Let the other partitions be served before `partition`: the client drains in this order."""
        if partition in self._fetcher._records:
            self._fetcher._records.move_to_end(partition)

    def fetch_count(self) -> int:
        """How many getmany calls the client believes to be running."""
        return int(self._subscription._fetch_count)

    def restore_fetch_count(self, count: int) -> None:
        """A raising getmany is never counted down, which would switch off max_poll_interval for good."""
        self._subscription._fetch_count = count
        self._subscription._last_fetch_ended = time.monotonic()

    def wait_at_broker(self, wait_ms: int) -> None:
        """How long the broker may hold the next fetches when it has nothing."""
        self._fetcher._fetch_max_wait_ms = wait_ms

    # --- the end

    async def leave(self) -> None:
        """Send a LeaveGroup over the default connection: the coordinator's may be busy with our JoinGroup."""
        if (
            self._coordinator is None
            or not self._coordinator.member_id
            or self._coordinator.coordinator_id is None
        ):
            return
        request = LeaveGroupRequest(self._group, self._coordinator.member_id)
        await self._client.send(self._coordinator.coordinator_id, request)

    def background_tasks(self) -> list[asyncio.Task[Any]]:
        """Tasks of the client that have not ended."""
        tasks: list[Any] = [self._client._sync_task]
        if self._coordinator is not None:
            tasks += [self._coordinator._coordination_task, self._coordinator._heartbeat_task]
        if self._fetcher is not None:
            tasks += [self._fetcher._fetch_task, *self._fetcher._pending_tasks]
        return [task for task in tasks if task is not None and not task.done()]

    async def close_client(self) -> None:
        """Close all connections and wait until they are."""
        self._note_transports()
        await self._client.close()

    def release_fetch(self) -> None:
        """End a getmany that waits for an assignment which will never come."""
        if self._fetcher is not None:
            self._subscription.abort_waiters(KafkaError("the consumer was stopped"))

    def abort(self) -> None:
        """What is left now is cut: tasks and sockets. Does not wait and does not raise."""
        self._note_transports()
        for task in self.background_tasks():
            task.cancel()
        for transport in self._transports:
            transport.abort()

    def _note_transports(self) -> None:
        # A closed connection forgets its transport, which may still wait for a frozen broker.
        writers = [connection._writer for connection in self._client._conns.values()]
        self._transports += [writer.transport for writer in writers if writer is not None]
