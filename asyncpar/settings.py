"""Every engine-wide knob: name with unit, default, limits, and what happens at the extremes.

The model is the only place where a knob is named: sources, command line, banner and the docs page
read it from here. It holds plain values and checks each one alone; where values come from, and
whether they contradict each other, is `settings_sources.py` and `settings_checks.py`. A handler's own
values (decorator, `[handlers."name"]`) are not here: they live in its `TopicSpec` and win over these.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

from pydantic import BeforeValidator, Field

from asyncpar.settings_kafka import (
    MIB,
    ExistingFile,
    FetchSettings,
    GroupSettings,
    Name,
    Section,
    SecuritySettings,
    knob,
)


def _lowered(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


LogLevel: TypeAlias = Annotated[
    Literal["debug", "info", "warning", "error", "critical"], BeforeValidator(_lowered)
]
Attempts: TypeAlias = Annotated[int, Field(ge=1, le=1_000_000)] | Literal["forever"]
Profile: TypeAlias = Literal["low_latency", "high_throughput", "resource_constrained", "test"]


class LimitSettings(Section):
    """How much runs and how much is held at once."""

    concurrency: int | None = knob(
        None,
        "Calls that run at the same time, per handler and process; a handler's own value wins.",
        low="1 runs one record at a time",
        high="memory and downstream connections become the limit; more than `max_in_flight` is never reached",
        unset="100 for async handlers, min(32, 4 x cores) for threads; of a handler in child processes two "
        "batches for each child, whatever stands here",
        ge=1,
        le=100_000,
    )
    max_in_flight: int = knob(
        5_000,
        "Records held at once per group: queued, running and waiting for a retry.",
        low="handlers run dry when the queue is shorter than what they do during one fetch",
        high="more memory, and more records run again after a crash",
        ge=1,
        le=1_000_000,
    )
    max_in_flight_per_partition: int | None = knob(
        None,
        "The same for one partition, so that one slow partition cannot take the whole budget. "
        "At most `max_in_flight`.",
        low="little parallelism inside a partition",
        high="one partition may hold up the others",
        unset="min(max_in_flight, max(64, 2 x max_in_flight / assigned partitions))",
        ge=1,
        le=1_000_000,
    )
    max_in_flight_bytes: int = knob(
        64 * MIB,
        "Payload bytes held at once per group. One fetched chunk may pass it; one record always fits.",
        low="one record at a time when records are larger than this",
        high="memory: about this much payload, plus overhead for each record",
        ge=1,
        le=2**40,
    )


class ProcessSettings(Section):
    """Child processes of handlers with `executor="process"`. Each such handler has its own."""

    worker_pool_size: int | None = knob(
        None,
        "Child processes of a handler.",
        low="1 uses one core",
        high="more than there are cores only costs memory",
        unset="as many as this process may use cores",
        ge=1,
        le=1_024,
    )
    process_batch_size: int = knob(
        64,
        "The most records that are sent to a child together. An idle child gets what there is at once; "
        "batches grow under load only, and never beyond what takes about 50 ms.",
        low="1 sends each record by itself: quick handlers wait for the way",
        high="a rebalance or a crash sends more records back",
        ge=1,
        le=10_000,
    )
    process_queue_size: int = knob(
        2_048,
        "The most records of a handler that are with its children at a time: waiting, sent and running. "
        "More than two batches for each child is never reached.",
        low="children run dry while the next records are on their way",
        high="memory",
        ge=1,
        le=1_000_000,
    )
    max_batch_wait_ms: int = knob(
        5,
        "How long records wait for their batch to fill while every child is busy.",
        low="0 sends what there is: smaller batches, less delay",
        high="a record may wait for that long although its child would be free sooner",
        ge=0,
        le=60_000,
    )
    max_tasks_per_child: int | None = knob(
        None,
        "A child that has run so many records is replaced; its successor is ready before it goes.",
        low="starting children costs more than the records",
        high="what leaks in a handler grows for longer",
        unset="children are kept",
        ge=1,
        le=1_000_000_000,
    )
    process_start_method: Literal["forkserver", "spawn"] = knob(
        "forkserver",
        "How children are made. `forkserver` imports the handlers' modules once and forks from there, in "
        "milliseconds; `spawn` starts a fresh interpreter for each child.",
    )


class RetrySettings(Section):
    """Defaults of handlers that do not declare their own retry."""

    retry_attempts: Attempts | None = knob(
        None,
        "Total runs of a failing record before it is given up, which halts its partition where there are no "
        "dead letters. `forever`: it is never given up, dead letters or not.",
        low="1 means no retry",
        high="a poisoned record keeps its key waiting for that long",
        unset="for ever, or 5 with `dead_letter`",
    )
    retry_base_ms: int = knob(
        100,
        "Backoff starts here and doubles, with full jitter, up to `retry_max_ms`.",
        low="failing records are tried again almost at once",
        high="a single hiccup holds its key for that long",
        ge=1,
        le=3_600_000,
    )
    retry_max_ms: int = knob(
        30_000,
        "Longest backoff between two attempts. At least `retry_base_ms`.",
        low="a downstream that is out is asked more often",
        high="after an outage its keys come back later",
        ge=1,
        le=86_400_000,
    )


class FailureSettings(Section):
    """Defaults of handlers that do not declare their own time-out and dead letters."""

    timeout_ms: int | None = knob(
        None,
        "A handler call that runs for longer is cancelled and has failed; it is tried again as any failure.",
        low="slow but healthy calls are cancelled and run again",
        high="a call that hangs keeps its slot and its key for that long",
        unset="no limit; `max_blocking_duration_ms` still reports what blocks",
        ge=1,
        le=86_400_000,
    )
    dead_letter: Name | None = knob(
        None,
        "Topic for records that are given up, or a suffix such as `.dlq` of the name of their own topic. "
        "With it a failing record is given up after 5 attempts, unless its `retry` or `retry_attempts` says "
        "otherwise.",
        unset="none: a record that is given up halts its partition",
    )


class CommitSettings(Section):
    """When offsets are committed, and what waits for what when partitions or the process go."""

    commit_interval_ms: int = knob(
        1_000,
        "Commit at least this often while there is something to commit.",
        low="more commits; never less than 50 ms apart",
        high="more records run again after a crash",
        ge=50,
        le=600_000,
    )
    commit_every: int = knob(
        2_000,
        "Commit as soon as this many records completed since the last commit (still 50 ms apart).",
        low="more commits",
        high="only `commit_interval_ms` counts",
        ge=1,
        le=10_000_000,
    )
    max_revoke_grace_ms: int = knob(
        5_000,
        "How long running handlers may go on when their partition is taken away.",
        low="0 cancels them at once; their records run again elsewhere",
        high="the whole group waits for that long in each rebalance",
        ge=0,
        le=300_000,
    )
    shutdown_drain_timeout_ms: int = knob(
        30_000,
        "How long a stop waits for what is running before it cancels.",
        low="0 cancels at once; those records run again after the restart",
        high="must stay below the time that the process's supervisor allows for a stop",
        ge=0,
        le=3_600_000,
    )
    max_blocking_duration_ms: int = knob(
        60_000,
        "How long the lowest unfinished offset of a partition may hold the commit before `on_blocked` acts.",
        low="0 turns it off; small values report every slow record",
        high="a stuck handler is noticed late",
        ge=0,
        le=86_400_000,
    )
    on_blocked: Literal["warn", "cancel", "dead_letter"] = knob(
        "warn",
        "What happens then. `warn` logs it once and turns readiness red until the commit moves; `cancel` "
        "also cancels the call that blocks, which is a failed attempt; `dead_letter` also gives the record "
        "up: to the dead letters of its handler, or its partition halts.",
    )


class ServiceSettings(Section):
    """The HTTP endpoints and the logs."""

    http_host: Name = knob(
        "127.0.0.1", "Address of health and metrics. In containers `0.0.0.0`, so that probes reach it."
    )
    http_port: int = knob(
        9464,
        "Port of health and metrics. When the default is taken there is one warning and no server; "
        "when a port that you chose is taken the run ends with exit code 2.",
        low="0 turns the server off",
        ge=0,
        le=65_535,
    )
    log_level: LogLevel = knob(
        "info", "Least level that is logged by `asyncpar run`. `debug` costs much of the throughput."
    )
    log_format: Literal["text", "json"] = knob(
        "text", "`text` for people, `json` for collectors: one object on each line."
    )
    log_config: ExistingFile | None = knob(
        None,
        "A `.toml` or `.json` file for `logging.config.dictConfig`; "
        "it replaces `log_level` and `log_format`.",
        unset="asyncpar's own format on stderr",
    )
    tune_gc: bool = knob(
        True,
        "`asyncpar run` takes what the program has loaded at its start out of garbage collection, and "
        "collects less often. Off, Python's own rules stay. An app that is embedded never touches them.",
    )
    event_loop: Literal["asyncio", "uvloop"] = knob(
        "asyncio",
        "The event loop of `asyncpar run` and `asyncpar bench`. `uvloop` is the package of that name "
        "(`asyncpar[uvloop]`), which takes less time where many handlers wait. An app that is embedded runs "
        "on its program's loop.",
    )
    profile: Profile | None = knob(
        None, "A set of other defaults; every source of settings wins over it.", unset="the defaults here"
    )


SECTIONS: tuple[type[Section], ...] = (
    GroupSettings,
    FetchSettings,
    SecuritySettings,
    LimitSettings,
    ProcessSettings,
    RetrySettings,
    FailureSettings,
    CommitSettings,
    ServiceSettings,
)


class Settings(
    ServiceSettings,
    CommitSettings,
    FailureSettings,
    RetrySettings,
    ProcessSettings,
    LimitSettings,
    SecuritySettings,
    FetchSettings,
    GroupSettings,
):
    """All engine-wide settings, frozen. Built by `settings_sources.load`, or directly in tests.

    Raises pydantic's ValidationError when a value is outside of its limits; `load` turns that into
    a SettingError that names the source.
    """


def usable_cores() -> int:
    """The cores that this process may use: fewer than the machine has, where it is confined."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_concurrency(executor: str) -> int:
    """Calls at a time of a handler when neither it nor a setting says: by executor, async or thread."""
    return min(32, 4 * (os.cpu_count() or 1)) if executor == "thread" else 100


