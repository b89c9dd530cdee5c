"""The bounded part of the real faults: two short rounds. All of it: `python -m tests.chaos`."""

from __future__ import annotations

import random

import pytest

from tests.chaos import campaign, table
from tests.chaos.campaign import Goal, Tally
from tests.chaos.faults import MEMBER_KINDS, NETWORK_KINDS
from tests.chaos.round import Shape

pytestmark = [pytest.mark.broker, pytest.mark.chaos, pytest.mark.timeout(240)]


async def one_round(brokers: int, broker_faults: int) -> Tally:
    """One round of a new seed; a round in which the cluster itself fails is tried again."""
    goal = Goal(faults=1, brokers=brokers, shape=Shape(broker_faults))
    tally = Tally()
    await campaign.run(goal, random.SystemRandom().randrange(1_000_000), tally, lambda _: None)
    assert tally.failed == [], "\n".join(table.failure(one, goal) for one in tally.failed)
    return tally


async def test_one_broker_and_its_members_under_faults() -> None:
    """Members and network are struck while the only broker goes and comes back: no law is broken."""
    tally = await one_round(brokers=1, broker_faults=2)
    assert any(tally.struck[kind] for kind in MEMBER_KINDS)
    assert any(tally.struck[kind] for kind in NETWORK_KINDS)


async def test_three_brokers_and_their_members_under_faults() -> None:
    """The same with leaders and coordinators that move: no law is broken."""
    tally = await one_round(brokers=3, broker_faults=2)
    assert any(tally.struck[kind] for kind in MEMBER_KINDS)
    assert any(tally.struck[kind] for kind in NETWORK_KINDS)
