"""An attempt's outcome becomes a decision: done, again later, to the dead letters, or halt the partition.

The one place where the rules on failures are applied; the first row that fits decides:

| outcome     | rule                                                    | decision          |
|-------------|---------------------------------------------------------|-------------------|
| success     |                                                         | done              |
| skipped     | the handler raised `Skip`, or a tombstone may be skipped | done             |
| undecodable | `on_decode_error="skip"`                                | done              |
| undecodable | otherwise                                               | give up           |
| failed      | the handler raised `Permanent`, or `on_blocked` gives the record up | give up |
| failed      | ... `RetryAfter`: again after its own delay             | again, if allowed |
| failed      | ... `Retryable`                                         | again, if allowed |
| failed      | its child process died for the second time              | give up           |
| failed      | the nearest class in `on_error` says skip               | done              |
| failed      | ... halt                                                | halt              |
| failed      | ... dead_letter                                         | give up           |
| failed      | ... retry                                               | again, if allowed |
| failed      | its class is in `not_on`, or `on` is given without it   | give up           |
| failed      | otherwise                                               | again, if allowed |

What was raised in a child process is matched by the names of its class and of that one's bases. `on` is about
what handlers raise: a time-out, and a child process that died for the first time, are in every `on`. A call
that ran past its `timeout_ms` also counts as a TimeoutError, and as no other OSError.

*Again, if allowed*: while attempts are left (`attempts`, total runs; None: for ever) and the next run begins
within `max_age_ms` of the first failure; else give up. An attempt that is free of charge (its breaker opened
by it or during it, it was a probe, or its RetryAfter says so) uses up no attempt, but time goes on. A free
RetryAfter is no failure that time would be counted from. *Give up*: what used up its attempts or its time
goes to the next retry topic where there is one; what does not, to the dead letters where the handler has
such; else halt.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from asyncpar.core.backoff import BACKOFFS
from asyncpar.errors import (
    HandlerTimeoutError,
    Permanent,
    RecordBlockedError,
    RemoteHandlerError,
    Retryable,
    RetryAfter,
    WorkerDiedError,
)
from asyncpar.records import OnError, Verdict


class Action(enum.Enum):
    """What happens to the record next."""

    DONE = "done"
    AGAIN = "again"
    RETRY_TOPIC = "retry_topic"
    DEAD_LETTER = "dead_letter"
    HALT = "halt"


@dataclass(frozen=True, slots=True)
class Decision:
    """`delay_seconds` is set for AGAIN: the record is parked that long. `reason`: why it was given up.

    `is_free`: the attempt that ended costs nothing.
    """

    action: Action
    delay_seconds: float = 0.0
    reason: str = ""
    is_free: bool = False


@dataclass(frozen=True, slots=True)
class FailureRules:
    """What a handler's declaration says about failures. `attempts` and `max_age_ms` None: no limit."""

    attempts: int | None
    base_ms: int
    max_ms: int
    skip_undecodable: bool = False
    backoff: str = "exp_full_jitter"
    max_age_ms: int | None = None
    on: tuple[type[BaseException], ...] = ()
    not_on: tuple[type[BaseException], ...] = ()
    on_error: Mapping[type, OnError] = field(default_factory=dict)
    dead_letter: bool = False


_DONE = Decision(Action.DONE)
_TRAVEL = Decision(Action.RETRY_TOPIC)
_NOT_AGAIN = {"skip": _DONE, "halt": Decision(Action.HALT, reason="permanent")}


def decide(
    rules: FailureRules,
    verdict: Verdict,
    error: BaseException | None,
    attempts_made: int,
    u: float,
    *,
    age_seconds: float = 0.0,
    is_free: bool = False,
    may_travel: bool = False,
) -> Decision:
    """`attempts_made` counts the attempt that just ended; `u` is uniform in [0, 1).

    `age_seconds`: since its first failure; -inf: it has had none. `is_free`: the attempt costs nothing.
    `may_travel`: there is a retry topic that it has not been in yet.
    """
    if verdict is Verdict.SUCCESS or verdict is Verdict.SKIPPED:
        return _DONE
    if verdict is Verdict.UNDECODABLE:
        return _DONE if rules.skip_undecodable else give_up(rules, "undecodable")
    how = on_failure(rules, error)
    if how != "retry":
        return _NOT_AGAIN[how] if how in _NOT_AGAIN else give_up(rules, "permanent")
    is_free = is_free or is_nobodys(error)
    if isinstance(error, RetryAfter) and error.delay_ms is not None:
        delay = error.delay_ms / 1000
    else:
        delay = BACKOFFS[rules.backoff](attempts_made, rules.base_ms, rules.max_ms, u)
    if not is_free and rules.attempts is not None and attempts_made >= rules.attempts:
        return _TRAVEL if may_travel else give_up(rules, "exhausted")
    if rules.max_age_ms is not None and (age_seconds + delay) * 1000 > rules.max_age_ms:
        return _TRAVEL if may_travel else give_up(rules, "too_old")
    return Decision(Action.AGAIN, delay, is_free=is_free)


def is_nobodys(error: BaseException | None) -> bool:
    """A RetryAfter that is nobody's failure: somebody else works on the record, say."""
    return isinstance(error, RetryAfter) and error.is_free


def on_failure(rules: FailureRules, error: BaseException | None) -> OnError:
    """What the class of `error` asks for; "dead_letter" stands for giving up, with or without such."""
    if isinstance(error, Permanent | RecordBlockedError):
        return "dead_letter"
    if isinstance(error, Retryable):
        return "retry"
    if isinstance(error, WorkerDiedError) and error.is_final:
        return "dead_letter"
    ended_by_us = isinstance(error, HandlerTimeoutError | WorkerDiedError)
    if isinstance(error, RemoteHandlerError):
        return _on_names(rules, error.ancestors)
    if rules.on_error:
        for kind in _kinds(error):
            if kind in rules.on_error:
                return rules.on_error[kind]
    given_up = isinstance(error, rules.not_on) or (
        TimeoutError in rules.not_on and TimeoutError in _kinds(error)
    )
    if given_up or (rules.on and not isinstance(error, rules.on) and not ended_by_us):
        return "dead_letter"
    return "retry"


def _kinds(error: BaseException | None) -> tuple[type, ...]:
    """The classes of `error`, nearest first; those of a time-out of ours with TimeoutError behind its own.

    It is no subclass of it: TimeoutError is an OSError, and `on=OSError` means the network.
    """
    nearest, *bases = type(error).__mro__
    return (nearest, TimeoutError, *bases) if nearest is HandlerTimeoutError else (nearest, *bases)


def _on_names(rules: FailureRules, ancestors: tuple[str, ...]) -> OnError:
    """As for an exception whose class and bases have these names, nearest first."""
    asked = {_name(kind): how for kind, how in rules.on_error.items()}
    for name in ancestors:
        if name in asked:
            return asked[name]
    names = frozenset(ancestors)
    is_on = not rules.on or any(_name(kind) in names for kind in rules.on)
    if not is_on or any(_name(kind) in names for kind in rules.not_on):
        return "dead_letter"
    return "retry"


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def give_up(rules: FailureRules, reason: str) -> Decision:
    """No attempt will be made any more."""
    return Decision(Action.DEAD_LETTER if rules.dead_letter else Action.HALT, reason=reason)
