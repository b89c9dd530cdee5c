"""The private parts of aiokafka that we lean on: `ClientInternals`, the inside of one consumer.

Lives here: its coordinator, its positions and buffers, its end; its network client is beside it
(`aiokafka_network`), and no other file touches private parts. Never here: decisions about offsets, errors or
time-outs. Called by the other aiokafka files. Always: the parts are checked first (`aiokafka_shape`), and
patches are made on one consumer's own objects, so that other clients of the process keep theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Collection, Iterable
from typing import Any

from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.client import ConnectionGroup
from aiokafka.consumer.subscription_state import TopicPartitionState
from aiokafka.errors import (
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    KafkaError,
    TopicAuthorizationFailedError,
)
from aiokafka.protocol.group import HeartbeatRequest, LeaveGroupRequest, SyncGroupRequest

from asyncpar.adapters.aiokafka_chunks import Chunks, is_known_client
from asyncpar.adapters.aiokafka_errors import FencedInstanceIdError
from asyncpar.adapters.aiokafka_lease import MembershipClock
from asyncpar.adapters.aiokafka_network import ClientNetwork
from asyncpar.adapters.aiokafka_shape import require_parts

_GROUP_LOADING, _UNKNOWN_MEMBER, _FENCED_INSTANCE = 14, 25, 82


class _FullMatch:
    """A pattern as the client uses one, but matching whole names: the client calls `match`."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self._pattern = pattern

    def match(self, topic: str) -> bool:
        return self._pattern.fullmatch(topic) is not None


class ClientInternals:
    """The inside of one consumer. Made before it starts; `attach` once it has started."""

    def __init__(self, consumer: Any, group: str) -> None:
        self._consumer = consumer
        self._group = group
        self._fetcher: Any = None
        self._coordinator: Any = None
        self._fetch_bytes = (0, 0)
        """What the settings allow of one partition in an answer, and of all."""
        self._shares = 1
        self._counts: dict[str, int] = {}
        self._fenced: FencedInstanceIdError | None = None
        require_parts(consumer)
        self._client = consumer._client
        self._subscription = consumer._subscription
        require_parts(self._subscription)
        require_parts(TopicPartitionState(None))
        self.network = ClientNetwork(self._client, self._check_join)

    # --- start

    def _check_join(self) -> None:
        if self._fenced is not None:
            # Joining would take the id back from its new holder, who would take it back from us, for ever.
            self._subscription.abort_waiters(self._fenced)
            raise self._fenced

    def attach(self, clock: MembershipClock, *, client_records: bool) -> None:
        """Take hold of the fetcher and the coordinator, which exist since the consumer's start().

        `client_records`: records stay as the client makes them, also where they could be read directly.
        """
        self._fetcher, self._coordinator = self._consumer._fetcher, self._consumer._coordinator
        require_parts(self._fetcher)
        require_parts(self._coordinator)
        self._fetch_bytes = self._fetcher._max_partition_fetch_bytes, self._fetcher._fetch_max_bytes
        if is_known_client() and not client_records:
            self._fetcher._records = Chunks(self._fetcher._records)
        coordinator = self._coordinator
        send, wait = coordinator._send_req, self._subscription.wait_for_assignment
        requests = self._fetcher._get_actions_per_node

        def limited_requests(assignment: Any) -> Any:
            self._limit_answers()
            return requests(assignment)

        async def watched_send(request: Any) -> Any:
            sent = time.monotonic()
            response = await send(request)
            code = getattr(response, "error_code", None)
            if isinstance(request, HeartbeatRequest | SyncGroupRequest):
                clock.heard(sent, response.error_code)
            if isinstance(request, HeartbeatRequest) and code == _GROUP_LOADING:
                # The client has no branch for this answer: its heartbeats would end for good. Raised, it is
                # a request that failed, and is sent again.
                raise GroupLoadInProgressError(f"group {self._group} is being loaded")
            if await self._is_fenced(request, code, send):
                self._fenced = FencedInstanceIdError(coordinator._group_instance_id)
            return response

        def wait_unless_refused() -> Any:
            # A getmany that records have just woken comes here after the error that it should have heard of,
            # and would wait for an assignment that never comes. The fetch task must not take that error: it
            # drops it and asks again, without a pause.
            if asyncio.current_task() is not self._fetcher._fetch_task:
                self.check_errors()
            return wait()

        self._fetcher._get_actions_per_node = limited_requests
        coordinator._send_req = watched_send
        self._subscription.wait_for_assignment = wait_unless_refused
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

    async def find_coordinator(self) -> None:
        """Wait until the group's coordinator is known and connected. Raises the client's KafkaError."""
        await self._coordinator.ensure_coordinator_known()

    # --- requests

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

    def take_shares(self, shares: int) -> None:
        """Let the next answers have so many times `max_partition_fetch_bytes` of one partition.

        With more than 1 an answer as a whole is no larger, and it is asked for only while nothing is
        buffered: the client fetches for each partition that has nothing, whether or not anybody takes it.
        """
        self._shares = shares

    def _limit_answers(self) -> None:
        """For the requests that the client is about to build."""
        of_one, of_all = self._fetch_bytes
        if self._shares > 1 and not self._fetcher._records:
            of_one = of_all = min(of_all, self._shares * of_one)
        self._fetcher._max_partition_fetch_bytes, self._fetcher._fetch_max_bytes = of_one, of_all

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
        await self.network.close()

    def release_fetch(self) -> None:
        """End a getmany that waits for an assignment which will never come."""
        if self._fetcher is not None:
            self._subscription.abort_waiters(KafkaError("the consumer was stopped"))

    def abort(self) -> None:
        """What is left now is cut: tasks and sockets. Does not wait and does not raise."""
        for task in self.background_tasks():
            task.cancel()
        self.network.abort()
