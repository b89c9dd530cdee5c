"""What the runtime asks of the world, in our words. Adapters provide it; nothing else crosses.

`runtime` and `adapters` meet here only. One consumer object provides all of `Consumer`, but each
part of the runtime names the narrow face it uses. All methods run on the event loop. Times are
`time.monotonic()` seconds. Errors are those of `asyncpar.errors`, translated at the border.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

from asyncpar.errors import PublishError
from asyncpar.records import (
    Chunk,
    CommitAnswer,
    Committed,
    GroupToken,
    OutgoingRecord,
    TopicPartition,
)


@dataclass(frozen=True, slots=True)
class Subscription:
    """What one group reads: exact names, or one compiled union when a pattern takes part.

    `pattern` is None, or a full-match regular expression that also covers `topics`.
    """

    topics: frozenset[str]
    pattern: re.Pattern[str] | None = None


class AssignmentListener(Protocol):
    """Told by the consumer what it was given and what is taken away. Never raises."""

    def assigned(self, partitions: frozenset[TopicPartition], token: GroupToken) -> None:
        """The group gave us `partitions`. Synchronous: mark and return, read offsets later.

        What we hold already and is not among them stays ours. What is held and named again was not
        revoked: it counts as lost first.
        """

    async def revoked(self, partitions: frozenset[TopicPartition]) -> None:
        """The group takes `partitions` back; commits with the old token are good until return.

        Must return before `Membership.drain_deadline()`.
        """

    def lost(self, partitions: frozenset[TopicPartition]) -> None:
        """`partitions` belong to others already: no drain, no commit."""


class RecordSource(Protocol):
    """Where records come from. Only the poller calls `fetch`, one call at a time, never cancelled."""

    async def fetch(
        self,
        wanted: Sequence[TopicPartition],
        max_records: int,
        timeout_ms: int,
        max_per_partition: int | None = None,
    ) -> list[Chunk]:
        """Records of `wanted` only, `max_records` at most in all; [] when nothing came in time.

        `max_per_partition`: no more than that of any one of them; None: as many as there is room for.

        With an empty `wanted` it keeps the member alive for up to `timeout_ms` and returns [].
        It may wait longer than `timeout_ms` while the group rebalances.

        Raises OffsetOutOfRangeError, FetchError (seek back and go on), AuthorizationError and
        ConfigurationError (final).
        """

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """The next fetch of `partition` starts at `offset`. Ignored when it is not assigned."""

    def position(self, partition: TopicPartition) -> int | None:
        """The next offset that a fetch would deliver (past markers and aborted records).

        None while it is not known. Everything below it was returned by an earlier `fetch`.
        """


class OffsetStore(Protocol):
    """The group's committed offsets."""

    async def committed(
        self, partitions: Collection[TopicPartition]
    ) -> dict[TopicPartition, Committed | None]:
        """One request; None where the group has no commit. Raises BrokerError, AuthorizationError.

        An error of the whole answer raises: it never reads as "nothing committed".
        """

    async def commit(
        self, token: GroupToken, offsets: Mapping[TopicPartition, Committed], timeout_s: float
    ) -> dict[TopicPartition, CommitAnswer]:
        """One attempt, one request, bound to `token`. Never raises but for cancellation.

        An answer for every partition; RETRY when the outcome is not known.
        """

    async def has_commits(self) -> bool:
        """True when the group has a commit for any partition of its topics."""


