"""The process around a replay: the progress bar, the summary, the exit code.

Never here: what is replayed (`asyncpar.admin.replay`). Called by `dlq.py`. Always: the bar is on stderr and
only on a terminal, the summary is the last thing on stdout, also when the replay ends with an error.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from dataclasses import fields as dataclass_fields
from typing import TYPE_CHECKING

import click

from asyncpar.cli.dlq_connection import producer, reader
from asyncpar.cli.interruption import interruptible

if TYPE_CHECKING:
    from asyncpar.admin.dead_letters import DeadLetter
    from asyncpar.admin.replay import ReplayReport, ReplayRequest
    from asyncpar.settings import Settings

EXIT_DONE = 0
EXIT_LEFT = 1
EXIT_INTERRUPTED = 130


def execute(chosen: Settings, request: ReplayRequest, *, dry_run: bool, as_json: bool) -> int:
    """Replay, or say what would be. Returns the exit code; raises AsyncparError."""
    try:
        return asyncio.run(_run(chosen, request, dry_run=dry_run, as_json=as_json))
    except asyncio.CancelledError:
        click.echo("asyncpar: stopped at once: the letter under way may be there or not", err=True)
        return EXIT_INTERRUPTED


async def _run(chosen: Settings, request: ReplayRequest, *, dry_run: bool, as_json: bool) -> int:
    from asyncpar.admin.replay import Replay
    from asyncpar.cli.dlq_output import printable

    def announce(letter: DeadLetter, topic: str) -> None:
        if dry_run and not as_json:
            print(f"would write {letter.place} to {topic}")

    with interruptible() as stop:
        async with AsyncExitStack() as opened:
            log = await opened.enter_async_context(reader(chosen))
            writer = None if dry_run else await opened.enter_async_context(producer(chosen))
            bar = _Bar()
            replay = Replay(request, log, writer, stop, bar.advance, announce)
            planned = await replay.plan()
            try:
                if not dry_run:
                    bar.open(sum(span.end - span.first for span in planned.values()))
                report = await replay.run(planned)
            finally:
                bar.close()
                _print(replay.report, request, dry_run=dry_run, as_json=as_json)
                for words in replay.names.hints(request.wanted) if not replay.report.replayed else ():
                    click.echo(f"asyncpar: {printable(words)}", err=True)
    if report.interrupted:
        return EXIT_INTERRUPTED
    return EXIT_DONE if report.is_complete else EXIT_LEFT


class _Bar:
    """Offsets read so far, on stderr when that is a terminal."""

    def __init__(self) -> None:
        self._bar: click._termui_impl.ProgressBar[int] | None = None

    def open(self, length: int) -> None:
        """Begin to show."""
        if sys.stderr.isatty():
            self._bar = click.progressbar(length=length, label="replaying", show_pos=True, file=sys.stderr)
            self._bar.render_progress()

    def advance(self, offsets: int) -> None:
        """So many more were read."""
        if self._bar is not None:
            self._bar.update(offsets)

    def close(self) -> None:
        """Show no more."""
        if self._bar is not None:
            self._bar.render_finish()


# -- the summary ---------------------------------------------------------------------------------


def _print(report: ReplayReport, request: ReplayRequest, *, dry_run: bool, as_json: bool) -> None:
    if not as_json:
        print("\n".join(summary(report, request, dry_run=dry_run)))
        return
    from asyncpar.cli.dlq_output import line

    fields = {one.name: getattr(report, one.name) for one in dataclass_fields(report)}
    print(line({**fields, "group": request.group, "dry_run": dry_run}))


def summary(report: ReplayReport, request: ReplayRequest, *, dry_run: bool) -> list[str]:
    """What was done and what was not, as lines."""
    verb = "would replay" if dry_run else "replayed"
    by_topic = ", ".join(f"{count} to {topic}" for topic, count in report.replayed.most_common())
    lines = [f"{verb} {report.replayed.total()} letters{f': {by_topic}' if by_topic else ''}"]
    passed = [
        (report.remembered, f"replayed before, as group {request.group} remembers"),
        (report.filtered, "not meant by the options"),
        (report.doubles, "doubles of replayed ones"),
        (report.metadata_only, "left, without a value (payload metadata_only): read them at their origin"),
        (report.without_origin, "left, they do not say where they came from: name a topic with --to"),
        (
            report.own_topic,
            f"left, they came from {request.topic} itself: name the topic of their dead letters, or --to",
        ),
        (report.too_large, "left, too large for the topic they came from: raise its max.message.bytes"),
    ]
    lines += [f"{count} {what}" for count, what in passed if count]
    if report.left:
        lines.append(f"the first ones left: {', '.join(report.left)}")
    if report.limited:
        lines.append(f"ended at --limit {request.limit}: there is more")
    if report.memory_full:
        lines.append(
            f"ended before {report.memory_full}: so many letters are scattered between others that the group "
            "can remember no more; replay what lies before it without filters, or name another --replay-group"
        )
    if report.interrupted:
        lines.append("interrupted: run the same command again to go on")
    return lines
