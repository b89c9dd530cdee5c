"""A client's requests to the in-memory broker: to anybody, or to a group's coordinator.

Lives here: the first contact, looking the coordinator up, one request at a time on its connection, time-outs.
Never here: what requests mean. Called by `memory_member`, `memory_consumer` and `memory_producer`. Always: a
coordinator that does not answer, or says that it is none, is forgotten and looked up again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from asyncpar.adapters.aiokafka_errors import no_right_on_group
from asyncpar.errors import AuthenticationError, BrokerUnreachableError
from asyncpar.testing.memory_group import MemoryGroup
from asyncpar.testing.memory_link import Code, LinkError, RefusedError, Request

if TYPE_CHECKING:
    from asyncpar.testing.memory_broker import MemoryBroker

T = TypeVar("T")

BACKOFF_SECONDS = 0.1
REDIAL_SECONDS = 0.25
MOVED = frozenset({Code.COORDINATOR_NOT_AVAILABLE, Code.NOT_COORDINATOR})


async def dial(broker: MemoryBroker, name: str, timeout_s: float) -> None:
    """The first contact of client `name`, tried until it is answered; the caller bounds it.

    One try takes `timeout_s` at most. Raises AuthenticationError, BrokerUnreachableError.
    """
    while True:
        try:
            async with asyncio.timeout(timeout_s):
                await broker.ask("Connect", name, lambda: None)
            return
        except (LinkError, TimeoutError):
            await asyncio.sleep(REDIAL_SECONDS)
        except RefusedError as refused:
            if refused.code is not Code.SASL_AUTHENTICATION_FAILED:
                raise BrokerUnreachableError(f"the in-memory broker answered {refused}") from refused
            raise AuthenticationError(
                "the in-memory broker refused the credentials: check sasl_mechanism, sasl_username and "
                "sasl_password"
            ) from refused


def unreachable(startup_timeout_ms: int) -> BrokerUnreachableError:
    """Nobody answered for so long."""
    return BrokerUnreachableError(
        f"the in-memory broker did not answer within {startup_timeout_ms} ms: bring it up()"
    )


class MemoryConnection:
    """The requests of consumer `name` of `group`; each ends within `timeout_s` unless it says otherwise."""

    def __init__(self, broker: MemoryBroker, group: str, name: str, timeout_s: float) -> None:
        self.group = group
        self.on_lost: Callable[[], None] = lambda: None
        """Called when the coordinator is not known any more."""
        self._is_closed = False
        self._broker = broker
        self._name = name
        self._timeout_s = timeout_s
        self._node: int | None = None
        self._lookup = asyncio.Lock()
        self._line = asyncio.Lock()

    @property
    def knows_coordinator(self) -> bool:
        """Whether there is a coordinator to send requests to."""
        return self._node is not None

    async def ask_any(self, request: Request, serve: Callable[[], T]) -> T:
        """One request to any broker. Raises LinkError, RefusedError."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._broker.ask(request, self._name, serve)
        except TimeoutError:
            raise LinkError(f"no answer to {request} within {self._timeout_s} s") from None

    async def find_coordinator(self) -> None:
        """Wait until the coordinator is known, or the connection closed. Raises AuthorizationError."""
        if self._node is not None:
            return
        async with self._lookup:
            while self._node is None and not self._is_closed:
                try:
                    self._node = await self.ask_any(
                        "FindCoordinator", partial(self._broker.coordinator_of, self.group)
                    )
                except LinkError:
                    await asyncio.sleep(BACKOFF_SECONDS)
                except RefusedError as refused:
                    if refused.code is Code.GROUP_AUTHORIZATION_FAILED:
                        raise no_right_on_group(self.group) from refused
                    await asyncio.sleep(BACKOFF_SECONDS)

    async def ask(self, request: Request, serve: Callable[[MemoryGroup], T], *, bounded: bool = False) -> T:
        """One request to the coordinator, behind those sent before it. Raises LinkError, RefusedError.

        `bounded`: the caller limits its time.
        """
        async with self._line:
            return await (self._send(request, serve) if bounded else self._send_in_time(request, serve))

    async def ask_and_wait(
        self,
        request: Request,
        serve: Callable[[MemoryGroup], asyncio.Future[T | Exception]],
        timeout_s: float,
    ) -> T:
        """The same where the coordinator answers later: requests sent meanwhile wait behind it."""

        async def outcome() -> T | Exception:
            return await (await self._send(request, serve))

        async with self._line:
            node = self._node
            answer = await self._in_time(request, outcome(), timeout_s)
        if isinstance(answer, Exception):
            self._judge(node, answer)
            raise answer
        return answer

    async def ask_aside(self, request: Request, serve: Callable[[MemoryGroup], T]) -> T:
        """The same over another connection, which waits behind nothing."""
        return await self._send_in_time(request, serve)

    async def _send_in_time(self, request: Request, serve: Callable[[MemoryGroup], T]) -> T:
        return await self._in_time(request, self._send(request, serve), self._timeout_s)

    async def _in_time(self, request: Request, sending: Coroutine[None, None, T], timeout_s: float) -> T:
        node = self._node
        try:
            async with asyncio.timeout(timeout_s):
                return await sending
        except TimeoutError:
            self._forget(node)
            raise LinkError(f"no answer to {request} within {timeout_s} s") from None

    async def _send(self, request: Request, serve: Callable[[MemoryGroup], T]) -> T:
        node = self._node
        if node is None:
            raise LinkError("the coordinator is not known")
        broker, group = self._broker, self.group
        try:
            return await broker.ask(request, self._name, lambda: serve(broker.coordinated(group, node)))
        except (LinkError, RefusedError) as error:
            self._judge(node, error)
            raise

    def _judge(self, node: int | None, error: Exception) -> None:
        if isinstance(error, LinkError) or (isinstance(error, RefusedError) and error.code in MOVED):
            self._forget(node)

    def _forget(self, node: int | None) -> None:
        if node is not None and self._node == node:
            self._node = None
            self.on_lost()

    def close(self) -> None:
        """Nobody waits for a coordinator any more."""
        self._is_closed = True

    def forget_coordinator(self) -> None:
        """It has not answered for too long: look it up again."""
        self._forget(self._node)
