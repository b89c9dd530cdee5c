"""The commit coordinator of one group: when it is due, takes what is done and commits it.

One commit in flight, one attempt per request, bound to the token of the assignment. Failures are
never fatal, but for a missing right: what is not stored is committed again, at least as high. From
the start of a revoke to the next assignment only the revoke's own final commit is made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from asyncpar.core.assignment import Partition
from asyncpar.core.commits import (
    MIN_SPACING_SECONDS,
    CommitClock,
    Consequence,
    Draft,
    by_partition,
    drafts,
    settle,
)
from asyncpar.errors import AuthorizationError
from asyncpar.ports import OffsetStore
from asyncpar.records import CommitAnswer, GroupToken
from asyncpar.runtime.group_state import GroupState
from asyncpar.runtime.tally import count

_BUSY_TICK_SECONDS = 0.05
_STILL_TICK_SECONDS = 0.2
"""The longest while nothing ends of what runs."""
_IDLE_TICK_SECONDS = 1.0
_FIRST_BACKOFF_SECONDS = 0.1
_MAX_BACKOFF_SECONDS = 5.0
_FINAL_ATTEMPT_SECONDS = 2.0
_SHORTENINGS = 16


class Committer:
    """Commits for one group until `close()`."""

    def __init__(
        self,
        state: GroupState,
        offsets: OffsetStore,
        fatal: Callable[[BaseException], None],
    ) -> None:
        self._state = state
        self._offsets = offsets
        self._fatal = fatal
        self._clock = CommitClock(state.config.commit_every, state.config.commit_interval_ms)
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._closing = False
        self._failures = 0
        self._not_before = float("-inf")
        self._ticked = (0, _BUSY_TICK_SECONDS)
        """How many records had ended at the last busy tick, and how long that was."""
        state.on_intake = self._wake.set

    def close(self) -> None:
        """Make no further commit of its own accord."""
        self._closing = True
        self._wake.set()

    async def run(self) -> None:
        """Commit when it is due, until closed."""
        now = self._state.clock.monotonic
        while True:
            in_flight = any(p.in_flight for p in self._state.partitions.values())
            await self._tick(busy=in_flight or bool(self._failures))
            if self._closing:
                return
            if self._state.token is None or now() < self._not_before:
                continue
            completed = self._completed()
            idle = not any(p.in_flight for p in self._state.partitions.values())
            if self._clock.is_due(now(), completed, idle):
                self._clock.committed(now(), completed)
                await self._commit_due()

    async def _tick(self, busy: bool) -> None:
        """While something runs a plain tick, longer while none of it ends; else until something comes in."""
        if busy:
            ended, (before, pause) = self._completed(), self._ticked
            longest = min(_STILL_TICK_SECONDS, self._state.config.commit_interval_ms / 1000)
            pause = (
                _BUSY_TICK_SECONDS if ended != before else max(_BUSY_TICK_SECONDS, min(2 * pause, longest))
            )
            self._ticked = (ended, pause)
            await asyncio.sleep(pause)
            return
        try:
            async with asyncio.timeout(_IDLE_TICK_SECONDS):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()
        if not self._closing:
            await asyncio.sleep(MIN_SPACING_SECONDS)  # what came in may be done by then

    def _completed(self) -> int:
        return sum(pool.completed() for pool in self._state.pools)

    async def _commit_due(self) -> None:
        async with self._lock:
            if self._state.token is None:
                return
            partitions = list(self._state.partitions.values())
            if await self._commit(partitions, self._state.config.request_timeout_ms / 1000):
                self._failures = 0
                return
        self._failures += 1
        pause = min(_MAX_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2 ** min(self._failures - 1, 10))
        self._not_before = self._state.clock.monotonic() + pause

    async def _commit(self, partitions: list[Partition], timeout_s: float) -> bool:
        """Take and commit what is done; False when something must be tried again later."""
        state = self._state
        for _ in range(_SHORTENINGS):
            made = drafts(partitions, state.metadata_budget)
            state.wake_all()  # the drafts may have opened a gate that the metadata's cap had closed
            if not made or state.token is None:
                return True
            started, token = state.clock.monotonic(), state.token
            answers = await self._offsets.commit(token, by_partition(made), timeout_s)
            state.counters.commit_seconds.add(state.clock.monotonic() - started)
            consequences = [
                self._settle(one, answers.get(one.partition.tp, CommitAnswer.RETRY), token) for one in made
            ]
            if Consequence.AGAIN_SHORTER not in consequences:
                return Consequence.AGAIN not in consequences
        return False

    def _settle(self, made: Draft, answer: CommitAnswer, token: GroupToken) -> Consequence:
        state, tp = self._state, made.partition.tp
        count(state.counters.commits, answer.value)
        consequence = settle(made, answer, state.metadata_budget)
        if consequence is Consequence.AGAIN_SHORTER:
            state.log.warning(
                "%s: the broker refused %d characters of commit metadata; committing with at most %d",
                tp,
                len(made.committed.metadata),
                state.metadata_budget.max_chars,
            )
        elif consequence is Consequence.DROP and state.token == token:  # not that of a later assignment
            state.token = None
            state.log.warning(
                "%s: the commit of offset %d was refused, this member was replaced in its group; "
                "waiting for the next assignment",
                tp,
                made.committed.offset,
            )
        elif consequence is Consequence.FATAL:
            self._fatal(
                AuthorizationError(
                    f"no right to commit offsets of {tp} for group {state.group}: "
                    "grant READ on the group and on the topic"
                )
            )
        elif consequence is Consequence.AGAIN and not self._failures:
            state.log.warning("%s: offset %d is not committed yet; trying again", tp, made.committed.offset)
        return consequence

    async def final(self, partitions: list[Partition], deadline: float) -> bool:
        """The last commit of `partitions` before they are given back; True when all is stored.

        Waits for one in flight first, and ends by `deadline` (monotonic seconds).
        """
        clock = self._state.clock.monotonic
        try:
            async with asyncio.timeout(max(0.0, deadline - clock())):
                async with self._lock:
                    while self._state.token is not None:
                        left = deadline - clock()
                        if left <= 0:
                            return False
                        if await self._commit(partitions, min(_FINAL_ATTEMPT_SECONDS, left)):
                            return self._state.token is not None
                        await asyncio.sleep(_FIRST_BACKOFF_SECONDS)
        except TimeoutError:
            return False
        return False
