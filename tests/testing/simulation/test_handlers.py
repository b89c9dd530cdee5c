"""What handlers of a simulated life do with a record, run after run."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from asyncpar.errors import Permanent
from asyncpar.policies import Breaker
from asyncpar.records import Record
from asyncpar.testing.simulation.handlers import Fates, HandlerFailedOnPurposeError
from asyncpar.testing.simulation.plan import LetterPlan, Mix
from tests.testing.simulation.test_life import small_plan
from tests.testing.virtually import virtually

NONE = Mix(brief=0.0, slow=0.0, raising=0.0, hanging=0.0, stubborn=0.0)
WITH_BREAKER = LetterPlan(partitions=1, undecodable=False, breaker=Breaker())


def fates(letters: LetterPlan | None = None, **shares: float) -> Fates:
    """Of a life in which every record meets one fate."""
    plan = replace(small_plan(), mix=replace(NONE, **shares), letters=letters)  # type: ignore[arg-type]
    return Fates(plan, asyncio.Event())


def record(offset: int, attempt: int = 1) -> Record:
    return Record("orders", 0, offset, b"k", b"v", attempt=attempt)


async def failures(met: Fates, offset: int, attempt: int) -> int:
    """How many of ten runs of one record fail, all of them with the same number."""
    failed = 0
    for _ in range(10):
        try:
            await met(record(offset, attempt))
        except HandlerFailedOnPurposeError:
            failed += 1
    return failed


@virtually
async def test_a_raising_handler_goes_by_the_attempt() -> None:
    """A record that begins anew fails anew; its second or third attempt succeeds."""
    met = fates(raising=1.0)
    assert await failures(met, 1, attempt=1) == 10
    assert await failures(met, 1, attempt=3) == 0


@virtually
async def test_behind_a_breaker_a_raising_handler_goes_by_its_runs() -> None:
    """Where attempts are free of charge a record would be at its first one for ever."""
    met = fates(WITH_BREAKER, raising=1.0)
    assert {await failures(met, offset, attempt=1) for offset in range(20)} == {1, 2}


@virtually
async def test_what_is_hopeless_never_succeeds() -> None:
    """Behind a breaker it always says so; without one now and then it looks like any failure."""
    behind, without = fates(WITH_BREAKER, hopeless=1.0), fates(hopeless=1.0)
    kinds = set()
    for offset in range(20):
        with pytest.raises(Permanent):
            await behind(record(offset))
        with pytest.raises((Permanent, HandlerFailedOnPurposeError)) as caught:
            await without(record(offset, attempt=9))
        kinds.add(isinstance(caught.value, Permanent))
    assert kinds == {True, False}


@virtually
async def test_in_an_outage_every_call_fails() -> None:
    """Until it is over."""
    met = fates()
    met.outages = 1
    with pytest.raises(HandlerFailedOnPurposeError):
        await met(record(1))
    met.outages = 0
    await met(record(1))
