"""One consumer's life within a group: the tasks that serve it, from start to a bounded stop.

A group that must replace a dead client begins a new session; its state and workers go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from asyncpar.core.commits import is_stored
from asyncpar.errors import EngineError
from asyncpar.ports import Consumer, Subscription
from asyncpar.records import TopicPartition
from asyncpar.runtime.committer import Committer
from asyncpar.runtime.group_state import GroupState
from asyncpar.runtime.poller import Poller
from asyncpar.runtime.reach import Reach
from asyncpar.runtime.rebalance import Rebalancer
from asyncpar.runtime.watchdog import Watchdog

CONSUMER_STOP_SECONDS = 3.0
_TASK_END_SECONDS = 1.0


class Session:
    """Poller, committer, rebalancer and watchdog around one consumer."""

    def __init__(self, state: GroupState, consumer: Consumer, fatal: Callable[[BaseException], None]) -> None:
        self._state = state
        self._fatal = fatal
        self._tasks: set[asyncio.Task[None]] = set()
        self.consumer = consumer
        self.died: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        """Set, with the reason, when this consumer must be replaced."""
        self.poller = Poller(state, consumer, self._reset_positions, fatal)
        self.committer = Committer(state, consumer, fatal)
        self.rebalancer = Rebalancer(state, consumer, self.committer, self._spawn, fatal)
        self.watchdog = Watchdog(state, consumer, self.poller, self._dead)
        self.reach = Reach(state, consumer, self.poller, self._dead, fatal)
        self._polling: asyncio.Task[None] | None = None
        self._reaching: asyncio.Task[None] | None = None

    async def start(self, subscription: Subscription) -> None:
        """Connect, subscribe and begin; raises what the consumer's start raises."""
        state = self._state
        state.lease_from = self.consumer.lease_from
        state.lease_until = float("-inf")
        state.phase = "joining"
        await self.consumer.start(subscription, self.rebalancer)
        self._polling = self._spawn(self.poller.run(), "poller")
        self._spawn(self.committer.run(), "committer")
        self._spawn(self.watchdog.run(), "watchdog")
        self._reaching = self._spawn(self.reach.run(subscription.topics), "reach")

    async def _reset_positions(self, offsets: dict[TopicPartition, int]) -> None:
        await self.rebalancer.opener.reset_positions(offsets)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=f"asyncpar-{name}-{self._state.group}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A task that dies is noticed at once: silence is a fault."""
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            failure = EngineError(f"{task.get_name()} died: {type(error).__name__}: {error}")
            failure.__cause__ = error
            self._fatal(failure)

    def _dead(self, reason: BaseException) -> None:
        if not self.died.done():
            self.died.set_result(reason)

    @property
    def is_connected(self) -> bool:
        """True once the consumer has started."""
        return self._polling is not None

    def is_serving(self) -> bool:
        """True while the poller's task lives."""
        return self._polling is not None and not self._polling.done()

    async def drain(self, deadline: float, hurry: asyncio.Event) -> str | None:
        """Let what runs end and commit it. None when all of it was done and is stored, else what was not.

        `hurry` cancels what runs at once.
        """
        partitions = list(self._state.partitions.values())
        drained = await self.rebalancer.drain(partitions, deadline, hurry)
        stored = True
        outbox = self._state.outbox
        left = 0 if outbox is None else sum(len(outbox.waiting(partition.tp)) for partition in partitions)
        if partitions:
            bound = self._state.clock.monotonic() + CONSUMER_STOP_SECONDS
            # A revoke that came in between has committed and released them; then there is no token for us.
            stored = await self.committer.final(partitions, bound) or all(
                is_stored(partition, self._state.metadata_budget) for partition in partitions
            )
        self.rebalancer.leave_behind(partitions)
        self._state.token = None
        if not drained:
            if left:
                return f"not yet acknowledged by their dead-letter or retry topic: {left}"
            return "running handlers were cancelled"
        return None if stored else "the last commit was not acknowledged"

    async def close(self) -> None:
        """End the tasks and the consumer, within a bound, whatever the broker does."""
        self.poller.close()
        self.committer.close()
        if self._reaching is not None:
            self._reaching.cancel()  # before the consumer stops: it may be in the middle of a question
        try:
            await self.consumer.stop(CONSUMER_STOP_SECONDS)
        finally:
            tasks = set(self._tasks)
            for task in tasks:
                task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_TASK_END_SECONDS)
