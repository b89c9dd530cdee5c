"""`asyncpar dlq list | show | replay | purge`: what an operator does with dead letters.

Owns the commands, their options and what they print. Never here: how letters are read, picked, replayed or
deleted (`asyncpar.admin`). Called by `main.py`. Always: data goes to stdout, everything else to stderr, and
what goes wrong is raised as AsyncparError.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click

from asyncpar.cli.dlq_connection import connects, reader, settings
from asyncpar.cli.ranges import FiniteRange
from asyncpar.errors import ConfigurationError

if TYPE_CHECKING:
    from asyncpar.admin.filters import LetterFilter
    from asyncpar.admin.purge import Cut, PurgeRequest
    from asyncpar.records import TopicPartition
    from asyncpar.settings import Settings

_PARTITION = click.option(
    "--partition",
    "partitions",
    type=click.IntRange(min=0),
    multiple=True,
    metavar="NUMBER",
    help="This partition of TOPIC only; any number of times.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="JSON on stdout, an object per line.")
_LIMIT = click.option(
    "--limit", type=click.IntRange(min=1), metavar="NUMBER", help="At most so many letters."
)
_GROUP = click.option(
    "--replay-group",
    metavar="NAME",
    help="The group that remembers what was replayed; default: asyncpar-dlq-replay-TOPIC.",
)
_WHEN = "so long ago, as 30s, 15m, 2h, 3d or 1w, or a date and time (UTC unless it has a zone)."
_FILTERS = (
    click.option("--origin-topic", metavar="TOPIC", help="Records that were read from this topic."),
    click.option("--error", metavar="TEXT", help="A part of the error's class or message."),
    click.option("--key", metavar="TEXT", help="The record's key, or 0x and hexadecimal digits."),
    click.option("--handler", metavar="NAME", help="Given up by this handler: its whole name."),
    click.option(
        "--reason",
        metavar="TEXT",
        help="exhausted, too_old, permanent, undecodable, poison_key, blocked or another.",
    ),
    click.option("--since", metavar="WHEN", help=f"Failed at this time or later: {_WHEN}"),
    click.option("--until", metavar="WHEN", help="Failed before this time."),
    click.option(
        "--min-attempts", type=click.IntRange(min=0), metavar="NUMBER", help="Run so often or more."
    ),
    click.option(
        "--max-attempts", type=click.IntRange(min=0), metavar="NUMBER", help="Run so often or less."
    ),
)


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that pick letters; they reach it as `wanted`."""

    def with_filter(**options: Any) -> Any:
        from asyncpar.admin.filters import LetterFilter, moment_ms

        now_ms = round(time.time() * 1000)
        names = ("origin_topic", "error", "key", "handler", "reason", "min_attempts", "max_attempts")
        picked = {name: options.pop(name) for name in names}
        for name in ("since", "until"):
            text = options.pop(name)
            picked[f"{name}_ms"] = None if text is None else moment_ms(text, now_ms)
        return command(wanted=LetterFilter(**picked), **options)

    with_filter.__name__, with_filter.__doc__ = command.__name__, command.__doc__
    with_filter.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    decorated: Callable[..., Any] = with_filter
    for option in reversed(_FILTERS):
        decorated = option(decorated)
    return decorated


@click.group(no_args_is_help=False, short_help="Look at, replay and purge dead letters.")
def dlq() -> None:
    """Look at dead letters, replay them to where they came from, and purge them.

    Exit codes: 0 done, 1 something was left or failed on the way, 2 something in the command or the settings
    is wrong, 4 the cluster cannot be reached or refuses, 130 interrupted.
    """


# -- list ----------------------------------------------------------------------------------------


@dlq.command("list", short_help="A table of dead letters.")
@click.argument("topic")
@_PARTITION
@_LIMIT
@_JSON
@_filters
@connects
def list_letters(
    topic: str,
    how: dict[str, Any],
    wanted: LetterFilter,
    partitions: tuple[int, ...],
    limit: int | None,
    as_json: bool,
) -> int:
    """Show the dead letters of TOPIC that all given options hold for, as of now.

    "double of P@O" marks a letter of the same record and handler as the one in partition P at offset O: a
    process was killed before it could commit. Times are UTC.
    """
    if not as_json and find_spec("rich") is None:
        raise ConfigurationError(
            "the table needs rich, not installed here: pip install 'asyncpar[demo]', or use --json"
        )
    chosen = settings(how)
    try:
        asyncio.run(_list(chosen, topic, partitions, wanted, limit, as_json=as_json))
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read has seen enough (`| head`); Python would complain about stdout once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


