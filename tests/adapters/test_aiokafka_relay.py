"""The client's callbacks in the port's words, without a client."""

from __future__ import annotations

from typing import Any

from aiokafka import TopicPartition as ClientPartition

from asyncpar.adapters.aiokafka_consumer import _Relay
from asyncpar.records import GroupToken

P0, P1 = ClientPartition("t", 0), ClientPartition("t", 1)


class Group:
    """Consumer and listener in one; notes what it is told, as partition numbers."""

    def __init__(self) -> None:
        self.said: list[tuple[str, list[int]]] = []
        self.member = True

    def take_assignment(self, partitions: Any) -> GroupToken:
        return GroupToken(1, "m")

    def is_member(self) -> bool:
        return self.member

    def assigned(self, partitions: Any, token: GroupToken) -> None:
        self.said.append(("assigned", sorted(tp.partition for tp in partitions)))

    async def revoked(self, partitions: Any) -> None:
        self.said.append(("revoked", sorted(tp.partition for tp in partitions)))

    def lost(self, partitions: Any) -> None:
        self.said.append(("lost", sorted(tp.partition for tp in partitions)))


async def test_a_rebalance_is_told_as_it_comes() -> None:
    """Given, taken back, given; and lost in place of taken back once the group does not know us."""
    group = Group()
    relay = _Relay(group, group)  # type: ignore[arg-type]
    await relay.on_partitions_revoked(set())
    relay.on_partitions_assigned({P0, P1})
    await relay.on_partitions_revoked({P0, P1})
    relay.on_partitions_assigned({P1})
    group.member = False
    await relay.on_partitions_revoked({P1})
    relay.on_partitions_assigned({P0})
    assert group.said == [
        ("assigned", [0, 1]),
        ("revoked", [0, 1]),
        ("assigned", [1]),
        ("lost", [1]),
        ("assigned", [0]),
    ]


async def test_what_was_given_and_never_taken_back_is_lost_before_the_next_assignment() -> None:
    """A client that skips a revoke leaves nothing behind that others have now."""
    group = Group()
    relay = _Relay(group, group)  # type: ignore[arg-type]
    relay.on_partitions_assigned({P0, P1})
    relay.on_partitions_assigned({P1})
    await relay.on_partitions_revoked({P1})
    relay.on_partitions_assigned({P0})
    assert group.said == [
        ("assigned", [0, 1]),
        ("lost", [0, 1]),
        ("assigned", [1]),
        ("revoked", [1]),
        ("assigned", [0]),
    ]
