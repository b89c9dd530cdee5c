"""`asyncpar bench TARGET`: how fast a user's own handlers are on their own topics, and what limits them.

Owns the command, its options and what it prints. Never here: how a bench goes (`bench_run.py`), what it may
touch (`bench_setup.py`). Called by `main.py`. Always: what it will do is said on stderr before it begins,
what it found goes to stdout.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import TYPE_CHECKING, Any, TextIO

import click

from asyncpar.cli import loops
from asyncpar.cli.ranges import FiniteRange
from asyncpar.cli.run import live, prepare, run, settings_given
from asyncpar.errors import ConfigurationError

if TYPE_CHECKING:
    from asyncpar.cli.bench_report import Findings
    from asyncpar.cli.bench_setup import BenchRequest

_STDOUT, _STDERR = 1, 2
"""Their descriptors, which child processes have too."""
_FINDING = ("app_dir", "env_file", "toml", "factory")
_SETTINGS = ("bootstrap_servers", "profile", "log_level", "log_format", "log_config")
_SHARED = (*_FINDING, *_SETTINGS, "pairs")
"""Options of `asyncpar run` that mean the same here."""
_HTTP_IS_OFF = {"http_port": "0"}
"""The app itself may run here: a bench leaves its port alone, unless `--set http_port` says otherwise."""


def _as_run(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of `asyncpar run` for the app and its settings; they reach it as `how`."""

    def with_app(**options: Any) -> Any:
        how = {name: options.pop(name) for name in _SHARED}
        return command(how=how, **options)

    with_app.__name__, with_app.__doc__ = command.__name__, command.__doc__
    shared = [parameter for parameter in run.params if parameter.name in _SHARED]
    # Where click's decorators put them, the last one first.
    with_app.__click_params__ = shared[::-1]  # type: ignore[attr-defined]
    return with_app


@click.command(short_help="Measure an app's handlers on their topics, and say what limits them.")
@click.argument("target")
@click.option(
    "--seconds",
    type=FiniteRange(min=0, min_open=True),
    metavar="NUMBER",
    help="End after so long, whatever is left or comes; default: at the end that the topics have now.",
)
@click.option(
    "--records", type=click.IntRange(min=1), metavar="NUMBER", help="End when so many records are done."
)
@click.option(
    "--start",
    type=click.Choice(["earliest", "latest"]),
    help="Where to begin: with the first record there is (default), or with what is written from now on.",
)
@click.option(
    "--group",
    metavar="NAME",
    help="Run in this group: from where it has committed, and committing for it. Default: a new one, deleted "
    "afterwards.",
)
@click.option(
    "--for-real",
    is_flag=True,
    help="Write dead letters and records for retry topics, which are counted only otherwise, and let "
    "Deduplicate note what is done.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout, one object.")
@_as_run
def bench(target: str, how: dict[str, Any], **options: Any) -> int:
    """Run the handlers of TARGET (as `asyncpar run` finds it) on the records of their topics, and say how
    fast they are and what limits them: the event loop, slots, keys, fetching.

    The handlers run for real: what they write or call is written and called once more. Their group's offsets
    are not touched, unless --group names it.

    Exit codes: 0 measured, 1 nothing was handled, a partition halted or work was left, 2 something in the
    code or the settings is wrong, 4 the cluster cannot be reached or refuses, 130 stopped by a second
    signal. The first one (Ctrl-C) ends the bench and tells what was measured.
    """
    # Imported here, so that `--help` does not pay for it.
    from asyncpar.cli.bench_setup import BenchRequest

    request = BenchRequest(target, **options)
    request.check()
    return execute(request, how)


def execute(request: BenchRequest, how: Mapping[str, Any]) -> int:
    """Do what `request` says. Returns the exit code.

    Raises AsyncparError for what is wrong before the start.
    """
    # Before anything of the app is imported: that may print too.
    with stdout_alone() if request.as_json else nullcontext(sys.stdout) as out:
        return _measure(request, how, out)


def _measure(request: BenchRequest, how: Mapping[str, Any], out: TextIO | None) -> int:
    from asyncpar.cli import bench_setup
    from asyncpar.cli.bench_run import Bench

    given = settings_given({name: how[name] for name in _SETTINGS}, {**_HTTP_IS_OFF, **how["pairs"]})
    found, loaded = prepare(
        request.target,
        given,
        **{name: how[name] for name in _FINDING},
        defaults={"group": bench_setup.NO_GROUP},
    )
    loaded = bench_setup.bench_settings(loaded, request)
    app = found.app
    app.configure(loaded)
    runner = loops.runner(loaded.settings.event_loop)
    groups = app.groups()
    middlewares = app._middlewares  # noqa: SLF001 - an app tells nobody else of them
    bench_setup.check_writes(groups, middlewares, request)
    names = bench_setup.bench_groups(groups, request.group)
    place = bench_setup.kafka_place(loaded.settings)
    for line in bench_setup.announcement(groups, names, loaded.settings, request):
        _warn(line)

    def told(findings: Findings) -> None:
        _print(findings, out, as_json=request.as_json)

    one = Bench(app, loaded, request, names, place, told, _warn)
    with runner:
        return runner.run(
            live(one, drain_and_exit=request.ends_with_the_topics, tune_gc=loaded.settings.tune_gc)
        )


@contextmanager
def stdout_alone() -> Iterator[TextIO]:
    """Stdout; what others print meanwhile, such as handlers and their child processes, goes to stderr.

    Raises ConfigurationError where there is none.
    """
    before = sys.stdout
    if before is None or sys.stderr is None:  # as Python starts with a descriptor closed
        raise ConfigurationError("--json needs stdout, and stderr for what handlers print: one is closed")
    before.flush()
    with os.fdopen(os.dup(_STDOUT), "w", encoding="utf-8") as alone, redirect_stdout(sys.stderr):
        os.dup2(_STDERR, _STDOUT)
        try:
            yield alone
        finally:
            before.flush()  # what was printed by those who had taken it before
            os.dup2(alone.fileno(), _STDOUT)


def _warn(text: str) -> None:
    click.echo(f"asyncpar: {text}", err=True)


def _print(findings: Findings, out: TextIO | None, *, as_json: bool) -> None:
    """At once: a call that never ends may be about to end the process."""
    from asyncpar.cli.dlq_output import line

    click.echo(line(findings.as_json()) if as_json else "\n".join(findings.as_lines()), file=out)
    if out is not None:  # as Python starts with stdout closed
        out.flush()
