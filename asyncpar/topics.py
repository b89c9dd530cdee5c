"""`@topic` and what it declares, frozen. Nothing is registered anywhere: the spec sits on the function.

An `App` or the runner picks the specs up from the functions (`specs_of`). Values are checked here, when
the module is imported; what depends on the signature is checked in `signatures.py`. This file never
calls a handler and knows no default of the engine: `None` means "whatever the settings say".
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import re
import types
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, ParamSpec, TypeAlias, TypeVar, get_args

from asyncpar.errors import DecodeError, HandlerError
from asyncpar.records import RawRecord

Order: TypeAlias = Literal["key", "partition", "unordered"]
Keyless: TypeAlias = Literal["unordered", "partition", "error"]
Executor: TypeAlias = Literal["async", "thread"]
Unmatched: TypeAlias = Literal["halt", "skip"]
Tombstones: TypeAlias = Literal["error", "skip"]
OnDecodeError: TypeAlias = Literal["halt", "skip"]
OnRevoke: TypeAlias = Literal["cancel", "keep"]
OrderFunction: TypeAlias = Callable[[str, RawRecord], bytes | str | None]
OrderKeyFunction: TypeAlias = Callable[[str, RawRecord], bytes | None]
MatchFunction: TypeAlias = Callable[[str, RawRecord], bool]
Decoder: TypeAlias = Callable[[str, RawRecord], object]
"""Sync or async: what it returns (or what awaiting it returns) is the payload argument."""
Handler: TypeAlias = Callable[..., object]

F = TypeVar("F", bound=Handler)
P = ParamSpec("P")

_ATTRIBUTE = "__asyncpar_topics__"
_LEGAL_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_CHOICES: dict[str, tuple[str, ...]] = {
    "keyless": get_args(Keyless),
    "unmatched": get_args(Unmatched),
    "tombstones": get_args(Tombstones),
    "on_decode_error": get_args(OnDecodeError),
    "on_revoke": get_args(OnRevoke),
}
_BACK_REFERENCE = re.compile(r"(?<!\\)(?:\\\\)*(?:\\[1-9]|\(\?\(\d)")
_RETRY_KEYS = ("attempts", "base_ms", "max_ms")
OVERRIDABLE = frozenset({"concurrency", *_RETRY_KEYS, *_CHOICES})
"""What a settings table `[handlers."name"]` may say."""


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and how soon a failed record runs again.

    `attempts` counts all runs, the first one included; None tries for ever. The delays grow from
    `base_ms` to `max_ms` milliseconds. Raises HandlerError for values out of range.
    """

    attempts: int | None = None
    base_ms: int = 100
    max_ms: int = 30_000

    def __post_init__(self) -> None:
        if self.attempts is not None:
            _check_count("Retry", "attempts", self.attempts, "total runs, or None to try for ever")
        _check_count("Retry", "base_ms", self.base_ms, "milliseconds")
        _check_count("Retry", "max_ms", self.max_ms, "milliseconds")
        if self.max_ms < self.base_ms:
            _refuse("Retry", f"max_ms={self.max_ms} is below base_ms={self.base_ms}; raise max_ms")


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
        _check_word(where, "name", self.name)
        if not self.topics and self.pattern is None:
            _refuse(where, 'names no topic; write @topic("orders") or @topic(pattern="orders-.*")')
        _check_topics(where, self.topics)
        if self.pattern is not None:
            _check_pattern(where, self.pattern)
        if self.group is not None:
            _check_word(where, "group", self.group)
        for name, allowed in _CHOICES.items():
            _check_choice(where, name, getattr(self, name), allowed)
        _check_order(where, self.order)
        if self.concurrency is not None:
            _check_count(where, "concurrency", self.concurrency, "calls at a time")
        if self.retry is not None and not isinstance(self.retry, Retry):
            _refuse(where, f"retry={self.retry!r} must be a Retry, such as Retry(attempts=5)")
        _check_callable(where, "match", self.match, may_be_async=False)
        _check_callable(where, "decoder", self.decoder, may_be_async=True)
        _check_executor(where, self.function, self.executor)
        if not isinstance(self.task_per_record, bool):
            _refuse(where, f"task_per_record={self.task_per_record!r} must be True or False")
        if self.task_per_record and self.resolved_executor != "async":
            _refuse(where, "task_per_record=True needs `async def`; a thread has no task, leave it out")

    @property
    def where(self) -> str:
        """How messages name this handler."""
        return f"handler {self.name}"

    @property
    def resolved_executor(self) -> Executor:
        """Where the function runs: the loop for `async def`, a thread for `def`."""
        return "async" if inspect.iscoroutinefunction(self.function) else "thread"

    def override(self, **values: object) -> TopicSpec:
        """A copy with the values of a settings table (keys: `OVERRIDABLE`), checked like the decorator's.

        `attempts`, `base_ms` and `max_ms` change `retry`. Raises HandlerError for an unknown key or an
        illegal value.
        """
        for key in values:
            if key not in OVERRIDABLE:
                _refuse(self.where, f"unknown setting {key!r}; {_suggestion(key, OVERRIDABLE)}")
        retry: dict[str, Any] = {key: values[key] for key in _RETRY_KEYS if key in values}
        changes: dict[str, Any] = {key: value for key, value in values.items() if key not in retry}
        if retry:
            try:
                changes["retry"] = dataclasses.replace(self.retry or Retry(), **retry)
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
        executor: "async" (default for `async def`) or "thread" (default for `def`).
        retry: how often and how soon a failed record runs again.
        name: stable name for metrics and settings; default: module and qualified name.
        match: predicate `f(topic, raw)`: only records for which it is true come here.
        unmatched: what happens to a record that no `match` took: "halt" its partition, or "skip" it.
        decoder: sync or async `f(topic, raw)` that returns the payload; not called for tombstones.
        tombstones: a record without a value, where the payload's annotation has no None: "error", "skip".
        on_decode_error: an undecodable record: "halt" its partition, or "skip" it.
        on_revoke: calls that run when their partition is taken away: "cancel" after the grace, or "keep".
        task_per_record: run each call in an asyncio task of its own, for code keyed on the current task.
    """
    _check_strings("@topic", topics)  # Now: `@topic` without parentheses gets no further.
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
            _refuse(spec.where, "@topic stands below another decorator; put @topic on top of it")
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


def is_async_callable(function: Callable[..., object]) -> bool:
    """True for `async def`, a partial of one, or an object whose `__call__` is one."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _refuse(where: str, problem: str) -> NoReturn:
    raise HandlerError(f"{where}: {problem}")


