"""From declared handlers to what each consumer group runs: names checked, defaults filled in.

Decides which group a handler belongs to, what its effective values are (its TOML table, then its
decorator, then the engine-wide settings), and what the group subscribes to. Starts nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from asyncpar.core.failures import FailureRules
from asyncpar.errors import ConfigurationError, DecodeError, HandlerError, SettingError
from asyncpar.executors.app_executors import AppExecutors
from asyncpar.executors.invoke import invocation
from asyncpar.executors.process_rules import BridgeRules
from asyncpar.middleware import Middleware
from asyncpar.policies import FOREVER, Default, Retry, delay_of, suggestion
from asyncpar.ports import Subscription
from asyncpar.records import RawRecord
from asyncpar.runtime.handlers import Admissions, Handler
from asyncpar.runtime.letters import dead_letter_topics
from asyncpar.settings import Settings, default_concurrency, usable_cores
from asyncpar.settings_sources import Loaded
from asyncpar.signatures import CallPlan, plan_call
from asyncpar.topic_graph import Way, check_ways, written_by
from asyncpar.topics import TopicSpec, order_key_function

if TYPE_CHECKING:
    from asyncpar.executors.lane_child import ChildWork
    from asyncpar.executors.process_checks import ProcessLifespan

_WHOLE_PARTITION = "partition"
_KEYLESS_LANE = "keyless"


@dataclass(frozen=True, slots=True)
class Children:
    """The child processes of a handler: what they import, how many, and how they are fed."""

    work: ChildWork
    rules: BridgeRules
    start_method: str


@dataclass(frozen=True, slots=True)
class DeclaredHandler:
    """A handler with its effective values and its checked signature."""

    spec: TopicSpec
    plan: CallPlan
    concurrency: int
    retry: Retry
    dead_letter: str | None
    timeout_ms: int | None
    children: Children | None = None
    """None: it runs in this process."""
    pattern: str | None = None
    """Its pattern, without the topics that the app writes what fails to."""

    @property
    def attempts(self) -> int | None:
        """Total runs in one topic; with retry topics it is one, unless the declaration says otherwise."""
        if self.spec.retry_topics and isinstance(self.retry.attempts, Default):
            return 1
        return self.retry.attempts_for(dead_letters=self.dead_letter is not None)


@dataclass(frozen=True, slots=True)
class DeclaredGroup:
    """What one consumer group runs."""

    name: str
    handlers: tuple[DeclaredHandler, ...]
    subscription: Subscription


def declare_groups(
    specs: Sequence[TopicSpec], loaded: Loaded, process_lifespan: ProcessLifespan | None = None
) -> list[DeclaredGroup]:
    """The groups of `specs`, by name. Raises ConfigurationError for what contradicts itself."""
    if not specs:
        raise ConfigurationError("no handler: decorate a function with @topic(...) and include it in the app")
    _check_tables(specs, loaded)
    specs = [_with_table(spec, loaded) for spec in specs]
    _check_names(specs)
    by_group: dict[str, list[DeclaredHandler]] = {}
    for spec in specs:
        group = spec.group or loaded.settings.group
        if not group:
            raise ConfigurationError(
                f"{spec.where}: no consumer group; give --group, ASYNCPAR_GROUP, "
                "App(group=...) or @topic(group=...)"
            )
        by_group.setdefault(group, []).append(_declare(spec, group, loaded.settings, process_lifespan))
    for group, handlers in by_group.items():
        _check_conflicts(group, [handler.spec for handler in handlers])
    return [
        DeclaredGroup(group, tuple(handlers), _subscription(handlers))
        for group, handlers in _without_own_topics(by_group).items()
    ]


def _check_tables(specs: Sequence[TopicSpec], loaded: Loaded) -> None:
    """Raises SettingError for a table of a handler that is not among `specs`."""
    names = sorted({spec.name for spec in specs})
    for name, table in loaded.handlers.items():
        if name not in names:
            dotted = [f"{name}.{key}" for key in table if f"{name}.{key}" in names]
            hint = f'write [handlers."{dotted[0]}"], in quotes' if dotted else suggestion(name, names)
            raise SettingError(f"{loaded.handler_origin(name)}: no handler has this name; {hint}")


def _with_table(spec: TopicSpec, loaded: Loaded) -> TopicSpec:
    """`spec` with what the file says of it. HandlerError says where in the file."""
    if spec.name not in loaded.handlers:
        return spec
    table = loaded.handlers[spec.name]
    try:
        return spec.override(_engine_wide_retry(loaded.settings), **table)
    except HandlerError as error:
        key = next((key for key in table if re.search(rf"\b{re.escape(key)}\b", str(error))), "")
        raise HandlerError(f"{loaded.handler_origin(spec.name, key)}: {error}") from None


def _check_names(specs: Sequence[TopicSpec]) -> None:
    """A name stands for one function: metrics and tables go by it."""
    seen: dict[str, object] = {}
    for spec in specs:
        other = seen.setdefault(spec.name, spec.function)
        if other is not spec.function:
            raise HandlerError(f"{spec.where}: another function has the same name; give one of them name=...")


def _engine_wide_retry(settings: Settings) -> Retry:
    """Of handlers that declare none."""
    given = settings.retry_attempts
    attempts = Default.ATTEMPTS if given is None else None if given == FOREVER else given
    return Retry(attempts, settings.retry_base_ms, settings.retry_max_ms)


def _declare(
    spec: TopicSpec, group: str, settings: Settings, process_lifespan: ProcessLifespan | None
) -> DeclaredHandler:
    retry = spec.retry or _engine_wide_retry(settings)
    dead_letter = settings.dead_letter if spec.dead_letter is None else spec.dead_letter or None
    _check_needs(spec, dead_letter)
    _check_breaker(spec, retry, settings)
    plan = plan_call(spec, group=group)
    timeout_ms = spec.timeout_ms or settings.timeout_ms
    children = None
    concurrency = spec.concurrency or settings.concurrency or default_concurrency(spec.resolved_executor)
    if spec.resolved_executor == "process":
        children = _children(spec, group, settings, timeout_ms, process_lifespan)
        concurrency = spec.concurrency or children.rules.slots
    return DeclaredHandler(
        spec, plan, concurrency, retry, dead_letter=dead_letter, timeout_ms=timeout_ms, children=children
    )


def _children(
    spec: TopicSpec,
    group: str,
    settings: Settings,
    timeout_ms: int | None,
    process_lifespan: ProcessLifespan | None,
) -> Children:
    """How `spec` runs in child processes. Raises HandlerError for what they could not import."""
    from asyncpar.executors.process_checks import child_work  # brings what only such handlers need

    rules = BridgeRules(
        lanes=settings.worker_pool_size or usable_cores(),
        batch_size=settings.process_batch_size,
        queue_size=settings.process_queue_size,
        max_batch_wait_ms=settings.max_batch_wait_ms,
        timeout_ms=timeout_ms,
        max_tasks_per_child=settings.max_tasks_per_child,
    )
    work = child_work(spec, group, timeout_ms, process_lifespan)
    return Children(work, rules, settings.process_start_method)


def _check_needs(spec: TopicSpec, dead_letter: str | None) -> None:
    """What cannot be done without dead letters is refused without a topic for them."""
    if dead_letter is not None:
        read = (*spec.topics, *spec.retry_topics)
        if not set(read).isdisjoint(dead_letter_topics(dead_letter, read)):
            raise HandlerError(
                f"{spec.where}: dead_letter={dead_letter!r} leads to a topic that it reads, where its dead "
                "letters would go round for ever; give them a topic of their own"
            )
        return
    needs = [name for name in ("poison_keys", "dead_letter_budget") if getattr(spec, name) is not None]
    needs += [
        f"on_error[{kind.__name__}]" for kind, how in (spec.on_error or {}).items() if how == "dead_letter"
    ]
    if needs:
        raise HandlerError(
            f"{spec.where}: {', '.join(needs)} needs a topic for dead letters; add dead_letter=..., say"
            ' ".dlq", or the setting of that name'
        )


def _check_breaker(spec: TopicSpec, retry: Retry, settings: Settings) -> None:
    """A breaker waits out an outage: what would give records up meanwhile is refused beside it."""
    if spec.breaker is None:
        return
    if settings.on_blocked == "dead_letter" and settings.max_blocking_duration_ms:
        raise HandlerError(
            f'{spec.where}: a breaker and on_blocked="dead_letter" exclude each other: the one waits an '
            'outage out, the other gives up what waits; set on_blocked to "warn" or "cancel", or leave '
            "breaker= out"
        )
    if retry.max_age_ms is not None and retry.max_age_ms <= spec.breaker.max_open_ms:
        raise HandlerError(
            f"{spec.where}: max_age_ms={retry.max_age_ms} is not above its breaker's "
            f"max_open_ms={spec.breaker.max_open_ms}: records would get too old between two probes; make "
            "max_age_ms longer than any outage, or leave it out"
        )


def check_leases(groups: Sequence[DeclaredGroup], middlewares: Sequence[Middleware]) -> None:
    """A middleware that claims a record for `lease_ms` needs calls that end before. Raises HandlerError."""
    for lease_ms in (getattr(one, "lease_ms", None) for one in middlewares):
        for handler in (handler for group in groups for handler in group.handlers):
            if lease_ms is not None and handler.timeout_ms is not None and handler.timeout_ms > lease_ms:
                raise HandlerError(
                    f"{handler.spec.where}: timeout_ms={handler.timeout_ms} is above a middleware's "
                    f"lease_ms={lease_ms}: a second call could begin before the first one has ended; lower "
                    "timeout_ms or raise lease_ms"
                )


def _check_conflicts(group: str, specs: Sequence[TopicSpec]) -> None:
    by_source: dict[str, list[TopicSpec]] = {}
    for spec in specs:
        for topic in (*spec.topics, *spec.retry_topics):
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


def _without_own_topics(
    by_group: Mapping[str, Sequence[DeclaredHandler]],
) -> dict[str, list[DeclaredHandler]]:
    """All handlers, with patterns that match no topic that the app itself writes. Raises HandlerError."""
    ways = [
        Way(spec.name, group, spec.topics, spec.pattern, spec.retry_topics, handler.dead_letter)
        for group, handlers in by_group.items()
        for handler, spec in ((handler, handler.spec) for handler in handlers)
    ]
    check_ways(ways)
    written = "|".join(written_by(ways))

    def narrowed(handler: DeclaredHandler) -> DeclaredHandler:
        pattern = handler.spec.pattern
        if pattern is None or not written:
            return replace(handler, pattern=pattern)
        return replace(handler, pattern=f"(?!(?:{written})$)(?:{pattern})")

    return {group: [narrowed(handler) for handler in handlers] for group, handlers in by_group.items()}


def _subscription(handlers: Sequence[DeclaredHandler]) -> Subscription:
    specs = [handler.spec for handler in handlers]
    topics = frozenset(topic for spec in specs for topic in (*spec.topics, *spec.retry_topics))
    patterns = [handler.pattern for handler in handlers if handler.pattern is not None]
    if not patterns:
        return Subscription(topics)
    parts = [re.escape(topic) for topic in sorted(topics)] + [f"(?:{pattern})" for pattern in patterns]
    return Subscription(topics, re.compile(f"^(?:{'|'.join(parts)})$"))


def build_handlers(
    group: DeclaredGroup, state: object, middlewares: Sequence[Middleware], executors: AppExecutors
) -> list[Handler]:
    """What the runtime runs; `state` is what the lifespan yielded."""
    return [_build(handler, state, middlewares, executors) for handler in group.handlers]


def _build(
    declared: DeclaredHandler, state: object, middlewares: Sequence[Middleware], executors: AppExecutors
) -> Handler:
    spec, retry = declared.spec, declared.retry
    executor = spec.resolved_executor
    children, bridge, threads = declared.children, None, None
    if children is not None:
        bridge = executors.processes(spec.name, children.work, children.rules, children.start_method)
    elif executor == "thread":
        threads = executors.threads(spec.name, declared.concurrency)
    call = invocation(declared.plan, state, middlewares, bridge or threads)
    return Handler(
        name=spec.name,
        topics=(*spec.topics, *spec.retry_topics),
        retry_topics=tuple((name, delay_of(spec.where, name)) for name in spec.retry_topics),
        pattern=None if declared.pattern is None else re.compile(declared.pattern),
        executor=executor,
        concurrency=declared.concurrency,
        invoke=call.invoke,
        judged=call.judged,
        key_of=_key_of(spec),
        rules=FailureRules(
            attempts=declared.attempts,
            base_ms=retry.base_ms,
            max_ms=retry.max_ms,
            skip_undecodable=spec.on_decode_error == "skip",
            backoff=retry.backoff,
            max_age_ms=retry.max_age_ms,
            on=_classes(retry.on),
            not_on=_classes(retry.not_on),
            on_error=spec.on_error or {},
            dead_letter=declared.dead_letter is not None,
        ),
        match=spec.match,
        skip_unmatched=spec.unmatched == "skip",
        cancel_on_revoke=spec.on_revoke == "cancel",
        bridge=bridge,
        # A child that takes too long over a record is seen to by its bridge, which knows when it began it.
        timeout_seconds=None if bridge or declared.timeout_ms is None else declared.timeout_ms / 1000,
        dead_letter=declared.dead_letter,
        metadata_only=spec.dead_letter_payload == "metadata_only",
        admissions=_admissions(spec),
    )


def _admissions(spec: TopicSpec) -> Admissions | None:
    """What may keep its records from starting; None when nothing may."""
    rules = Admissions(
        breaker=spec.breaker,
        budget=spec.dead_letter_budget,
        poison=spec.poison_keys,
        rate=spec.rate_limit,
        key_rate=spec.key_rate_limit,
        honours_delays=spec.delayed,
    )
    return None if rules == Admissions() and not spec.retry_topics else rules


def _classes(given: type[Exception] | tuple[type[Exception], ...]) -> tuple[type[Exception], ...]:
    return given if isinstance(given, tuple) else (given,)


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
