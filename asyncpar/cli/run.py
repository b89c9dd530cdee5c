"""`asyncpar run TARGET`: find the app, load its settings, run it, end with the code that says how.

Owns what belongs to the process and not to the app: signals, logging, the banner and the exit. The app
does the rest (`App.configure`, `App.groups`, `App.run`, `App.stop`, `App.unfinished`). Called by `main.py`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import click

from asyncpar import __version__
from asyncpar.cli import loops
from asyncpar.cli.collection import tuned_collection
from asyncpar.cli.reports import last_words, report
from asyncpar.errors import EngineError, SettingError

if TYPE_CHECKING:
    from asyncpar.app import App
    from asyncpar.cli.targets import Found
    from asyncpar.settings_sources import Loaded

log = logging.getLogger("asyncpar.run")

EXIT_STOPPED = 0
EXIT_SECOND_SIGNAL = 130
_CANCEL_SECONDS = 10.0
"""How long the app may take to end after a second signal before the whole run is cancelled."""
_LEFTOVERS_SECONDS = 2.0
"""How long tasks and threads that nobody waits for may take to end, before the process ends without them."""


_ECHO_SECONDS = 0.25
"""A signal that comes again this soon is its own echo: `timeout` signals a process, then its group."""


class Runs(Protocol):
    """What `live` needs of an app; `asyncpar bench` gives it something else than an app."""

    async def run(self, *, drain_and_exit: bool, on_started: Callable[[], None]) -> None:
        """See `App.run`."""

    def stop(self, *, now: bool = False) -> None:
        """See `App.stop`."""

    def unfinished(self) -> tuple[str, ...]:
        """See `App.unfinished`."""


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What the command line asked for, beside settings."""

    target: str
    app_dir: Path
    factory: bool
    drain_and_exit: bool
    check: bool
    env_file: Path | None
    toml: Path | None


_REQUEST_OPTIONS = tuple(field.name for field in fields(RunRequest) if field.name != "target")


_PATH = click.Path(path_type=Path)


