"""What handlers do in a simulated life: quick, slow, raising, hanging, deaf to cancellation, hopeless.

Which record meets which fate is a function of the seed and the record alone, so that another run of
the same life, or a repetition of the record, meets it again.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING

from asyncpar.errors import Permanent
from asyncpar.middleware import Call, CallNext, Middleware
from asyncpar.records import Outcome, Record, TopicPartition, Verdict
from asyncpar.testing.history import SKIPPED, Recorder, handling, membership_sign
from asyncpar.testing.simulation.plan import Plan
from asyncpar.testing.virtual_time import MEMBER

if TYPE_CHECKING:
    from asyncpar.testing.simulation.member import Member

_LEFT_BEHIND: ContextVar[float] = ContextVar("left_behind")

BROKEN = b"broken"
"""The value of a record that cannot be decoded, where a life has such."""


class HandlerFailedOnPurposeError(Exception):
    """What a raising handler raises."""


class HopelessOnPurposeError(Permanent):
    """What a handler raises that knows that no other attempt will succeed."""


class Fates:
    """What happens to which record. `met` counts what was really met."""

    def __init__(self, plan: Plan, healed: asyncio.Event) -> None:
        self._plan = plan
        self._healed = healed
        self.met: Counter[str] = Counter()
        self.hanging: dict[tuple[str, TopicPartition, int], None] = {}
        """Member, partition and offset of the calls that end when they are cancelled, or all is healed."""
        self.outages = 0
        """While it is above 0 and nothing has healed, every call fails."""
        self._runs: Counter[tuple[str, int, int]] = Counter()
        mix = plan.mix
        bounds = (
            (self._raise, mix.raising),
            (self._fail, mix.failing),
            (self._hang, mix.hanging),
            (self._be_untidy, mix.untidy),
            (self._be_stubborn, mix.stubborn),
            (self._be_slow, mix.slow),
            (self._be_brief, mix.brief),
            (self._be_hopeless, mix.hopeless),
        )
        self._bounds: list[tuple[float, Callable[[float, Record], Awaitable[None]]]] = []
        upper = 0.0
        for fate, share in bounds:
            upper += share
            self._bounds.append((upper, fate))

    async def __call__(self, record: Record) -> None:
        """Live through the fate of `record`."""
        if self.outages and not self._healed.is_set():
            raise HandlerFailedOnPurposeError("what the handlers need is away")
        place = f"{self._plan.seed}/{record.topic}/{record.partition}/{record.offset}"
        draw = zlib.crc32(place.encode()) / 2**32
        lower = 0.0
        for upper, fate in self._bounds:
            if draw < upper:
                await fate((draw - lower) / (upper - lower), record)
                return
            lower = upper

    def _run_number(self, record: Record) -> int:
        """Which run of `record` this is: its attempt, but with a breaker, where attempts may be free."""
        if self._plan.letters is None or self._plan.letters.breaker is None:
            return record.attempt
        place = (record.topic, record.partition, record.offset)
        self._runs[place] += 1
        return self._runs[place]

    async def _raise(self, draw: float, record: Record) -> None:
        """Fails once or twice, also after a wait."""
        if self._run_number(record) > 1 + int(draw * 2):
            return
        self.met["handler raises"] += 1
        if draw < 0.3:
            await asyncio.sleep(draw)
        raise HandlerFailedOnPurposeError(f"attempt {record.attempt}")

    async def _fail(self, _draw: float, record: Record) -> None:
        """Fails until the world has healed: the partition halts when its attempts are used up."""
        if not self._healed.is_set():
            self.met["handler fails for good"] += 1
            raise HandlerFailedOnPurposeError(f"attempt {record.attempt}")

    async def _hang(self, _draw: float, record: Record) -> None:
        """Does not end before it is cancelled, or the world has healed."""
        if self._healed.is_set():
            return
        self.met["handler hangs"] += 1
        member = MEMBER.get().partition("/")[0]  # whose child this may be
        call = (member, TopicPartition(record.topic, record.partition), record.offset)
        self.hanging[call] = None
        try:
            await self._healed.wait()
        finally:
            self.hanging.pop(call, None)

    async def _be_stubborn(self, draw: float, record: Record) -> None:
        """Swallows its cancellation and goes on for up to 20 s; the first attempt may fail in the end."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + 2 + 5 * draw
        while loop.time() < ends:
            try:
                await asyncio.sleep(ends - loop.time())
            except asyncio.CancelledError:
                self.met["handler swallows cancellation"] += 1
                ends = loop.time() + 15 * draw
        if self._run_number(record) == 1 and draw < 0.5:
            raise HandlerFailedOnPurposeError("at last")

    async def _be_untidy(self, draw: float, _record: Record) -> None:
        """Leaves a context variable behind: its worker is retired."""
        self.met["handler leaves a context variable"] += 1
        _LEFT_BEHIND.set(draw)
        await asyncio.sleep(0.01 * draw)

    async def _be_hopeless(self, draw: float, record: Record) -> None:
        """Never succeeds. Where there is a breaker it has to say so: it would be an outage without end."""
        self.met["handler never succeeds"] += 1
        has_breaker = self._plan.letters is not None and self._plan.letters.breaker is not None
        if has_breaker or draw < 0.3:
            raise HopelessOnPurposeError("nothing will help")
        raise HandlerFailedOnPurposeError(f"attempt {record.attempt}, and there is no hope")

    async def _be_slow(self, draw: float, _record: Record) -> None:
        self.met["handler is slow"] += 1
        await asyncio.sleep(0.05 + 2 * draw * draw)

    async def _be_brief(self, draw: float, _record: Record) -> None:
        await asyncio.sleep(0.02 * draw)


def make_handler(
    member: Member, history: Recorder, fates: Fates, problems: list[str]
) -> Callable[[bytes | None, Record], Awaitable[None]]:
    """The function that `member` runs for each record; its calls are in the history.

    A cancellation that should not have come is one of `problems`.
    """

    async def handle(body: bytes | None, record: Record) -> None:  # noqa: ARG001 - to be decoded
        tp = TopicPartition(record.topic, record.partition)
        with handling(history, member.name, tp, record.offset, record.key, member.lease_from):
            try:
                await fates(record)
            except asyncio.CancelledError:
                if not member.may_cancel():
                    problems.append(f"{member.name}: {tp} offset {record.offset} was cancelled, not kept")
                raise

    return handle


async def decode(_topic: str, record: object) -> bytes | None:
    """A decoder that refuses broken values."""
    value = getattr(record, "value", None)
    if value == BROKEN:
        raise ValueError("a broken value")
    return value


def noting_undecodable(member: Member, history: Recorder, *, skips: bool) -> Middleware:
    """A middleware that notes the calls which end before the handler begins, and that they were skipped."""

    async def note(call: Call, call_next: CallNext) -> Outcome:
        outcome = await call_next(call)
        if outcome.verdict is Verdict.UNDECODABLE:
            for record in call.records:
                tp = TopicPartition(record.topic, record.partition)
                place = (member.name, tp, record.offset, record.key)
                history.note("start", *place, membership_sign(member.lease_from))
                history.note("end", *place, "failed")
                if skips:
                    history.note("done", *place, SKIPPED)
        return outcome

    return note
