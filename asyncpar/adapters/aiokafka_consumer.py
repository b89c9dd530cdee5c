"""One member of one group on aiokafka: what `asyncpar.ports.Consumer` asks for.

Lives here: the order of a start, what the group's callbacks become, and the port's methods over the files
beside it (`aiokafka_fetch`, `_offsets`, `_bounds`, `_bootstrap`, `_stop`, `_private`). Never here: decisions
about offsets, and private parts of the client. Called by the runtime, on the event loop. Always: a freshly
assigned partition is parked: nothing is fetched of it until the runtime has said from where.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as ClientPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.errors import KafkaError

from asyncpar.adapters.aiokafka_bootstrap import (
    TopicLookup,
    reach_a_server,
    unreachable,
    unusable,
)
from asyncpar.adapters.aiokafka_bounds import LeaderBounds
from asyncpar.adapters.aiokafka_config import ClientConfig, consumer_options
from asyncpar.adapters.aiokafka_errors import final_error, one_line
from asyncpar.adapters.aiokafka_fetch import FairFetch
from asyncpar.adapters.aiokafka_lease import MembershipClock
from asyncpar.adapters.aiokafka_offsets import GroupOffsets
from asyncpar.adapters.aiokafka_private import ClientInternals
from asyncpar.adapters.aiokafka_security import security_options
from asyncpar.adapters.aiokafka_shape import check_client
from asyncpar.adapters.aiokafka_stop import close_consumer
from asyncpar.errors import BrokerError, EngineError
from asyncpar.ports import AssignmentListener, Subscription
from asyncpar.records import Chunk, CommitAnswer, Committed, GroupToken, TopicPartition

# How long a start that failed may take to clean up.
CLEANUP_SECONDS = 3.0


class AiokafkaConsumer:
    """`asyncpar.ports.Consumer` over aiokafka. Single-use: start once, stop once.

    `config` says how to reach the cluster, `group` whose member this is. Nothing connects before `start`.
    """

    def __init__(self, config: ClientConfig, group: str) -> None:
        self._config = config
        self._group = group
        self._clock = MembershipClock(config.rebalance_timeout_ms / 1000)
        self._subscription = Subscription(frozenset())
        self._parked: set[tuple[str, int]] = set()
        self._stopping = False
        self._started = False
        # Made by start(): the client wants the running loop.
        self._consumer: Any = None
        self._inside: ClientInternals
        self._fetch: FairFetch
        self._offsets: GroupOffsets
        self._bounds: LeaderBounds

    # --- membership

    async def start(self, subscription: Subscription, listener: AssignmentListener) -> None:
        """Connect and subscribe; see the port. Raises ConfigurationError for settings that do not fit."""
        check_client()
        security = security_options(self._config)
        deadline = time.monotonic() + self._config.startup_timeout_ms / 1000
        self._subscription = subscription
        self._consumer = AIOKafkaConsumer(**consumer_options(self._config, self._group), **security)
        self._inside = ClientInternals(self._consumer, self._group)
        try:
            await self._connect(security, deadline)
            await self._find_topics(subscription.topics)
            await self._subscribe(subscription, _Relay(self, listener))
        except BaseException:
            await self.stop(CLEANUP_SECONDS)
            raise
        self._started = True

    async def _connect(self, security: dict[str, Any], deadline: float) -> None:
        self._inside.network.bootstrap_from(*await reach_a_server(self._config, security, deadline))
        try:
            async with asyncio.timeout_at(_loop_time(deadline)):
                await self._consumer.start()
                self._inside.attach(self._clock, client_records=self._config.client_records)
                await self._inside.find_coordinator()
        except TimeoutError as err:
            raise unreachable(
                self._config, f"the coordinator of group {self._group!r} did not answer"
            ) from err
        except (KafkaError, ValueError) as err:  # SCRAM raises ValueErrors
            why = f"finding the coordinator of group {self._group!r}: {one_line(err)}"
            raise final_error(err, self._group) or unusable(self._config, why) from err
        self._offsets = GroupOffsets(self._inside, self._group, self._config.request_timeout_ms / 1000)
        self._bounds = LeaderBounds(self._inside.network, self._group)
        self._fetch = FairFetch(self._consumer, self._inside, self._group, self._config.fetch_max_wait_ms)

    async def _find_topics(self, topics: Collection[str]) -> None:
        try:
            await TopicLookup(self._inside.network, self._config).require(topics)
        except BrokerError as err:
            raise unusable(self._config, one_line(err)) from err

    async def _subscribe(self, subscription: Subscription, relay: ConsumerRebalanceListener) -> None:
        if subscription.pattern is None:
            self._consumer.subscribe(topics=sorted(subscription.topics), listener=relay)
        else:
            self._inside.subscribe_pattern(subscription.pattern, relay)
        # Which topics match, and how many partitions they have, is known after this.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.request_timeout_ms / 1000):
                await self._inside.network.refresh_metadata()
        if self._config.group_instance_id is not None:
            self._inside.watch_partition_counts(subscription.topics)

    def lease_from(self) -> float:
        """When the last Heartbeat or SyncGroup answered 0 or 27 was sent; -inf before."""
        return self._clock.lease_from

    def drain_deadline(self) -> float:
        """The latest moment at which a revoke that runs now may return; good heartbeats move it on."""
        return self._clock.drain_deadline()

    def failure(self) -> BaseException | None:
        """Why this consumer is dead, or None."""
        if not self._started or self._stopping:
            return None
        dead = self._inside.dead_task()
        if dead is None:
            return None
        name, reason = dead
        if reason is None:
            return EngineError(f"the client's {name} ended without a reason")
        error = final_error(reason, self._group) or EngineError(
            f"the client's {name} died: {one_line(reason)}"
        )
        error.__cause__ = reason
        return error

    async def stop(self, timeout_s: float) -> None:
        """Leave (static members do not) and close within about `timeout_s`; a second call does nothing."""
        if self._consumer is None or self._stopping:
            return
        self._stopping = True
        leave = self._config.group_instance_id is None
        await close_consumer(self._consumer, self._inside, leave, timeout_s)

    def _is_stopping(self) -> bool:
        return self._stopping

    # --- what the group says

    def take_assignment(self, partitions: Iterable[tuple[str, int]]) -> GroupToken:
        """Park `partitions`, which are now ours, and return what commits are bound to. Synchronous."""
        # A position and a pause, in the same breath as the assignment: otherwise the client reads the
        # committed offset by itself, takes an error for "none", and every fetch raises.
        self._parked = set(partitions)
        for tp in self._parked:
            self._consumer.pause(tp)
            self._consumer.seek(tp, 0)
        if self._config.group_instance_id is not None:
            self._inside.watch_partition_counts(
                {topic for topic, _ in self._parked} | self._subscription.topics
            )
        return GroupToken(*self._inside.token())

    def is_member(self) -> bool:
        """Whether the group still counts us in, as far as we know."""
        generation, member_id = self._inside.token()
        return generation >= 0 and bool(member_id)

    # --- records

    async def fetch(
        self,
        wanted: Sequence[TopicPartition],
        max_records: int,
        timeout_ms: int,
        max_per_partition: int | None = None,
    ) -> list[Chunk]:
        """Records of `wanted`; see the port. [] once stopped."""
        if not self._is_stopping():
            try:
                return await self._fetch.fetch(wanted, max_records, timeout_ms, max_per_partition)
            except Exception:
                # A fetch that waited while the consumer was stopped ends with whatever the client raised.
                if not self._is_stopping():
                    raise
        await asyncio.sleep(timeout_ms / 1000)
        return []

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """The next fetch of `partition` starts at `offset`, which also unparks it."""
        if not self._inside.is_assigned(partition):
            return
        tp = ClientPartition(*partition)
        self._consumer.seek(tp, offset)
        if tp in self._parked:
            self._parked.discard(tp)
            self._consumer.resume(tp)

    def position(self, partition: TopicPartition) -> int | None:
        """The next offset that a fetch would deliver; None while `partition` is parked or not ours."""
        return None if partition in self._parked else self._inside.position(partition)

    # --- offsets

    async def committed(
        self, partitions: Collection[TopicPartition]
    ) -> dict[TopicPartition, Committed | None]:
        """What the group has committed; see the port."""
        return await self._offsets.committed(partitions)

    async def commit(
        self,
        token: GroupToken,
        offsets: Mapping[TopicPartition, Committed],
        timeout_s: float,
    ) -> dict[TopicPartition, CommitAnswer]:
        """One attempt bound to `token`; see the port."""
        return await self._offsets.commit(token, offsets, timeout_s)

    async def has_commits(self) -> bool:
        """Whether the group has a commit in one of its topics. Raises BrokerError, AuthorizationError."""
        return await self._offsets.has_commits(self._is_ours)

    def _is_ours(self, topic: str) -> bool:
        pattern = self._subscription.pattern
        return topic in self._subscription.topics or (
            pattern is not None and pattern.fullmatch(topic) is not None
        )

    # --- bounds of the log

    async def beginning(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """First offsets that exist. Raises BrokerError, AuthorizationError."""
        return await self._bounds.ask(self._consumer.beginning_offsets, partitions)

    async def end(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """Ends: the last stable offset under read_committed, else the log end; see the port."""
        return await self._bounds.ask(self._consumer.end_offsets, partitions)

    def end_seen(self, partition: TopicPartition) -> tuple[int | None, int | None]:
        """`(high watermark, last stable offset)` of the last fetch of it; no request."""
        return self._inside.end_seen(partition)


class _Relay(ConsumerRebalanceListener):  # type: ignore[misc]
    """The client's callbacks in the port's words."""

    def __init__(self, consumer: AiokafkaConsumer, listener: AssignmentListener) -> None:
        self._consumer = consumer
        self._listener = listener
        self._held: frozenset[TopicPartition] = frozenset()

    def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        # No heartbeats are sent before this returns.
        if self._held:
            # The client skipped a revoke: others may have had them meanwhile, those that are named again too.
            self._listener.lost(self._held)
        self._held = _ours(assigned)
        token = self._consumer.take_assignment(assigned)
        self._listener.assigned(self._held, token)

    async def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
        partitions = _ours(revoked)
        self._held -= partitions
        if not partitions:
            return  # the first join says so, and a member that had nothing
        if self._consumer.is_member():
            await self._listener.revoked(partitions)
        else:
            self._listener.lost(partitions)


def _ours(partitions: Iterable[Any]) -> frozenset[TopicPartition]:
    return frozenset(TopicPartition(*tp) for tp in partitions)


def _loop_time(moment: float) -> float:
    """`moment` of time.monotonic() on the clock of the running loop, which may be another one."""
    return moment - time.monotonic() + asyncio.get_running_loop().time()