def _pairs(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """`--set KEY=VALUE`, any number of times."""
    found: dict[str, str] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{text!r} is not KEY=VALUE", context, parameter)
        found[name.strip()] = value
    return found


@click.command(short_help="Run an app's handlers until it is stopped.")
@click.argument("target")
@click.option("--bootstrap-servers", metavar="HOST:PORT,...", help="Brokers to ask first.")
@click.option("--group", metavar="NAME", help="Consumer group of handlers that name none.")
@click.option("--profile", metavar="NAME", help="low_latency, high_throughput, resource_constrained or test.")
@click.option(
    "--set", "pairs", metavar="KEY=VALUE", multiple=True, callback=_pairs, help="Any other setting."
)
@click.option(
    "--config", "toml", type=_PATH, metavar="FILE", help="Settings file; default ./asyncpar.toml if there."
)
@click.option("--env-file", type=_PATH, metavar="FILE", help="Variables that are not in the environment.")
@click.option(
    "--app-dir",
    type=_PATH,
    metavar="FOLDER",
    default=".",
    help="Where modules are looked for first; default '.'.",
)
@click.option("--factory", is_flag=True, help="TARGET is a function that returns the App.")
@click.option("--wait-for-topics", is_flag=True, help="Wait for topics that do not exist yet.")
@click.option("--drain-and-exit", is_flag=True, help="Stop when all that is there at start is done.")
@click.option(
    "--check",
    is_flag=True,
    help="Validate all without a broker, print the handlers and what they were given, end.",
)
@click.option("--http-host", metavar="ADDRESS", help="Address of health and metrics.")
@click.option("--http-port", metavar="PORT", help="Port of health and metrics; 0 turns it off.")
@click.option("--log-level", metavar="LEVEL", help="debug, info, warning, error or critical.")
@click.option("--log-format", metavar="FORMAT", help="text or json.")
@click.option("--log-config", metavar="FILE", help="A .toml or .json file for logging.config.dictConfig.")
def run(target: str, pairs: Mapping[str, str], **options: Any) -> int:
    """Run the handlers of TARGET: module, module:app, package.module or dir/file.py.

    Exit codes: 0 stopped with all running work done, 1 work left or the engine failed, 2 something in the
    code or the settings is wrong, 4 the cluster cannot be reached or refuses, 130 stopped by a second signal.
    """
    request = RunRequest(target, **{name: options.pop(name) for name in _REQUEST_OPTIONS})
    return execute(request, settings_given(options, pairs))


def settings_given(options: Mapping[str, Any], pairs: Mapping[str, str]) -> dict[str, object]:
    """The settings of a command line: `options` have their names, `pairs` come from `--set`. SettingError."""
    # A flag that was not given says nothing about its setting.
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    for name, value in pairs.items():
        if name in given:
            raise SettingError(f"command line: {name} is given twice, by its option and by --set; remove one")
        given[name] = value
    return given


def execute(request: RunRequest, given: Mapping[str, object]) -> int:
    """Do what `request` says with the settings `given` on the command line. Returns the exit code.

    Raises AsyncparError for what is wrong before the run starts.
    """
    found, loaded = prepare(
        request.target, given, request.app_dir, request.env_file, request.toml, factory=request.factory
    )
    found.app.configure(loaded)
    runner = loops.runner(loaded.settings.event_loop)
    _announce(found.app, found.name, loaded, check=request.check)
    if request.check:
        return EXIT_STOPPED
    with runner:
        return runner.run(
            live(found.app, drain_and_exit=request.drain_and_exit, tune_gc=loaded.settings.tune_gc)
        )


def prepare(
    target: str,
    given: Mapping[str, object],
    app_dir: Path,
    env_file: Path | None,
    toml: Path | None,
    *,
    factory: bool,
    defaults: Mapping[str, object] = MappingProxyType({}),
) -> tuple[Found, Loaded]:
    """The app and its settings, with logging set up as they say. `defaults` are weaker than the app's own.

    Raises AsyncparError.
    """
    # Imported here, so that `--help` does not pay for pydantic.
    from asyncpar.cli import logs
    from asyncpar.cli.targets import find_app
    from asyncpar.settings_sources import load, read_env_file

    environment = dict(os.environ)
    if env_file is not None:
        # The app's own code expects its variables too; what is set already stays.
        for name, value in read_env_file(env_file).items():
            os.environ.setdefault(name, value)
    found = find_app(target, app_dir=app_dir, factory=factory)
    loaded = load(
        cli=given,
        env=environment,
        env_file=env_file,
        toml=toml,
        app_values={**defaults, **found.app.given_settings},
    )
    logs.configure(loaded)
    for warning in (*loaded.warnings, *found.warnings):
        log.warning(warning)
    return found, loaded


def _announce(app: App, target: str, loaded: Loaded, *, check: bool) -> None:
    """Say what will run: on stdout for `--check`, else where the logs go.

    Raises ConfigurationError for handlers that contradict each other or the settings, and for `--check` also
    for what the client would refuse at its start.
    """
    from asyncpar.assembly import check_client
    from asyncpar.cli.banner import banner, banner_fields, check_report

    groups = app.groups()
    if check:
        check_client(loaded.settings)
        click.echo(check_report(groups, loaded))
    elif loaded.settings.log_format == "json":
        log.info("asyncpar %s runs %s", __version__, target, extra=banner_fields(groups, loaded))
    else:
        colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
        click.echo(banner(target, __version__, groups, loaded, colour=colour), err=True)


async def live(app: Runs, *, drain_and_exit: bool, tune_gc: bool) -> int:
    """The app from start to end. Returns the exit code, or ends the process when something will not end."""
    with tuned_collection() as tune:
        return await _live(app, drain_and_exit, tune if tune_gc else lambda: None)


async def _live(app: Runs, drain_and_exit: bool, on_started: Callable[[], None]) -> int:
    loop = asyncio.get_running_loop()
    # Ours, so that a thread of it that never ends is seen here and does not hold up the loop's close.
    threads = ThreadPoolExecutor(thread_name_prefix="asyncio")
    loop.set_default_executor(threads)
    course = app.run(drain_and_exit=drain_and_exit, on_started=on_started)
    running = asyncio.create_task(course, name="asyncpar-run")
    with _signals(app, running) as seen:
        await asyncio.wait({running})
        error = EngineError("the run was cancelled") if running.cancelled() else running.exception()
        code = EXIT_STOPPED if error is None else report(error)
        if len(seen) > 1:
            code = EXIT_SECOND_SIGNAL
        stuck = app.unfinished() or (*await _leftover_tasks(), *_leftover_threads(threads))
    if stuck:
        _end_now(code, stuck)
    return code


@contextmanager
def _signals(app: Runs, running: asyncio.Task[None]) -> Iterator[list[int]]:
    """The first SIGINT or SIGTERM drains, the second cancels, the third ends the process at once.

    The same signal within `_ECHO_SECONDS` counts once.
    Yields the list of signals seen. Python's own handlers and not the loop's: a loop that a handler blocks
    would never hear the third.
    """
    seen: list[int] = []
    last = 0.0
    loop = running.get_loop()

    def heard(number: int, _frame: FrameType | None) -> None:
        nonlocal last
        now = time.monotonic()
        if seen and seen[-1] == number and now - last < _ECHO_SECONDS:
            return
        last = now
        seen.append(number)
        name = signal.Signals(number).name
        if len(seen) == 1:
            loop.call_soon_threadsafe(_begin_drain, app, name)
        elif len(seen) == 2:
            loop.call_soon_threadsafe(_cancel_all, app, name, running)
        else:
            _end_now(EXIT_SECOND_SIGNAL, app.unfinished())

    before = {number: signal.signal(number, heard) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _begin_drain(app: Runs, name: str) -> None:
    log.info("%s: stopping, running handlers may end; send it again to cancel them", name)
    app.stop()


def _cancel_all(app: Runs, name: str, running: asyncio.Task[None]) -> None:
    log.warning("%s again: cancelling what is running; it runs again after a restart", name)
    app.stop(now=True)
    # A lifespan that hangs is beyond the app's reach.
    running.get_loop().call_later(_CANCEL_SECONDS, running.cancel)


async def _leftover_tasks() -> tuple[str, ...]:
    """Names of tasks that the user's code started and that do not end when they are cancelled."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if not others:
        return ()
    for task in others:
        task.cancel()
    _, pending = await asyncio.wait(others, timeout=_LEFTOVERS_SECONDS)
    return tuple(f"task {task.get_name()} ({_function_of(task)})" for task in pending)


def _function_of(task: asyncio.Task[object]) -> str:
    return str(getattr(task.get_coro(), "__qualname__", "?"))


def _leftover_threads(threads: ThreadPoolExecutor) -> tuple[str, ...]:
    """Names of the loop's default threads that are still busy, such as those of `asyncio.to_thread`."""
    threads.shutdown(wait=False, cancel_futures=True)
    ours = [thread for thread in threading.enumerate() if thread.name.startswith("asyncio_")]
    for thread in ours:
        thread.join(_LEFTOVERS_SECONDS / max(1, len(ours)))
    return tuple(f"thread {thread.name}" for thread in ours if thread.is_alive())


def _end_now(code: int, stuck: tuple[str, ...]) -> NoReturn:
    """End the process without waiting for what does not end; name it, lose no output."""
    names = ", ".join(stuck) or "nothing known"
    last_words(f"ending without waiting for: {names}")
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)
