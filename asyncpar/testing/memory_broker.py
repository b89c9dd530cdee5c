"""A Kafka cluster in memory: topics, groups, and faults on request.

Lives here: what the brokers hold (logs, groups, committed offsets), what they answer, and the calls by
which a test sends records and makes things go wrong. Never here: a consumer's side (`memory_consumer`).
Called by tests and simulations, and by the consumers it made. Always: nothing here waits; a change
tells those who wait for it.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from asyncpar.ports import ConsumerFactory, ProducerFactory
from asyncpar.records import Committed, GroupToken, RawRecord, TopicPartition
from asyncpar.testing.history import Recorder
from asyncpar.testing.memory_group import MemoryGroup
from asyncpar.testing.memory_link import REQUESTS, Code, Link, LinkError, RefusedError, Request, direct
from asyncpar.testing.memory_topics import MemoryTopics

if TYPE_CHECKING:
    from asyncpar.adapters.aiokafka_config import ClientConfig
    from asyncpar.testing.memory_consumer import MemoryConsumer
    from asyncpar.testing.memory_producer import MemoryProducer

T = TypeVar("T")

DISCONNECT = "DISCONNECT"
"""For `fail`: the request is lost together with its connection, the broker never saw it."""
LOST_ANSWER = "LOST_ANSWER"
"""For `fail`: the broker does what was asked, and its answer is lost together with the connection."""


class Fetched(NamedTuple):
    """The answer about one partition of a Fetch; `code` is None when it went well."""

    code: Code | None
    records: list[RawRecord]
    next_offset: int
    has_more: bool
    high_watermark: int
    last_stable_offset: int


class _Fault(NamedTuple):
    error: Code | str
    member: str | None


class MemoryBroker(MemoryTopics):
    """A cluster in one object. `link` carries every request, `recorder` notes what is sent.

    `metadata_max_bytes` is the broker's `offset.metadata.max.bytes`, `initial_rebalance_delay_ms` its
    `group.initial.rebalance.delay.ms`; `wall` gives the timestamps of records, in seconds since the epoch.
    """

    def __init__(
        self,
        *,
        link: Link = direct,
        recorder: Recorder | None = None,
        metadata_max_bytes: int = 4096,
        initial_rebalance_delay_ms: int = 0,
        wall: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(recorder, wall)
        self.link = link
        self.metadata_max_bytes = metadata_max_bytes
        self._initial_rebalance_delay_ms = initial_rebalance_delay_ms
        self._groups: dict[str, MemoryGroup] = {}
        self._coordinators: dict[str, int] = {}
        self._loading: set[str] = set()
        self._faults: dict[Request, list[_Fault]] = {}
        self._made_consumers = 0
        self._made_producers = 0

    # -- consumers ---------------------------------------------------------------------------

    def consumer(
        self, group: str, name: str = "", config: ClientConfig | None = None, *, cooperative: bool = False
    ) -> MemoryConsumer:
        """A consumer of `group`: `asyncpar.ports.Consumer`, made and configured like the one on aiokafka.

        `name` is how the link and `fail` know it, and what its member ids begin with; made up if empty.
        `cooperative`: only partitions that move are revoked, the others go on.
        """
        from asyncpar.adapters.aiokafka_config import ClientConfig
        from asyncpar.testing.memory_consumer import MemoryConsumer

        self._made_consumers += 1
        name = name or f"consumer-{self._made_consumers}"
        return MemoryConsumer(self, group, name, config or ClientConfig(), cooperative=cooperative)

    def consumers(
        self, name: str = "", config: ClientConfig | None = None, *, cooperative: bool = False
    ) -> ConsumerFactory:
        """Makes such consumers for a runtime, which replaces one that died by the next one."""
        return lambda group: self.consumer(group, name, config, cooperative=cooperative)

    # -- producers ---------------------------------------------------------------------------

    def producer(self, name: str = "", config: ClientConfig | None = None) -> MemoryProducer:
        """A producer: `asyncpar.ports.Producer`, made and configured like the one on aiokafka.

        `name` is how the link and `fail` know it; made up if empty.
        """
        from asyncpar.adapters.aiokafka_config import ClientConfig
        from asyncpar.testing.memory_producer import MemoryProducer

        self._made_producers += 1
        return MemoryProducer(self, name or f"producer-{self._made_producers}", config or ClientConfig())

    def producers(self, name: str = "", config: ClientConfig | None = None) -> ProducerFactory:
        """Makes such producers for a runtime."""
        return lambda: self.producer(name, config)

    # -- groups ------------------------------------------------------------------------------

    def group(self, group: str) -> MemoryGroup:
        """The coordinator's state of `group`, to look at."""
        found = self._groups.get(group)
        if found is None:
            found = self._groups[group] = MemoryGroup(group, self._initial_rebalance_delay_ms / 1000)
        return found

    def committed(self, group: str) -> dict[TopicPartition, Committed]:
        """What `group` has committed."""
        return dict(self.group(group).offsets)

    def delete_topic(self, topic: str) -> None:
        """Forget `topic`, everything in it, and what groups have committed of it."""
        super().delete_topic(topic)
        for group in self._groups.values():
            for tp in [tp for tp in group.offsets if tp.topic == topic]:
                del group.offsets[tp]

    def store_offsets(self, group: str, offsets: Mapping[TopicPartition, Committed]) -> None:
        """Commit for `group` from outside, as Kafka's tools do. ValueError while it has members."""
        if self.group(group).members:
            raise ValueError(f"group {group!r} has members: its offsets are theirs to commit")
        self.group(group).offsets.update(offsets)

    # -- faults ------------------------------------------------------------------------------

    def down(self) -> None:
        """Every request is refused and every wait broken, until `up`. Logs and offsets are kept."""
        self.is_down = True
        for group in self._groups.values():
            group.unload(LinkError("the connection was lost: the broker went down"))

    def up(self) -> None:
        """Serve again: groups as their last finished rebalance left them, every session begins anew."""
        self.is_down = False
        for name, group in self._groups.items():
            if name not in self._loading:
                group.load()

    def move_coordinator(self, group: str, *, loading: bool = False) -> None:
        """Another broker takes `group` over: the old one refuses, clients have to look it up again.

        `loading`: the new one is not ready before `loaded(group)` and refuses as well.
        """
        self._coordinators[group] = self.coordinator_of(group) + 1
        found = self.group(group)
        found.unload(RefusedError(Code.NOT_COORDINATOR))
        if loading:
            self._loading.add(group)
        elif not self.is_down:
            found.load()

    def loaded(self, group: str) -> None:
        """The new coordinator of `group` is ready."""
        self._loading.discard(group)
        if not self.is_down:
            self.group(group).load()

    def kick(self, group: str, member_id: str) -> None:
        """Remove a member as an administrator does. Raises RefusedError when there is none of that id."""
        self.group(group).leave(member_id)

    def truncate(self, tp: TopicPartition, end: int) -> None:
        """Lose the log's tail from offset `end` on, as an unclean election does."""
        self.log(tp).truncate(end)

    def delete_records(self, tp: TopicPartition, before: int) -> None:
        """What retention does: no record below `before` exists any more. ValueError beyond the end."""
        self.log(tp).delete_before(before)

    def skip_offsets(self, tp: TopicPartition, count: int) -> None:
        """Leave a hole of `count` offsets at the end of the log."""
        self.log(tp).skip(count)

    def append_aborted(self, tp: TopicPartition, count: int) -> None:
        """Append `count` records of an aborted transaction, and its marker."""
        transaction = self.transaction()
        for _ in range(count):
            transaction.send(tp.topic, b"aborted", partition=tp.partition)
        transaction.abort()

    def fail(self, request: Request, error: Code | str, times: int = 1, member: str | None = None) -> None:
        """Answer the next `times` requests of that name (of client `member` only) with `error`.

        `error` is a Kafka error's name such as "NOT_COORDINATOR", or DISCONNECT, or LOST_ANSWER.
        ValueError for an unknown one, or an unknown request.
        """
        if request not in REQUESTS:
            raise ValueError(f"unknown request {request!r}: one of {', '.join(REQUESTS)}")
        known: Code | str = error
        if not isinstance(error, str):
            known = Code(error)
        elif error not in {DISCONNECT, LOST_ANSWER}:
            if error not in Code.__members__:
                near = difflib.get_close_matches(error, [*Code.__members__, DISCONNECT, LOST_ANSWER], n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ValueError(f"unknown error {error!r}{hint}")
            known = Code[error]
        self._faults.setdefault(request, []).extend([_Fault(known, member)] * times)

    # -- what clients ask --------------------------------------------------------------------

    async def ask(self, request: Request, member: str, serve: Callable[[], T]) -> T:
        """One request of client `member` over the link. Raises LinkError, RefusedError."""
        return await self.link(request, member, partial(self._serve, request, member, serve))

    def _serve(self, request: Request, member: str, serve: Callable[[], T]) -> T:
        if self.is_down:
            raise LinkError("connection refused: the broker is down")
        if self._faults and (fault := self._next_fault(request, member)) is not None:
            if fault == LOST_ANSWER:
                serve()
                raise LinkError("the connection was lost before the answer came")
            if isinstance(fault, Code):
                raise RefusedError(fault)
            raise LinkError("the connection was lost")
        return serve()

    def _next_fault(self, request: Request, member: str) -> Code | str | None:
        waiting = self._faults.get(request)
        if not waiting:
            return None
        for at, fault in enumerate(waiting):
            if fault.member is None or fault.member == member:
                del waiting[at]
                return fault.error
        return None

    def coordinator_of(self, group: str) -> int:
        """FindCoordinator: the node that coordinates `group`."""
        return self._coordinators.get(group, 0)

    def coordinated(self, group: str, node: int) -> MemoryGroup:
        """`group`, for a request sent to `node`. Raises RefusedError: not its coordinator, or not yet."""
        if node != self.coordinator_of(group):
            raise RefusedError(Code.NOT_COORDINATOR)
        if group in self._loading:
            raise RefusedError(Code.COORDINATOR_LOAD_IN_PROGRESS)
        return self.group(group)

    def commit(
        self, group: MemoryGroup, token: GroupToken, offsets: Mapping[TopicPartition, Committed]
    ) -> dict[TopicPartition, Code | None]:
        """OffsetCommit: a code for each partition, None where it is stored. Raises RefusedError."""
        group.check_commit(token)
        answers: dict[TopicPartition, Code | None] = {}
        for tp, committed in offsets.items():
            # The limit counts what Java calls characters: units of UTF-16.
            if len(committed.metadata.encode("utf-16-le")) // 2 > self.metadata_max_bytes:
                answers[tp] = Code.OFFSET_METADATA_TOO_LARGE
            elif tp.partition >= len(self._topics.get(tp.topic, ())):
                answers[tp] = Code.UNKNOWN_TOPIC_OR_PARTITION
            else:
                group.offsets[tp] = committed
                answers[tp] = None
        return answers

    def fetch(
        self, asked: Collection[tuple[TopicPartition, int]], max_records: int, committed: bool
    ) -> dict[TopicPartition, Fetched]:
        """Fetch: of each partition `max_records` at most, from its position on."""
        return {tp: self._fetch_one(tp, position, max_records, committed) for tp, position in asked}

    def _fetch_one(self, tp: TopicPartition, position: int, max_records: int, committed: bool) -> Fetched:
        logs = self._topics.get(tp.topic, ())
        if tp.partition >= len(logs):
            return Fetched(Code.UNKNOWN_TOPIC_OR_PARTITION, [], position, True, -1, -1)
        log = logs[tp.partition]
        stable = log.last_stable_offset
        if not log.has(position):
            return Fetched(Code.OFFSET_OUT_OF_RANGE, [], position, True, log.end, stable)
        found = log.read(position, max_records, committed)
        has_more = found.next_offset < (stable if committed else log.end)
        return Fetched(None, found.records, found.next_offset, has_more, log.end, stable)

    def bounds(self, tp: TopicPartition, committed: bool) -> tuple[int, int]:
        """ListOffsets: where the log begins, and where it ends for that isolation. Raises RefusedError."""
        logs = self._topics.get(tp.topic, ())
        if tp.partition >= len(logs):
            raise RefusedError(Code.UNKNOWN_TOPIC_OR_PARTITION)
        log = logs[tp.partition]
        return log.start, log.last_stable_offset if committed else log.end
