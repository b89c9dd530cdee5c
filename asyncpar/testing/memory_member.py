"""A consumer's life as a member of its group: joining, rebalances, heartbeats, leaving.

Lives here: the client's half of the group protocol, as the aiokafka adapter behaves: heartbeats go on while
a revoke drains, none between that and the next assignment; revoked without a membership means lost.
Never here: records and offsets. Called by `memory_consumer`. Always: what is revoked is told before the
JoinGroup that gives it back is sent.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from asyncpar.adapters.aiokafka_config import ClientConfig
from asyncpar.adapters.aiokafka_errors import no_right_on_group
from asyncpar.adapters.aiokafka_lease import OK, REBALANCE_IN_PROGRESS, MembershipClock
from asyncpar.errors import AsyncparError, AuthorizationError, ConfigurationError, EngineError, FetchError
from asyncpar.ports import AssignmentListener
from asyncpar.records import GroupToken, TopicPartition
from asyncpar.testing.memory_assignors import Plan, Protocol, Wish, assign
from asyncpar.testing.memory_connection import BACKOFF_SECONDS, MOVED, MemoryConnection
from asyncpar.testing.memory_fetch import MemoryFetch
from asyncpar.testing.memory_group import MemoryGroup
from asyncpar.testing.memory_link import Code, LinkError, RefusedError, Waiter
from asyncpar.testing.memory_metadata import MemoryMetadata
from asyncpar.testing.memory_roster import JoinAnswer, Joined, JoinRequest, SyncAnswer

log = logging.getLogger(__name__)

# The slowest of the others decides how long a JoinGroup takes.
JOIN_TIMEOUT_SECONDS = 300.0
_NOBODY = GroupToken(-1, "")
_FORGOTTEN = frozenset({Code.UNKNOWN_MEMBER_ID, Code.ILLEGAL_GENERATION})
_SETTINGS = frozenset({Code.INCONSISTENT_GROUP_PROTOCOL, Code.INVALID_GROUP_ID, Code.INVALID_SESSION_TIMEOUT})


class MemoryMember:
    """One member. `start` begins its tasks, `fetch` is told what is assigned."""

    def __init__(
        self,
        connection: MemoryConnection,
        name: str,
        config: ClientConfig,
        protocol: Protocol,
        metadata: MemoryMetadata,
        fetch: MemoryFetch,
    ) -> None:
        self._connection = connection
        self._name = name
        self._config = config
        self._metadata = metadata
        self._protocol: Protocol = protocol
        self._fetch = fetch
        self._listener: AssignmentListener
        self.clock = MembershipClock(config.rebalance_timeout_ms / 1000)
        self.token = _NOBODY
        """Generation and member id as of now; generation -1 or an empty id: no member."""
        self.dead: BaseException | None = None
        """Why one of its tasks ended for good."""
        self._assignment: frozenset[TopicPartition] = frozenset()
        self._former: set[GroupToken] = set()  # tokens whose partitions have been ours ever since
        self._must_join = True
        self._is_prepared = False
        self._is_closing = False
        self._error: AsyncparError | None = None
        self._fenced: ConfigurationError | None = None
        self._beating: asyncio.Task[None] | None = None
        self._running: asyncio.Task[None] | None = None
        self._waiter = Waiter()
        connection.on_lost = self._waiter.wake

    @property
    def is_member(self) -> bool:
        """Whether the group counts us in, as far as we know."""
        return self.token.generation >= 0 and bool(self.token.member_id)

    def start(self, listener: AssignmentListener) -> None:
        """Begin to be a member; metadata has been read once."""
        self._listener = listener
        self._running = asyncio.get_running_loop().create_task(self._run())

    def check(self) -> None:
        """Raise what stands against going on; what the group has to say is said once, and lets it go on."""
        if self._fenced is not None:
            raise self._fenced
        error, self._error = self._error, None
        if error is not None:
            self._waiter.wake()
            raise error

    def sent_as(self, token: GroupToken) -> GroupToken:
        """What a commit bound to `token` is sent with: cooperative members keep what they hold for longer."""
        return self.token if token in self._former and self.is_member else token

    def _join_again(self) -> None:
        self._must_join = True
        self._waiter.wake()

    def _forget_membership(self) -> None:
        self.token = _NOBODY
        self._former.clear()
        self._join_again()

    # -- the life ----------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            while not self._is_closing:
                await self._live()
        except Exception as error:  # noqa: BLE001 - a task that ends must be seen, whatever ended it
            self._die("coordination task", error)

    async def _live(self) -> None:
        """One round: a coordinator, a membership, and then nothing until something happens."""
        try:
            await self._connection.find_coordinator()
            if self._is_closing:
                return
            if self._must_join:
                await self._rejoin()
                return
            if self._connection.knows_coordinator:
                await self._waiter.wait(self._metadata.refresh_at)
            if self._metadata.is_due():
                await self._metadata.refresh()
                if self._metadata.must_join_again():
                    self._must_join = True
        except AsyncparError as error:
            await self._tell(error)

    async def _tell(self, error: AsyncparError) -> None:
        """The next fetch raises `error`; nothing goes on before that."""
        self._error = error
        self._fetch.wake()
        while not self._is_told():
            await self._waiter.wait(None)

    def _is_told(self) -> bool:
        return self._error is None or self._is_closing

    def _die(self, task: str, error: BaseException) -> None:
        if self.dead is not None:
            return
        if isinstance(error, AuthorizationError | ConfigurationError):
            self.dead = error
            return
        self.dead = EngineError(f"the client's {task} died: {error}")
        self.dead.__cause__ = error

    def break_down(self, reason: str) -> None:
        """End its tasks as a fault of the client would; see `MemoryConsumer.break_down`."""
        self._die("coordination task", RuntimeError(reason))
        for task in self._tasks():
            task.cancel()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    # -- joining -----------------------------------------------------------------------------

    async def _rejoin(self) -> None:
        """One attempt; `_must_join` is still set when it failed."""
        if self._metadata.subscription.pattern is not None:
            await self._metadata.refresh()
        if not self._is_prepared:
            await self._prepare()
            self._is_prepared = True
        await self._stop_heartbeats()
        if self._is_closing:
            return
        try:
            joined = await self._join()
            assigned = await self._sync(joined)
        except LinkError:
            await asyncio.sleep(BACKOFF_SECONDS)
        except RefusedError as refused:
            self._refused(refused)
        else:
            self._is_prepared = False
            self._beating = asyncio.get_running_loop().create_task(self._beat())
            await self._install(assigned)
            if self._metadata.must_join_again():
                self._must_join = True

    async def _prepare(self) -> None:
        """Give back what has to be given back before joining."""
        if self._protocol == "cooperative" and self.is_member:
            return
        self._fetch.suspend()
        if self._assignment:
            await self._tell_revoked(self._assignment)
            self._assignment = frozenset()

    async def _tell_revoked(self, partitions: frozenset[TopicPartition]) -> None:
        try:
            if self.is_member:
                await self._listener.revoked(partitions)
            else:
                self._listener.lost(partitions)
        except Exception:
            log.exception("the listener of group %s failed", self._connection.group)

    async def _join(self) -> Joined:
        config = self._config
        wish = Wish(self._metadata.wish(), self._assignment)
        while True:
            if self._fenced is not None:
                raise self._fenced
            ask = JoinRequest(
                self._name,
                self.token.member_id,
                config.group_instance_id,
                config.session_timeout_ms / 1000,
                config.rebalance_timeout_ms / 1000,
                self._protocol,
                wish,
            )
            try:
                return await self._connection.ask_and_wait(
                    "JoinGroup", partial(_join_with, ask), JOIN_TIMEOUT_SECONDS
                )
            except RefusedError as refused:
                if refused.code is Code.COORDINATOR_LOAD_IN_PROGRESS:
                    raise LinkError("the coordinator is loading the group") from refused
                if refused.code is not Code.MEMBER_ID_REQUIRED:
                    raise
                self.token = GroupToken(self.token.generation, refused.member_id)

    async def _sync(self, joined: Joined) -> frozenset[TopicPartition]:
        token = self.token = GroupToken(joined.generation, joined.member_id)
        plan = await self._plan(joined) if joined.leader_id == joined.member_id else {}
        self._must_join = False
        sent = self._now()
        sync = partial(_sync_with, token, self._config.group_instance_id, plan)
        try:
            assigned = await self._connection.ask_and_wait(
                "SyncGroup", sync, self._config.request_timeout_ms / 1000
            )
        except (LinkError, RefusedError):
            self._must_join = True
            raise
        self.clock.heard(sent, OK)
        return assigned

    async def _plan(self, joined: Joined) -> Plan:
        """We lead: share out what all members want, and from now on watch those topics."""
        topics = frozenset[str]().union(*(wish.topics for wish in joined.members.values()))
        await self._metadata.watch(topics)
        return assign(joined.protocol, joined.members, self._metadata.counts)

    def _refused(self, refused: RefusedError) -> None:
        """A JoinGroup or SyncGroup was answered with an error: try again, or raise what it means."""
        group, code = self._connection.group, refused.code
        if code in _FORGOTTEN:
            self._forget_membership()
            self._is_prepared = False  # what a cooperative member has kept until now is lost
        elif code is Code.FENCED_INSTANCE_ID:
            raise self._fence()
        elif code is Code.GROUP_AUTHORIZATION_FAILED:
            raise no_right_on_group(group)
        elif code in _SETTINGS:
            raise ConfigurationError(f"cannot join group {group!r}: the broker answered {refused}")
        elif code is not Code.REBALANCE_IN_PROGRESS and code not in MOVED:
            raise FetchError(f"fetch failed: group {group!r} cannot be joined: the broker answered {refused}")

    def _fence(self) -> ConfigurationError:
        """Another member has our instance id; joining would only take it back, and so on for ever."""
        self._fenced = ConfigurationError(
            f"cannot join group {self._connection.group!r}: another member has group_instance_id "
            f"{self._config.group_instance_id!r}: give each instance an id of its own"
        )
        return self._fenced

    # -- assignments -------------------------------------------------------------------------

    async def _install(self, assigned: frozenset[TopicPartition]) -> None:
        """Tell what is ours now; what a cooperative member had before and has still is not mentioned."""
        kept = self._assignment & assigned
        taken = self._assignment - assigned
        if taken:
            self._must_join = True  # only then may the others have them
            await self._tell_revoked(taken)
            self._assignment = kept
            if not self.is_member:
                return
        self._assignment = assigned
        if self._config.group_instance_id is not None:
            self._metadata.watch_static(assigned)
        self._fetch.assign(assigned, kept)
        self._listener.assigned(assigned - kept, self.token)
        if self._protocol == "cooperative":
            self._former.add(self.token)

    # -- heartbeats --------------------------------------------------------------------------

    async def _beat(self) -> None:
        try:
            await self._keep_alive()
        except AsyncparError as error:
            self._error = error
            self._fetch.wake()
            self._die("heartbeat task", error)

    async def _keep_alive(self) -> None:
        interval, session = self._config.heartbeat_interval_ms / 1000, self._config.session_timeout_ms / 1000
        pause, answered = interval, self._now()
        while self.token.member_id:
            await asyncio.sleep(pause)
            await self._connection.find_coordinator()
            sent = self._now()
            if await self._heartbeat(sent):
                answered = self._now()
                pause = max(0.0, interval - (answered - sent))
            else:
                pause = BACKOFF_SECONDS
            if self._now() - answered > session:
                self._connection.forget_coordinator()

    async def _heartbeat(self, sent: float) -> bool:
        """One heartbeat; True when it went well. Raises for what no further one would mend."""
        token = self.token
        try:
            await self._connection.ask(
                "Heartbeat", partial(_beat_with, token, self._config.group_instance_id)
            )
        except LinkError:
            return False
        except RefusedError as refused:
            return self._heartbeat_refused(refused, sent)
        self.clock.heard(sent, OK)
        return True

    def _heartbeat_refused(self, refused: RefusedError, sent: float) -> bool:
        code, group = refused.code, self._connection.group
        if code is Code.REBALANCE_IN_PROGRESS:
            self.clock.heard(sent, REBALANCE_IN_PROGRESS)
            self._join_again()
            return True
        if code is Code.FENCED_INSTANCE_ID:
            self._fence()
            self._fetch.wake()
        if code in _FORGOTTEN or code is Code.FENCED_INSTANCE_ID:
            self._forget_membership()
        elif code is Code.GROUP_AUTHORIZATION_FAILED:
            raise no_right_on_group(group)
        elif code not in MOVED:
            raise FetchError(f"fetch failed: a heartbeat in group {group!r} was answered {refused}")
        return False

    async def _stop_heartbeats(self) -> None:
        beating, self._beating = self._beating, None
        if beating is not None:
            beating.cancel()
            await asyncio.wait({beating})

    # -- the end -----------------------------------------------------------------------------

    async def leave(self) -> None:
        """Send a LeaveGroup past whatever else waits. Raises LinkError, RefusedError."""
        if self.token.member_id:
            member_id = self.token.member_id
            await self._connection.ask_aside("LeaveGroup", lambda group: group.leave(member_id))

    def _tasks(self) -> list[asyncio.Task[None]]:
        # In an order of their own, not that of a set: a simulation must repeat it.
        return [task for task in (self._running, self._beating) if task is not None and not task.done()]

    async def stop(self, patience_s: float, cancel_s: float) -> None:
        """End its tasks: a callback under way gets `patience_s` to return, then all is cancelled."""
        self._is_closing = True
        self._waiter.wake()
        running = self._running
        if running is not None and not running.done():
            await asyncio.wait({running}, timeout=patience_s)
        if tasks := self._tasks():
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=cancel_s)


def _join_with(ask: JoinRequest, group: MemoryGroup) -> JoinAnswer:
    return group.join(ask)


def _sync_with(token: GroupToken, instance_id: str | None, plan: Plan, group: MemoryGroup) -> SyncAnswer:
    return group.sync(token.member_id, instance_id, token.generation, plan)


def _beat_with(token: GroupToken, instance_id: str | None, group: MemoryGroup) -> None:
    group.heartbeat(token.member_id, token.generation, instance_id)