async def _list(
    chosen: Settings,
    topic: str,
    partitions: tuple[int, ...],
    wanted: LetterFilter,
    limit: int | None,
    *,
    as_json: bool,
) -> None:
    from asyncpar.admin.dead_letters import Doubles, letters, spans
    from asyncpar.admin.filters import NamesSeen
    from asyncpar.cli.dlq_output import facts, line, print_table, printable, row

    doubles, names, rows, shown = Doubles(), NamesSeen(), list[tuple[str, ...]](), 0
    async with reader(chosen) as log:
        async for letter in letters(log, await spans(log, topic, partitions)):
            first = doubles.first_of(letter)
            doubles.note(letter)
            names.note(letter)
            if not wanted.accepts(letter):
                continue
            if shown == limit:
                click.echo(f"asyncpar: there are more than {limit}: raise --limit to see them", err=True)
                break
            shown += 1
            if as_json:
                print(line(facts(letter, first)))
            else:
                rows.append(row(letter, first))
    if rows:
        print_table(rows)
    if not shown:
        for words in (f"no such dead letter in {topic}", *names.hints(wanted)):
            click.echo(f"asyncpar: {printable(words)}", err=True)


# -- show ----------------------------------------------------------------------------------------


@dlq.command(short_help="One dead letter in full.")
@click.argument("topic")
@click.argument("partition", type=click.IntRange(min=0))
@click.argument("offset", type=click.IntRange(min=0))
@click.option(
    "--max-bytes",
    type=click.IntRange(min=1),
    default=65_536,
    show_default=True,
    metavar="NUMBER",
    help="Cut key and value after so many bytes each; not in JSON.",
)
@_JSON
@connects
def show(topic: str, partition: int, offset: int, how: dict[str, Any], max_bytes: int, as_json: bool) -> int:
    """Show all headers, the key and the value of the letter at OFFSET of a PARTITION of TOPIC."""
    from asyncpar.admin.dead_letters import DeadLetter, letter_at
    from asyncpar.cli.dlq_output import everything, in_full, line

    chosen = settings(how)

    async def find() -> DeadLetter:
        async with reader(chosen) as log:
            return await letter_at(log, topic, partition, offset)

    letter = asyncio.run(find())
    click.echo(line(everything(letter)) if as_json else in_full(letter, max_bytes))
    return 0


# -- replay --------------------------------------------------------------------------------------


@dlq.command(short_help="Write dead letters back to where they came from.")
@click.argument("topic")
@_PARTITION
@_filters
@click.option("--to", metavar="TOPIC", help="Write to this topic instead.")
@click.option(
    "--rate", type=FiniteRange(min=0.001, max=1e6), metavar="NUMBER", help="At most so many per second."
)
@_LIMIT
@click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing.")
@_GROUP
@click.option("--again", is_flag=True, help="Also letters that the group remembers as replayed.")
@click.option(
    "--commit-every",
    type=click.IntRange(1, 10_000),
    default=1,
    show_default=True,
    metavar="NUMBER",
    help="Letters between two commits of what was replayed. More is faster; a killed replay writes up "
    "to so many twice.",
)
@_JSON
@connects
def replay(topic: str, how: dict[str, Any], replay_group: str | None, dry_run: bool, **rest: Any) -> int:
    """Write the dead letters of TOPIC that all given options hold for back to the topics they came from.

    Key, value and headers stay, x-asyncpar-replayed counts up. A letter is written once: an own group
    remembers what was replayed, so that an interrupted replay can be repeated, and one with other options
    finds the rest. Without a value (payload metadata_only) nothing can be replayed. Ctrl-C ends it after the
    letter that is under way.
    """
    from asyncpar.admin.replay import ReplayRequest, default_group
    from asyncpar.cli import dlq_replay

    as_json: bool = rest.pop("as_json")
    if rest["to"] == topic:
        raise ConfigurationError(f"--to {topic}: letters cannot be replayed to the topic in which they lie")
    request = ReplayRequest(
        topic=topic,
        group=replay_group or default_group(topic),
        per_second=rest.pop("rate"),
        **rest,
    )
    return dlq_replay.execute(settings(how), request, dry_run=dry_run, as_json=as_json)


