"""What the runtime knows of a handler: its limits, its rules, and how to call it.

The app builds these from `@topic` declarations and the executors; the runtime never sees a
signature or a decoder.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asyncpar.core.breaker import BreakerRules
from asyncpar.core.dead_letter_budget import BudgetRules
from asyncpar.core.failures import FailureRules
from asyncpar.core.poison import PoisonRules
from asyncpar.core.rate_limit import RateRules
from asyncpar.core.virtual_partitions import KeyOf
from asyncpar.records import RawRecord

if TYPE_CHECKING:
    from asyncpar.executors.process_bridge import ProcessBridge

Invoke = Callable[[str, int, RawRecord, int, int], Coroutine[Any, Any, Any]]
"""`(topic, partition, record, attempt, generation)` to a coroutine that runs one attempt.

Raises DecodeError (at the call or in the coroutine) for what cannot be decoded. The coroutine's
result is an Outcome when the handler is `judged`, else it is ignored and means success.

One that passes nothing on but the record's value may have what it calls with that as an attribute `of_value`,
which workers then call themselves, for every value that is not None.
"""

Match = Callable[[str, RawRecord], bool]


@dataclass(frozen=True, slots=True)
class Admissions:
    """What may keep a handler's records from starting; None: it does not."""

    breaker: BreakerRules | None = None
    budget: BudgetRules | None = None
    poison: PoisonRules | None = None
    rate: RateRules | None = None
    key_rate: RateRules | None = None
    honours_delays: bool = False
    """Records with a `x-asyncpar-not-before` header wait for their time, not only those of retry topics."""


@dataclass(frozen=True, slots=True)
class Handler:
    """One declared handler within one group, ready to be run."""

    name: str
    topics: tuple[str, ...]
    pattern: re.Pattern[str] | None
    executor: str
    concurrency: int
    invoke: Invoke
    judged: bool
    key_of: KeyOf | None
    """None: the record's own key; a record without one is ordered by nothing."""
    rules: FailureRules
    match: Match | None = None
    skip_unmatched: bool = False
    cancel_on_revoke: bool = True
    timeout_seconds: float | None = None
    """A call that runs for longer is cancelled and has failed; None: no limit."""
    dead_letter: str | None = None
    """Topic of its dead letters, or a suffix of the record's own; None: it has none."""
    metadata_only: bool = False
    """Dead letters without their values."""
    retry_topics: tuple[tuple[str, float], ...] = ()
    """Where records go whose attempts are used up, one after the other: topic, and delay in seconds."""
    bridge: ProcessBridge | None = None
    """Its child processes; None: it runs in this one."""
    admissions: Admissions | None = None
    """None: every record starts as soon as there is a slot."""

    def next_retry(self, topic: str) -> tuple[str, float] | None:
        """Where a record of `topic` travels next, and its delay there; None after the last stop."""
        names = [name for name, _ in self.retry_topics]
        at = names.index(topic) + 1 if topic in names else 0
        return self.retry_topics[at] if at < len(names) else None

    def takes(self, topic: str) -> bool:
        """True when this handler is declared for `topic` by name or by pattern."""
        return topic in self.topics or (self.pattern is not None and bool(self.pattern.fullmatch(topic)))
