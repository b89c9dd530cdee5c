"""Runs a handler's records in child processes: what a worker calls instead of the function.

Lives here: the bridge of one handler, pure asyncio over the lane port, and its watch over what runs. Never
here: sockets and processes (`lane.py`), retries, order, offsets: every record that is with the bridge has a
worker that waits for it, so those stay as they are. Called on the event loop by workers (`run`), by the
runtime (`start`, `open`, `withdraw`, `close`) and by its lanes. Simulations give it lanes of their own.

Always: a call ends exactly once. While it has not, its record may run; when it has, it certainly does not.
A cancelled call is no exception: one that runs has its child killed, one that does not is called back, and
`run` ends when it is certain, with the record's success or failure if it had ended before.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from asyncpar.errors import NotStartedError
from asyncpar.executors.lane_port import Death, LaneFactory, Progress, Reply
from asyncpar.executors.process_calls import Call
from asyncpar.executors.process_feed import Feed
from asyncpar.executors.process_keeper import LaneKeeper
from asyncpar.executors.process_lanes import ServingLane
from asyncpar.executors.process_outcomes import Outcomes
from asyncpar.executors.process_rules import BridgeRules
from asyncpar.executors.process_statistics import BridgeStatistics, Counters, KillReason
from asyncpar.records import RawRecord, TopicPartition

__all__ = ["BridgeRules", "ProcessBridge"]

_TICK_SECONDS = 0.05
_LONG_SECONDS = 0.5
"""A record that has run for so long holds others up: those behind it are called back, those before told."""
_SILENT_SECONDS = 10.0
"""A child that has work and was not seen at any of it for so long is ended."""
_LOG_SPACING_SECONDS = 1.0
_ALWAYS = 9e9
"""Seconds; as nanoseconds it still fits into 63 bits."""
_LOG = logging.getLogger("asyncpar.process")


class ProcessBridge:
    """The child processes of one handler. `clock` gives monotonic seconds, the children's clock too."""

    def __init__(
        self,
        name: str,
        rules: BridgeRules,
        make_lane: LaneFactory,
        clock: Callable[[], float] = time.monotonic,
        log: logging.Logger = _LOG,
    ) -> None:
        self._name = name
        self._rules = rules
        self._clock = clock
        self._log = log
        self._counters = Counters()
        self._outcomes = Outcomes(name, self._counters, clock)
        self._keeper = LaneKeeper(
            name,
            lambda: ServingLane(make_lane, self._replied, self._died),
            self._counters,
            clock,
            log,
            self._go_on,
        )
        self._lanes = self._keeper.serving
        self._feed = Feed(rules, self._lanes, self._counters, clock, self._before_sending)
        self._lease_until: Callable[[], float] = lambda: _ALWAYS
        self._loop: asyncio.AbstractEventLoop
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._drained: asyncio.Future[None] | None = None
        """Set while it closes: done when no lane has anything."""
        self._next_line = 0.0
        self._unsaid_deaths = 0

    # -- the runtime's side ------------------------------------------------------------------

    async def start(self) -> None:
        """Start the lanes. HandlerError when no child can be started; a part of them is tried again."""
        self._loop = asyncio.get_running_loop()
        await self._keeper.start(self._rules.lanes)

    def open(self, lease_until: Callable[[], float], on_refusal: Callable[[str | None], None]) -> None:
        """`lease_until()`: the monotonic second until which records may start.

        `on_refusal` is called with a reason when children cannot be started any more, and with None when
        they can again.
        """
        self._lease_until = lease_until
        self._keeper.on_refusal = on_refusal
        if self._keeper.refusal is not None:
            on_refusal(self._keeper.refusal)

    @property
    def refusal(self) -> str | None:
        """Why children cannot be started, while they cannot and none is left."""
        return self._keeper.refusal

    def progress_of(self, tp: TopicPartition, offset: int) -> Progress | None:
        """Since when a record runs in a child, and until when it asked for time; None: it does not run."""
        for lane in self._lanes:
            progress = lane.port.progress()
            call = lane.at(progress)
            if call is not None and call.place == (*tp, offset):
                return progress
        return None

    @property
    def statistics(self) -> BridgeStatistics:
        """What is counted, at this moment."""
        busy = sum(bool(lane.batches) for lane in self._lanes)
        return self._counters.snapshot(lanes=len(self._lanes), busy=busy, pending=len(self._feed.pending))

    def withdraw(self, tp: TopicPartition) -> None:
        """Nothing more of `tp` starts. What runs of it runs on, until its worker is cancelled."""
        self._outcomes.not_started(self._feed.drop_all(tp), f"{tp} was withdrawn")
        now = self._clock()
        for lane in self._lanes:
            if lane.has_of(tp):
                lane.stop(now)

    async def close(self, timeout_s: float) -> None:
        """End the children, within about `timeout_s`. What runs may end until then; nothing more starts."""
        if self._is_closed:
            return
        self._is_closed = True
        until = self._clock() + timeout_s
        self._outcomes.not_started(self._feed.drop_all(), "the bridge was closed")
        for lane in self._lanes:
            lane.stop(self._clock())
        try:
            await self._keeper.stop()
            if any(lane.batches for lane in self._lanes):
                self._drained = self._loop.create_future()
                await asyncio.wait([self._drained], timeout=max(0.0, until - self._clock()))
        finally:
            await self._end_lanes(until)

    async def _end_lanes(self, until: float) -> None:
        left = [lane for lane in self._lanes if lane.batches]
        self._counters.kills["close"] += sum(lane.kill_reason is None for lane in left)
        try:
            await self._keeper.close(0.0 if left else max(0.0, until - self._clock()))
        finally:
            for lane in left:
                self._outcomes.not_started(list(lane.calls()), "the bridge was closed")
            if self._timer is not None:
                self._timer.cancel()

    # -- the workers' side -------------------------------------------------------------------

    async def run(self, topic: str, partition: int, raw: RawRecord, attempt: int, generation: int) -> None:
        """Run the record in a child. Returns when it has succeeded, raises what became of it otherwise.

        NotStartedError: it was not run, or not to its end, by no fault of its own. CancelledError when the
        caller was cancelled, as soon as the record certainly does not run; at once when it is cancelled
        again, with the child killed. RuntimeError after `close`.
        """
        if self._is_closed:
            raise RuntimeError(f"the child processes of {self._name} are closed: nothing is started any more")
        fields = (  # as `Job` has them, without the time that it takes to name them
            topic,
            partition,
            raw.offset,
            raw.key,
            raw.value,
            tuple(raw.headers),
            raw.timestamp,
            raw.timestamp_type,
            attempt,
            generation,
        )
        call = Call(fields, self._loop.create_future())
        self._feed.take(call, self._loop)
        try:
            await call.future
        except asyncio.CancelledError:
            await self._call_back(call)
            if isinstance(call.error, NotStartedError):
                raise
        if call.error is not None:
            try:
                raise call.error
            finally:
                del call  # the error's traceback leads here: a cycle would stay until the next collection

    async def _call_back(self, call: Call) -> None:
        """Whoever waited for `call` was cancelled: see to it that it ends, and wait until it has."""
        if call.is_over:
            return
        call.is_cancelled = True
        if self._feed.drop(call):
            self._outcomes.not_started([call], "cancelled")
            return
        lane = next(lane for lane in self._lanes if call in lane.calls())
        progress = lane.port.progress()
        if progress is not None:
            self._outcomes.ran_before(lane, progress)
        if _is_over(call):  # it was one of those
            return
        if lane.at(progress) is call:
            self._kill(lane, "cancelled")
        else:
            lane.stop(self._clock())
        call.future = self._loop.create_future()
        try:
            await call.future
        except asyncio.CancelledError:
            if not call.is_over:
                self._kill(lane, "cancelled")
                self._outcomes.not_started([call], "cancelled twice")

    # -- the lanes' side ---------------------------------------------------------------------

    def _before_sending(self, lane: ServingLane) -> None:
        lane.port.renew_lease(self._lease_ns())
        if self._timer is None:
            self._timer = self._loop.call_later(_TICK_SECONDS, self._tick)

    def _replied(self, lane: ServingLane, reply: Reply) -> None:
        self._feed.pace.note(reply.seconds, reply.run)
        self._outcomes.replied(lane.has_replied(reply), reply)
        most = self._rules.max_tasks_per_child
        if most is not None and lane.ran >= most:
            lane.needs_successor()
        if lane.is_retiring:
            self._keeper.retire(lane)
        self._go_on()

    def _died(self, lane: ServingLane, death: Death) -> None:
        running = self._outcomes.died(lane, death)
        self._say_death(lane, death, running)
        self._keeper.died(lane, death)
        self._go_on()

    def _go_on(self) -> None:
        if not self._is_closed:
            self._feed.feed()
            return
        drained = self._drained
        if drained is not None and not drained.done() and not any(lane.batches for lane in self._lanes):
            drained.set_result(None)

    # -- the watch ---------------------------------------------------------------------------

    def _tick(self) -> None:
        self._timer = None
        now, lease_ns = self._clock(), self._lease_ns()
        for lane in list(self._lanes):
            if lane.batches:
                lane.port.renew_lease(lease_ns)
                if lane.kill_reason is None:
                    self._watch(lane, now)
                if self._timer is None:
                    self._timer = self._loop.call_later(_TICK_SECONDS, self._tick)

    def _watch(self, lane: ServingLane, now: float) -> None:
        """Look at what `lane` does: end it where it has to end, and let go of what it will never run."""
        progress = lane.port.progress()
        running = lane.at(progress)
        self._outcomes.not_started(lane.never_starting(progress, now), "its child process was told to stop")
        if progress is None or running is None:
            if lane.quiet_since is None:
                lane.quiet_since = now
            elif now - lane.quiet_since > _SILENT_SECONDS:
                self._kill(lane, "stuck")
            return
        lane.quiet_since = None
        if running.is_cancelled:
            self._kill(lane, "cancelled")
        elif self._is_overdue(progress, now):
            lane.overdue = running
            self._kill(lane, "timeout")
        elif now - progress.started_ns / 1e9 > _LONG_SECONDS:
            lane.stop(now)
            self._outcomes.ran_before(lane, progress)

    def _is_overdue(self, progress: Progress, now: float) -> bool:
        timeout_ms = self._rules.timeout_ms
        if timeout_ms is None:
            return False
        return now > max(progress.started_ns / 1e9 + timeout_ms / 1000, progress.extended_ns / 1e9)

    def _kill(self, lane: ServingLane, reason: KillReason) -> None:
        if lane.kill_reason is None:
            self._counters.kills[reason] += 1
            lane.kill(reason)

    def _lease_ns(self) -> int:
        return int(max(0.0, min(self._lease_until(), _ALWAYS)) * 1e9)

    def _say_death(self, lane: ServingLane, death: Death, running: Call | None) -> None:
        """One line a second at most."""
        now = self._clock()
        if now < self._next_line:
            self._unsaid_deaths += 1
            return
        self._next_line = now + _LOG_SPACING_SECONDS
        unsaid, self._unsaid_deaths = self._unsaid_deaths, 0
        self._log.log(
            logging.INFO if lane.kill_reason == "cancelled" else logging.WARNING,
            "handler %s: child process %s ended: %s%s, while it ran %s%s",
            self._name,
            lane.port.pid,
            death.how,
            "" if lane.kill_reason is None else f" (by us: {lane.kill_reason})",
            "nothing" if running is None else running.where,
            f" ({unsaid} more since the last line)" if unsaid else "",
        )


def _is_over(call: Call) -> bool:
    """Asked anew: it may have ended since it was asked last."""
    return call.is_over
