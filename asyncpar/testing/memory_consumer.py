"""A consumer on the in-memory broker: all of `asyncpar.ports.Consumer`, as the one on aiokafka behaves.

Lives here: the order of a start and of a stop, committed offsets, bounds of logs. Never here: fetching
(`memory_fetch`), membership (`memory_member`). Made by `MemoryBroker.consumer`, called by the runtime, on
the event loop. Always: a freshly assigned partition delivers nothing before a seek; times are the running
loop's, which are `time.monotonic()` on a real one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Literal

from asyncpar.adapters.aiokafka_config import ClientConfig, consumer_options
from asyncpar.adapters.aiokafka_errors import commit_answer, no_right_on_group, no_right_on_topic
from asyncpar.adapters.aiokafka_offsets import LONGEST_STRING_BYTES
from asyncpar.errors import (
    AsyncparError,
    AuthorizationError,
    BrokerError,
)
from asyncpar.ports import AssignmentListener, Subscription
from asyncpar.records import Chunk, CommitAnswer, Committed, GroupToken, TopicPartition
from asyncpar.testing.memory_broker import MemoryBroker
from asyncpar.testing.memory_connection import BACKOFF_SECONDS, MemoryConnection, dial, unreachable
from asyncpar.testing.memory_fetch import MemoryFetch
from asyncpar.testing.memory_group import MemoryGroup
from asyncpar.testing.memory_link import Code, LinkError, RefusedError
from asyncpar.testing.memory_member import MemoryMember
from asyncpar.testing.memory_metadata import MemoryMetadata

CLEANUP_SECONDS = 3.0
# At most, in seconds; with less time each gets its share.
_LEAVE_SECONDS, _STOP_SECONDS, _CANCEL_SECONDS = 1.0, 3.0, 1.0
_WHOLE = 6.0

Bounds = dict[TopicPartition, tuple[int, int]]


class MemoryConsumer:
    """`asyncpar.ports.Consumer` over a `MemoryBroker`. Single-use: start once, stop once.

    `name` is what the broker's link and faults know it by. `cooperative`: a rebalance takes only what moves,
    `revoked` names that alone and `assigned` only what is new.
    """

    def __init__(
        self, broker: MemoryBroker, group: str, name: str, config: ClientConfig, *, cooperative: bool = False
    ) -> None:
        self.name = name
        self._broker = broker
        self._group = group
        self._config = config
        self._sees_committed = config.isolation_level == "read_committed"
        timeout_s = config.request_timeout_ms / 1000
        protocol = "cooperative" if cooperative else _assignor(config)
        self._connection = MemoryConnection(broker, group, name, timeout_s)
        self._fetch = MemoryFetch(broker, name, self._sees_committed, timeout_s, self._check_group)
        self._metadata = MemoryMetadata(broker, self._connection, config)
        self._member = MemoryMember(self._connection, name, config, protocol, self._metadata, self._fetch)
        self._is_started = False
        self._is_stopping = False

    @property
    def member_id(self) -> str:
        """The id that the group knows it by, for `MemoryBroker.kick`; empty while it is no member."""
        return self._member.token.member_id

    def _check_group(self) -> None:
        self._member.check()

    # -- membership --------------------------------------------------------------------------

    async def start(self, subscription: Subscription, listener: AssignmentListener) -> None:
        """Connect and subscribe; see the port."""
        self._metadata.subscription = subscription
        try:
            await self._connect(asyncio.get_running_loop().time() + self._config.startup_timeout_ms / 1000)
            await self._metadata.require(subscription.topics)
            await self._metadata.refresh()
        except BaseException:
            await self.stop(CLEANUP_SECONDS)
            raise
        self._member.start(listener)
        self._is_started = True

    async def _connect(self, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await dial(self._broker, self.name, self._config.request_timeout_ms / 1000)
                await self._connection.find_coordinator()
        except TimeoutError:
            raise unreachable(self._config.startup_timeout_ms) from None

    def lease_from(self) -> float:
        """When the last Heartbeat or SyncGroup that was answered well was sent; -inf before."""
        return self._member.clock.lease_from

    def drain_deadline(self) -> float:
        """The latest moment at which a revoke that runs now may return; good heartbeats move it on."""
        return self._member.clock.drain_deadline()

    def failure(self) -> BaseException | None:
        """Why this consumer is dead, or None."""
        return self._member.dead if self._is_started and not self._is_stopping else None

    def break_down(self, reason: str) -> None:
        """Die of a fault of the client: no heartbeats any more, and `failure` says why."""
        self._member.break_down(reason)

    async def stop(self, timeout_s: float) -> None:
        """Leave (static members do not) and close within about `timeout_s`; a second call does nothing."""
        if self._is_stopping:
            return
        self._is_stopping = True
        share = min(timeout_s / _WHOLE, 1.0)
        try:
            if self._config.group_instance_id is None:
                with contextlib.suppress(LinkError, RefusedError, TimeoutError):
                    async with asyncio.timeout(share * _LEAVE_SECONDS):
                        await self._member.leave()
        finally:
            self._connection.close()
            await self._member.stop(share * _STOP_SECONDS, share * _CANCEL_SECONDS)
            await self._fetch.close()

    # -- records -----------------------------------------------------------------------------

    async def fetch(
        self,
        wanted: Sequence[TopicPartition],
        max_records: int,
        timeout_ms: int,
        max_per_partition: int | None = None,
    ) -> list[Chunk]:
        """Records of `wanted`; see the port. [] once stopped."""
        return await self._fetch.fetch(wanted, max_records, timeout_ms, max_per_partition)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """The next fetch of `partition` starts at `offset`."""
        self._fetch.seek(partition, offset)

    def position(self, partition: TopicPartition) -> int | None:
        """The next offset that a fetch would deliver; None while it waits for a seek, or is not ours."""
        return self._fetch.position(partition)

    # -- offsets -----------------------------------------------------------------------------

    async def committed(
        self, partitions: Collection[TopicPartition]
    ) -> dict[TopicPartition, Committed | None]:
        """What the group has committed; see the port."""
        if not partitions:
            return {}
        found = await self._read_offsets()
        return {tp: found.get(tp) for tp in partitions}

    async def has_commits(self) -> bool:
        """Whether the group has a commit in one of its topics. Raises BrokerError, AuthorizationError."""
        return any(self._is_ours(tp.topic) for tp in await self._read_offsets())

    def _is_ours(self, topic: str) -> bool:
        subscription = self._metadata.subscription
        pattern = subscription.pattern
        return topic in subscription.topics or (pattern is not None and pattern.fullmatch(topic) is not None)

    async def _read_offsets(self) -> dict[TopicPartition, Committed]:
        what = f"reading committed offsets of group {self._group!r} failed"
        try:
            async with asyncio.timeout(self._config.request_timeout_ms / 1000):
                await self._connection.find_coordinator()
                return await self._connection.ask(
                    "OffsetFetch", lambda group: dict(group.offsets), bounded=True
                )
        except (LinkError, TimeoutError) as error:
            raise BrokerError(f"{what}: {str(error) or 'no answer in time'}") from error
        except RefusedError as refused:
            if refused.code is Code.GROUP_AUTHORIZATION_FAILED:
                raise no_right_on_group(self._group) from refused
            if refused.code is Code.TOPIC_AUTHORIZATION_FAILED:
                raise no_right_on_topic("of the group") from refused
            raise BrokerError(f"{what}: the broker answered {refused}") from refused

    async def commit(
        self, token: GroupToken, offsets: Mapping[TopicPartition, Committed], timeout_s: float
    ) -> dict[TopicPartition, CommitAnswer]:
        """One attempt bound to `token`; see the port."""
        if token.generation < 0 or not token.member_id:
            return dict.fromkeys(offsets, CommitAnswer.STALE)
        answers = dict.fromkeys(offsets, CommitAnswer.METADATA_TOO_LARGE)
        sent = {tp: committed for tp, committed in offsets.items() if _fits(committed.metadata)}
        if sent:
            answers.update(await self._commit(token, sent, timeout_s))
        return answers

    async def _commit(
        self, token: GroupToken, offsets: Mapping[TopicPartition, Committed], timeout_s: float
    ) -> dict[TopicPartition, CommitAnswer]:
        try:
            async with asyncio.timeout(timeout_s):
                await self._connection.find_coordinator()
                codes = await self._connection.ask(
                    "OffsetCommit", partial(self._store, token, offsets), bounded=True
                )
        except RefusedError as refused:
            answer = commit_answer(refused.code)
            # Cooperative members hold on to partitions over generations: ask again with the present one.
            is_outrun = answer is CommitAnswer.STALE and self._member.sent_as(token) != token
            return dict.fromkeys(offsets, CommitAnswer.RETRY if is_outrun else answer)
        except AuthorizationError:
            return dict.fromkeys(offsets, CommitAnswer.FORBIDDEN)
        except (LinkError, TimeoutError):
            return dict.fromkeys(offsets, CommitAnswer.RETRY)
        return {tp: commit_answer(code or 0) for tp, code in codes.items()}

    def _store(
        self, token: GroupToken, offsets: Mapping[TopicPartition, Committed], group: MemoryGroup
    ) -> dict[TopicPartition, Code | None]:
        return self._broker.commit(group, self._member.sent_as(token), offsets)

    # -- bounds of logs ----------------------------------------------------------------------

    async def beginning(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """First offsets that exist. Raises BrokerError."""
        return {tp: begin for tp, (begin, _) in (await self._bounds(partitions)).items()}

    async def end(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """Ends: the last stable offset under read_committed, else the log end. Raises BrokerError."""
        return {tp: end for tp, (_, end) in (await self._bounds(partitions)).items()}

    async def _bounds(self, partitions: Collection[TopicPartition]) -> Bounds:
        for tp in partitions:
            if tp.partition >= self._metadata.counts.get(tp.topic, 0):
                raise BrokerError(f"the leader of {tp} is not known (yet)")

        def serve() -> Bounds:
            return {tp: self._broker.bounds(tp, self._sees_committed) for tp in partitions}

        return await self._patiently("reading the bounds of partitions", serve)

    async def _patiently(self, what: str, serve: Callable[[], Bounds]) -> Bounds:
        """Ask until it is answered, for as long as a request may take; the client does the same."""
        why: AsyncparError | Exception = TimeoutError("no answer in time")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.request_timeout_ms / 1000):
                while True:
                    try:
                        return await self._connection.ask_any("ListOffsets", serve)
                    except (LinkError, RefusedError) as error:
                        if isinstance(error, RefusedError) and error.code is Code.TOPIC_AUTHORIZATION_FAILED:
                            raise no_right_on_topic("of the group") from error
                        why = error
                    await asyncio.sleep(BACKOFF_SECONDS)
        raise BrokerError(f"{what} of group {self._group!r} failed: {why}")

    def end_seen(self, partition: TopicPartition) -> tuple[int | None, int | None]:
        """`(high watermark, last stable offset)` of the last fetch of it; no request."""
        return self._fetch.end_seen(partition)


def _assignor(config: ClientConfig) -> Literal["range", "roundrobin"]:
    (strategy,) = consumer_options(config, "")["partition_assignment_strategy"]
    return "range" if strategy.name == "range" else "roundrobin"


def _fits(metadata: str) -> bool:
    """Whether the protocol can carry `metadata`; the broker's own, smaller limit is the broker's to apply."""
    try:
        return len(metadata.encode()) <= LONGEST_STRING_BYTES
    except UnicodeEncodeError:  # a lone surrogate
        return False
