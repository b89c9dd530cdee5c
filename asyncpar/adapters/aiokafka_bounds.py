"""Where partitions begin and end, asked of each leader by itself: one that is away is told from the rest.

Never here: what a bound is good for. Called by `aiokafka_consumer`. Always: a topic that metadata does not
know is never asked about, because the client would add it to those it asks metadata for, and to a pattern
that means all of them.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from aiokafka import TopicPartition as ClientPartition
from aiokafka.errors import KafkaError

from asyncpar.adapters.aiokafka_errors import request_error
from asyncpar.adapters.aiokafka_network import ClientNetwork
from asyncpar.errors import AsyncparError, BrokerError
from asyncpar.records import TopicPartition

Bounds = Callable[[list[Any]], Awaitable[dict[Any, int]]]
_NO_LEADER = -1
# A leader answers in milliseconds. The client asks again and again for as long as any request may take, which
# follows from the grace of a revoke: too long for somebody who wants to know whether the leader is there.
ANSWER_SECONDS = 5.0


class LeaderBounds:
    """The bounds of partitions, for one member of `group`."""

    def __init__(self, network: ClientNetwork, group: str) -> None:
        self._network = network
        self._group = group

    async def ask(self, bounds: Bounds, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """What `bounds`, a call of the client, says of `partitions`.

        Raises AuthorizationError, and BrokerError with the reason of each partition that was not answered.
        """
        by_leader: defaultdict[int | None, list[TopicPartition]] = defaultdict(list)
        for tp in partitions:
            by_leader[self._network.leader_of(tp)].append(tp)
        reasons = {tp: f"the leader of {tp} is not known (yet)" for tp in by_leader.pop(None, ())}
        if leaderless := by_leader.pop(_NO_LEADER, ()):
            self._network.demand_metadata()  # the client waits for a leader as long as a request may take
            reasons |= {tp: f"{tp} has no leader" for tp in leaderless}
        found: dict[TopicPartition, int] = {}
        answers = await asyncio.gather(*(self._ask_leader(bounds, tps) for tps in by_leader.values()))
        for (leader, asked), answer in zip(by_leader.items(), answers, strict=True):
            if isinstance(answer, dict):
                found.update(answer)
            elif isinstance(answer, BrokerError):
                reasons |= dict.fromkeys(asked, f"{answer} (their leader is node {leader})")
            else:
                raise answer
        if reasons:
            raise BrokerError("; ".join(dict.fromkeys(reasons.values())), reasons)
        return found

    async def _ask_leader(
        self, bounds: Bounds, partitions: list[TopicPartition]
    ) -> dict[TopicPartition, int] | AsyncparError:
        """An error of ours is returned: the other leaders are waited for."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                found = await bounds([ClientPartition(*tp) for tp in partitions])
        except (KafkaError, TimeoutError, OSError) as err:
            error = request_error(err, "reading the bounds of partitions", self._group)
            error.__cause__ = err
            return error
        missing = [tp for tp in partitions if tp not in found]
        if missing:
            return BrokerError(f"the answer about the bounds of partitions leaves out {missing[0]}")
        return {tp: found[ClientPartition(*tp)] for tp in partitions}