KNOBS: tuple[str, ...] = tuple(name for section in SECTIONS for name in section.model_fields)
SECRETS: frozenset[str] = frozenset({"sasl_password", "ssl_key_password"})
_SECRET_WORDS = ("password", "secret", "token", "credential", "passphrase", "api_key")


def is_secret_name(name: str) -> bool:
    """True when a value of this name must not be shown: credentials, by what they are called."""
    lowered = name.lower()
    return any(word in lowered for word in _SECRET_WORDS)


def shown(name: str, value: object) -> str:
    """`value` of knob `name` as text for people: secrets as `***`, objects by their type."""
    if value is None:
        return "none"
    if name in SECRETS:
        return "***"
    if isinstance(value, Mapping):
        pairs = (f"{key}={'***' if is_secret_name(str(key)) else repr(val)}" for key, val in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    return f"<{type(value).__name__}>"


def differences(settings: Settings) -> dict[str, str]:
    """The knobs whose value is not the default, as shown text, in the order of the docs page."""
    return {
        name: shown(name, getattr(settings, name))
        for name in KNOBS
        if getattr(settings, name) != Settings.model_fields[name].default
    }


def secret_values(settings: Settings) -> tuple[str, ...]:
    """The secrets themselves, for whoever must keep them out of an output (the logs)."""
    found = [getattr(settings, name) for name in KNOBS if name in SECRETS]
    options = settings.client_options.items()
    return (
        *(secret.get_secret_value() for secret in found if secret is not None),
        *(str(value) for key, value in options if is_secret_name(key) and value),
    )
