"""An attempt's outcome becomes a decision: done, again later, skip, or halt the partition.

The one place where the rules on failures are applied, in this order:

| outcome     | rule                                   | decision |
|-------------|----------------------------------------|----------|
| success     |                                        | done     |
| skipped     |                                        | done     |
| undecodable | `on_decode_error="skip"`               | done     |
| undecodable | otherwise                              | halt     |
| failed      | attempts left (None: always)           | again at |
| failed      | none left                              | halt     |
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from asyncpar.core.backoff import exp_full_jitter
from asyncpar.records import Verdict


class Action(enum.Enum):
    """What happens to the record next."""

    DONE = "done"
    AGAIN = "again"
    HALT = "halt"


@dataclass(frozen=True, slots=True)
class Decision:
    """`delay_seconds` is set for AGAIN: the record is parked that long."""

    action: Action
    delay_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class FailureRules:
    """What a handler's declaration says about failures. `attempts` None: for ever."""

    attempts: int | None
    base_ms: int
    max_ms: int
    skip_undecodable: bool


_DONE = Decision(Action.DONE)
_HALT = Decision(Action.HALT)


def decide(rules: FailureRules, verdict: Verdict, attempts_made: int, u: float) -> Decision:
    """`attempts_made` counts the attempt that just ended; `u` is uniform in [0, 1)."""
    if verdict is Verdict.SUCCESS or verdict is Verdict.SKIPPED:
        return _DONE
    if verdict is Verdict.UNDECODABLE:
        return _DONE if rules.skip_undecodable else _HALT
    if rules.attempts is not None and attempts_made >= rules.attempts:
        return _HALT
    return Decision(Action.AGAIN, exp_full_jitter(attempts_made, rules.base_ms, rules.max_ms, u))
