"""What passes between a client and the in-memory broker: requests by name, error codes, the link.

Lives here: the words that both sides speak. Never here: what a request does. Called by the other
`memory_*` files, and by a simulation that brings a link of its own. Always: all asynchrony between
the two sides goes through the link, so that a link can delay, lose, repeat or hold back any request.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from typing import Literal, Protocol, TypeVar, get_args

T = TypeVar("T")

Request = Literal[
    "Connect",
    "Metadata",
    "FindCoordinator",
    "JoinGroup",
    "SyncGroup",
    "Heartbeat",
    "LeaveGroup",
    "OffsetCommit",
    "OffsetFetch",
    "Fetch",
    "ListOffsets",
    "Produce",
]
"""The requests of consumers and producers, by Kafka's names; `Connect` is the first contact, with login."""

REQUESTS: tuple[Request, ...] = get_args(Request)


class Code(enum.IntEnum):
    """The error codes of Kafka's protocol that the in-memory broker answers, by name and number."""

    OFFSET_OUT_OF_RANGE = 1
    CORRUPT_MESSAGE = 2
    UNKNOWN_TOPIC_OR_PARTITION = 3
    LEADER_NOT_AVAILABLE = 5
    NOT_LEADER_OR_FOLLOWER = 6
    REQUEST_TIMED_OUT = 7
    MESSAGE_TOO_LARGE = 10
    OFFSET_METADATA_TOO_LARGE = 12
    COORDINATOR_LOAD_IN_PROGRESS = 14
    COORDINATOR_NOT_AVAILABLE = 15
    NOT_COORDINATOR = 16
    NOT_ENOUGH_REPLICAS = 19
    ILLEGAL_GENERATION = 22
    INCONSISTENT_GROUP_PROTOCOL = 23
    INVALID_GROUP_ID = 24
    UNKNOWN_MEMBER_ID = 25
    INVALID_SESSION_TIMEOUT = 26
    REBALANCE_IN_PROGRESS = 27
    INVALID_COMMIT_OFFSET_SIZE = 28
    TOPIC_AUTHORIZATION_FAILED = 29
    GROUP_AUTHORIZATION_FAILED = 30
    OUT_OF_ORDER_SEQUENCE_NUMBER = 45
    INVALID_PRODUCER_EPOCH = 47
    KAFKA_STORAGE_ERROR = 56
    SASL_AUTHENTICATION_FAILED = 58
    UNKNOWN_PRODUCER_ID = 59
    GROUP_ID_NOT_FOUND = 69
    MEMBER_ID_REQUIRED = 79
    FENCED_INSTANCE_ID = 82
    INVALID_RECORD = 87


class LinkError(Exception):
    """The request or its answer was lost: whether the broker did it, nobody knows."""


class RefusedError(Exception):
    """The broker answered `code`. `member_id` is the one to join with, for MEMBER_ID_REQUIRED."""

    def __init__(self, code: Code, member_id: str = "") -> None:
        super().__init__(f"{code.value} ({code.name})")
        self.code = code
        self.member_id = member_id


class Link(Protocol):
    """The way between a client and the broker.

    Awaited for each request of client `member` (its name): calls `serve` when the request arrives
    (not at all when it is lost, twice when it is repeated) and returns what it returned. Raises
    LinkError when request or answer is lost with the connection; waits for ever when nobody hears of
    it. JoinGroup and SyncGroup return a future of the broker: their answer comes later, without the link.
    """

    async def __call__(self, request: Request, member: str, serve: Callable[[], T]) -> T:
        """Carry one request there and its answer back."""
        ...


async def direct(request: Request, member: str, serve: Callable[[], T]) -> T:  # noqa: ARG001 - the Link's shape
    """A link on which nothing is ever lost, and everything arrives one step of the loop later."""
    await asyncio.sleep(0)
    return serve()


class Waiter:
    """One task waits here for news; whoever has some wakes it, from any context."""

    def __init__(self) -> None:
        self._future: asyncio.Future[None] | None = None

    async def wait(self, until: float | None) -> None:
        """Until `wake` is called, or the loop's time is `until`."""
        loop = asyncio.get_running_loop()
        future = self._future = loop.create_future()
        timer = None if until is None else loop.call_at(until, _release, future)
        try:
            await future
        finally:
            self._future = None
            if timer is not None:
                timer.cancel()

    def wake(self) -> None:
        """Let it look again; nothing when nobody waits."""
        if self._future is not None:
            _release(self._future)


def _release(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
