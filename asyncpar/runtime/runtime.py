"""One consumer group of this process, from start to stop: sole owner of its state, supervisor of its tasks.

Starts the handlers' pools and a session with a consumer; replaces a consumer that died (at most
three times in ten minutes); ends when asked to, or raises what cannot be mended. Never idles over
a dead task.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from asyncpar.core.assignment import State
from asyncpar.errors import (
    AsyncparError,
    AuthorizationError,
    BrokerError,
    BrokerUnreachableError,
    ConfigurationError,
    ConsumerFailedError,
    DrainIncompleteError,
    EngineError,
)
from asyncpar.ports import ConsumerFactory, ProducerFactory, Subscription
from asyncpar.records import TopicPartition
from asyncpar.runtime.config import RuntimeConfig
from asyncpar.runtime.deadlines import Deadlines
from asyncpar.runtime.group_state import Clock, GroupState
from asyncpar.runtime.handlers import Handler
from asyncpar.runtime.letters import dead_letter_topics
from asyncpar.runtime.outbox import Departure, Outbox
from asyncpar.runtime.retries import RetryTimer
from asyncpar.runtime.session import Session
from asyncpar.runtime.workers import HandlerPool

_MAX_REPLACEMENTS = 3
_REPLACEMENT_WINDOW_SECONDS = 600.0
_RESTART_PAUSE_SECONDS = 1.0
_POOL_END_SECONDS = 1.0
_END_CHECK_SECONDS = 0.1


class GroupRuntime:
    """Runs the handlers of one group. Use once: `run()` from start to end."""

    def __init__(
        self,
        group: str,
        handlers: Sequence[Handler],
        subscription: Subscription,
        config: RuntimeConfig,
        consumers: ConsumerFactory,
        *,
        clock: Clock | None = None,
        producers: ProducerFactory | None = None,
        departed: Callable[[Departure], None] = lambda _: None,
    ) -> None:
        """`producers` is needed when a handler has dead letters; `departed` is told of each that is done."""
        self._subscription = subscription
        self._consumers = consumers
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._fatal: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self._replaced_at: deque[float] = deque()
        self._abandoned: list[str] = []
        self._owners: set[asyncio.Task[None]] = set()
        self.started = asyncio.Event()
        """Set when the consumer has connected and subscribed."""
        self.state = GroupState(group, config, clock or Clock(), lambda: float("-inf"))
        self.state.pools = tuple(HandlerPool(handler, self.state) for handler in handlers)
        self.session: Session | None = None
        self._timer = RetryTimer(self.state)
        self._watching: set[asyncio.Task[None]] = set()
        if any(handler.dead_letter is not None or handler.retry_topics for handler in handlers):
            assert producers is not None
            self.state.outbox = Outbox(self.state, producers, self._fail, departed)

    # -- from outside ------------------------------------------------------------------------

    def stop(self, *, now: bool = False) -> None:
        """Begin the stop; `now`: cancel what runs instead of waiting for it."""
        self._stop.set()
        if now:
            self._hurry.set()

    def retry_halted(self, tp: TopicPartition) -> None:
        """Run a halted partition's records again.

        KeyError when it is not assigned, ValueError when it is not halted.
        """
        partition = self.state.partitions[tp]
        if partition.state is not State.HALTED:
            raise ValueError(f"{tp} is {partition.state.value}, not halted")
        assert self.session is not None
        self.session.rebalancer.retry_halted(partition)

    def unfinished(self) -> list[str]:
        """Names of the calls that still run, those in threads that nobody waits for any more included."""
        return [*self._abandoned, *_names_of_calls(self.state.pools)]

    # -- the life ----------------------------------------------------------------------------

    async def run(self, *, until_end: bool = False) -> None:
        """Run until stopped. `until_end`: until the end offsets that were read at the start.

        Raises ConfigurationError and ConnectError from the start; EngineError for what cannot be
        mended; DrainIncompleteError when the stop left work unfinished.
        """
        for pool in self.state.pools:
            self._own(pool)
            if pool.children is not None:
                pool.children.open()
            if pool.handler.timeout_seconds is not None:
                deadlines = Deadlines(pool, pool.handler.timeout_seconds)
                self._watching.add(
                    self._supervised(deadlines.run(), f"asyncpar-deadlines-{pool.handler.name}")
                )
        try:
            if not await self._begin_unless_stopped():
                return
            assert self.session is not None
            session = self.session
            ender: asyncio.Task[None] | None = None
            if until_end:
                ender = asyncio.create_task(self._stop_at_end(), name="asyncpar-ender")
                ender.add_done_callback(self._owner_ended)
            try:
                session = await self._serve(session)
            finally:
                if ender is not None:
                    ender.cancel()
                cut_off = await self._finish()
            if self._fatal.done():
                raise self._fatal.result()
            self._judge(cut_off, until_end)
        finally:
            await self._end_pools()

    def _judge(self, cut_off: str | None, until_end: bool) -> None:
        halted = self._halted_at_end
        if until_end and halted:
            raise DrainIncompleteError(
                f"halted before the end: {', '.join(halted)}; see the errors logged above"
            )
        if cut_off is not None:
            left = ", ".join([cut_off, *self.unfinished()])
            raise DrainIncompleteError(
                f"group {self.state.group} stopped with work unfinished ({left}); "
                "it runs again after a restart"
            )

    def _own(self, pool: HandlerPool) -> None:
        self._owners.add(self._supervised(pool.run(), f"asyncpar-pool-{pool.handler.name}"))

    def _supervised(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        task.add_done_callback(self._owner_ended)
        return task

    def _owner_ended(self, task: asyncio.Task[None]) -> None:
        self._owners.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        error = task.exception()
        failure = EngineError(f"{task.get_name()} died: {error!r}")
        failure.__cause__ = error
        self._fail(failure)

    def _fail(self, error: BaseException) -> None:
        if not self._fatal.done():
            self.state.phase = "failed"
            self._fatal.set_result(error)

    async def _begin(self) -> Session:
        """A session that has connected; closed again when its start fails."""
        if self.state.outbox is not None and not self._has_outbox:
            await self.state.outbox.start(_departure_topics(self.state.pools))
            self._has_outbox = True
        session = Session(self.state, self._consumers(self.state.group), self._fail)
        self.session = session
        try:
            await session.start(self._subscription)
        except BaseException:
            await session.close()
            raise
        self.started.set()
        return session

    async def _begin_unless_stopped(self) -> bool:
        """True when connected; False when the stop came first."""
        beginning = asyncio.create_task(self._begin())
        stop = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({beginning, stop}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await _call_off(beginning)
            raise
        finally:
            stop.cancel()
        if not beginning.done():
            await _call_off(beginning)
            self.state.phase = "stopped"
            return False
        beginning.result()
        return True

    async def _serve(self, session: Session) -> Session:
        """Until the stop or a fatal failure; a dead consumer is replaced."""
        stop = asyncio.create_task(self._stop.wait())
        try:
            while True:
                ends: set[asyncio.Future[Any]] = {stop, self._fatal, session.died}
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                if self._fatal.done() or self._stop.is_set():
                    return session
                session = await self._replace(session, session.died.result())
        finally:
            stop.cancel()

    async def _replace(self, dead: Session, reason: BaseException) -> Session:
        state, now = self.state, self.state.clock.monotonic()
        while self._replaced_at and now - self._replaced_at[0] > _REPLACEMENT_WINDOW_SECONDS:
            self._replaced_at.popleft()
        if len(self._replaced_at) >= _MAX_REPLACEMENTS:
            error = ConsumerFailedError(
                f"group {state.group}: the client died {_MAX_REPLACEMENTS + 1} times in "
                f"{_REPLACEMENT_WINDOW_SECONDS / 60:.0f} minutes, last: {reason}"
            )
            error.__cause__ = reason
            self._fail(error)
            return dead
        self._replaced_at.append(now)
        state.counters.consumer_replacements += 1
        state.log.error("group %s: the client died (%s); replacing it", state.group, reason)
        dead.rebalancer.lost(frozenset(state.partitions))
        await dead.close()
        while not self._stop.is_set() and not self._fatal.done():
            try:
                if await self._begin_unless_stopped():
                    assert self.session is not None
                    return self.session
            except (BrokerUnreachableError, BrokerError) as error:
                state.log.warning("group %s: no broker yet (%s); trying again", state.group, error)
                await asyncio.sleep(_RESTART_PAUSE_SECONDS)
            except (AsyncparError, ConfigurationError) as error:
                self._fail(error)
        return dead

    # -- the stop ----------------------------------------------------------------------------

    async def _finish(self) -> str | None:
        """Drain, commit, leave, close; what was cut off, or None."""
        state, session = self.state, self.session
        assert session is not None
        self._halted_at_end = [
            f"{p.tp} ({p.halt_reason or 'about to go on'})"
            for p in state.partitions.values()
            if p.state is State.HALTED
        ]
        state.stopping = True
        if not self._fatal.done():
            state.phase = "stopping"
        self._timer.close()
        session.poller.close()
        if self._fatal.done():
            self._hurry.set()
        wait_s = state.config.shutdown_drain_timeout_ms / 1000
        try:
            cut_off = await session.drain(state.clock.monotonic() + wait_s, self._hurry)
        finally:
            await session.close()  # also when the drain is cancelled: no member may stay behind
        state.phase = "failed" if self._fatal.done() else "stopped"
        return cut_off

    async def _end_pools(self) -> None:
        for task in self._watching:
            task.cancel()
        if self.state.outbox is not None:
            await self.state.outbox.close()
        for pool in self.state.pools:
            pool.close()
        owners = set(self._owners)
        if not owners:
            return
        _, running = await asyncio.wait(owners, timeout=_POOL_END_SECONDS)
        # Cancelling a worker ends the wait for its thread, not the thread: it must be named all the same.
        abandoned = _names_of_calls(pool for pool in self.state.pools if pool.handler.executor == "thread")
        for owner in running:
            owner.cancel()
        if running:
            await asyncio.wait(running, timeout=_POOL_END_SECONDS)
        still_named = set(_names_of_calls(self.state.pools))
        self._abandoned = [name for name in abandoned if name not in still_named]

    _halted_at_end: Sequence[str] = ()
    _has_outbox = False

    # -- until the end -----------------------------------------------------------------------

    async def _stop_at_end(self) -> None:
        """Stop when everything up to the end offsets of the start is done (or halted)."""
        ends: dict[TopicPartition, int] = {}
        state = self.state
        while True:
            await asyncio.sleep(_END_CHECK_SECONDS)
            settled = [p for p in state.partitions.values() if p.state in (State.OPEN, State.HALTED)]
            unknown = [p.tp for p in settled if p.tp not in ends]
            if unknown:
                session = self.session
                assert session is not None
                try:
                    ends.update(await session.consumer.end(unknown))
                except (AuthorizationError, ConfigurationError) as error:
                    self._fail(error)
                    return
                except BrokerError as error:
                    state.log.warning("group %s: end offsets cannot be read (%s)", state.group, error)
                continue
            if state.phase != "joined" or len(settled) < len(state.partitions):
                continue
            if all(
                p.state is State.HALTED or (p.tracker is not None and p.tracker.hwm >= ends[p.tp])
                for p in settled
            ):
                self._stop.set()
                return


async def _call_off(beginning: asyncio.Task[Session]) -> None:
    """End a start; one that had connected in the same moment is closed, or it would go on by itself."""
    beginning.cancel()
    await asyncio.wait({beginning})
    if not beginning.cancelled() and beginning.exception() is None:
        await beginning.result().close()


def _departure_topics(pools: Iterable[HandlerPool]) -> list[tuple[str, str]]:
    """(handler, topic) of all topics known now that records may leave for."""
    found: list[tuple[str, str]] = []
    for handler in (pool.handler for pool in pools):
        stops = [name for name, _ in handler.retry_topics]
        found += [(handler.name, name) for name in stops]
        if handler.dead_letter is None:
            continue
        sources = [name for name in handler.topics if name not in stops]
        found += [(handler.name, name) for name in dead_letter_topics(handler.dead_letter, sources)]
    return found


def _names_of_calls(pools: Iterable[HandlerPool]) -> list[str]:
    """The calls that run in `pools`, by handler, partition and offset."""
    return [
        f"{pool.handler.name} on {worker.vp.queues.partition} offset {worker.record.offset}"
        for pool in pools
        for worker in pool.busy()
        if worker.vp is not None and worker.record is not None
    ]
