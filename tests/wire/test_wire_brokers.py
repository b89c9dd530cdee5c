"""Brokers that move, go and are slow: the app goes on with nothing lost, repeated or left uncommitted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from tests.wire.lives import PARTITIONS, TOPIC, Life, Outcome, life, noting
from tests.wire.mock_cluster import Request

DOWN_SECONDS = 1.5


async def _coordinator_moves(one: Life) -> None:
    await asyncio.to_thread(one.cluster.set_coordinator, one.group, 2)


async def _leaders_move(one: Life) -> None:
    await asyncio.to_thread(one.cluster.set_leaders, TOPIC, dict.fromkeys(range(PARTITIONS), 2))


async def _leaders_are_missing_for_a_while(one: Life) -> None:
    await asyncio.to_thread(one.cluster.set_leaders, TOPIC, dict.fromkeys(range(PARTITIONS), -1))
    await asyncio.sleep(DOWN_SECONDS)
    await _leaders_move(one)


async def _coordinator_and_leader_is_down_for_a_while(one: Life) -> None:
    await asyncio.to_thread(one.cluster.set_down, 1)
    await asyncio.sleep(DOWN_SECONDS)
    await asyncio.to_thread(one.cluster.set_up, 1)


async def _coordinator_dies_and_another_takes_over(one: Life) -> None:
    await asyncio.to_thread(one.cluster.set_down, 1)
    await _coordinator_moves(one)
    await _leaders_move(one)


async def _answers_are_slow(one: Life) -> None:
    await asyncio.to_thread(one.cluster.set_delay, 1, 150)


async def _the_answer_to_a_commit_is_lost(one: Life) -> None:
    # It arrives long after the client has closed the connection: nobody knows whether it was stored.
    one.cluster.fail(Request.OFFSET_COMMIT, 0, delay_ms=60_000)
    await one.produce()
    await one.until("the commit was not sent", lambda: not one.cluster.unused(Request.OFFSET_COMMIT))
    await asyncio.to_thread(one.cluster.set_coordinator, one.group, 2)
    await asyncio.to_thread(one.cluster.set_down, 1)
    await _leaders_move(one)


PLOTS: dict[str, tuple[Callable[[Life], Awaitable[None]], bool]] = {
    "coordinator-moves": (_coordinator_moves, False),
    "leaders-move": (_leaders_move, False),
    "no-leaders-for-a-while": (_leaders_are_missing_for_a_while, False),
    "broker-down-for-a-while": (_coordinator_and_leader_is_down_for_a_while, True),
    "broker-dies": (_coordinator_dies_and_another_takes_over, False),
    "slow-answers": (_answers_are_slow, False),
    "lost-answer-to-a-commit": (_the_answer_to_a_commit_is_lost, True),
}
"""What happens, and whether the session may be over meanwhile, so that records run again."""

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def _live(name: str) -> Outcome:
    async with life(name, brokers=2) as one:
        one.start()
        if await one.until_stored():
            await PLOTS[name][0](one)
            await one.produce()
            await one.until_stored()
        await one.end()
        await one.look_from_outside()
        return one.outcome


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lives() -> AsyncIterator[dict[str, asyncio.Task[Outcome]]]:
    """All of them, at the same time."""
    with noting():
        tasks = {name: asyncio.create_task(_live(name)) for name in PLOTS}
        yield tasks
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)


@pytest.mark.parametrize("name", PLOTS)
async def test_the_app_goes_on(name: str, lives: dict[str, asyncio.Task[Outcome]]) -> None:
    """Everything is handled in order and committed, once each unless the session ended meanwhile."""
    outcome = await lives[name]
    assert not outcome.hung, outcome.said()
    assert outcome.error is None
    assert not outcome.lost()
    assert outcome.is_stored()
    assert outcome.is_ordered()
    assert PLOTS[name][1] or not outcome.repeated()
    assert not outcome.tracebacks()