# -- purge ---------------------------------------------------------------------------------------


@dlq.command(short_help="Delete dead letters.")
@click.argument("topic")
@_PARTITION
@click.option(
    "--before",
    metavar="OFFSET|WHEN",
    help=f"Below this offset (of one partition), or written before this time: {_WHEN}",
)
@click.option("--replayed", is_flag=True, help="What the replay group remembers without a gap.")
@click.option("--all", "everything", is_flag=True, help="All that is there now.")
@_GROUP
@click.option("--dry-run", is_flag=True, help="Say what would be deleted, and delete nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_JSON
@connects
def purge(
    topic: str,
    how: dict[str, Any],
    partitions: tuple[int, ...],
    before: str | None,
    replayed: bool,
    everything: bool,
    replay_group: str | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Delete the oldest dead letters of TOPIC, for good; say which by one of --before, --replayed and --all.

    Kafka deletes the beginning of a partition and nothing else: letters cannot be picked by a filter.
    """
    from asyncpar.admin.purge import PurgeRequest
    from asyncpar.admin.replay import default_group

    if (before is not None) + replayed + everything != 1:
        raise ConfigurationError("say what to delete by one of --before, --replayed and --all")
    group = replay_group or default_group(topic)
    bound, at = _bound(before, replayed=replayed)
    request = PurgeRequest(topic, bound, at, group, partitions)
    chosen = settings(how)
    cuts = asyncio.run(_plan(chosen, request))
    count = sum(cut.offsets for cut in cuts.values())
    if not as_json:
        click.echo("\n".join(_described(cuts, request)), err=not dry_run)
    if count and not dry_run:
        if not yes and not _is_confirmed(topic, count):
            click.echo("asyncpar: nothing was deleted", err=True)
            return 0
        asyncio.run(_delete(chosen, topic, cuts))
    if as_json:
        _print_cuts(cuts, dry_run=dry_run)
    elif not dry_run:
        click.echo(f"deleted {count} offsets" if count else "nothing to delete")
    return 0


def _bound(before: str | None, *, replayed: bool) -> tuple[Any, int]:
    """What `PurgeRequest` calls it, and the number to it."""
    from asyncpar.admin.filters import moment_ms

    if before is None:
        return ("replayed" if replayed else "all"), 0
    if before.isascii() and before.isdigit():
        return "offset", int(before)
    return "time", moment_ms(before, round(time.time() * 1000))


async def _plan(chosen: Settings, request: PurgeRequest) -> dict[TopicPartition, Cut]:
    from asyncpar.admin.purge import plan

    async with reader(chosen) as log:
        return await plan(log, request)


async def _delete(chosen: Settings, topic: str, cuts: dict[TopicPartition, Cut]) -> None:
    from asyncpar.admin.purge import carry_out

    async with reader(chosen) as log:
        await log.partitions(topic)  # who leads them, as far as this connection knows
        await carry_out(log, cuts)


def _described(cuts: dict[TopicPartition, Cut], request: PurgeRequest) -> list[str]:
    lines = []
    for tp, cut in cuts.items():
        kept = f"{cut.end - cut.before} stay"
        if cut.offsets:
            lines.append(f"{tp}: offsets {cut.first} to {cut.before - 1} go ({cut.offsets}), {kept}")
        else:
            lines.append(f"{tp}: nothing goes, {kept}")
        if cut.stays:
            lines.append(
                f"{tp}: {cut.stays} replayed ones stay, because letters before them were not replayed and "
                "Kafka deletes only from the beginning"
            )
    if request.bound == "time":
        lines.append(
            "the first letter written at that time or later ends what is deleted: older ones behind it stay"
        )
    return lines


def _is_confirmed(topic: str, count: int) -> bool:
    if not sys.stdin.isatty():
        raise ConfigurationError("purge asks before it deletes, and nobody is here to answer: add --yes")
    return click.confirm(f"Delete {count} offsets of {topic} for good?", err=True)


def _print_cuts(cuts: dict[TopicPartition, Cut], *, dry_run: bool) -> None:
    from asyncpar.cli.dlq_output import line

    for tp, cut in cuts.items():
        fields = {"partition": tp.partition, **cut._asdict(), "offsets": cut.offsets, "dry_run": dry_run}
        print(line(fields))
