"""The members of a group as its coordinator sees them, and what they ask and hear when they join.

Plain data. Never here: what becomes of it (`memory_group`). Called by `memory_group` and `memory_member`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from asyncpar.records import TopicPartition
from asyncpar.testing.memory_assignors import Protocol, Wish


class JoinRequest(NamedTuple):
    """A JoinGroup. An empty `member_id` asks for one; times in seconds."""

    client_id: str
    member_id: str
    instance_id: str | None
    session_timeout_s: float
    rebalance_timeout_s: float
    protocol: Protocol
    wish: Wish


class Joined(NamedTuple):
    """The answer to a JoinGroup; `members` is filled for the leader only."""

    generation: int
    member_id: str
    leader_id: str
    protocol: Protocol
    members: Mapping[str, Wish]


JoinAnswer = asyncio.Future[Joined | Exception]
SyncAnswer = asyncio.Future[frozenset[TopicPartition] | Exception]


@dataclass(slots=True)
class GroupMember:
    """A member as its coordinator sees it."""

    id: str
    instance_id: str | None
    session_timeout_s: float
    rebalance_timeout_s: float
    protocol: Protocol
    wish: Wish
    assignment: frozenset[TopicPartition] = frozenset()
    deadline: float = math.inf
    """When its session ends unless something is heard of it."""
    is_new: bool = True
    joining: JoinAnswer | None = None
    syncing: SyncAnswer | None = None

    def takes(self, ask: JoinRequest) -> None:
        """Note what it joins with."""
        self.session_timeout_s, self.rebalance_timeout_s = ask.session_timeout_s, ask.rebalance_timeout_s
        self.protocol, self.wish = ask.protocol, ask.wish

    def matches(self, ask: JoinRequest) -> bool:
        """Whether it joins with what it had joined with before."""
        return (self.protocol, self.wish) == (ask.protocol, ask.wish)

    def answer(self, outcome: Joined | frozenset[TopicPartition] | Exception) -> None:
        """Answer what it waits for."""
        for waiting in (self.joining, self.syncing):
            if waiting is not None and not waiting.done():
                waiting.set_result(outcome)  # type: ignore[arg-type]
        self.joining = self.syncing = None
