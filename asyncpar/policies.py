"""What a handler's declaration may say about its failures: plain, frozen, checked when it is made.

`@topic(retry=Retry(...), dead_letter=..., breaker=Breaker(...))`. Values out of range raise HandlerError at
import. Never here: what is done with them (`core/failures.py` has the table).
"""

from __future__ import annotations

import builtins
import difflib
import enum
import importlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, Literal, NoReturn, TypeAlias, get_args

from asyncpar.core.breaker import BreakerRules
from asyncpar.core.dead_letter_budget import BudgetRules
from asyncpar.core.poison import PoisonRules
from asyncpar.core.rate_limit import RateRules
from asyncpar.core.rule_checks import MOST
from asyncpar.errors import HandlerError
from asyncpar.records import OnError

Backoff: TypeAlias = Literal["fixed", "linear", "exponential", "exp_full_jitter", "exp_equal_jitter"]
ErrorTypes: TypeAlias = type[Exception] | tuple[type[Exception], ...]


class Default(enum.Enum):
    """Stands for a value that depends on others."""

    ATTEMPTS = "for ever, or 5 with dead letters"

    def __repr__(self) -> str:
        return self.value


ATTEMPTS_WITH_DEAD_LETTERS: Final = 5
FOREVER: Final = "forever"
"""What settings say where code says None, for no limit: TOML has no None."""
_NONE: Final = f'None ("{FOREVER}" in settings)'
_BURST_OF_A_TENTH: Final = 0
"""Stands for a burst that was not given."""


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and how soon a failed record runs again. It waits without a slot, and its key waits with it.

    Raises HandlerError for values out of range.

    Args:
        attempts: total runs, the first one included; None tries for ever. Default: for ever, or 5 where
            the handler has dead letters.
        base_ms: the first delay, milliseconds.
        max_ms: the longest delay.
        backoff: how delays grow: "fixed", "linear", "exponential", "exp_full_jitter" (default: chance between
            0 and the exponential delay), "exp_equal_jitter" (between half of it and all of it).
        max_age_ms: no attempt begins later than this after the first failure; None: no limit. Not below
            `base_ms`; with a breaker above its `max_open_ms`.
        on: only these exceptions are tried again, others are given up at once; (): all are.
        not_on: these are given up at once.
    """

    attempts: int | Default | None = Default.ATTEMPTS
    base_ms: int = 100
    max_ms: int = 30_000
    backoff: Backoff = "exp_full_jitter"
    max_age_ms: int | None = None
    on: ErrorTypes = ()
    not_on: ErrorTypes = ()

    def __post_init__(self) -> None:
        if isinstance(self.attempts, int):
            check_count("Retry", "attempts", self.attempts, f"total runs, or {_NONE} to try for ever")
        elif self.attempts is not None and self.attempts is not Default.ATTEMPTS:
            refuse("Retry", f"attempts={self.attempts!r} must be a whole number, or {_NONE} to try for ever")
        check_count("Retry", "base_ms", self.base_ms, "milliseconds")
        check_count("Retry", "max_ms", self.max_ms, "milliseconds")
        if self.max_ms < self.base_ms:
            refuse("Retry", f"max_ms={self.max_ms} is below base_ms={self.base_ms}; raise max_ms")
        check_choice("Retry", "backoff", self.backoff, get_args(Backoff))
        if self.max_age_ms is not None:
            check_count("Retry", "max_age_ms", self.max_age_ms, f"milliseconds, or {_NONE} for no limit")
            if self.max_age_ms < self.base_ms:
                refuse(
                    "Retry",
                    f"max_age_ms={self.max_age_ms} is below base_ms={self.base_ms}: a record would be too "
                    "old before its first retry; raise max_age_ms or lower base_ms",
                )
        for name in ("on", "not_on"):
            given = getattr(self, name)
            object.__setattr__(self, name, _error_types(name, given))

    def attempts_for(self, *, dead_letters: bool) -> int | None:
        """Total runs; None: for ever."""
        if isinstance(self.attempts, Default):
            return ATTEMPTS_WITH_DEAD_LETTERS if dead_letters else None
        return self.attempts


class _Declared:
    """Rules that a declaration gives: a value out of range is an error of the declaration."""

    __slots__ = ()

    def __post_init__(self) -> None:
        try:
            super().__post_init__()  # type: ignore[misc]  # the rules have it
        except ValueError as error:
            raise HandlerError(str(error)) from None


@dataclass(frozen=True, slots=True)
class Breaker(_Declared, BreakerRules):
    """Stops a handler while most of its calls fail, and lets a few try whether that is over.

    While it is open nothing of the handler starts and its partitions are not fetched: nothing fails, nothing
    is lost, order is kept. Failures that opened it, and those of its probes, cost no attempt. Raises
    HandlerError for values out of range.

    Args:
        failure_share: opens when at least this share of the window's calls failed (above 0, at most 1).
        min_calls: but never before so many calls ended in the window. It also opens when so many calls in a
            row failed, however many went well before.
        window_ms: how far back calls count.
        open_ms: how long nothing starts; twice as long after each probe that fails, up to `max_open_ms`.
        probes: calls that may run at a time to find out whether it may close.
        successes: probes that must succeed for that.
        max_open_ms: the longest time between two probes.
    """


@dataclass(frozen=True, slots=True)
class DeadLetterBudget(_Declared, BudgetRules):
    """How many records of a handler may become dead letters; the next ones wait, and their partitions hold.

    Raises HandlerError for values out of range.

    Args:
        share: of the records that the handler finished in the window, 0 to 1.
        at_least: so many in any case, 1 or more.
        window_ms: how far back both are counted.
    """


@dataclass(frozen=True, slots=True)
class PoisonKeys(_Declared, PoisonRules):
    """Records of a key that failed again and again go to the dead letters without being run, in order.

    Raises HandlerError for values out of range.

    Args:
        failures: failed calls in a row that poison a key.
        cool_down_ms: for how long. After it one more failure poisons the key again.
        max_keys: how many are remembered as poisoned, and as many that failed lately.
    """


@dataclass(frozen=True, slots=True)
class RateLimit(_Declared, RateRules):
    """How often calls may start, per process. What is above it waits, in order, and costs no slot.

    Raises HandlerError for values out of range.

    Args:
        per_second: calls, 0.000001 to 1e9.
        burst: calls that may start at once after a pause; 1 spaces them evenly. 0 (default): what
            `per_second` brings in a tenth of a second, and at least 1.
        max_keys: for limits by key: how many keys in use are remembered.
    """

    burst: int = _BURST_OF_A_TENTH

    def __post_init__(self) -> None:
        rate: object = self.per_second
        if self.burst is _BURST_OF_A_TENTH and isinstance(rate, int | float) and 0 < rate < MOST:
            object.__setattr__(self, "burst", max(1, int(rate / 10)))
        _Declared.__post_init__(self)


def _error_types(name: str, given: object) -> tuple[type[Exception], ...]:
    """What `on=` or `not_on=` got, as a tuple of classes; texts, from settings files, are looked up."""
    many = tuple(given) if isinstance(given, list | tuple) else (given,)
    return tuple(error_type(name, one) for one in many)


def error_type(name: str, given: object) -> type[Exception]:
    """An exception class, or the class that a text such as "httpx.TimeoutException" names."""
    found = _named(name, given) if isinstance(given, str) else given
    if not isinstance(found, type) or not issubclass(found, BaseException):
        refuse("Retry", f"{name}={given!r} must name exception classes, such as ConnectionError")
    if not issubclass(found, Exception):
        refuse(
            "Retry",
            f"{name}={given!r} would catch what ends tasks and processes; name subclasses of Exception",
        )
    return found


def _named(name: str, text: str) -> object:
    module, _, word = text.rpartition(".")
    if not module:
        if not hasattr(builtins, text):
            known = [key for key, value in vars(builtins).items() if isinstance(value, type)]
            refuse(
                "Retry", f"{name}: no exception {text!r}; {suggestion(text, known)}; others as module.Name"
            )
        return getattr(builtins, text)
    try:
        return getattr(importlib.import_module(module), word)
    except (ImportError, AttributeError) as error:
        refuse("Retry", f"{name}: {text!r} cannot be imported ({error}); write it as module.Name")


_DELAY = re.compile(r".*\.(\d{1,9})(ms|s|m|h)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def delay_of(where: str, topic: str) -> float:
    """Seconds: what a retry topic's name ends with, as in "orders.retry.30s". Raises HandlerError."""
    found = _DELAY.fullmatch(topic)
    if found is None or not int(found[1]):
        refuse(where, f"retry topic {topic!r} must end with its delay: .500ms, .5s, .10m or .1h")
    seconds = int(found[1]) * _UNITS[found[2]]
    if seconds * 1000 > MOST:
        refuse(where, f"retry topic {topic!r} has a delay of more than {MOST} ms (24 days); shorten it")
    return seconds


