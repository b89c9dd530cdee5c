"""The start banner: in words, what is guaranteed, who handles what, and which settings were chosen.

Pure: takes declared groups and settings, returns text (or fields, for JSON logs). Called by `run.py` at
start and for `--check`; every sentence here is a promise, so it is worded from the settings that hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields

from asyncpar.groups import Children, DeclaredGroup, DeclaredHandler
from asyncpar.policies import Retry
from asyncpar.settings import Settings, differences
from asyncpar.settings_handlers import HANDLER_KEYS
from asyncpar.settings_sources import Loaded
from asyncpar.topics import TopicSpec

_COLUMNS = (
    "handler",
    "topics",
    "group",
    "order",
    "executor",
    "concurrency",
    "attempts",
    "then",
    "tombstones",
)
_AT_LEAST_ONCE = (
    "At least once: an offset is committed only when every record below it is done. After a crash, records "
    "that were in flight, or were done since the last commit, run again."
)
_COMMITS = (
    "Commits: after {} ms or {} records done, whichever is first, and when partitions are taken away or the "
    "process stops."
)
_TOMBSTONES = {
    "given": "the handler gets None",
    "skip": "skipped, they count as done",
    "error": 'an error that halts the partition; annotate with `| None`, or use tombstones="skip"',
}
_RETRY_FIELDS = frozenset(one.name for one in fields(Retry))
_POLICIES = ("retry_topics", "breaker", "dead_letter_budget", "poison_keys", "rate_limit", "key_rate_limit")
_DECORATOR = "@topic(...)"
_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"


def banner(name: str, version: str, groups: Sequence[DeclaredGroup], loaded: Loaded, *, colour: bool) -> str:
    """The whole banner, without a newline at its end. `colour` marks headings, for a terminal."""

    def heading(text: str) -> str:
        return f"{_BOLD}{text}{_PLAIN}" if colour else text

    settings = loaded.settings
    lines = [heading(f"asyncpar {version} runs {name} on {settings.bootstrap_servers}")]
    lines += ["", heading("What is guaranteed")]
    lines += [f"  {sentence}" for sentence in guarantees(groups, settings)]
    lines += ["", heading("Handlers"), *(f"  {row}" for row in handler_table(groups))]
    lines += _given_lines(groups, loaded, heading)
    return "\n".join(lines)


def check_report(groups: Sequence[DeclaredGroup], loaded: Loaded) -> str:
    """What `--check` prints: the handlers, and what was chosen for them and for all, without a newline."""
    return "\n".join([*handler_table(groups), *_given_lines(groups, loaded, str)])


def _given_lines(
    groups: Sequence[DeclaredGroup], loaded: Loaded, heading: Callable[[str], str]
) -> Iterable[str]:
    """What was chosen, and where: for handlers, and for all."""
    own = chosen_for_handlers(groups, loaded)
    if own:
        yield from ("", heading("What handlers were given"), *(f"  {line}" for line in own))
    chosen = [f"  {line}" for line in chosen_settings(loaded)]
    yield from ("", heading("Settings that differ from the defaults"), *(chosen or ["  none"]))


def banner_fields(groups: Sequence[DeclaredGroup], loaded: Loaded) -> dict[str, object]:
    """The same facts as the fields of one log record."""
    return {
        "guarantees": list(guarantees(groups, loaded.settings)),
        "handlers": [dict(zip(_COLUMNS, row, strict=True)) for row in _rows(groups)],
        "handler_settings": chosen_for_handlers(groups, loaded),
        "differing_settings": chosen_settings(loaded),
    }


def guarantees(groups: Iterable[DeclaredGroup], settings: Settings) -> list[str]:
    """One sentence for each promise: delivery, commits, what is read, and each handler's order."""
    reading = {
        "read_committed": "records of committed transactions only",
        "read_uncommitted": "all records, also those of transactions that are aborted later",
    }[settings.isolation_level]
    start = {
        "earliest": "starts at the earliest record",
        "latest": "starts at the end: records that are there already are not read",
        "error": "ends the run with an error",
    }[settings.offset_reset]
    handlers = [handler for group in groups for handler in group.handlers]
    sentences = [
        _AT_LEAST_ONCE,
        _COMMITS.format(settings.commit_interval_ms, settings.commit_every),
        f"Reading: {reading}; a group without a commit {start}.",
    ]
    for handler in handlers:
        name, tombstones = handler.spec.name, _TOMBSTONES[_tombstones(handler)]
        if handler.dead_letter is not None:
            tombstones = tombstones.replace("halts the partition", "makes a dead letter")
        sentences.append(f"Order of {name}: {_order(handler.spec)}")
        if handler.spec.retry_topics:
            sentences.append(
                f"Failed records of {name} travel through retry topics: "
                "later ones of their key overtake them."
            )
        sentences.append(f"Records without a value (tombstones) of {name}: {tombstones}.")
        if handler.children is not None:
            sentences.append(f"Child processes of {name}: {_children(handler, handler.children)}")
    return sentences


