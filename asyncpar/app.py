"""`App`: handlers in, a running consumer out. The one place that knows everyone.

    app = App(group="billing", max_in_flight=2000)

    @app.topic("orders")
    async def bill(order: Order) -> None: ...

`await app.run()` runs it until it is stopped; `async with app:` and `app.lifespan` run it inside a
service that has a loop of its own; `asyncpar run module` runs it from the command line. The app
takes no signal handlers and never cancels its host. An app runs once at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Self

import asyncpar
from asyncpar.assembly import Rigging, client_version, kafka_consumers, kafka_producers, runtime_config
from asyncpar.discovery import including, specs_in
from asyncpar.errors import AsyncparError, ConfigurationError, EngineError, PortInUseError
from asyncpar.events import Listeners
from asyncpar.executors.app_executors import AppExecutors
from asyncpar.groups import DeclaredGroup, build_handlers, check_leases, declare_groups
from asyncpar.metrics import MetricsSnapshot, SnapshotBuilder
from asyncpar.middleware import Middleware
from asyncpar.ports import ConsumerFactory, ProducerFactory
from asyncpar.records import TopicPartition
from asyncpar.runtime import health, snapshots
from asyncpar.runtime.group_state import Clock
from asyncpar.runtime.runtime import GroupRuntime
from asyncpar.settings import Settings
from asyncpar.settings_checks import check_names
from asyncpar.settings_sources import Loaded, load
from asyncpar.status import AppStatus
from asyncpar.topics import TopicSpec, topic

if TYPE_CHECKING:
    from asyncpar.executors.process_checks import ProcessLifespan

Lifespan = Callable[["App"], AbstractAsyncContextManager[Any]]
"""One async context manager; what it yields is `Context.state` of every handler."""

_log = logging.getLogger("asyncpar.app")
_HTTP_STOP_SECONDS = 2.0


class App:
    """Handlers, settings and the engine that runs them."""

    def __init__(
        self,
        name: str | None = None,
        *,
        group: str | None = None,
        lifespan: Lifespan | None = None,
        process_lifespan: ProcessLifespan | None = None,
        middlewares: Sequence[Middleware] = (),
        on_fatal: Callable[[BaseException], None] | None = None,
        consumers: ConsumerFactory | None = None,
        producers: ProducerFactory | None = None,
        **settings: object,
    ) -> None:
        """`settings` are engine-wide knobs by name; environment, TOML and command line beat them.

        `lifespan` is entered while the app runs, what it yields is `Context.state`; `process_lifespan`, a
        plain context manager function of a module, is the same in each child process of a handler with
        `executor="process"`. `on_fatal` hears the error that ends an embedded app. `consumers` makes the
        consumer of a group, `producers` what writes dead letters (default: aiokafka's adapters). Raises
        SettingError for an unknown name.
        """
        if group is not None:
            settings["group"] = group
        check_names(settings, "App(...)")
        self.name = name or "asyncpar"
        self._user_lifespan = lifespan
        self._process_lifespan = process_lifespan
        self._middlewares = tuple(middlewares)
        self._on_fatal = on_fatal
        self._listeners = Listeners()
        self._rigging = Rigging(consumers, producers)
        self._clock: Clock | None = None  # a simulated app brings its own time and chance
        self._given = settings
        self._specs: list[TopicSpec] = []
        self._loaded: Loaded | None = None
        self._runtimes: tuple[GroupRuntime, ...] = ()
        self._ended: tuple[GroupRuntime, ...] = ()
        self._owner: asyncio.Task[None] | None = None
        self._stopping: asyncio.Event | None = None
        self._started_at = time.monotonic()
        self._failure: BaseException | None = None
        self.topic = including(topic, self._add)
        """`@app.topic(...)`: as `@topic`, and the function is included in this app."""
        self.on_event = self._listeners.add
        """`@app.on_event` on a plain function: it hears each `LifecycleEvent`, on the event loop."""
        self.http_port: int | None = None
        """The port that health and metrics are served on; None while they are not."""

    # -- handlers ----------------------------------------------------------------------------

    def include(self, source: ModuleType | str | Callable[..., Any]) -> None:
        """Take in handlers: a module, a module's name (such as `__name__`), or a decorated function.

        Of a module, the functions defined there, not those it imported. ConfigurationError for nothing.
        """
        self._add(specs_in(source))

    def _add(self, specs: Sequence[TopicSpec]) -> None:
        for spec in specs:
            if not any(spec is known for known in self._specs):
                self._specs.append(spec)

    @property
    def handlers(self) -> tuple[TopicSpec, ...]:
        """What the app runs, in the order it was told."""
        return tuple(self._specs)

    # -- settings ----------------------------------------------------------------------------

    @property
    def given_settings(self) -> dict[str, object]:
        """The settings that were given to the constructor."""
        return dict(self._given)

    def configure(self, loaded: Loaded) -> None:
        """Use these settings. Without it they are loaded from environment, TOML and the constructor."""
        self._loaded = loaded

    @contextlib.contextmanager
    def rigged(self, loaded: Loaded, rigging: Rigging) -> Iterator[None]:
        """For `asyncpar.testing`: what runs within the block runs with these, and not with the app's own."""
        before = self._loaded, self._rigging
        self._loaded, self._rigging = loaded, rigging
        try:
            yield
        finally:
            self._loaded, self._rigging = before

    @property
    def loaded(self) -> Loaded:
        """The settings in force; raises SettingError for what is malformed."""
        if self._loaded is None:
            self._loaded = load(env=os.environ, app_values=self._given)
            for warning in self._loaded.warnings:
                _log.warning("%s", warning)
        return self._loaded

    @property
    def settings(self) -> Settings:
        """The values in force."""
        return self.loaded.settings

    def groups(self) -> list[DeclaredGroup]:
        """What each group runs, checked. Raises ConfigurationError; needs no broker."""
        groups = declare_groups(self._specs, self.loaded, self._process_lifespan)
        check_leases(groups, self._middlewares)
        return groups

    # -- running -----------------------------------------------------------------------------

    async def run(
        self, *, drain_and_exit: bool = False, on_started: Callable[[], None] | None = None
    ) -> None:
        """Run until `stop()`, or with `drain_and_exit` until the end offsets read at the start.

        `on_started` is called when every group has connected. Returns after a full drain. Raises
        ConfigurationError, ConnectError (at start), EngineError, DrainIncompleteError.
        """
        self._check_idle()
        groups = self.groups()
        self._stopping = asyncio.Event()
        self._failure = None
        self._started_at = time.monotonic()
        executors = AppExecutors()
        try:
            async with AsyncExitStack() as stack:
                stack.push_async_callback(executors.close)
                state = None
                if self._user_lifespan is not None:
                    state = await stack.enter_async_context(self._user_lifespan(self))
                self._runtimes = tuple(self._runtime(group, state, executors) for group in groups)
                await executors.start()
                stack.push_async_callback(self._stop_http, await self._start_http())
                await self._run_groups(drain_and_exit, on_started)
        finally:
            self._ended, self._runtimes = self._runtimes, ()

    def _check_idle(self) -> None:
        if self._runtimes or self._owner not in (None, asyncio.current_task()):
            raise ConfigurationError(f"app {self.name} runs already: an app runs once at a time")

    def _runtime(self, group: DeclaredGroup, state: object, executors: AppExecutors) -> GroupRuntime:
        built = build_handlers(group, state, self._middlewares, executors)
        rigging = self._rigging
        handlers = [rigging.watch(group.name, handler) for handler in built]
        runtime = GroupRuntime(
            group.name,
            handlers,
            group.subscription,
            runtime_config(self.settings),
            rigging.consumers or kafka_consumers(self.settings),
            clock=self._clock,
            producers=rigging.producers or kafka_producers(self.settings),
            departed=partial(rigging.departed, group.name),
        )
        runtime.state.on_event = self._listeners.tell
        return runtime

    async def _run_groups(self, until_end: bool, on_started: Callable[[], None] | None) -> None:
        """All groups side by side; when one ends badly the others stop, and its error is raised."""
        assert self._stopping is not None
        tasks = [
            asyncio.create_task(runtime.run(until_end=until_end), name=f"asyncpar-{runtime.state.group}")
            for runtime in self._runtimes
        ]
        starting = asyncio.create_task(self._announce(on_started))
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await self._until_ended(tasks, stopping)
        finally:
            starting.cancel()
            stopping.cancel()
            for runtime in self._runtimes:
                runtime.stop()
            await asyncio.wait(tasks)
        errors = [error for task in tasks if (error := task.exception()) is not None]
        if errors:
            self._failure = errors[0]
            raise errors[0]

    async def _until_ended(self, tasks: list[asyncio.Task[None]], stopping: asyncio.Task[bool]) -> None:
        left: set[asyncio.Task[Any]] = set(tasks)
        while left:
            waiting: set[asyncio.Task[Any]] = left if stopping.done() else {*left, stopping}
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            left -= done
            failed = any(task in done and task.exception() is not None for task in tasks)
            if stopping.done() or failed:
                for runtime in self._runtimes:
                    runtime.stop()
            if stopping.done():
                await asyncio.wait(tasks)
                return

    async def _announce(self, on_started: Callable[[], None] | None) -> None:
        for runtime in self._runtimes:
            await runtime.started.wait()
        if on_started is not None:
            on_started()

    def stop(self, *, now: bool = False) -> None:
        """Begin to stop: let what runs end, commit, leave. `now`: cancel what runs. Returns at once."""
        if self._stopping is not None:
            self._stopping.set()
        for runtime in self._runtimes:
            runtime.stop(now=now)

    def unfinished(self) -> tuple[str, ...]:
        """The calls that still run (or outlived the stop), by handler, partition and offset."""
        runtimes = self._runtimes or self._ended
        return tuple(name for runtime in runtimes for name in runtime.unfinished())

    def retry_halted(self, topic: str, partition: int, *, group: str | None = None) -> None:
        """Run the records of a halted partition again.

        `group` is needed only when several groups read it. KeyError when it is not assigned here,
        ValueError when it is not halted.
        """
        tp = TopicPartition(topic, partition)
        for runtime in self._runtimes:
            if group in (None, runtime.state.group) and tp in runtime.state.partitions:
                runtime.retry_halted(tp)
                return
        raise KeyError(f"{tp} is not assigned to this app")

    # -- embedding ---------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Start in a task of its own and return when every group has connected.

        Enters no cancel scope in the caller's task: the host may enter and leave in different tasks.
        """
        self._check_idle()
        started = asyncio.Event()
        self._owner = asyncio.create_task(self._own(started), name=f"asyncpar-app-{self.name}")
        waiting = asyncio.create_task(started.wait())
        try:
            await asyncio.wait({waiting, self._owner}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            owner, self._owner = self._owner, None
            self.stop(now=True)
            await asyncio.wait({owner})
            raise
        finally:
            waiting.cancel()
        if self._owner.done():
            owner, self._owner = self._owner, None
            owner.result()
        return self

    async def _own(self, started: asyncio.Event) -> None:
        try:
            await self.run(on_started=started.set)
        except AsyncparError as error:
            if started.is_set() and self._on_fatal is not None:
                self._on_fatal(error)
            raise

    async def wait(self) -> None:
        """Until the app ends; raises the error that ended it."""
        if self._owner is None:
            raise EngineError(f"app {self.name} does not run: use it inside `async with app:`")
        await asyncio.shield(self._owner)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop with a full drain; raises what ended the app, unless the body raised itself."""
        owner, self._owner = self._owner, None
        if owner is None:
            return
        self.stop()
        await asyncio.wait({owner})
        failure = None if owner.cancelled() else owner.exception()
        if failure is not None:
            if error is None:
                raise failure
            _log.error("app %s ended with an error: %s", self.name, failure)

    @contextlib.asynccontextmanager
    async def lifespan(self, host: object = None) -> AsyncIterator[None]:  # noqa: ARG002 - the host passes itself
        """For `FastAPI(lifespan=app.lifespan)` and Starlette: runs while the host does."""
        async with self:
            yield

    # -- seeing ------------------------------------------------------------------------------

    def status(self) -> AppStatus:
        """Everything at this moment, per group, handler and partition."""
        not_live = [reason for runtime in self._runtimes for reason in health.not_live(runtime)]
        not_ready = [reason for runtime in self._runtimes for reason in health.not_ready(runtime)]
        if not self._runtimes:
            not_ready.append(f"app {self.name} does not run")
        if self._failure is not None:
            not_ready.append(f"app {self.name} failed: {self._failure}")
        not_ready += not_live
        return AppStatus(
            name=self.name,
            version=asyncpar.__version__,
            uptime_seconds=time.monotonic() - self._started_at if self._runtimes else 0.0,
            live=not not_live,
            ready=not not_ready,
            not_live=tuple(not_live),
            not_ready=tuple(not_ready),
            loop_lag_seconds=health.loop_lag(self._runtimes),
            groups=tuple(snapshots.group_status(runtime) for runtime in self._runtimes),
        )

    def metrics(self) -> MetricsSnapshot:
        """Every metric of the registry at this moment."""
        builder = SnapshotBuilder()
        for runtime in self._runtimes:
            snapshots.add_metrics(builder, runtime)
        builder.add("loop_lag_seconds", (), health.loop_lag(self._runtimes))
        builder.add("build_info", (asyncpar.__version__, client_version(), platform.python_version()), 1)
        return builder.snapshot()

    # -- HTTP --------------------------------------------------------------------------------

    async def _start_http(self) -> Any:
        """The server of health and metrics; None when it is off or the default port is taken."""
        settings = self.settings
        if not settings.http_port:
            return None
        from asyncpar.adapters.http import HttpServer, admin_app

        server = HttpServer(admin_app(self.status, self.metrics), settings.http_host, settings.http_port)
        try:
            await server.start()
        except PortInUseError as error:
            if self.loaded.is_explicit("http_port"):
                raise
            _log.warning("%s; health and metrics are not served", error)
            return None
        self.http_port = server.port
        return server

    async def _stop_http(self, server: Any) -> None:
        if server is not None:
            self.http_port = None
            await server.stop(_HTTP_STOP_SECONDS)
