"""`asyncpar demo`: watch the engine work under a load of its own, with no Kafka installed.

Owns the course of events: a broker and a topic, the app, the load, the view, the drain, the proof, the
exit code. Everything else is in the `demo_*` files beside it, which are imported only when the demo runs:
they need the extra `asyncpar[demo]`. Called by `main.py`. Always: every wait is bounded, and nothing on the
event loop waits for a broker or for the terminal.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING

import click

from asyncpar.cli.ranges import FiniteRange
from asyncpar.errors import ConfigurationError, DrainIncompleteError, EngineError

if TYPE_CHECKING:
    from asyncpar.app import App
    from asyncpar.cli.demo_cluster import Place
    from asyncpar.cli.demo_ledger import Ledger
    from asyncpar.cli.demo_load import Load
    from asyncpar.cli.demo_view import Moment, View

EXIT_PROVED = 0
EXIT_NOT_PROVED = 1
EXIT_SECOND_SIGNAL = 130
_NEEDED = {"confluent_kafka": "confluent-kafka", "rich": "rich"}
_JOIN_SECONDS = 30.0
_DRAIN_SECONDS = 30.0
_REFRESH_SECONDS = 0.25
_RATE_OVER_MOMENTS = 8
"""The rate shown is that of the last two seconds."""


@dataclass(frozen=True, slots=True)
class DemoRequest:
    """What the command line asked for. `seconds` 0: until a signal; no `bootstrap_servers`: embedded.

    `cpu`: a handler that computes, in child processes, in place of those that wait.
    """

    seconds: float
    bootstrap_servers: str | None
    rate: int
    keys: int
    cpu: bool = False


@click.command(short_help="Watch asyncpar work; needs no Kafka.")
@click.option(
    "--seconds",
    type=FiniteRange(min=0),
    default=30,
    show_default=True,
    help="How long records are produced; 0: until Ctrl-C.",
)
@click.option(
    "--bootstrap-servers",
    metavar="HOST:PORT,...",
    help="A real cluster, where the demo makes a topic of its own and removes it; default: a broker inside "
    "the demo.",
)
@click.option(
    "--rate", type=click.IntRange(1, 20_000), default=1000, show_default=True, help="Records per second."
)
@click.option(
    "--keys", type=click.IntRange(1, 100_000), default=200, show_default=True, help="Keys, skewed (Zipf)."
)
@click.option("--cpu", is_flag=True, help="A handler that computes, in child processes on all cores.")
def demo(seconds: float, bootstrap_servers: str | None, rate: int, keys: int, cpu: bool) -> int:
    """Produce records with skewed keys, handle them, and prove that none was lost or out of order.

    Exit codes: 0 proved, 1 not proved, 2 a part that the demo needs is not installed, 4 the cluster cannot be
    reached or refuses, 130 stopped by a second signal.
    """
    return execute(DemoRequest(seconds, bootstrap_servers, rate, keys, cpu))


def execute(request: DemoRequest) -> int:
    """Run the demo. Returns the exit code; raises AsyncparError for what cannot be used."""
    missing = [name for module, name in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ConfigurationError(
            f"the demo needs {' and '.join(missing)}, not installed here: pip install 'asyncpar[demo]'"
        )
    from rich.console import Console

    from asyncpar.cli.demo_view import View

    view = View(Console(file=sys.stdout))
    _configure_logging(view)
    return asyncio.run(_run(request, view))


def _configure_logging(view: View) -> None:
    """Warnings, but for the failures that the demo plans, where they do not tear the picture."""
    from rich.logging import RichHandler

    from asyncpar.cli.demo_app import PartnerError
    from asyncpar.cli.logs import quiet_first_lookups

    def is_news(record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], PartnerError))

    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if view.is_live:
        handler = RichHandler(console=view.console, show_path=False)
    handler.addFilter(is_news)
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    quiet_first_lookups()


async def _run(request: DemoRequest, view: View) -> int:
    with _signals() as signals:
        async with _place(request) as place:
            return await _Demo(request, view, signals, place).run()


def _place(request: DemoRequest) -> AbstractAsyncContextManager[Place]:
    from asyncpar.cli import demo_cluster

    if request.bootstrap_servers is None:
        return demo_cluster.embedded()

    def warn(text: str) -> None:
        print(f"asyncpar: warning: {text}", file=sys.stderr)

    return demo_cluster.existing(request.bootstrap_servers, warn)


@dataclass(slots=True)
class _Signals:
    """What was heard: the first ends the load, the second ends the demo."""

    first: asyncio.Event = field(default_factory=asyncio.Event)
    second: asyncio.Event = field(default_factory=asyncio.Event)

    def hear(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


@contextmanager
def _signals() -> Iterator[_Signals]:
    """SIGINT and SIGTERM become events while the demo runs."""
    loop, heard = asyncio.get_running_loop(), _Signals()

    def hear(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(heard.hear)

    before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Demo:
    """One run, from the join to the proof."""

    def __init__(self, request: DemoRequest, view: View, signals: _Signals, place: Place) -> None:
        from asyncpar.cli.demo_app import key_names
        from asyncpar.cli.demo_ledger import Ledger
        from asyncpar.cli.demo_load import Load
        from asyncpar.settings import usable_cores

        keys = key_names(request.keys)
        self._request = request
        self._view = view
        self._signals = signals
        self._place = place
        self._ledger: Ledger = Ledger(keys)
        self._app: App = _app(self._ledger, place, cpu=request.cpu)
        self._load: Load = Load(
            place.bootstrap_servers, place.topic, self._ledger, keys=keys, rate=request.rate
        )
        self._title = place.title
        if request.cpu:
            self._title += f", handled in {usable_cores()} child processes"
        self._running: asyncio.Task[None]
        self._began = time.monotonic()
        self._handled: deque[tuple[float, int]] = deque(maxlen=_RATE_OVER_MOMENTS)

    async def run(self) -> int:
        """Returns the exit code. Raises AsyncparError when app or load ended by themselves."""
        self._running = asyncio.create_task(self._app.run(), name="demo-app")
        try:
            with self._view.open(f"asyncpar demo: {self._title}"):
                undrained = await self._course()
        finally:
            await self._end()
        try:
            await self._running
        except DrainIncompleteError as error:
            undrained = undrained or str(error)
        return await self._verdict(undrained)

    async def _course(self) -> str:
        """Join, load, drain. Returns why not all was handled, or ""."""
        joining = "joining the group (an embedded broker takes 3 s)" if self._place.is_embedded else "joining"
        if not await self._until(self._has_joined, joining, _JOIN_SECONDS, self._signals.first):
            if self._signals.first.is_set():
                return ""
            raise EngineError(f"the group was not joined within {_JOIN_SECONDS:.0f} s on {self._place.title}")
        self._load.start()
        await self._until(lambda: False, "load", self._request.seconds or None, self._signals.first)
        stopping = asyncio.create_task(self._load.stop())
        drained = await self._until(self._is_drained, "draining", _DRAIN_SECONDS, self._signals.second)
        await stopping
        if drained:
            return ""
        left = f"{self._ledger.counts().backlog} records were left"
        if self._signals.second.is_set():
            return f"stopped by a second signal while {left}"
        return f"draining took longer than {_DRAIN_SECONDS:.0f} s, {left}"

    async def _until(
        self, is_reached: Callable[[], bool], phase: str, seconds: float | None, stop: asyncio.Event
    ) -> bool:
        """Show moments until `is_reached`; False when `seconds` are over or `stop` is set before."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while not is_reached():
            self._raise_failure()
            left = _REFRESH_SECONDS if deadline is None else deadline - time.monotonic()
            if left <= 0 or stop.is_set():
                return False
            await self._view.show(self._moment(phase))
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), min(left, _REFRESH_SECONDS))
        await self._view.show(self._moment(phase))
        return True

    def _raise_failure(self) -> None:
        if self._running.done():
            self._running.result()
            raise EngineError("the demo's app ended before it was stopped")
        if self._load.failure is not None:
            problem = self._load.failure.args[0].str()
            raise EngineError(f"the load failed: {problem}; look at the cluster's health")

    def _has_joined(self) -> bool:
        return any(
            group.state == "joined"
            and group.partitions
            and all(one.state == "open" for one in group.partitions)
            for group in self._app.status().groups
        )

    def _is_drained(self) -> bool:
        return not self._load.is_running and self._ledger.counts().backlog == 0

    def _moment(self, phase: str) -> Moment:
        from asyncpar.cli.demo_view import Moment

        now, counts = time.monotonic(), self._ledger.counts()
        self._handled.append((now, counts.handled))
        since, before = self._handled[0]
        groups = self._app.status().groups
        return Moment(
            phase=phase,
            seconds=now - self._began,
            counts=counts,
            rate=(counts.handled - before) / (now - since) if now > since else 0.0,
            is_held_back=self._load.is_held_back,
            group=groups[0] if groups else None,
        )

    async def _end(self) -> None:
        """Whatever happened: nothing is produced and nothing runs any more when this returns."""
        if self._load.is_running:
            await self._load.stop()
        self._app.stop(now=self._ledger.counts().backlog > 0)
        await asyncio.wait({self._running})

    async def _verdict(self, undrained: str) -> int:
        from asyncpar.cli.demo_view import summary

        proof, counts = await asyncio.to_thread(self._ledger.prove), self._ledger.counts()
        await self._view.say(summary(self._title, proof, counts, self._view.peaks, undrained=undrained))
        if self._signals.second.is_set():
            return EXIT_SECOND_SIGNAL
        return EXIT_PROVED if proof.is_complete and proof.is_in_order and not undrained else EXIT_NOT_PROVED


def _app(ledger: Ledger, place: Place, *, cpu: bool) -> App:
    from asyncpar.adapters.mock_cluster import FETCH_MAX_WAIT_MS
    from asyncpar.cli.demo_app import cpu_app, demo_app
    from asyncpar.settings import Settings

    values: dict[str, object] = {
        "bootstrap_servers": place.bootstrap_servers,
        "group": place.group,
        "http_port": 0,
        "commit_interval_ms": 500,
    }
    if place.is_embedded:
        values["fetch_max_wait_ms"] = FETCH_MAX_WAIT_MS
    make = cpu_app if cpu else demo_app
    return make(ledger, place.topic, Settings.model_validate(values))