class LogBounds(Protocol):
    """Where a partition's log begins and ends."""

    async def beginning(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """First offsets that exist. Raises BrokerError, AuthorizationError."""

    async def end(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """Ends: the last stable offset under read_committed, else the log end.

        Raises BrokerError, with its `partitions` where it failed for some only, and AuthorizationError.
        """

    def end_seen(self, partition: TopicPartition) -> tuple[int | None, int | None]:
        """`(high watermark, last stable offset)` of the last fetch of it; no request; None unknown."""


class Membership(Protocol):
    """The consumer's life as a member of its group."""

    async def start(self, subscription: Subscription, listener: AssignmentListener) -> None:
        """Connect and subscribe; the first assignment comes through `listener`.

        Raises BrokerUnreachableError, AuthenticationError, AuthorizationError, UnknownTopicError.
        """

    def lease_from(self) -> float:
        """When the last Heartbeat or SyncGroup that was answered well was sent; -inf before."""

    def drain_deadline(self) -> float:
        """The latest moment at which a revoke that runs now may return without being removed."""

    def failure(self) -> BaseException | None:
        """Why this consumer is dead (a task of the client ended), or None while it lives."""

    async def stop(self, timeout_s: float) -> None:
        """Leave the group and close, within about `timeout_s`, also with the broker down. Never raises."""


class Consumer(RecordSource, OffsetStore, LogBounds, Membership, Protocol):
    """One member of one group: what an adapter provides. Single-use: start once, stop once."""


Late: TypeAlias = Callable[[PublishError], None]
"""Hears why a record is not acknowledged yet."""


class Producer(Protocol):
    """Writes records: idempotent, acknowledged by all replicas in sync, bounded in time."""

    async def start(self) -> None:
        """Connect. Raises BrokerUnreachableError, AuthenticationError, AuthorizationError."""

    async def send(
        self, record: OutgoingRecord, timeout_s: float, late: Late | None = None
    ) -> tuple[TopicPartition, int]:
        """Write one record; where it is, once acknowledged. Concurrent calls share requests.

        Records of one key that are sent one after another (each awaited) lie in that order. Raises
        PublishError, at the latest after about `timeout_s`; then the record may be there or not. With `late`
        a record that may be there is not given up, since sending it anew would double it: it is repeated as
        it is for as long as it takes, and `late` is called about every `timeout_s`.
        """

    async def partition_count(self, topic: str, timeout_s: float) -> int | None:
        """How many partitions `topic` has; None when it does not exist. Never creates it.

        Raises PublishError.
        """

    async def stop(self, timeout_s: float) -> None:
        """Close, within about `timeout_s`, also with the broker down. Never raises."""


class ProducerFactory(Protocol):
    """Makes a fresh producer."""

    def __call__(self) -> Producer: ...


class ConsumerFactory(Protocol):
    """Makes a fresh consumer for a group, at start and whenever one must be replaced."""

    def __call__(self, group: str) -> Consumer: ...


class Claim(enum.Enum):
    """What a store of de-duplication answers to who wants to work on a key."""

    NEW = "new"
    """Yours from now on: not done, and nobody else holds it."""
    DONE = "done"
    """Done before, and still remembered."""
    HELD = "held"
    """Somebody else's: it runs there now, or its owner died and the lease has not run out yet."""


class Claimed(NamedTuple):
    """The answer to a claim. `lease_left_ms` is what is left of the other owner's lease; 0 unless HELD."""

    claim: Claim
    lease_left_ms: int = 0


class DeduplicationStore(Protocol):
    """Remembers which keys are done, and who works on which one. Shared by as many processes as use it.

    Each method is one atomic step, and can be repeated: with the same owner it has the same effect and
    answer. Times run on the store's own clock. Any Exception means that nobody knows whether the step was
    taken. A call that is cancelled ends promptly.
    """

    async def claim(self, key: bytes, owner: bytes, lease_ms: int) -> Claimed:
        """Take `key` for `lease_ms`, unless it is done or another owner's lease still runs."""

    async def done(self, key: bytes, owner: bytes, ttl_ms: int) -> bool:
        """Remember `key` as done for `ttl_ms`. False, and nothing changed: it is another owner's by now.

        Also True for an owner whose lease ran out, while nobody has taken the key over.
        """

    async def release(self, key: bytes, owner: bytes) -> None:
        """Give `key` back, not done. Nothing happens when it is not `owner`'s, or is done."""

    async def close(self) -> None:
        """Let go of connections; bounded, never raises. A later call connects again."""
