"""`@topic` and what it declares, frozen. Nothing is registered anywhere: the spec sits on the function.

An `App` or the runner picks the specs up from the functions (`specs_of`). Values are checked here, when
the module is imported; what depends on the signature is checked in `signatures.py`. This file never
calls a handler and knows no default of the engine: `None` means "whatever the settings say".
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar, get_args

from asyncpar.errors import DecodeError, HandlerError
from asyncpar.policies import (
    FOREVER,
    Breaker,
    DeadLetterBudget,
    PoisonKeys,
    RateLimit,
    Retry,
    check_choice,
    check_count,
    check_kind,
    checked_on_error,
    refuse,
    suggestion,
)
from asyncpar.records import OnError, RawRecord
from asyncpar.topic_checks import (
    Executor,
    Handler,
    Order,
    check_callable,
    check_dead_letter,
    check_executor,
    check_flag,
    check_order,
    check_pattern,
    check_retry_topics,
    check_strings,
    check_topics,
    check_word,
)

Keyless: TypeAlias = Literal["unordered", "partition", "error"]
Unmatched: TypeAlias = Literal["halt", "skip"]
Tombstones: TypeAlias = Literal["error", "skip"]
OnDecodeError: TypeAlias = Literal["halt", "skip"]
OnRevoke: TypeAlias = Literal["cancel", "keep"]
DeadLetterPayload: TypeAlias = Literal["full", "metadata_only"]
OrderFunction: TypeAlias = Callable[[str, RawRecord], bytes | str | None]
OrderKeyFunction: TypeAlias = Callable[[str, RawRecord], bytes | None]
MatchFunction: TypeAlias = Callable[[str, RawRecord], bool]
Decoder: TypeAlias = Callable[[str, RawRecord], object]
"""Sync or async: what it returns (or what awaiting it returns) is the payload argument."""

F = TypeVar("F", bound=Handler)
P = ParamSpec("P")

_ATTRIBUTE = "__asyncpar_topics__"
_CHOICES: dict[str, tuple[str, ...]] = {
    "keyless": get_args(Keyless),
    "unmatched": get_args(Unmatched),
    "tombstones": get_args(Tombstones),
    "on_decode_error": get_args(OnDecodeError),
    "on_revoke": get_args(OnRevoke),
    "dead_letter_payload": get_args(DeadLetterPayload),
}
_POLICIES: dict[str, tuple[type, str]] = {
    "retry": (Retry, "Retry(attempts=5)"),
    "dead_letter_budget": (DeadLetterBudget, "DeadLetterBudget(share=0.1)"),
    "breaker": (Breaker, "Breaker(open_ms=10_000)"),
    "poison_keys": (PoisonKeys, "PoisonKeys(failures=5)"),
    "rate_limit": (RateLimit, "RateLimit(per_second=100, burst=10)"),
    "key_rate_limit": (RateLimit, "RateLimit(per_second=1, burst=1)"),
}
_RETRY_KEYS = ("attempts", "base_ms", "max_ms", "backoff", "max_age_ms", "on", "not_on")
_UNLIMITED_KEYS = frozenset({"attempts", "max_age_ms"})
OVERRIDABLE = frozenset({"concurrency", "timeout_ms", "dead_letter", "on_error", *_RETRY_KEYS, *_CHOICES})
"""What a settings table `[handlers."name"]` may say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSpec:
    """One `@topic` on one function, checked. `given` names the arguments that the user passed.

    None in `group`, `concurrency`, `executor` and `retry` leaves the choice to the settings. A value
    whose name is in `given` beats any engine-wide setting. Raises HandlerError for illegal values.
    """

    function: Handler
    name: str
    topics: tuple[str, ...]
    pattern: str | None = None
    group: str | None = None
    order: Order | OrderFunction = "key"
    keyless: Keyless = "unordered"
    concurrency: int | None = None
    executor: Executor | None = None
    retry: Retry | None = None
    timeout_ms: int | None = None
    on_error: Mapping[type[Exception], OnError] | None = None
    dead_letter: str | Literal[False] | None = None
    dead_letter_payload: DeadLetterPayload = "full"
    dead_letter_budget: DeadLetterBudget | None = None
    retry_topics: tuple[str, ...] = ()
    delayed: bool = False
    breaker: Breaker | None = None
    poison_keys: PoisonKeys | None = None
    rate_limit: RateLimit | None = None
    key_rate_limit: RateLimit | None = None
    match: MatchFunction | None = None
    unmatched: Unmatched = "halt"
    decoder: Decoder | None = None
    tombstones: Tombstones = "error"
    on_decode_error: OnDecodeError = "halt"
    on_revoke: OnRevoke = "cancel"
    task_per_record: bool = False
    given: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        where = self.where
        check_word(where, "name", self.name)
        if not self.topics and self.pattern is None:
            refuse(where, 'names no topic; write @topic("orders") or @topic(pattern="orders-.*")')
        check_topics(where, self.topics)
        if self.pattern is not None:
            check_pattern(where, self.pattern)
        if self.group is not None:
            check_word(where, "group", self.group)
        for name, allowed in _CHOICES.items():
            check_choice(where, name, getattr(self, name), allowed)
        check_order(where, self.order)
        if self.concurrency is not None:
            check_count(where, "concurrency", self.concurrency, "calls at a time", most=100_000)
        self._check_failures()
        check_callable(where, "match", self.match, may_be_async=False)
        check_callable(where, "decoder", self.decoder, may_be_async=True)
        check_executor(where, self.function, self.executor)
        check_flag(where, "task_per_record", self.task_per_record)
        if self.task_per_record and self.resolved_executor != "async":
            refuse(
                where, f"task_per_record=True needs `async def`, not a {self.resolved_executor}; leave it out"
            )

    def _check_failures(self) -> None:
        where = self.where
        if self.timeout_ms is not None:
            check_count(where, "timeout_ms", self.timeout_ms, "milliseconds")
        if self.on_error is not None:
            object.__setattr__(self, "on_error", checked_on_error(where, self.on_error))
        check_dead_letter(where, self.dead_letter, self.topics)
        check_retry_topics(where, self.retry_topics, self.topics, self.dead_letter)
        check_flag(where, "delayed", self.delayed)
        if self.key_rate_limit is not None and self.order in ("unordered", "partition"):
            refuse(
                where,
                f'key_rate_limit needs an order by which keys are known, and order="{self.order}" has none; '
                'write order="key" or a function, or use rate_limit',
            )
        for name, (kind, example) in _POLICIES.items():
            check_kind(where, name, getattr(self, name), kind, example)

    @property
    def where(self) -> str:
        """How messages name this handler."""
        return f"handler {self.name}"

    @property
    def resolved_executor(self) -> Executor:
        """Where the function runs: the loop for `async def`; a thread for `def`, or a child process."""
        if inspect.iscoroutinefunction(self.function):
            return "async"
        return "process" if self.executor == "process" else "thread"

    def override(self, engine_wide: Retry | None = None, /, **values: object) -> TopicSpec:
        """A copy with the values of a settings table (keys: `OVERRIDABLE`), checked like the decorator's.

        The keys of a `Retry` change `retry`; where that is None, `engine_wide`. Raises HandlerError for an
        unknown key or an illegal value.
        """
        for key in values:
            if key not in OVERRIDABLE:
                refuse(self.where, f"unknown setting {key!r}; {suggestion(key, OVERRIDABLE)}")
        retry: dict[str, Any] = {key: values[key] for key in _RETRY_KEYS if key in values}
        retry |= {key: None for key in retry.keys() & _UNLIMITED_KEYS if retry[key] == FOREVER}
        changes: dict[str, Any] = {key: value for key, value in values.items() if key not in retry}
        if retry:
            try:
                changes["retry"] = dataclasses.replace(self.retry or engine_wide or Retry(), **retry)
            except HandlerError as error:
                raise HandlerError(f"{self.where}: {error}") from None
        return dataclasses.replace(self, given=self.given | changes.keys(), **changes)


