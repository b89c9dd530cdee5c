"""One lane as the bridge sees it: what was sent to it, what of that runs, and what certainly never will.

Lives here: the bookkeeping of one lane, and the proof that a record does not start. Never here: which lane
gets what (`process_feed.py`), what its end means for records (`process_outcomes.py`). Always: batches end in
the order in which they were sent.

The proof. A child writes which record it is at, then looks at the stop word, then runs the record. Once the
stop word can be seen by the child, a record of a stopped batch that lies behind the one it is at then is
never run: to get there, the child has to look at the word again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from math import inf
from typing import TypeAlias

from asyncpar.executors.lane_port import Batch, Death, LaneFactory, Progress, Reply
from asyncpar.executors.process_calls import Call, SentBatch
from asyncpar.executors.process_statistics import KillReason
from asyncpar.records import TopicPartition

_BATCHES_AT_MOST = 2
"""One runs, one waits, so that the child has work when it has replied."""
_SEEN_SECONDS = 0.02
"""What one process writes into shared memory, the other sees within nanoseconds; by then for certain."""


class ServingLane:
    """A lane and what was sent to it. Made not started: `port.start()` first."""

    __slots__ = (
        "_next_number",
        "batches",
        "died_early",
        "is_gone",
        "is_retiring",
        "kill_reason",
        "overdue",
        "port",
        "quiet_since",
        "ran",
        "ready_at",
        "spent",
        "stopped_at",
    )

    def __init__(self, make_lane: LaneFactory, on_reply: OnReply, on_death: OnDeath) -> None:
        self.port = make_lane(lambda reply: on_reply(self, reply), lambda death: on_death(self, death))
        self.batches: deque[SentBatch] = deque()
        """Sent, and not replied yet."""
        self.ran = 0
        """Records that ended in it, by its replies."""
        self.ready_at = inf
        self.is_gone = False
        """Its process has ended."""
        self.died_early = False
        """It ended soon after its start, with nothing running: as good as not started."""
        self.is_retiring = False
        """It ends what it has, and gets no more."""
        self.kill_reason: KillReason | None = None
        self.overdue: Call | None = None
        """The call that it is killed for, when that is over its time."""
        self.stopped_at: float | None = None
        """When the stop word was written for all that it has; None: it was not."""
        self.quiet_since: float | None = None
        """Since when it has work, and was never seen running any."""
        self.spent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when it needs a successor."""
        self._next_number = 1

    # -- sending -----------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """It takes batches, as far as it has room."""
        return not (
            self.is_gone
            or self.is_retiring
            or self.kill_reason is not None
            or self.stopped_at is not None
            or len(self.batches) >= _BATCHES_AT_MOST
        )

    def send(self, calls: list[Call], now: float) -> None:
        """Send `calls` as a batch; `is_open` must hold."""
        sent = SentBatch(self._next_number, calls, now, not self.batches)
        self._next_number += 1
        self.batches.append(sent)  # first: the lane may find out that it is dead while it sends
        self.port.send(Batch(sent.number, [call.fields for call in calls]))

    def stop(self, now: float) -> None:
        """Nothing more of what it has starts, and it gets nothing more until all of that has ended."""
        if self.batches and self.stopped_at is None:
            self.stopped_at = now
            self.port.stop_before(self._next_number)

    def kill(self, reason: KillReason) -> None:
        """End its process, unless that is under way; its death is told as any other."""
        if self.kill_reason is None and not self.is_gone:
            self.kill_reason = reason
            self.port.kill()

    # -- what it has -------------------------------------------------------------------------

    def has_replied(self, reply: Reply) -> SentBatch:
        """The batch that `reply` is about, which has ended."""
        sent = self.batches.popleft()
        assert sent.number == reply.number, "a lane replies in the order of its batches"
        self.ran += reply.run
        self.quiet_since = None
        if not self.batches:
            self.stopped_at = None
        return sent

    def calls(self) -> Iterator[Call]:
        """All that it has, in the order in which they run."""
        return (call for sent in self.batches for call in sent.calls)

    def at(self, progress: Progress | None) -> Call | None:
        """The call that runs by `progress`; None: none of them does."""
        if progress is None:
            return None
        for sent in self.batches:
            if sent.number == progress.number and progress.index < len(sent.calls):
                return sent.calls[progress.index]
        return None

    def never_starting(self, progress: Progress | None, now: float) -> list[Call]:
        """The calls that are certain not to run any more, by `progress`, which was read at `now`."""
        if progress is None or self.stopped_at is None or now - self.stopped_at < _SEEN_SECONDS:
            return []
        here = (progress.number, progress.index)
        return [
            call
            for sent in self.batches
            for index, call in enumerate(sent.calls)
            if (sent.number, index) > here and not call.is_over
        ]

    def has_of(self, tp: TopicPartition) -> bool:
        """A record of `tp` may still start here."""
        progress = self.port.progress()
        here = (0, 0) if progress is None else (progress.number, progress.index)
        return any(
            (sent.number, index) > here and not call.is_over and call.is_of(tp)
            for sent in self.batches
            for index, call in enumerate(sent.calls)
        )

    def needs_successor(self) -> None:
        """It has died, or has run its share."""
        if not self.spent.done():
            self.spent.set_result(None)


OnReply: TypeAlias = Callable[[ServingLane, Reply], None]
OnDeath: TypeAlias = Callable[[ServingLane, Death], None]
