"""What cannot be fetched for long is named by readiness, told once, and green again when it is over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from asyncpar.runtime import reach
from tests.wire.case import Code
from tests.wire.lives import PARTITIONS, TOPIC, Life, life, noting
from tests.wire.mock_cluster import Request


async def _leaders_go(one: Life) -> None:
    await asyncio.to_thread(one.cluster.set_leaders, TOPIC, {0: -1})


async def _leaders_come(one: Life) -> None:
    await asyncio.to_thread(one.cluster.set_leaders, TOPIC, {0: 1})


async def _fetches_fail(one: Life) -> None:
    one.cluster.fail_always(Request.FETCH, Code.KAFKA_STORAGE_ERROR)
    await one.produce()


async def _fetches_succeed(one: Life) -> None:
    one.cluster.heal(Request.FETCH)


Plot = Callable[[Life], Awaitable[None]]


@pytest.mark.parametrize(
    ("goes", "comes", "named", "says"),
    [
        pytest.param(_leaders_go, _leaders_come, {0}, "orders[0]", id="no-leader"),
        pytest.param(
            _fetches_fail, _fetches_succeed, set(range(PARTITIONS)), "although the log", id="fetch-errors"
        ),
    ],
)
async def test_what_cannot_be_fetched_is_named(
    goes: Plot, comes: Plot, named: set[int], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those partitions and no others, for as long as it lasts, with one line in the log."""
    monkeypatch.setattr(reach, "_CHECK_SECONDS", 0.2)
    monkeypatch.setattr(reach, "_RECHECK_SECONDS", 0.1)
    monkeypatch.setattr(reach, "_LOST_AFTER_SECONDS", 1.0)
    with noting():
        async with life("reach") as one:
            one.start()
            assert await one.until_stored()
            assert one.app.status().ready
            await goes(one)
            reasons = {f"{TOPIC}[{number}] cannot be fetched" for number in named}

            def is_told() -> bool:
                return {why.partition(":")[0] for why in one.app.status().not_ready} == reasons

            assert await one.until("readiness named nothing", is_told)
            assert any(says in why for why in one.app.status().not_ready)
            await comes(one)
            assert await one.until("readiness stayed red", lambda: one.app.status().ready)
            await one.produce()
            assert await one.until_stored()
            await one.end()
    assert one.outcome.error is None
    told = [line for line in one.outcome.said().splitlines() if "could not be fetched for more" in line]
    assert len(told) == 1
