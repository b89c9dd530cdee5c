"""Keys that fail again and again: which of them are diverted for now.

Never here: where their records go. One table per handler, called by its workers. Always true: a key that
never failed costs nothing, and no more than twice `max_keys` keys are remembered. A flood of keys that failed
a little never drives out a poisoned one, which would be the first to go, as it does not run and so
does not fail: both have a table of their own, and in each the one that failed longest ago goes first.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TypeAlias

from asyncpar.core.rule_checks import check_whole

Key: TypeAlias = tuple[str, bytes]
"""Topic and key of a record. Records without a key are never poisoned."""

_ROW_SECONDS = 3600.0
"""A failure that comes later than this after the last one is the first of a new row."""


@dataclass(frozen=True, slots=True)
class PoisonRules:
    """A key is poisoned for `cool_down_ms` by `failures` failed calls in a row, of which none is older than
    the next by more than an hour. `max_keys` are remembered as poisoned, and as many that are on their way.
    Raises ValueError for values out of range.
    """

    failures: int = 20
    cool_down_ms: int = 60_000
    max_keys: int = 10_000

    def __post_init__(self) -> None:
        owner = "PoisonKeys"
        check_whole(owner, "failures", self.failures, "failed calls in a row")
        check_whole(owner, "cool_down_ms", self.cool_down_ms, "milliseconds")
        check_whole(owner, "max_keys", self.max_keys, "keys")


class PoisonKeys:
    """Failures in a row by key. Times are monotonic seconds. Empty (False) while no key is remembered."""

    __slots__ = ("_poisoned", "_rows", "rules")

    def __init__(self, rules: PoisonRules) -> None:
        self.rules = rules
        self._rows: OrderedDict[Key, tuple[int, float]] = OrderedDict()
        """Failures in a row, and when the last one was; the oldest of those first."""
        self._poisoned: OrderedDict[Key, float] = OrderedDict()
        """When the cool-down ends; the first to end first."""

    def __len__(self) -> int:
        return len(self._rows) + len(self._poisoned)

    def count_poisoned(self, now: float) -> int:
        """How many keys are diverted."""
        return sum(now < until for until in self._poisoned.values())

    def is_poisoned(self, key: Key, now: float) -> bool:
        """True while records of `key` are to be diverted."""
        until = self._poisoned.get(key)
        return until is not None and now < until

    def failed(self, key: Key, now: float) -> bool:
        """A call with `key` failed. True when that poisons it: once per cool-down.

        After its cool-down the row goes on: one more failure poisons it again. One that ends while it
        is poisoned began before, and changes nothing.
        """
        if self.is_poisoned(key, now):
            return False
        failures = self._failures(key, now) + 1
        self._rows.pop(key, None)
        if failures < self.rules.failures:
            self._remember(key, failures, now)
            return False
        self._poisoned.pop(key, None)
        self._poisoned[key] = now + self.rules.cool_down_ms / 1000
        if len(self._poisoned) > self.rules.max_keys:
            self._poisoned.popitem(last=False)
        return True

    def succeeded(self, key: Key) -> bool:
        """A call with `key` succeeded: its row is over. True when that ends its being poisoned.

        Of whichever record: no key that something succeeds with is poison.
        """
        self._rows.pop(key, None)
        return self._poisoned.pop(key, None) is not None

    def forgive(self, since: float) -> None:
        """What failed last at `since` or later was no fault of its key: its row, and its being poisoned."""
        cool_down = self.rules.cool_down_ms / 1000
        self._rows = OrderedDict((key, row) for key, row in self._rows.items() if row[1] < since)
        self._poisoned = OrderedDict(
            (key, until) for key, until in self._poisoned.items() if until - cool_down < since
        )

    def forget_older(self, now: float) -> list[Key]:
        """Drop rows that are over by their age, and return the keys whose cool-down ended, each once.

        It frees memory and reports; no answer of this table depends on it.
        """
        ended: list[Key] = []
        while self._poisoned:
            key = next(iter(self._poisoned))
            if self.is_poisoned(key, now):
                break
            until = self._poisoned.pop(key)
            ended.append(key)
            if self.rules.failures > 1:
                self._remember(key, self.rules.failures - 1, until)
        while self._rows and now - next(iter(self._rows.values()))[1] > _ROW_SECONDS:
            self._rows.popitem(last=False)
        return ended

    def _failures(self, key: Key, now: float) -> int:
        """In a row until now. One short of all for a key whose cool-down ended: it is on probation."""
        if key in self._poisoned:
            failures, last = self.rules.failures - 1, self._poisoned[key]
        else:
            failures, last = self._rows.get(key, (0, now))
        return failures if now - last <= _ROW_SECONDS else 0

    def _remember(self, key: Key, failures: int, last: float) -> None:
        """At the end of the line; the front leaves when there are too many."""
        self._rows[key] = (failures, last)
        if len(self._rows) > self.rules.max_keys:
            self._rows.popitem(last=False)