class TopicDecorator:
    """What `topic(...)` returns: puts a `TopicSpec` on a function and returns that same function."""

    __slots__ = ("_declare", "_name", "given")

    def __init__(self, declare: Callable[..., TopicSpec], name: str | None) -> None:
        self._declare = declare
        self._name = name
        self.given: frozenset[str] = frozenset()

    def __call__(self, function: F) -> F:
        """Attach the spec. Raises HandlerError; then nothing is attached."""
        qualified = _qualified_name(function)
        earlier = specs_of(function)
        name = qualified if self._name is None else self._name
        spec = self._declare(function=function, name=name, given=self.given)
        # Decorators apply from the bottom up: the one written last comes first, as one reads them.
        setattr(function, _ATTRIBUTE, (spec, *earlier))
        return function


def _noting_given(declare: Callable[P, TopicDecorator]) -> Callable[P, TopicDecorator]:
    """Tell an argument that was passed from one that was left out, with the defaults still visible."""

    @functools.wraps(declare)
    def noting(*args: P.args, **kwargs: P.kwargs) -> TopicDecorator:
        decorator = declare(*args, **kwargs)
        decorator.given = frozenset(name for name, value in kwargs.items() if value is not None)
        return decorator

    return noting


@_noting_given
def topic(  # noqa: PLR0913 - one keyword per property of a handler
    *topics: str,
    pattern: str | None = None,
    group: str | None = None,
    order: Order | OrderFunction = "key",
    keyless: Keyless = "unordered",
    concurrency: int | None = None,
    executor: Executor | None = None,
    retry: Retry | None = None,
    timeout_ms: int | None = None,
    on_error: Mapping[type[Exception], OnError] | None = None,
    dead_letter: str | Literal[False] | None = None,
    dead_letter_payload: DeadLetterPayload = "full",
    dead_letter_budget: DeadLetterBudget | None = None,
    retry_topics: Sequence[str] = (),
    delayed: bool = False,
    breaker: Breaker | None = None,
    poison_keys: PoisonKeys | None = None,
    rate_limit: RateLimit | None = None,
    key_rate_limit: RateLimit | None = None,
    name: str | None = None,
    match: MatchFunction | None = None,
    unmatched: Unmatched = "halt",
    decoder: Decoder | None = None,
    tombstones: Tombstones = "error",
    on_decode_error: OnDecodeError = "halt",
    on_revoke: OnRevoke = "cancel",
    task_per_record: bool = False,
) -> TopicDecorator:
    """Declare a function as the handler of `topics`; the function itself comes back unchanged.

    May be stacked. None leaves a choice to the settings. Raises HandlerError, TypeError for an unknown
    argument.

    Args:
        topics: names of topics.
        pattern: regular expression that a topic's whole name must match; no back-references.
        group: consumer group.
        order: "key", "partition", "unordered", or a function `f(topic, raw)` that returns the ordering
            key as bytes or str, None for a record without one; if it raises, the record is undecodable.
        keyless: how records without a key run: "unordered", "partition" (in order), "error".
        concurrency: calls at a time, per process.
        executor: "async" (default for `async def`), "thread" (default for `def`), or "process": a `def` that
            computes runs in child processes, on all cores. A child imports it by its module and name.
        retry: how often and how soon a failed record runs again.
        timeout_ms: a call that runs for longer is cancelled, and has failed. `heartbeat()` begins it anew.
        on_error: by exception class (the nearest counts): "retry", "dead_letter", "skip" or "halt".
        dead_letter: topic for records that are given up, or a suffix such as ".dlq" of their own topic's
            name; without one their partition halts. False: none, also where the settings give one.
        dead_letter_payload: "full", or "metadata_only" to leave their values out.
        dead_letter_budget: how many records may become dead letters; the next ones wait.
        retry_topics: topics that a record travels through when its attempts (one, if `retry` does not say)
            are used up, before it becomes a dead letter. Each name ends with its delay, "orders.retry.30s".
            Its key does not wait for it: later records of the key overtake it.
        delayed: records wait for the time in their `x-asyncpar-not-before` header (milliseconds since 1970).
        breaker: stops the handler while most of its calls fail.
        poison_keys: records of keys that failed again and again become dead letters without being run.
        rate_limit: calls that may start per second, in this process.
        key_rate_limit: the same for each ordering key.
        name: stable name for metrics and settings; default: module and qualified name.
        match: predicate `f(topic, raw)`: only records for which it is true come here.
        unmatched: what happens to a record that no `match` took: "halt" its partition, or "skip" it.
        decoder: sync or async `f(topic, raw)` that returns the payload; not called for tombstones.
        tombstones: a record without a value, where the payload's annotation has no None: "error", "skip".
        on_decode_error: an undecodable record: "halt" its partition, or "skip" it.
        on_revoke: calls that run when their partition is taken away: "cancel" after the grace, or "keep".
        task_per_record: run each call in an asyncio task of its own, for code keyed on the current task.
    """
    check_strings("@topic", topics)  # Now: `@topic` without parentheses gets no further.
    declare = functools.partial(
        TopicSpec,
        topics=topics,
        pattern=pattern,
        group=group,
        order=order,
        keyless=keyless,
        concurrency=concurrency,
        executor=executor,
        retry=retry,
        timeout_ms=timeout_ms,
        on_error=on_error,
        dead_letter=dead_letter,
        dead_letter_payload=dead_letter_payload,
        dead_letter_budget=dead_letter_budget,
        retry_topics=(retry_topics,) if isinstance(retry_topics, str) else tuple(retry_topics),
        delayed=delayed,
        breaker=breaker,
        poison_keys=poison_keys,
        rate_limit=rate_limit,
        key_rate_limit=key_rate_limit,
        match=match,
        unmatched=unmatched,
        decoder=decoder,
        tombstones=tombstones,
        on_decode_error=on_decode_error,
        on_revoke=on_revoke,
        task_per_record=task_per_record,
    )
    return TopicDecorator(declare, name)


