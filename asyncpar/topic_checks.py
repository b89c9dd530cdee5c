"""What a `@topic` may say: the checks of its words, one error each. Never here: what they mean."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias, get_args

from asyncpar.policies import check_choice, delay_of, refuse

Order: TypeAlias = Literal["key", "partition", "unordered"]
Executor: TypeAlias = Literal["async", "thread", "process"]
Handler: TypeAlias = Callable[..., object]

_BACK_REFERENCE = re.compile(r"(?<!\\)(?:\\\\)*(?:\\[1-9]|\(\?\(\d)")
_LEGAL_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")


def is_async_callable(function: Callable[..., object]) -> bool:
    """True for `async def`, a partial of one, or an object whose `__call__` is one."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def check_word(where: str, name: str, value: object) -> None:
    """A text that is not empty. Raises HandlerError."""
    if not isinstance(value, str) or not value:
        refuse(where, f"{name}={value!r} must be a string that is not empty")


def check_strings(where: str, topics: Sequence[object]) -> None:
    """Names of topics are texts. Raises HandlerError."""
    for name in topics:
        if not isinstance(name, str):
            hint = 'write @topic("orders", "refunds"), with parentheses and each name an argument of its own'
            refuse(where, f"a topic's name is a string, got {type(name).__name__}; {hint}")


def check_topics(where: str, topics: Sequence[str]) -> None:
    """Names that Kafka takes, each once. Raises HandlerError."""
    check_strings(where, topics)
    for name in topics:
        if name in {".", ".."} or not _LEGAL_TOPIC.fullmatch(name):
            rule = "1 to 249 characters of a-z A-Z 0-9 . _ -"
            refuse(where, f"{name!r} is no legal topic name ({rule}); for a regular expression use pattern=")
    if len(set(topics)) < len(topics):
        refuse(where, "names a topic twice; remove one")


def check_pattern(where: str, pattern: object) -> None:
    """A regular expression that can be joined with others. Raises HandlerError."""
    if not isinstance(pattern, str) or not pattern:
        refuse(where, f"pattern={pattern!r} must be a regular expression in a string")
    try:
        # As a part of a union, which is how a group subscribes: flags such as (?i) must be local there.
        compiled = re.compile(f"x|(?:{pattern})")
    except re.error as error:
        refuse(where, f"pattern={pattern!r} does not compile: {error}; write flags as (?i:...)")
    if compiled.groupindex:
        refuse(where, f"pattern={pattern!r} has a named group; write (?:...)")
    if _BACK_REFERENCE.search(pattern):
        # Joined with others its groups get other numbers, and it would match other topics than here.
        refuse(where, f"pattern={pattern!r} refers to a group by its number; write the choices out")


def check_order(where: str, order: object) -> None:
    """One of the words, or a synchronous function. Raises HandlerError."""
    if callable(order):
        check_callable(where, "order", order, may_be_async=False)
    else:
        check_choice(where, "order", order, get_args(Order))


def check_callable(where: str, name: str, function: object, *, may_be_async: bool) -> None:
    """None, or a function f(topic, raw). Raises HandlerError."""
    if function is None:
        return
    if not callable(function):
        refuse(where, f"{name}={function!r} must be a function f(topic, raw)")
    if is_async_callable(function) and not may_be_async:
        refuse(where, f"{name}= must be synchronous; write it with `def`")


def check_dead_letter(where: str, dead_letter: object, topics: Sequence[str]) -> None:
    """None, False, a suffix, or a topic that the handler does not read. Raises HandlerError."""
    if dead_letter is None or dead_letter is False:
        return
    if not isinstance(dead_letter, str) or not dead_letter:
        refuse(
            where, f'dead_letter={dead_letter!r} must be a topic, a suffix such as ".dlq", or False for none'
        )
    if dead_letter.startswith("."):
        check_topics(where, [f"{name}{dead_letter}" for name in topics] or [f"topic{dead_letter}"])
        return
    check_topics(where, [dead_letter])
    if dead_letter in topics:
        refuse(
            where, f"dead_letter={dead_letter!r} is a topic that it reads; dead letters need one of their own"
        )


def check_retry_topics(where: str, given: object, topics: Sequence[str], dead_letter: object) -> None:
    """Names with a delay, none of them read or written otherwise. Raises HandlerError."""
    if not isinstance(given, tuple):
        refuse(where, f'retry_topics={given!r} must be a list of topics, such as ["orders.retry.5s"]')
    check_topics(where, given)
    for name in given:
        if name.startswith("."):
            whole = f"{topics[0] if topics else 'orders'}{name}"
            refuse(where, f"retry topic {name!r} is no suffix, but a whole name; write {whole!r}")
        delay_of(where, name)
        if name in topics or name == dead_letter:
            refuse(where, f"retry topic {name!r} has another use already; give it a topic of its own")


def check_flag(where: str, name: str, value: object) -> None:
    """True or False. Raises HandlerError."""
    if not isinstance(value, bool):
        refuse(where, f"{name}={value!r} must be True or False")


def check_executor(where: str, function: Handler, executor: str | None) -> None:
    """It fits what the function is. Raises HandlerError."""
    if executor is not None:
        check_choice(where, "executor", executor, get_args(Executor))
    if inspect.iscoroutinefunction(function):
        if executor in ("thread", "process"):
            refuse(
                where, f'executor="{executor}" cannot run `async def`; write `def`, or leave executor= out'
            )
        return
    if executor == "async":
        refuse(where, 'executor="async" cannot run a plain `def`; write `async def`, or leave executor= out')
    if executor is None and inspect.iscoroutinefunction(inspect.unwrap(function)):
        # Run in a thread it would hand back a coroutine that nobody awaits: the record would count as done.
        fix = 'write the wrapper as `async def`, or say executor="thread" if it runs the coroutine itself'
        refuse(where, f"a plain `def` wraps an `async def`; {fix}")
