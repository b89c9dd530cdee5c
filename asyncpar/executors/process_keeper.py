"""Keeps the lanes of one handler serving: starts them, replaces what died or is worn, ends them.

Lives here: backoff, the budget of failed starts, and whether children can be started at all. Never here:
records. One task per lane: it waits until its lane needs a successor, starts that, and lets the old one go.

- A lane that died is replaced at once. One that has run its share serves until its successor is ready, gets
  no more work then, and is closed when it has ended what it has.
- A failed start is tried again after 0.1 s, doubling to 10 s. A child that dies within a second of its start,
  with no record running, has as good as failed to start.
- After 5 failures within 30 s, and with no lane that serves, `refusal` says why. It stays until a child has
  lived for a second.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from asyncpar.core.backoff import exponential
from asyncpar.errors import HandlerError
from asyncpar.executors.lane_port import Death, LaneStartError
from asyncpar.executors.process_lanes import ServingLane
from asyncpar.executors.process_statistics import Counters

_FIRST_PAUSE_MS, _LONGEST_PAUSE_MS = 100, 10_000
_FAILURES_ALLOWED, _WITHIN_SECONDS = 5, 30.0
_STEADY_SECONDS = 1.0
"""A child that has lived for so long was started well."""


class LaneKeeper:
    """Of one handler. `serving` is a list that the feed reads; `on_serving` is called when it grows."""

    def __init__(
        self,
        name: str,
        new_lane: Callable[[], ServingLane],
        counters: Counters,
        clock: Callable[[], float],
        log: logging.Logger,
        on_serving: Callable[[], None],
    ) -> None:
        self.serving: list[ServingLane] = []
        """Ready, and neither dead nor closed; those that retire included."""
        self.refusal: str | None = None
        self.on_refusal: Callable[[str | None], None] = lambda _: None
        self._name = name
        self._new_lane = new_lane
        self._counters = counters
        self._clock = clock
        self._log = log
        self._on_serving = on_serving
        self._failed: deque[float] = deque(maxlen=_FAILURES_ALLOWED)
        """When starts failed, the last ones."""
        self._keepers: list[asyncio.Task[None]] = []
        self._retiring: set[asyncio.Task[None]] = set()

    # -- start and end -----------------------------------------------------------------------

    async def start(self, count: int) -> None:
        """Start `count` lanes. When none can be started: what the first said, as a HandlerError."""
        lanes = [self._new_lane() for _ in range(count)]
        try:
            answers = await asyncio.gather(*(lane.port.start() for lane in lanes), return_exceptions=True)
        except asyncio.CancelledError:
            await asyncio.gather(*(lane.port.close(0.0) for lane in lanes), return_exceptions=True)
            raise
        errors = [answer for answer in answers if answer is not None]
        if len(errors) == count:
            if not isinstance(errors[0], LaneStartError):
                raise errors[0]
            raise HandlerError(f"handler {self._name}: {self._said(errors[0])}") from errors[0]
        started = [lane if answer is None else None for lane, answer in zip(lanes, answers, strict=True)]
        for lane in started:
            if lane is not None:
                self._serve(lane)
        for error in errors:
            self._start_failed(self._said(error))
        for lane in started:
            task = asyncio.create_task(self._keep(lane), name=f"asyncpar-lanes-{self._name}")
            task.add_done_callback(self._ended)
            self._keepers.append(task)

    async def stop(self) -> None:
        """Start nothing more; a start that is under way is given up."""
        for task in self._keepers:
            task.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)

    async def close(self, timeout_s: float) -> None:
        """End what serves and what retires, after `stop`."""
        try:
            await asyncio.gather(*(lane.port.close(timeout_s) for lane in self.serving), *self._retiring)
        except BaseException:
            for lane in self.serving:
                lane.port.kill()
            raise
        for lane in self.serving:
            lane.is_gone = True
        self.serving.clear()

    # -- what happens to lanes ---------------------------------------------------------------

    def died(self, lane: ServingLane, death: Death) -> None:
        """`lane` is dead: it is replaced."""
        lane.is_gone = True
        is_young = not lane.ran and self._clock() - lane.ready_at < _STEADY_SECONDS
        lane.died_early = is_young and not death.number and lane.kill_reason is None
        if lane in self.serving:
            self.serving.remove(lane)
        if lane.died_early:
            self._start_failed(f"its child process ended as soon as it was ready: {death.how}")
        lane.needs_successor()

    def retire(self, lane: ServingLane) -> None:
        """`lane` has a successor: close it when it has ended what it has."""
        lane.is_retiring = True
        if not lane.batches and lane in self.serving:
            self.serving.remove(lane)
            task = asyncio.create_task(lane.port.close(_STEADY_SECONDS))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    # -- one place ---------------------------------------------------------------------------

    async def _keep(self, lane: ServingLane | None) -> None:
        """One place: a lane, its successor, and so on, until cancelled."""
        failures = 0 if lane is not None else 1
        while True:
            if lane is not None:
                await lane.spent
                failures = failures + 1 if lane.died_early else 0
                if failures > 1:
                    await asyncio.sleep(_pause_seconds(failures - 1))
            else:
                await asyncio.sleep(_pause_seconds(failures))
            while (successor := await self._started()) is None:
                failures += 1
                await asyncio.sleep(_pause_seconds(failures))
            if lane is not None:
                self._replaced(lane)
            lane = successor
            self._on_serving()
            if self.refusal is not None:
                await self._prove(lane)

    def _ended(self, keeper: asyncio.Task[None]) -> None:
        """No keeper ends unless it is cancelled: it would be a defect of ours, and must not go unnoticed."""
        error = None if keeper.cancelled() else keeper.exception()
        if error is not None:
            self._log.error("handler %s: a lane is not kept any more", self._name, exc_info=error)
            self._refuse(f"a lane is not kept any more: {type(error).__name__}: {error}")

    async def _started(self) -> ServingLane | None:
        """A new lane that serves; None: it could not be started."""
        lane = None
        try:
            lane = self._new_lane()
            await lane.port.start()
        except asyncio.CancelledError:
            if lane is not None:
                await lane.port.close(0.0)
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is said and tried again
            self._start_failed(self._said(error))
            return None
        self._serve(lane)
        return lane

    def _serve(self, lane: ServingLane) -> None:
        lane.ready_at = self._clock()
        if not lane.is_gone:
            self.serving.append(lane)

    def _replaced(self, lane: ServingLane) -> None:
        if lane.is_gone:
            self._counters.restarts += 1
        else:
            self._counters.recycled += 1
            self.retire(lane)

    # -- whether children can be started at all ----------------------------------------------

    def _said(self, error: BaseException) -> str:
        """What `error` says, without what is said in front of it."""
        if isinstance(error, LaneStartError):
            return str(error).removeprefix(f"handler {self._name}: ")
        return f"its child process did not start: {type(error).__name__}: {error}"

    def _start_failed(self, why: str) -> None:
        now = self._clock()
        self._counters.failed_starts += 1
        self._failed.append(now)
        self._log.warning("handler %s: %s", self._name, why)
        is_over = len(self._failed) == _FAILURES_ALLOWED and now - self._failed[0] <= _WITHIN_SECONDS
        if is_over and not self.serving and self.refusal is None:
            self._refuse(why)

    async def _prove(self, lane: ServingLane) -> None:
        """Children can be started again, when `lane` lives for a while."""
        await asyncio.wait([lane.spent], timeout=_STEADY_SECONDS)
        if self.refusal is not None and not lane.is_gone:
            self._failed.clear()
            self._refuse(None)

    def _refuse(self, why: str | None) -> None:
        self.refusal = why
        if why is None:
            self._log.warning("handler %s: its child processes can be started again", self._name)
        else:
            self._log.error(
                "handler %s has no child process left, and none can be started: %s; it is tried again every "
                "%d s at least",
                self._name,
                why,
                _LONGEST_PAUSE_MS // 1000,
            )
        self.on_refusal(why)


def _pause_seconds(failures: int) -> float:
    """After so many failed starts in a row."""
    return exponential(failures, _FIRST_PAUSE_MS, _LONGEST_PAUSE_MS, 1.0)
