"""From declared handlers to what each consumer group runs: names checked, defaults filled in.

Decides which group a handler belongs to, what its effective values are (its TOML table, then its
decorator, then the engine-wide settings), and what the group subscribes to. Starts nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from asyncpar.core.failures import FailureRules
from asyncpar.errors import ConfigurationError, DecodeError, HandlerError, SettingError
from asyncpar.executors.invoke import invocation
from asyncpar.executors.threads import ThreadExecutor
from asyncpar.middleware import Middleware
from asyncpar.ports import Subscription
from asyncpar.records import RawRecord
from asyncpar.runtime.handlers import Handler
from asyncpar.settings import Settings, default_concurrency
from asyncpar.settings_sources import Loaded
from asyncpar.signatures import CallPlan, plan_call
from asyncpar.topics import Retry, TopicSpec, order_key_function

_WHOLE_PARTITION = "partition"
_KEYLESS_LANE = "keyless"


@dataclass(frozen=True, slots=True)
class DeclaredHandler:
    """A handler with its effective values and its checked signature."""

    spec: TopicSpec
    plan: CallPlan
    concurrency: int
    retry: Retry


@dataclass(frozen=True, slots=True)
class DeclaredGroup:
    """What one consumer group runs."""

    name: str
    handlers: tuple[DeclaredHandler, ...]
    subscription: Subscription


@dataclass(slots=True)
class Threads:
    """The thread executors of an app, closed together."""

    executors: list[ThreadExecutor] = field(default_factory=list)

    def make(self, name: str, threads: int) -> ThreadExecutor:
        """Threads for one handler."""
        executor = ThreadExecutor(name, threads)
        self.executors.append(executor)
        return executor

    def close(self) -> None:
        """Start nothing more in any of them."""
        for executor in self.executors:
            executor.close()


def declare_groups(specs: Sequence[TopicSpec], loaded: Loaded) -> list[DeclaredGroup]:
    """The groups of `specs`, by name. Raises ConfigurationError for what contradicts itself."""
    if not specs:
        raise ConfigurationError("no handler: decorate a function with @topic(...) and include it in the app")
    specs = _with_tables(specs, loaded.handlers)
    _check_names(specs)
    by_group: dict[str, list[DeclaredHandler]] = {}
    for spec in specs:
        group = spec.group or loaded.settings.group
        if not group:
            raise ConfigurationError(
                f"{spec.where}: no consumer group; give --group, ASYNCPAR_GROUP, "
                "App(group=...) or @topic(group=...)"
            )
        by_group.setdefault(group, []).append(_declare(spec, group, loaded.settings))
    for group, handlers in by_group.items():
        _check_conflicts(group, [handler.spec for handler in handlers])
    return [
        DeclaredGroup(group, tuple(handlers), _subscription([handler.spec for handler in handlers]))
        for group, handlers in by_group.items()
    ]


def _with_tables(specs: Sequence[TopicSpec], tables: Mapping[str, Mapping[str, object]]) -> list[TopicSpec]:
    names = {spec.name for spec in specs}
    for name in tables:
        if name not in names:
            raise SettingError(
                f'table [handlers."{name}"]: no handler has this name; known: {", ".join(sorted(names))}'
            )
    return [spec.override(**tables[spec.name]) if spec.name in tables else spec for spec in specs]


def _check_names(specs: Sequence[TopicSpec]) -> None:
    """A name stands for one function: metrics and tables go by it."""
    seen: dict[str, object] = {}
    for spec in specs:
        other = seen.setdefault(spec.name, spec.function)
        if other is not spec.function:
            raise HandlerError(f"{spec.where}: another function has the same name; give one of them name=...")


def _declare(spec: TopicSpec, group: str, settings: Settings) -> DeclaredHandler:
    retry = spec.retry or Retry(settings.retry_attempts, settings.retry_base_ms, settings.retry_max_ms)
    concurrency = spec.concurrency or settings.concurrency or default_concurrency(spec.resolved_executor)
    return DeclaredHandler(spec, plan_call(spec, group=group), concurrency, retry)


def _check_conflicts(group: str, specs: Sequence[TopicSpec]) -> None:
    by_source: dict[str, list[TopicSpec]] = {}
    for spec in specs:
        for topic in spec.topics:
            by_source.setdefault(f"topic {topic}", []).append(spec)
        if spec.pattern is not None:
            by_source.setdefault(f"pattern {spec.pattern}", []).append(spec)
    for source, rivals in by_source.items():
        if len(rivals) > 1 and any(spec.match is None for spec in rivals):
            names = " and ".join(spec.name for spec in rivals)
            raise HandlerError(
                f"{source} in group {group} has several handlers ({names}); "
                "give each a match= predicate, or put them into different groups"
            )


def _subscription(specs: Sequence[TopicSpec]) -> Subscription:
    topics = frozenset(topic for spec in specs for topic in spec.topics)
    patterns = [spec.pattern for spec in specs if spec.pattern is not None]
    if not patterns:
        return Subscription(topics)
    parts = [re.escape(topic) for topic in sorted(topics)] + [f"(?:{pattern})" for pattern in patterns]
    return Subscription(topics, re.compile(f"^(?:{'|'.join(parts)})$"))


def build_handlers(
    group: DeclaredGroup, state: object, middlewares: Sequence[Middleware], threads: Threads
) -> list[Handler]:
    """What the runtime runs; `state` is what the lifespan yielded."""
    return [_build(handler, state, middlewares, threads) for handler in group.handlers]


def _build(
    declared: DeclaredHandler, state: object, middlewares: Sequence[Middleware], threads: Threads
) -> Handler:
    spec, retry = declared.spec, declared.retry
    executor = spec.resolved_executor
    where = threads.make(spec.name, declared.concurrency) if executor == "thread" else None
    call = invocation(declared.plan, state, middlewares, where)
    return Handler(
        name=spec.name,
        topics=spec.topics,
        pattern=None if spec.pattern is None else re.compile(spec.pattern),
        executor=executor,
        concurrency=declared.concurrency,
        invoke=call.invoke,
        judged=call.judged,
        key_of=_key_of(spec),
        rules=FailureRules(
            retry.attempts, retry.base_ms, retry.max_ms, skip_undecodable=spec.on_decode_error == "skip"
        ),
        match=spec.match,
        skip_unmatched=spec.unmatched == "skip",
        cancel_on_revoke=spec.on_revoke == "cancel",
    )


def _key_of(spec: TopicSpec) -> Callable[[str, RawRecord], Hashable] | None:
    """The ordering key by `order` and `keyless`; None is the plain case (see `Queues.enqueue`)."""
    if spec.order == "unordered":
        return lambda topic, record: None
    if spec.order == "partition":
        return lambda topic, record: _WHOLE_PARTITION
    custom = order_key_function(spec)
    if custom is None:
        if spec.keyless == "unordered":
            return None
        custom = _own_key
    if spec.keyless == "unordered":
        return custom
    return _with_keyless(custom, spec)


def _own_key(_topic: str, record: RawRecord) -> bytes | None:
    return record.key


def _with_keyless(
    key_of: Callable[[str, RawRecord], bytes | None], spec: TopicSpec
) -> Callable[[str, RawRecord], Hashable]:
    def ordering_key(topic: str, record: RawRecord) -> Hashable:
        key = key_of(topic, record)
        if key is not None:
            return key
        if spec.keyless == "partition":
            return _KEYLESS_LANE  # a str never equals a key, which is bytes
        raise DecodeError(f"{spec.where}: a record of {topic} has no key, and keyless='error'")

    return ordering_key
