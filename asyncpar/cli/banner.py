"""The start banner: in words, what is guaranteed, who handles what, and which settings were chosen.

Pure: takes specs and settings, returns text (or fields, for JSON logs). Called by `run.py` at start and for
`--check`; every sentence here is a promise, so it is worded from the settings that hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from asyncpar.settings import Settings, default_concurrency, differences
from asyncpar.settings_sources import Loaded
from asyncpar.topics import TopicSpec

_COLUMNS = ("handler", "topics", "group", "order", "executor", "concurrency", "attempts", "tombstones")
_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"


def banner(name: str, version: str, specs: Sequence[TopicSpec], loaded: Loaded, *, colour: bool) -> str:
    """The whole banner, without a newline at its end. `colour` marks headings, for a terminal."""

    def heading(text: str) -> str:
        return f"{_BOLD}{text}{_PLAIN}" if colour else text

    settings = loaded.settings
    lines = [heading(f"asyncpar {version} runs {name} on {settings.bootstrap_servers}")]
    lines += ["", heading("What is guaranteed")]
    lines += [f"  {sentence}" for sentence in guarantees(specs, settings)]
    lines += ["", heading("Handlers"), *(f"  {row}" for row in handler_table(specs, settings))]
    chosen = chosen_settings(loaded)
    lines += ["", heading("Settings that differ from the defaults")]
    lines += [f"  {line}" for line in chosen] or ["  none"]
    return "\n".join(lines)


def banner_fields(specs: Sequence[TopicSpec], loaded: Loaded) -> dict[str, object]:
    """The same facts as the fields of one log record."""
    return {
        "guarantees": list(guarantees(specs, loaded.settings)),
        "handlers": [dict(zip(_COLUMNS, _row(spec, loaded.settings), strict=True)) for spec in specs],
        "differing_settings": chosen_settings(loaded),
    }


def guarantees(specs: Iterable[TopicSpec], settings: Settings) -> list[str]:
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
    return [
        "At least once: an offset is committed only when every record below it is done. After a crash, records "
        "that were in flight, or were done since the last commit, run again.",
        f"Commits: after {settings.commit_interval_ms} ms or {settings.commit_every} records done, whichever is "
        "first, and when partitions are taken away or the process stops.",
        f"Reading: {reading}; a group without a commit {start}.",
        *(f"Order of {spec.name}: {_order(spec)}" for spec in specs),
    ]


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


def handler_table(specs: Sequence[TopicSpec], settings: Settings) -> list[str]:
    """The handlers as lines of a table with a head."""
    rows = [_COLUMNS, *(_row(spec, settings) for spec in specs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _row(spec: TopicSpec, settings: Settings) -> tuple[str, ...]:
    sources = [*spec.topics, *([f"pattern {spec.pattern}"] if spec.pattern else [])]
    executor = spec.resolved_executor
    attempts = spec.retry.attempts if spec.retry is not None else settings.retry_attempts
    order = spec.order if isinstance(spec.order, str) else "function"
    return (
        spec.name,
        ", ".join(sources),
        spec.group or settings.group or "none",
        order,
        executor,
        str(spec.concurrency or settings.concurrency or default_concurrency(executor)),
        "for ever" if attempts is None else str(attempts),
        spec.tombstones,
    )


def chosen_settings(loaded: Loaded) -> list[str]:
    """`name = value (origin)` for each knob that differs from its default; secrets as `***`."""
    return [
        f"{name} = {value} ({loaded.origins[name]})" for name, value in differences(loaded.settings).items()
    ]