def _children(handler: DeclaredHandler, children: Children) -> str:
    """How many, and what a crash means."""
    given_up = "its partition halts" if handler.dead_letter is None else "it becomes a dead letter"
    return (
        f"{children.rules.lanes}. A record whose child dies while it runs has failed, and no other has; "
        f"a record that ends a second child is given up: {given_up}."
    )


def _tombstones(handler: DeclaredHandler) -> str:
    """What becomes of a record without a value: given, skip, or error."""
    if handler.plan.accepts_none:
        return "given"
    if handler.spec.tombstones == "skip" or handler.spec.on_decode_error == "skip":
        return "skip"
    return "error"


def _order(spec: TopicSpec) -> str:
    keyless = {
        "unordered": "Records without a key run in no order.",
        "partition": "Records without a key run one at a time within each partition.",
        "error": "A record without a key is an error.",
    }[spec.keyless]
    if spec.order == "unordered":
        return "none, all records may run at the same time."
    if spec.order == "partition":
        return "the records of a partition run one at a time, in their order, also across retries."
    key = "key" if spec.order == "key" else f"key (from {getattr(spec.order, '__name__', 'a function')})"
    return (
        f"records of a partition with the same {key} run one at a time, in their order, also across retries; "
        f"others run at the same time. {keyless}"
    )


def handler_table(groups: Iterable[DeclaredGroup]) -> list[str]:
    """The handlers as lines of a table with a head."""
    rows = [_COLUMNS, *_rows(groups)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _rows(groups: Iterable[DeclaredGroup]) -> list[tuple[str, ...]]:
    return [_row(group.name, handler) for group in groups for handler in group.handlers]


def _row(group: str, handler: DeclaredHandler) -> tuple[str, ...]:
    spec = handler.spec
    sources = [*spec.topics, *([f"pattern {spec.pattern}"] if spec.pattern else [])]
    return (
        spec.name,
        ", ".join(sources),
        group,
        spec.order if isinstance(spec.order, str) else "function",
        _executor(handler),
        str(handler.concurrency),
        _attempts(handler),
        _after_that(handler),
        _tombstones(handler),
    )


def _executor(handler: DeclaredHandler) -> str:
    """Where it runs; with child processes how many there are."""
    name = handler.spec.resolved_executor
    return name if handler.children is None else f"{name} x{handler.children.rules.lanes}"


def _after_that(handler: DeclaredHandler) -> str:
    """Where a record goes whose attempts are used up."""
    stops = [*handler.spec.retry_topics]
    if handler.dead_letter is not None:
        stops.append(
            f"*{handler.dead_letter}" if handler.dead_letter.startswith(".") else handler.dead_letter
        )
    return " > ".join(stops) or ("-" if handler.attempts is None else "halt")


def chosen_for_handlers(groups: Iterable[DeclaredGroup], loaded: Loaded) -> list[str]:
    """`handler: name = value (origin)` for what was chosen for it, in its table, its decorator or for all."""
    lines: list[str] = []
    for handler in (handler for group in groups for handler in group.handlers):
        name = handler.spec.name
        lines += [f"{name}: {what} ({where})" for what, where in _chosen(handler, loaded)]
    return lines


def _chosen(handler: DeclaredHandler, loaded: Loaded) -> Iterable[tuple[str, str]]:
    spec, table = handler.spec, loaded.handlers.get(handler.spec.name, {})
    for key, known in HANDLER_KEYS.items():
        what = f"{key} = {_effective(handler, key)}"
        has_own_retry = key in _RETRY_FIELDS and spec.retry is not None
        if key in table:
            yield what, loaded.handler_origin(spec.name, key)
        elif has_own_retry:
            if _is_unusual(handler, key):
                yield what, _DECORATOR
        elif key in spec.given:
            yield what, _DECORATOR
        elif known.knob is not None and loaded.is_explicit(known.knob):
            yield what, loaded.origins[known.knob]
    for key in _POLICIES:
        if getattr(spec, key):
            yield f"{key} = {getattr(spec, key)}", _DECORATOR


def _is_unusual(handler: DeclaredHandler, key: str) -> bool:
    return bool(getattr(handler.retry, key) != getattr(Retry(), key))


def _effective(handler: DeclaredHandler, key: str) -> str:
    """The value that holds, as text."""
    if key == "attempts":
        return _attempts(handler)
    value: object = getattr(handler.retry if key in _RETRY_FIELDS else handler, key, None)
    if value is None:
        value = getattr(handler.spec, key, None)
    if isinstance(value, Mapping):
        return ", ".join(f"{kind.__name__}: {how}" for kind, how in value.items())
    if isinstance(value, tuple):
        return ", ".join(kind.__name__ for kind in value)
    return "none" if value in (None, False) else str(value)


def _attempts(handler: DeclaredHandler) -> str:
    return "for ever" if handler.attempts is None else str(handler.attempts)


def chosen_settings(loaded: Loaded) -> list[str]:
    """`name = value (origin)` for each knob that differs from its default; secrets as `***`."""
    return [
        f"{name} = {value} ({loaded.origins[name]})" for name, value in differences(loaded.settings).items()
    ]