def specs_of(function: object) -> tuple[TopicSpec, ...]:
    """The specs that `@topic` put on `function`, in the order they are written; () when there are none.

    Raises HandlerError for a wrapper around a handler: it carries the handler's specs by accident
    (`functools.wraps` copies attributes), and to run the inner function would leave the wrapper out.
    """
    specs = getattr(function, "__dict__", {}).get(_ATTRIBUTE, ())
    for spec in specs:
        if spec.function is not function:
            refuse(spec.where, "@topic stands below another decorator; put @topic on top of it")
    return tuple(specs)


def order_key_function(spec: TopicSpec) -> OrderKeyFunction | None:
    """`f(topic, raw)` -> ordering key in bytes, None for a keyless record.

    None when `order` is one of the words: then the key is `raw.key`, or none is needed. The function
    raises DecodeError only (the record is undecodable), with the cause chained.
    """
    return None if isinstance(spec.order, str) else _ordering(spec.order, spec.where)


def _ordering(function: Callable[[str, RawRecord], object], where: str) -> OrderKeyFunction:
    def ordering_key(topic: str, raw: RawRecord) -> bytes | None:
        try:
            key = function(topic, raw)
            if key is None or isinstance(key, bytes):
                return key
            if isinstance(key, str):
                return key.encode()
        except Exception as error:
            problem = f"raised {type(error).__name__}"
            raise DecodeError(f"{where}: the order function {problem} on topic {topic}") from error
        problem = f"returned {type(key).__name__}, not bytes, str or None"
        raise DecodeError(f"{where}: the order function {problem} on topic {topic}")

    return ordering_key


def _qualified_name(function: object) -> str:
    """The default name of a handler. Raises HandlerError for what cannot be one."""
    if not isinstance(function, types.FunctionType):
        kind = "a bound method" if isinstance(function, types.MethodType) else f"a {type(function).__name__}"
        refuse("@topic", f"takes a function, got {kind}; write a `def` or `async def` that calls it")
    name = f"{function.__module__}.{function.__qualname__}"
    if function.__name__ == "<lambda>":
        refuse(f"handler {name}", "a lambda has no annotations; write a `def` or `async def`")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        refuse(f"handler {name}", "a generator cannot handle records; remove its `yield`")
    return name
