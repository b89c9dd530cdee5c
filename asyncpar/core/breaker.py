"""The circuit breaker of one handler: when most calls fail, none starts for a while, then a few to try.

| state     | may start          | goes to   | when                                                 |
|-----------|--------------------|-----------|------------------------------------------------------|
| closed    | every call         | open      | a failure, with enough of the window's calls failed, |
|           |                    |           | or with `min_calls` failures in a row                |
| open      | none               | half-open | its time is over and a call starts (the first probe) |
| half-open | `probes` at a time | closed    | `successes` probes succeeded                         |
|           |                    | open      | a probe failed: for twice as long as last time       |

Never here: what is held while it is open, and what a failure is. Whoever starts calls asks
`may_start`, calls `started` in the same breath, and hands the ticket to `ended` or `interrupted`. Always
true: a ticket counts only in the state that it was given in. The end of a call that began before the breaker
opened, or of a probe of an earlier round, changes nothing, so late failures open nothing twice and a
stale success closes nothing. Source: Michael Nygard, "Release It!", "Circuit Breaker".
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple, NewType

from asyncpar.core.rule_checks import check_real, check_whole
from asyncpar.core.window import Window

_TINY_SHARE = 1e-9


@dataclass(frozen=True, slots=True)
class BreakerRules:
    """When a breaker opens, for how long, and what closes it. Raises ValueError for values out of range.

    It opens at a failure, when in the last `window_ms` at least `min_calls` calls ended and at least
    `failure_share` of them (above 0, at most 1) failed. It also opens when `min_calls` calls in a row failed,
    none later than `window_ms` after the one before, however many went well until then: an outage does not
    have to outweigh a window of good calls. The first time it opens for `open_ms`, then, for as long as its
    probes fail, for twice as long each time, at most `max_open_ms`.
    """

    failure_share: float = 0.5
    min_calls: int = 20
    window_ms: int = 10_000
    open_ms: int = 5_000
    probes: int = 1
    successes: int = 1
    max_open_ms: int = 10_000

    def __post_init__(self) -> None:
        owner = "Breaker"
        check_real(owner, "failure_share", self.failure_share, "share of calls", _TINY_SHARE, 1.0)
        check_whole(owner, "min_calls", self.min_calls, "calls")
        check_whole(owner, "window_ms", self.window_ms, "milliseconds")
        check_whole(owner, "open_ms", self.open_ms, "milliseconds")
        check_whole(owner, "probes", self.probes, "calls at a time")
        check_whole(owner, "successes", self.successes, "calls")
        check_whole(owner, "max_open_ms", self.max_open_ms, "milliseconds")
        if self.max_open_ms < self.open_ms:
            raise ValueError(
                f"{owner}: max_open_ms={self.max_open_ms} is below open_ms={self.open_ms}; raise it"
            )


class BreakerState(enum.Enum):
    """What may start: everything, probes, nothing."""

    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"


_CLOSED, _HALF_OPEN, _OPEN = BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN
"""Looked up once: they are compared at every call."""


class Transition(NamedTuple):
    """The breaker opened or closed: what it was judged by."""

    before: BreakerState
    after: BreakerState
    calls: int
    """Of the window or the row when it was closed before, else probes of this round that ended."""
    failures: int
    open_seconds: float
    """How long no call starts; 0.0 when it closed."""


Ticket = NewType("Ticket", int)
"""What a call carries from its start to its end. Negative: a probe."""


class CircuitBreaker:
    """Counts how calls end, and says whether one may start. Times are monotonic seconds."""

    __slots__ = (
        "_era",
        "_last_failure_at",
        "_next_place_at",
        "_open_seconds",
        "_open_until",
        "_places",
        "_row",
        "_running",
        "_succeeded",
        "_window",
        "rules",
        "state",
    )

    def __init__(self, rules: BreakerRules) -> None:
        self.rules = rules
        self.state = _CLOSED
        self._era = Ticket(1)
        """Another number, of a growing size, after every change of state."""
        self._window = Window(rules.window_ms)
        self._row = 0
        """Failures in a row, while it is closed."""
        self._last_failure_at = 0.0
        self._open_seconds = 0.0
        """Of the last opening."""
        self._open_until = 0.0
        self._running = 0
        """Probes of this round."""
        self._places = 0
        """How many of them may run at a time."""
        self._succeeded = 0
        self._next_place_at = 0.0

    def may_start(self, now: float) -> bool:
        """True while a call may start; changes nothing."""
        if self.state is _CLOSED:
            return True
        if self.state is _OPEN:
            return now >= self._open_until
        return self._running < self._places or now >= self._next_place_at

    def until(self, now: float) -> float:
        """The first moment, `now` or later, at which a call may start if nothing ends before."""
        if self.may_start(now):
            return now
        return self._open_until if self.state is _OPEN else self._next_place_at

    def started(self, now: float) -> Ticket:
        """A call starts, right after `may_start(now)` said that it may; the ticket is for its end.

        A probe that hangs does not hold its handler for ever: after `max_open_ms` another one may run beside
        it. Whichever ends first is judged.
        """
        if self.state is _CLOSED:
            return self._era
        assert self.may_start(now), "a call started that may_start had not allowed"
        if self.state is _OPEN:
            self._enter(_HALF_OPEN)
            self._places = self.rules.probes
            self._running = self._succeeded = 0
        elif self._running >= self._places:
            self._places += 1
        self._running += 1
        self._next_place_at = now + self.rules.max_open_ms / 1000
        return self._era

    def ended(self, now: float, ok: bool, ticket: Ticket) -> Transition | None:
        """A call ended, and `ok` says whether it speaks for what it depends on. Returns what this changed.

        What says nothing about that (a record that cannot be read) is `interrupted`.
        """
        if ticket != self._era:
            return None
        if self.state is _CLOSED:
            window = self._window
            window.add(now, 1, not ok)
            if self._count_row(now, ok) >= self.rules.min_calls:
                return self._open(now, self._row, self._row)
            if ok or not self._is_over(window):
                return None
            return self._open(now, window.total, window.marked)
        self._running -= 1
        if not ok:
            return self._open(now, self._succeeded + 1, 1)
        self._succeeded += 1
        return self._close() if self._succeeded >= self.rules.successes else None

    def interrupted(self, ticket: Ticket) -> None:
        """A call ended and says nothing (cancelled, its partition left): a probe gives its place back."""
        if is_probe(ticket) and ticket == self._era:
            self._running -= 1

    def spares(self, ticket: Ticket) -> bool:
        """After `ended`: True when the breaker changed since this call began, by its own end or before.

        A failure of such a call is one that opened the breaker, or a probe's, or it ran when the breaker
        opened: it has the same cause.
        """
        return ticket != self._era

    def _count_row(self, now: float, ok: bool) -> int:
        """Failures in a row until now."""
        if ok:
            self._row = 0
            return 0
        is_row = now - self._last_failure_at <= self.rules.window_ms / 1000
        self._row = self._row + 1 if is_row else 1
        self._last_failure_at = now
        return self._row

    def _is_over(self, window: Window) -> bool:
        """By division: 7 of 100 are a share of 0.07, while 0.07 * 100 is more than 7."""
        calls = window.total
        return calls >= self.rules.min_calls and window.marked / calls >= self.rules.failure_share

    def _open(self, now: float, calls: int, failures: int) -> Transition:
        rules, before = self.rules, self.state
        if before is _CLOSED:
            self._open_seconds = rules.open_ms / 1000
        else:
            self._open_seconds = min(2 * self._open_seconds, rules.max_open_ms / 1000)
        self._open_until = now + self._open_seconds
        self._enter(_OPEN)
        return Transition(before, self.state, calls, failures, self._open_seconds)

    def _close(self) -> Transition:
        before = self.state
        self._window = Window(self.rules.window_ms)
        self._row = 0
        self._enter(_CLOSED)
        return Transition(before, self.state, self._succeeded, 0, 0.0)

    def _enter(self, state: BreakerState) -> None:
        self.state = state
        size = abs(self._era) + 1
        self._era = Ticket(-size if state is _HALF_OPEN else size)


def is_probe(ticket: Ticket) -> bool:
    """True for a call that was started to find out whether the breaker may close."""
    return ticket < 0
