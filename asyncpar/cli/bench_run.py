"""The course of a bench: the app runs, is looked at, is stopped when it is time, and what was seen is told.

Lives here: `Bench`, which the process of `asyncpar run` (`run.live`) runs as if it was the app. Never here:
what is counted (`bench_meter.py`), what it means (`bench_limits.py`), what is printed (`bench_report.py`).
Called by `bench.py`. Always: a group that was made for the bench is removed, whatever happened.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from asyncpar.assembly import Rigging
from asyncpar.cli.bench_limits import Looks
from asyncpar.cli.bench_loop import LoopFigures, LoopWatch
from asyncpar.cli.bench_meter import Meter
from asyncpar.cli.bench_report import Findings, InChildren, counted, progress
from asyncpar.cli.bench_setup import BenchRequest, Place, producers
from asyncpar.cli.progress import ProgressLine
from asyncpar.errors import AsyncparError, DrainIncompleteError, EngineError
from asyncpar.metrics import Histogram

if TYPE_CHECKING:
    from asyncpar.app import App
    from asyncpar.settings_sources import Loaded
    from asyncpar.status import AppStatus

_SHORTEST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 0.2
_PAUSES_PER_LOOK = 50
"""A look at the app shall take no more than this part of the time: 2 %."""
_REMOVAL_SECONDS = 10.0
_LONG_DRAIN_SECONDS = 1.0
"""Calls that run for so long after the end are named, with how long they are waited for."""
_OPENING_SECONDS = 30.0
"""So long after the start partitions may take to open; then the bench is timed without them."""


class Bench:
    """One bench of `app`, whose groups are stood in for by `names`. Use once.

    `told` gets what was found, once; `warn` what somebody has to see to.
    """

    def __init__(
        self,
        app: App,
        loaded: Loaded,
        request: BenchRequest,
        names: Mapping[str, str],
        place: Place,
        told: Callable[[Findings], None],
        warn: Callable[[str], None],
    ) -> None:
        self._app = app
        self._loaded = loaded
        self._request = request
        self._names = names
        self._place = place
        self._told = told
        self._warn = warn
        self._meter = Meter(request.records)
        self._watch = LoopWatch()
        self._loop: LoopFigures | None = None
        """Of the bench, once it is over."""
        self._loop_so_far = self._watch.figures()
        """To the last look at which there was something to do."""
        self._is_idle = False
        """There was nothing to do at the last look."""
        self._looks: dict[str, Looks] = {}
        self._children: dict[tuple[str, str], InChildren] = {}
        self._ended_by = "the present end of the topics"
        self._halted: list[str] = []
        """Partitions that had stopped at a failed record when it ended."""
        self._connected_at: float | None = None
        """When every group had connected, by the monotonic clock."""
        self._progress = ProgressLine()
        self._drain_is_told: asyncio.TimerHandle | None = None

    # -- as an app ---------------------------------------------------------------------------

    async def run(self, *, drain_and_exit: bool, on_started: Callable[[], None]) -> None:
        """Run the app to the end of the bench, and tell what was found.

        Raises what the app raises, EngineError when no record was handled, and DrainIncompleteError when
        partitions have halted.
        """
        rigging = Rigging(
            lambda group: self._place.consumers(self._names[group]),
            producers(self._place, self._request),
            self._meter.watched,
            self._meter.left,
        )

        def connected() -> None:
            self._connected_at = time.monotonic()
            on_started()

        looking = asyncio.create_task(self._look_until_end(), name="asyncpar-bench-looks")
        watching = asyncio.create_task(self._watch.run(), name="asyncpar-bench-loop")
        # Also when it failed: a bench that nobody looks at would have no end.
        looking.add_done_callback(lambda _: self._app.stop())
        try:
            with self._app.rigged(self._loaded, rigging):
                await self._app.run(drain_and_exit=drain_and_exit, on_started=connected)
        finally:
            self._close()
            looking.cancel()
            watching.cancel()
            if self._drain_is_told is not None:
                self._drain_is_told.cancel()
            await asyncio.wait({looking, watching})
            self._progress.end()
            await self._remove_groups()
            if self._meter.done:
                self._told(self._findings())
        if not looking.cancelled():
            looking.result()
        if not self._meter.done:
            raise EngineError(self._nothing_done())
        if self._halted:
            raise DrainIncompleteError(
                f"halted before the end: {', '.join(self._halted)}; see the errors logged above"
            )

    def stop(self, *, now: bool = False) -> None:
        """End the bench here; `now`: cancel what runs."""
        if self._loop is None:
            self._ended_by = "a signal"
        self._close()
        self._app.stop(now=now)

    def unfinished(self) -> tuple[str, ...]:
        """As the app's."""
        return self._app.unfinished()

    def _close(self) -> None:
        """Count nothing more."""
        self._meter.close()
        if self._loop is None:
            self._loop = self._loop_so_far if self._is_idle else self._watch.figures()
            self._drain_is_told = asyncio.get_running_loop().call_later(_LONG_DRAIN_SECONDS, self._tell_drain)

    # -- looking -----------------------------------------------------------------------------

    async def _look_until_end(self) -> None:
        """Look at the app again and again; returns when it is to stop."""
        pause, ready_at, seconds = _SHORTEST_PAUSE_SECONDS, None, self._request.seconds
        while True:
            try:
                async with asyncio.timeout(pause):
                    await self._meter.reached.wait()
                self._ended_by = f"--records {self._meter.done}"
                break
            except TimeoutError:
                pass
            began = time.monotonic()
            status = self._app.status()
            if ready_at is None and (_is_ready(status) or self._has_waited(began)):
                ready_at = began
                self._meter.begin_latency()
            if self._meter.first is not None:
                self._look(status)
            if seconds is not None and ready_at is not None and began - ready_at >= seconds:
                self._ended_by = f"--seconds {seconds:g}"
                break
            if self._progress.is_due:
                self._progress.show(progress(self._meter, status))
            wanted = _PAUSES_PER_LOOK * (time.monotonic() - began)
            pause = min(max(_SHORTEST_PAUSE_SECONDS, wanted), _LONGEST_PAUSE_SECONDS)
        self._close()
        everything = [partition for group in self._app.status().groups for partition in group.partitions]
        self._halted = [f"{one.topic}[{one.partition}]" for one in everything if one.state == "halted"]

    def _tell_drain(self) -> None:
        """The bench is over, and calls still run: why it does not end."""
        running = sum(one.running for group in self._app.status().groups for one in group.handlers)
        if running:
            most = self._loaded.settings.shutdown_drain_timeout_ms / 1000
            self._warn(
                f"waiting up to {most:g} s (shutdown_drain_timeout_ms) for {counted(running, 'call')} to end"
            )

    def _has_waited(self, now: float) -> bool:
        """Whether partitions have had their time to open; says so, since it is asked no more after that."""
        if self._connected_at is None or now - self._connected_at < _OPENING_SECONDS:
            return False
        self._warn(
            f"not every partition is open {_OPENING_SECONDS:g} s after the start: --seconds and latency "
            "count from now on"
        )
        return True

    def _look(self, status: AppStatus) -> None:
        if self._loop is not None:
            return  # it stops already
        self._watch.begin()
        joined = [group for group in status.groups if group.state == "joined"]
        found_work = [self._looks.setdefault(one.group, Looks()).add(one) for one in joined]
        self._is_idle = not any(found_work)
        if not self._is_idle:
            self._loop_so_far = self._watch.figures()
        if any(handler.children for group in status.groups for handler in group.handlers):
            self._note_children()

    def _note_children(self) -> None:
        """What the handlers themselves took, in child processes, for what is done by now."""
        samples = self._app.metrics()
        for one in self._meter.handlers:
            if one.executor == "process":
                taken = samples.value("process_pool_handler_seconds", group=one.group, handler=one.name)
                lanes = samples.value("process_pool_lanes", group=one.group, handler=one.name)
                assert isinstance(taken, Histogram)
                assert isinstance(lanes, int | float)
                self._children[one.group, one.name] = InChildren(
                    taken.total, one.done + one.failed, int(lanes)
                )

    # -- the end -----------------------------------------------------------------------------

    async def _remove_groups(self) -> None:
        if self._request.group is not None:
            return
        ended = self._app._ended  # noqa: SLF001 - an app tells nobody else which of its groups connected
        for group in [self._names[one.state.group] for one in ended if one.started.is_set()]:
            try:
                async with asyncio.timeout(_REMOVAL_SECONDS):
                    await self._place.remove_group(group)
            except (AsyncparError, TimeoutError) as error:
                why = str(error) or "no answer in time"
                self._warn(
                    f"group {group} of the bench was not removed ({why}): remove it, or let the broker "
                    "forget it"
                )

    def _findings(self) -> Findings:
        assert self._loop is not None
        return Findings(
            self._request,
            self._names,
            self._ended_by,
            self._meter,
            self._loop,
            self._looks,
            self._children,
            self._loaded.settings.event_loop,
        )

    def _nothing_done(self) -> str:
        failed = sum(one.failed for one in self._meter.handlers)
        if failed:
            left = sum(sum(one.left.values()) for one in self._meter.handlers)
            gone = f", {counted(left, 'record')} would have left for another topic" if left else ""
            return (
                f"nothing to measure: {counted(failed, 'call')} failed and none ended well{gone}; see the "
                "log, and mend the handler"
            )
        group = self._request.group
        instead = "--start earliest" if group is None else f"no --group: {group} has committed what there is"
        return (
            f"nothing to measure: no record was handled (ended by {self._ended_by}); write some with "
            f"`asyncpar produce TOPIC`, or use {instead}"
        )


def _is_ready(status: AppStatus) -> bool:
    """Whether every group takes the records of its partitions."""
    return bool(status.groups) and all(
        group.state == "joined" and all(partition.state != "opening" for partition in group.partitions)
        for group in status.groups
    )