def _suggestion(word: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"


def _qualified_name(function: object) -> str:
    """The default name of a handler. Raises HandlerError for what cannot be one."""
    if not isinstance(function, types.FunctionType):
        kind = "a bound method" if isinstance(function, types.MethodType) else f"a {type(function).__name__}"
        _refuse("@topic", f"takes a function, got {kind}; write a `def` or `async def` that calls it")
    name = f"{function.__module__}.{function.__qualname__}"
    if function.__name__ == "<lambda>":
        _refuse(f"handler {name}", "a lambda has no annotations; write a `def` or `async def`")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        _refuse(f"handler {name}", "a generator cannot handle records; remove its `yield`")
    return name


def _check_word(where: str, name: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        _refuse(where, f"{name}={value!r} must be a string that is not empty")


def _check_strings(where: str, topics: Sequence[object]) -> None:
    for name in topics:
        if not isinstance(name, str):
            hint = 'write @topic("orders", "refunds"), with parentheses and each name an argument of its own'
            _refuse(where, f"a topic's name is a string, got {type(name).__name__}; {hint}")


def _check_topics(where: str, topics: Sequence[str]) -> None:
    _check_strings(where, topics)
    for name in topics:
        if name in {".", ".."} or not _LEGAL_TOPIC.fullmatch(name):
            rule = "1 to 249 characters of a-z A-Z 0-9 . _ -"
            _refuse(where, f"{name!r} is no legal topic name ({rule}); for a regular expression use pattern=")
    if len(set(topics)) < len(topics):
        _refuse(where, "names a topic twice; remove one")


def _check_pattern(where: str, pattern: object) -> None:
    if not isinstance(pattern, str) or not pattern:
        _refuse(where, f"pattern={pattern!r} must be a regular expression in a string")
    try:
        # As a part of a union, which is how a group subscribes: flags such as (?i) must be local there.
        compiled = re.compile(f"x|(?:{pattern})")
    except re.error as error:
        _refuse(where, f"pattern={pattern!r} does not compile: {error}; write flags as (?i:...)")
    if compiled.groupindex:
        _refuse(where, f"pattern={pattern!r} has a named group; write (?:...)")
    if _BACK_REFERENCE.search(pattern):
        # Joined with others its groups get other numbers, and it would match other topics than here.
        _refuse(where, f"pattern={pattern!r} refers to a group by its number; write the choices out")


def _check_choice(where: str, name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        near = _suggestion(value, allowed) if isinstance(value, str) else f"known: {', '.join(allowed)}"
        _refuse(where, f"{name}={value!r} is unknown; {near}")


def _check_count(where: str, name: str, value: object, unit: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        _refuse(where, f"{name}={value!r} must be a whole number of at least 1 ({unit})")


def _check_order(where: str, order: object) -> None:
    if callable(order):
        _check_callable(where, "order", order, may_be_async=False)
    else:
        _check_choice(where, "order", order, get_args(Order))


def _check_callable(where: str, name: str, function: object, *, may_be_async: bool) -> None:
    if function is None:
        return
    if not callable(function):
        _refuse(where, f"{name}={function!r} must be a function f(topic, raw)")
    if is_async_callable(function) and not may_be_async:
        _refuse(where, f"{name}= must be synchronous; write it with `def`")


def _check_executor(where: str, function: Handler, executor: str | None) -> None:
    if executor == "process":
        _refuse(where, 'executor="process" is not available in this version; use "thread" with `def`')
    if executor is not None:
        _check_choice(where, "executor", executor, get_args(Executor))
    if inspect.iscoroutinefunction(function):
        if executor == "thread":
            _refuse(where, 'executor="thread" cannot run `async def`; write `def`, or leave executor= out')
        return
    if executor == "async":
        _refuse(where, 'executor="async" cannot run a plain `def`; write `async def`, or leave executor= out')
    if executor is None and inspect.iscoroutinefunction(inspect.unwrap(function)):
        # Run in a thread it would hand back a coroutine that nobody awaits: the record would count as done.
        fix = 'write the wrapper as `async def`, or say executor="thread" if it runs the coroutine itself'
        _refuse(where, f"a plain `def` wraps an `async def`; {fix}")
