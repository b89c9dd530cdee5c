"""Tests of the simulated network."""

from __future__ import annotations

import asyncio
import random

import pytest

from asyncpar.testing.memory_link import Code, LinkError, RefusedError
from asyncpar.testing.simulation.link import Refusal, Trouble, TroubledLink
from asyncpar.testing.virtual_time import VirtualLoop
from tests.testing.virtually import loop, now, virtually


def make(*troubles: Trouble) -> TroubledLink:
    link = TroubledLink(random.Random(5), VirtualLoop.context_of(""))
    link.troubles += troubles
    return link


@virtually
async def test_requests_arrive_in_their_order_and_take_time() -> None:
    """Many at once over one connection: served in the order sent, milliseconds later."""
    link, served = make(), list[int]()
    begin = now()
    answers = [link("OffsetCommit", "m", lambda n=n: served.append(n) or n) for n in range(50)]  # type: ignore[misc]
    assert await asyncio.gather(*answers) == list(range(50))
    assert served == list(range(50))
    assert 0.0002 < now() - begin < 1


@virtually
async def test_refusals_are_met_once_each_and_serve_nothing() -> None:
    """By the next request of that name, of the member that is meant; the others are served."""
    link, served = make(), list[str]()
    link.refusals += [Refusal("OffsetCommit", Code.UNKNOWN_MEMBER_ID, "m"), Refusal("Fetch", Code(2))]
    await link("OffsetCommit", "other", lambda: served.append("other"))
    await link("Heartbeat", "m", lambda: served.append("heartbeat"))
    with pytest.raises(RefusedError) as refused:
        await link("OffsetCommit", "m", lambda: served.append("refused"))
    assert refused.value.code is Code.UNKNOWN_MEMBER_ID
    await link("OffsetCommit", "m", lambda: served.append("again"))
    assert served == ["other", "heartbeat", "again"]
    assert link.refusals == [Refusal("Fetch", Code.CORRUPT_MESSAGE)]


@virtually
async def test_a_batch_that_may_be_written_is_not_refused() -> None:
    """The answer to it was lost: it is sent again, perhaps behind others, and is as good as before."""
    link, served = make(Trouble("answer lost", "m", 1.0)), list[int]()
    with pytest.raises(LinkError):
        await link("Produce", "m", lambda: served.append(1))
    link.troubles.clear()
    link.refusals.append(Refusal("Produce", Code.MESSAGE_TOO_LARGE))
    await link("Produce", "m", lambda: served.append(2))
    await link("Produce", "m", lambda: served.append(3))
    with pytest.raises(RefusedError):
        await link("Produce", "another", lambda: served.append(4))
    assert served == [1, 2, 3]


@virtually
async def test_batches_do_not_wait_for_what_else_is_asked() -> None:
    """A producer has a connection of its own: what is late on another one holds it up no more."""
    link, served = make(Trouble("request late", "m", 1.0)), list[str]()
    late = asyncio.ensure_future(link("OffsetCommit", "m", lambda: served.append("commit")))
    await asyncio.sleep(0)
    link.troubles.clear()
    await link("Produce", "m", lambda: served.append("batch"))
    await late
    assert served == ["batch", "commit"]


@pytest.mark.parametrize(("kind", "times"), [("request lost", 0), ("answer lost", 1)])
def test_what_is_lost_raises_or_is_found_out_late(kind: str, times: int) -> None:
    """The caller hears of a broken connection, at once or when the system notices; nobody hangs for ever."""

    @virtually
    async def lives() -> None:
        link = make(Trouble(kind, "m", 1.0))
        waits = []
        for _ in range(20):
            served = list[int]()
            begin = now()
            with pytest.raises(LinkError):
                await link("Fetch", "m", lambda served=served: served.append(1))  # type: ignore[misc]
            waits.append(now() - begin)
            assert len(served) == times
        assert min(waits) < 1.1
        assert max(waits) > 15
        assert link.struck[kind] == 20

    lives()


@virtually
async def test_a_repeated_request_is_served_twice_and_answered_once() -> None:
    """As after a retry on the way."""
    link, served = make(Trouble("request repeated", None, 1.0)), list[int]()
    await link("OffsetCommit", "m", lambda: served.append(1))
    assert served == [1, 1]


@virtually
async def test_trouble_of_one_member_leaves_the_others_alone() -> None:
    """And a share of 0 hits nobody."""
    link = make(Trouble("request lost", "other", 1.0), Trouble("answer lost", None, 0.0))
    assert await link("Heartbeat", "m", lambda: 7) == 7
    assert not link.struck


@virtually
async def test_a_request_of_a_frozen_member_arrives_and_its_answer_waits() -> None:
    """What is on its way belongs to the network, not to the sender."""
    link, served, answered = make(), list[float](), list[float]()

    async def member() -> None:
        await link("OffsetCommit", "m", lambda: served.append(now()))
        answered.append(now())

    begin = now()
    task = loop().create_task(member(), context=VirtualLoop.context_of("m"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    loop().freeze("m")
    await asyncio.sleep(5)
    assert served and served[0] - begin < 1
    assert not answered
    loop().thaw("m")
    await task
    assert answered[0] - begin >= 5


@virtually
async def test_an_error_of_the_broker_is_the_callers() -> None:
    """It arrives like an answer."""

    def refuse() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await make()("Fetch", "m", refuse)
