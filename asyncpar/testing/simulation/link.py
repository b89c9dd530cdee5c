"""The simulated network: requests take time, and in times of trouble they are lost, late, repeated, refused.

A request arrives in the broker's context, so that one that is on its way arrives although its sender
is frozen or dead. Those of one connection keep their order.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from asyncpar.testing.memory_link import Code, LinkError, RefusedError, Request

T = TypeVar("T")

_LATENCY_SECONDS = (0.0002, 0.004)
_RESET_AFTER_SECONDS = 1.0
_FOUND_DEAD_AFTER_SECONDS = 15.0
_REPEATABLE = frozenset(
    {"JoinGroup", "Heartbeat", "OffsetCommit", "OffsetFetch", "Fetch", "ListOffsets", "Produce"}
)
_CONNECTIONS_OF_THEIR_OWN = frozenset({"Fetch", "Produce"})
"""All other requests of a client share one."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """What happens to `share` (0 to 1) of the requests of `member` (None: of all members)."""

    kind: str
    member: str | None
    share: float

    def hits(self, member: str, rng: random.Random) -> bool:
        """Whether the next request of `member` is one of them."""
        return self.member in (None, member) and rng.random() < self.share


@dataclass(frozen=True, slots=True)
class Refusal:
    """The next request of that name (of `member`; None: of anybody) is answered `code`, and does nothing."""

    request: Request
    code: Code
    member: str | None = None


class TroubledLink:
    """A `memory_link.Link` with trouble on request. `struck` counts what really happened."""

    def __init__(self, rng: random.Random, context: Context) -> None:
        self.troubles: list[Trouble] = []
        self.refusals: list[Refusal] = []
        """Those that nobody has met yet."""
        self.struck: Counter[str] = Counter()
        self._rng = rng
        self._context = context
        self._arrivals: dict[tuple[str, str], float] = {}
        self._unheard: set[str] = set()
        """Those who once were not told that their batch was served."""

    async def __call__(self, request: Request, member: str, serve: Callable[[], T]) -> T:
        """See `memory_link.Link`."""
        loop = asyncio.get_running_loop()
        kind = self._trouble(request, member)
        answer: asyncio.Future[T] = loop.create_future()
        arrives = loop.time() + self._latency(kind)
        connection = (member, request if request in _CONNECTIONS_OF_THEIR_OWN else "")
        arrives = self._arrivals[connection] = max(arrives, self._arrivals.get(connection, 0.0) + 1e-6)
        if kind == "request lost":
            self._lose(answer, arrives)
        else:
            serve = partial(self._unless_refused, request, member, kind, serve)
            loop.call_at(arrives, self._serve, serve, answer, kind, context=self._context)
        return await answer

    def _trouble(self, request: Request, member: str) -> str | None:
        for trouble in self.troubles:
            if trouble.hits(member, self._rng) and (
                trouble.kind != "request repeated" or request in _REPEATABLE
            ):
                self.struck[trouble.kind] += 1
                return trouble.kind
        return None

    def _latency(self, kind: str | None) -> float:
        if kind == "request late":
            return self._rng.uniform(0.5, 6.0)
        return self._rng.uniform(*_LATENCY_SECONDS)

    def _unless_refused(self, request: Request, member: str, kind: str | None, serve: Callable[[], T]) -> T:
        for at, refusal in enumerate(self.refusals):
            if refusal.request == request and refusal.member in (None, member):
                if request == "Produce" and member in self._unheard:
                    break  # perhaps the same batch again, which was good: no broker finds it bad now
                del self.refusals[at]
                raise RefusedError(refusal.code)
        result = serve()
        if request == "Produce" and kind == "answer lost":
            self._unheard.add(member)  # for good: which batch it repeats, among others, is not seen here
        return result

    def _serve(self, serve: Callable[[], T], answer: asyncio.Future[T], kind: str | None) -> None:
        """The request arrived."""
        try:
            result = serve()
            if kind == "request repeated":
                result = serve()
        except Exception as error:  # noqa: BLE001 - the answer is an error, whichever
            self._answer(answer, answer.set_exception, error)
            return
        if kind == "answer lost":
            self._lose(answer, asyncio.get_running_loop().time())
            return
        self._answer(answer, answer.set_result, result)

    def _answer(self, answer: asyncio.Future[T], give: Callable[..., None], what: object) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(self._rng.uniform(*_LATENCY_SECONDS), _unless_done, answer, give, what)

    def _lose(self, answer: asyncio.Future[T], at: float) -> None:
        """The connection breaks, or there is silence until the operating system finds it dead."""
        is_told = self._rng.random() < 0.5
        after = self._rng.uniform(0, _RESET_AFTER_SECONDS) if is_told else _FOUND_DEAD_AFTER_SECONDS
        error = LinkError("the connection broke")
        asyncio.get_running_loop().call_at(
            at + after, _unless_done, answer, answer.set_exception, error, context=self._context
        )


def _unless_done(answer: asyncio.Future[T], give: Callable[..., None], what: object) -> None:
    if not answer.done():
        give(what)
