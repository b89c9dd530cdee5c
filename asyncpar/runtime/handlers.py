"""What the runtime knows of a handler: its limits, its rules, and how to call it.

The app builds these from `@topic` declarations and the executors; the runtime never sees a
signature or a decoder.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from asyncpar.core.failures import FailureRules
from asyncpar.core.virtual_partitions import KeyOf
from asyncpar.records import RawRecord

Invoke = Callable[[str, int, RawRecord, int, int], Coroutine[Any, Any, Any]]
"""`(topic, partition, record, attempt, generation)` to a coroutine that runs one attempt.

Raises DecodeError (at the call or in the coroutine) for what cannot be decoded. The coroutine's
result is an Outcome when the handler is `judged`, else it is ignored and means success.
"""

Match = Callable[[str, RawRecord], bool]


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

    def takes(self, topic: str) -> bool:
        """True when this handler is declared for `topic` by name or by pattern."""
        return topic in self.topics or (self.pattern is not None and bool(self.pattern.fullmatch(topic)))