def check_kind(where: str, name: str, value: object, kind: type, example: str) -> None:
    """`value` is None or a `kind`. Raises HandlerError."""
    if value is not None and not isinstance(value, kind):
        refuse(where, f"{name}={value!r} must be a {kind.__name__}, such as {example}")


def checked_on_error(where: str, given: object) -> Mapping[type[Exception], OnError]:
    """`on_error=`, checked. Raises HandlerError."""
    if not isinstance(given, Mapping):
        refuse(where, f'on_error={given!r} must be a mapping such as {{ValueError: "dead_letter"}}')
    checked: dict[type[Exception], OnError] = {}
    for kind, how in given.items():
        check_choice(where, f"on_error[{getattr(kind, '__name__', kind)}]", how, get_args(OnError))
        checked[error_type("on_error", kind)] = how
    return checked


def refuse(where: str, problem: str) -> NoReturn:
    """Raise a HandlerError that says where."""
    raise HandlerError(f"{where}: {problem}")


def suggestion(word: str, known: Collection[str]) -> str:
    """What the writer of `word` may have meant."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"


def check_choice(where: str, name: str, value: object, allowed: tuple[str, ...]) -> None:
    """`value` is one of `allowed`. Raises HandlerError."""
    if value not in allowed:
        near = suggestion(value, allowed) if isinstance(value, str) else f"known: {', '.join(allowed)}"
        refuse(where, f"{name}={value!r} is unknown; {near}")


def check_count(where: str, name: str, value: object, unit: str, most: int = MOST) -> None:
    """`value` is a whole number from 1 to `most`; `unit` says of what. Raises HandlerError."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        refuse(where, f"{name}={value!r} must be a whole number of at least 1 ({unit})")
    if value > most:
        shown = value if value < 10**20 else "a number of more than 20 digits"
        refuse(where, f"{name}={shown} must be a whole number from 1 to {most} ({unit})")
