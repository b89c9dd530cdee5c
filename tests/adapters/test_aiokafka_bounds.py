"""Bounds of partitions: each leader is asked by itself, and who does not answer is named."""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka.errors import NodeNotReadyError, TopicAuthorizationFailedError

from asyncpar.adapters.aiokafka_bounds import LeaderBounds
from asyncpar.errors import AuthorizationError, BrokerError
from asyncpar.records import TopicPartition

A, B, C, D = (TopicPartition("t", number) for number in range(4))


class Brokers:
    """A network and the client's call in one: partition n is led by `leaders[n]`, some of which raise."""

    def __init__(self, *leaders: int | None, **raises: Exception) -> None:
        self.leaders = leaders
        self.raises = {int(name[1:]): error for name, error in raises.items()}
        self.asked: list[list[Any]] = []
        self.demanded = 0

    def leader_of(self, tp: TopicPartition) -> int | None:
        return self.leaders[tp.partition]

    def demand_metadata(self) -> None:
        self.demanded += 1

    async def ends(self, partitions: list[Any]) -> dict[Any, int]:
        self.asked.append(partitions)
        error = self.raises.get(self.leaders[partitions[0].partition] or 0)
        if error is not None:
            raise error
        return {tp: 10 + tp.partition for tp in partitions}

    async def ask(self, *partitions: TopicPartition) -> dict[TopicPartition, int]:
        bounds = LeaderBounds(self, "g")  # type: ignore[arg-type]
        return await bounds.ask(self.ends, partitions)


async def test_one_question_for_each_leader() -> None:
    """Partitions of one leader are asked about together."""
    brokers = Brokers(1, 2, 1)
    assert await brokers.ask(A, B, C) == {A: 10, B: 11, C: 12}
    assert brokers.asked == [[A, C], [B]]


async def test_those_that_cannot_be_asked_are_told_from_the_rest() -> None:
    """No leader known, no leader at all, a leader that does not answer: the others are not named."""
    brokers = Brokers(1, 2, -1, None, b2=NodeNotReadyError("down"))
    with pytest.raises(BrokerError) as caught:
        await brokers.ask(A, B, C, D)
    reasons = caught.value.partitions
    assert set(reasons) == {B, C, D}
    assert reasons[B].endswith("(their leader is node 2)")
    assert reasons[C] == "t[2] has no leader"
    assert reasons[D] == "the leader of t[3] is not known (yet)"
    assert all(reason in str(caught.value) for reason in reasons.values())
    assert brokers.asked == [[A], [B]]
    assert brokers.demanded == 1


async def test_a_missing_right_is_final() -> None:
    """It is raised as such, also beside leaders that are away."""
    brokers = Brokers(1, 2, b1=NodeNotReadyError("down"), b2=TopicAuthorizationFailedError(B))
    with pytest.raises(AuthorizationError, match=r"no right on topic t\[1\]"):
        await brokers.ask(A, B)


async def test_an_answer_that_leaves_something_out() -> None:
    """A partition that is not in the answer is named."""
    brokers = Brokers(1, 1)

    async def ends(partitions: list[Any]) -> dict[Any, int]:
        return {partitions[0]: 3}

    brokers.ends = ends  # type: ignore[method-assign]
    with pytest.raises(BrokerError, match=r"leaves out t\[1\]"):
        await brokers.ask(A, B)
