"""The group coordinator: members, generations, rebalances and committed offsets, as Kafka's classic groups.

Lives here: the state machine of one group (Empty, PreparingRebalance, CompletingRebalance, Stable) and
its timers: a session per member, the rebalance timeout for those who must join again, and the same for
those who must sync. Never here: requests' way (`memory_broker`), a client's side (`memory_member`).
Always: timers run in a context of the broker's own, whoever's request set them; what a request has to
wait for is a future that is given an answer, or the exception that is to be raised.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Mapping
from contextvars import Context
from dataclasses import replace
from typing import Literal, NamedTuple, TypeVar

from asyncpar.records import Committed, GroupToken, TopicPartition
from asyncpar.testing.memory_assignors import Protocol
from asyncpar.testing.memory_link import Code, RefusedError
from asyncpar.testing.memory_roster import GroupMember, JoinAnswer, Joined, JoinRequest, SyncAnswer

T = TypeVar("T")

State = Literal["Empty", "PreparingRebalance", "CompletingRebalance", "Stable"]

# How long a member that joins for the first time may wait for the others: its client sends no heartbeats yet.
NEWCOMER_SECONDS = 300.0


class _Saved(NamedTuple):
    """What of a group outlives its coordinator: the last finished rebalance."""

    state: State
    generation: int
    protocol: Protocol | None
    leader: str | None
    members: tuple[GroupMember, ...]


class MemoryGroup:
    """One group. `initial_delay_s`: how long an empty group waits for more members."""

    def __init__(self, name: str, initial_delay_s: float = 0.0) -> None:
        self.name = name
        self.state: State = "Empty"
        self.generation = 0
        self.members: dict[str, GroupMember] = {}
        self.leader: str | None = None
        self.protocol: Protocol | None = None
        self.offsets: dict[TopicPartition, Committed] = {}
        self._initial_delay_s = initial_delay_s
        self._is_initial = False
        self._made_ids = 0
        self._pending: dict[str, float] = {}  # ids given out but not joined with, and when they expire
        self._unsynced: set[str] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._join_timer: asyncio.TimerHandle | None = None
        self._sync_timer: asyncio.TimerHandle | None = None
        self._saved = _Saved("Empty", 0, None, None, ())

    # -- requests ----------------------------------------------------------------------------

    def join(self, ask: JoinRequest) -> JoinAnswer:
        """JoinGroup; the answer comes when all members have joined. Raises RefusedError."""
        self._loop = asyncio.get_running_loop()
        others = self.members.values()
        if any(member.protocol != ask.protocol for member in others if member.id != ask.member_id):
            raise RefusedError(Code.INCONSISTENT_GROUP_PROTOCOL)
        if not ask.member_id:
            return self._join_newcomer(ask)
        if ask.instance_id is None and self._pending.pop(ask.member_id, None) is not None:
            return self._add(ask.member_id, ask)
        member = self._member(ask.member_id, ask.instance_id)
        unchanged = member.matches(ask)
        if unchanged and (
            self.state == "CompletingRebalance" or (self.state == "Stable" and member.id != self.leader)
        ):
            # Its answer was lost, or it wants to hear it again: that is no reason to rebalance.
            member.takes(ask)
            self._touch(member)
            return self._answered(self._joined(member))
        self._wait_to_join(member, ask)
        answer = member.joining
        assert answer is not None
        self._prepare_or_complete()
        return answer

    def sync(
        self,
        member_id: str,
        instance_id: str | None,
        generation: int,
        plan: Mapping[str, Collection[TopicPartition]],
    ) -> SyncAnswer:
        """SyncGroup; the answer comes when the leader's `plan` is there. Raises RefusedError."""
        member = self._member(member_id, instance_id)
        if generation != self.generation:
            raise RefusedError(Code.ILLEGAL_GENERATION)
        if self.state == "PreparingRebalance":
            raise RefusedError(Code.REBALANCE_IN_PROGRESS)
        self._unsynced.discard(member_id)
        self._touch(member)
        if self.state == "Stable":
            return self._answered(member.assignment)
        answer = member.syncing
        if answer is None or answer.done():
            answer = member.syncing = self._running_loop().create_future()
        if member_id == self.leader:
            self._become_stable(plan)
        return answer

    def heartbeat(self, member_id: str, generation: int, instance_id: str | None = None) -> None:
        """Heartbeat. Raises RefusedError; REBALANCE_IN_PROGRESS counts as a sign of life all the same."""
        member = self._member(member_id, instance_id)
        if generation != self.generation:
            raise RefusedError(Code.ILLEGAL_GENERATION)
        self._touch(member)
        if self.state == "PreparingRebalance":
            raise RefusedError(Code.REBALANCE_IN_PROGRESS)

    def leave(self, member_id: str) -> None:
        """LeaveGroup, also on a member's behalf. Raises RefusedError."""
        if self._pending.pop(member_id, None) is not None:
            self._maybe_complete()
            return
        self._member(member_id)
        self._remove(member_id)

    def check_commit(self, token: GroupToken) -> None:
        """Whether `token` may commit now. Raises RefusedError.

        While members are still joining the old generation may; nobody may before it has synced.
        """
        member = self._member(token.member_id)
        if token.generation != self.generation:
            raise RefusedError(Code.ILLEGAL_GENERATION)
        if self.state == "CompletingRebalance":
            raise RefusedError(Code.REBALANCE_IN_PROGRESS)
        self._touch(member)

    # -- members -----------------------------------------------------------------------------

    def _member(self, member_id: str, instance_id: str | None = None) -> GroupMember:
        if instance_id is not None:
            known = self._static(instance_id)
            if known is not None and known.id != member_id:
                raise RefusedError(Code.FENCED_INSTANCE_ID)
        member = self.members.get(member_id)
        if member is None:
            raise RefusedError(Code.UNKNOWN_MEMBER_ID)
        return member

    def _static(self, instance_id: str) -> GroupMember | None:
        return next((member for member in self.members.values() if member.instance_id == instance_id), None)

    def _join_newcomer(self, ask: JoinRequest) -> JoinAnswer:
        self._made_ids += 1
        member_id = f"{ask.client_id}-{self._made_ids}"
        if ask.instance_id is None:
            # If this answer is lost, an id expires; a member would be waited for in vain.
            self._pending[member_id] = self._now() + ask.session_timeout_s
            self._watch_sessions()
            raise RefusedError(Code.MEMBER_ID_REQUIRED, member_id)
        old = self._static(ask.instance_id)
        return self._add(member_id, ask) if old is None else self._replace(old, member_id, ask)

    def _add(self, member_id: str, ask: JoinRequest) -> JoinAnswer:
        member = GroupMember(
            member_id, ask.instance_id, ask.session_timeout_s, ask.rebalance_timeout_s, ask.protocol, ask.wish
        )
        self.members[member_id] = member
        self.leader = self.leader or member_id
        self._wait_to_join(member, ask)
        member.deadline = self._now() + NEWCOMER_SECONDS
        self._watch_sessions()
        answer = member.joining
        assert answer is not None
        self._prepare_or_complete()
        return answer

    def _replace(self, old: GroupMember, member_id: str, ask: JoinRequest) -> JoinAnswer:
        """A static member came back under a new id: it takes the old one's place."""
        old.answer(RefusedError(Code.FENCED_INSTANCE_ID))
        was_leader = self.leader == old.id
        leader_named = self.leader or member_id
        member = replace(old, id=member_id, joining=None, syncing=None)
        self.members = {
            member_id if known == old.id else known: member if known == old.id else kept
            for known, kept in self.members.items()
        }
        if was_leader:
            self.leader = member_id
        self._unsynced.discard(old.id)
        member.takes(ask)
        self._touch(member)
        if self.state == "Stable":
            # The leader's old name: a leader that comes back must not make a new plan.
            self._save()
            return self._answered(self._joined(member)._replace(leader_id=leader_named, members={}))
        self._wait_to_join(member, ask)
        answer = member.joining
        assert answer is not None
        self._prepare_or_complete()
        return answer

    def _wait_to_join(self, member: GroupMember, ask: JoinRequest) -> None:
        member.takes(ask)
        if member.joining is None or member.joining.done():
            member.joining = self._running_loop().create_future()

    def _remove(self, member_id: str) -> None:
        member = self.members.pop(member_id)
        self._unsynced.discard(member_id)
        if self.leader == member_id:
            self.leader = next(iter(self.members), None)
        member.answer(RefusedError(Code.UNKNOWN_MEMBER_ID))
        self._prepare_or_complete()

    # -- rebalances --------------------------------------------------------------------------

    def _prepare_or_complete(self) -> None:
        if self.state == "PreparingRebalance":
            self._maybe_complete()
        else:
            self._prepare()

    def _prepare(self) -> None:
        if self.state == "CompletingRebalance":
            for member in self.members.values():
                member.assignment = frozenset()
                if member.syncing is not None:
                    member.answer(RefusedError(Code.REBALANCE_IN_PROGRESS))
                    self._touch(member)
        self._is_initial = self.state == "Empty" and self._initial_delay_s > 0
        self.state = "PreparingRebalance"
        self._unsynced.clear()
        self._cancel_timers()
        if self._is_initial:
            self._join_timer = self._after(self._initial_delay_s, self._complete_join)
            return
        self._join_timer = self._after(self._rebalance_timeout_s(), self._complete_join)
        self._maybe_complete()

    def _rebalance_timeout_s(self) -> float:
        return max((member.rebalance_timeout_s for member in self.members.values()), default=0.0)

    def _maybe_complete(self) -> None:
        if self.state != "PreparingRebalance" or self._is_initial or self._pending:
            return
        if all(member.joining is not None for member in self.members.values()):
            self._complete_join()

    def _complete_join(self) -> None:
        """All have joined, or the time for it is over: who has not is no member any more."""
        self._cancel_timers()
        self._is_initial = False
        for member in list(self.members.values()):
            if member.joining is None and member.instance_id is None:
                del self.members[member.id]
        if self.members and not self._elect():
            # Only static members are left, and none of them joins: their sessions will end it.
            self._join_timer = self._after(self._rebalance_timeout_s(), self._complete_join)
            return
        self.generation += 1
        if not self.members:
            self.state, self.leader, self.protocol = "Empty", None, None
            self._save()
            return
        self.state = "CompletingRebalance"
        self.protocol = next(iter(self.members.values())).protocol
        self._unsynced = set(self.members)
        for member in self.members.values():
            member.is_new = False
            self._touch(member)
            if member.joining is not None:
                member.answer(self._joined(member))
        self._watch_sessions()
        self._sync_timer = self._after(self._rebalance_timeout_s(), self._expire_unsynced)

    def _elect(self) -> bool:
        """Make sure that the leader is one who joins; False when nobody does."""
        joining = [member.id for member in self.members.values() if member.joining is not None]
        if joining and self.leader not in joining:
            self.leader = joining[0]
        return bool(joining)

    def _joined(self, member: GroupMember) -> Joined:
        assert self.protocol is not None
        assert self.leader is not None
        leads = member.id == self.leader
        members = {known.id: known.wish for known in self.members.values()} if leads else {}
        return Joined(self.generation, member.id, self.leader, self.protocol, members)

    def _become_stable(self, plan: Mapping[str, Collection[TopicPartition]]) -> None:
        self.state = "Stable"
        for member in self.members.values():
            member.assignment = frozenset(plan.get(member.id, ()))
        self._save()
        for member in self.members.values():
            if member.syncing is not None:
                member.answer(member.assignment)
                self._touch(member)

    def _expire_unsynced(self) -> None:
        """Who joined but did not fetch its share in time is no member any more."""
        self._sync_timer = None
        if not self._unsynced:
            return
        for member_id in self._unsynced & set(self.members):
            del self.members[member_id]
        if self.leader not in self.members:
            self.leader = next(iter(self.members), None)
        self._prepare()

    # -- sessions ----------------------------------------------------------------------------

    def _touch(self, member: GroupMember) -> None:
        member.deadline = self._now() + member.session_timeout_s
        if self._expiry is None:
            self._watch_sessions()

    def _watch_sessions(self) -> None:
        """One timer for all sessions, at the earliest deadline or before it."""
        deadlines = [member.deadline for member in self.members.values()]
        earliest = min([*deadlines, *self._pending.values()], default=math.inf)
        if self._expiry is not None:
            if self._expiry.when() <= earliest:
                return
            self._expiry.cancel()
        self._expiry = None
        if earliest < math.inf:
            self._expiry = self._after(earliest - self._now(), self._expire)

    def _expire(self) -> None:
        self._expiry = None
        now = self._now()
        for member_id in [known for known, deadline in self._pending.items() if deadline <= now]:
            del self._pending[member_id]
        for member in list(self.members.values()):
            if member.deadline > now or member.id not in self.members:
                continue
            if not member.is_new and (member.joining is not None or member.syncing is not None):
                member.deadline = math.inf  # it waits for us; its session runs again from our answer on
            else:
                self._remove(member.id)
        self._maybe_complete()
        self._watch_sessions()

    # -- the coordinator's own life ----------------------------------------------------------

    def _save(self) -> None:
        kept = tuple(replace(member, joining=None, syncing=None) for member in self.members.values())
        self._saved = _Saved(self.state, self.generation, self.protocol, self.leader, kept)

    def unload(self, reason: Exception) -> None:
        """The coordinator is gone: who waits hears `reason`; an unfinished rebalance never was."""
        for member in self.members.values():
            member.answer(reason)
        self._cancel_timers()
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        self._pending.clear()
        self._unsynced.clear()
        self._is_initial = False
        self.state, self.generation, self.protocol, self.leader, members = self._saved
        self.members = {member.id: replace(member, deadline=math.inf, is_new=False) for member in members}

    def load(self) -> None:
        """A coordinator has taken the group over: every session begins anew."""
        for member in self.members.values():
            self._touch(member)
        self._watch_sessions()

    def _cancel_timers(self) -> None:
        for timer in (self._join_timer, self._sync_timer):
            if timer is not None:
                timer.cancel()
        self._join_timer = self._sync_timer = None

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        assert self._loop is not None, "a group without a join has no members"
        return self._loop

    def _now(self) -> float:
        return self._running_loop().time()

    def _after(self, seconds: float, act: Callable[[], None]) -> asyncio.TimerHandle:
        loop = self._running_loop()
        return loop.call_at(loop.time() + seconds, act, context=Context())

    def _answered(self, outcome: T) -> asyncio.Future[T | Exception]:
        answer: asyncio.Future[T | Exception] = self._running_loop().create_future()
        answer.set_result(outcome)
        return answer
