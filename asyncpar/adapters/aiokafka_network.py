"""The inside of one consumer's network client: `ClientNetwork` makes it ask less and survive more.

Lives here: connections, metadata requests, the time-out of a JoinGroup, the lookup of the coordinator. Never
here: the group, positions, records (`aiokafka_private`). Made by `ClientInternals`, called by the other
aiokafka files through it. Always: patches are made on one client's own object, so that other clients of the
process keep theirs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from aiokafka import TopicPartition
from aiokafka.client import ConnectionGroup
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import KafkaConnectionError, NodeNotReadyError, RequestTimedOutError
from aiokafka.protocol.group import JoinGroupRequest
from aiokafka.protocol.metadata import MetadataRequest

from asyncpar.adapters.aiokafka_errors import one_line
from asyncpar.adapters.aiokafka_shape import require_parts

# The broker answers a JoinGroup when every other member has given its partitions back, and the slowest of
# them decides: Java clients allow themselves 5 minutes.
JOIN_TIMEOUT_SECONDS = 300.0
# While a partition has no leader the client asks for metadata as fast as it is answered: thousands of times a
# second. Java clients wait this long in between.
METADATA_SPACING_SECONDS = 0.1

log = logging.getLogger(__name__)


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


class ClientNetwork:
    """The network client of one consumer, patched when this is made.

    `before_join` is called before each JoinGroup is sent; what it raises is raised in its place.
    """

    def __init__(self, client: Any, before_join: Callable[[], None]) -> None:
        self._client = client
        self._before_join = before_join
        self._transports: list[Any] = []
        require_parts(client)
        require_parts(AIOKafkaConnection("", 0))
        self._patch()

    def _patch(self) -> None:
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
                return await self._join(node_id, request, group)
            return await send(node_id, request, group=group)

        async def retried_lookup(kind: Any, key: str) -> Any:
            # A connection that breaks under this request is "not retriable" to the client: its heartbeats
            # would end for good, with nobody told.
            if client.get_random_node() is None:
                # A broker that starts answers with no broker at all: the client takes that for a defect.
                raise NodeNotReadyError("no broker of the cluster is known yet")
            try:
                return await lookup(kind, key)
            except KafkaConnectionError as err:
                raise NodeNotReadyError(f"connection lost while looking for the coordinator: {err}") from err

        client._get_conn = modest_connect
        client._metadata_update = spaced_update
        client.send = patient_send
        client.coordinator_lookup = retried_lookup

    async def _join(self, node_id: Any, request: Any, group: Any) -> Any:
        client = self._client
        self._before_join()
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

    async def refresh_metadata(self) -> None:
        """Ask for metadata now and wait for the answer."""
        await self._client.force_metadata_update()

    def demand_metadata(self) -> None:
        """Have metadata asked for soon, and do not wait for the answer."""
        self._client.force_metadata_update()

    async def ask_any(self, request: Any) -> Any:
        """Send `request` to a random broker. Raises the client's KafkaError."""
        node = self._client.get_random_node()
        if node is None:
            raise NodeNotReadyError("no broker is known")
        return await self._client.send(node, request)

    def leader_of(self, partition: tuple[str, int]) -> int | None:
        """The node that leads `partition` as far as metadata says; -1: nobody for now, None: not known."""
        leader: int | None = self._client.cluster.leader_for_partition(TopicPartition(*partition))
        return leader

    async def close(self) -> None:
        """Close all connections and wait until they are."""
        self._note_transports()
        await self._client.close()

    def abort(self) -> None:
        """Cut the sockets that are left. Does not wait and does not raise."""
        self._note_transports()
        for transport in self._transports:
            transport.abort()

    def _note_transports(self) -> None:
        # A closed connection forgets its transport, which may still wait for a frozen broker.
        writers = [connection._writer for connection in self._client._conns.values()]
        self._transports += [writer.transport for writer in writers if writer is not None]
