"""How many of a handler's records may become dead letters: a flood of them becomes a hold.

Never here: what is held, or what a dead letter is. Called by whoever sends dead letters (`take`, before the
first try of each) and by whoever counts finished records (`ended`). Always true: of a window's records
at most `at_least`, or at most `share` of them where that is more, are let go. A hold ends by time
alone, at the latest when a window without dead letters has passed.
"""

from __future__ import annotations

from dataclasses import dataclass

from asyncpar.core.rule_checks import check_real, check_whole
from asyncpar.core.window import Window, seconds_until

_RESUME_SHARE = 0.7


@dataclass(frozen=True, slots=True)
class BudgetRules:
    """How many dead letters `window_ms` may see. Raises ValueError for values out of range.

    `share`: of the finished records, 0 to 1 (1: no limit). `at_least`: so many in any case; 1 or more, since
    nothing that is held finishes, and a share of nothing would be held for ever.
    """

    share: float = 0.1
    at_least: int = 50
    window_ms: int = 60_000

    def __post_init__(self) -> None:
        owner = "DeadLetterBudget"
        check_real(owner, "share", self.share, "share of finished records", 0.0, 1.0)
        check_whole(owner, "at_least", self.at_least, "dead letters")
        check_whole(owner, "window_ms", self.window_ms, "milliseconds")


class DeadLetterBudget:
    """Counts finished records and dead letters of a window. Times are monotonic seconds.

    Once used up it is held until no more than 70 % of what is allowed is used, so that it opens and closes a
    few times per window and not once per record.
    """

    __slots__ = ("_window", "is_held", "rules")

    def __init__(self, rules: BudgetRules) -> None:
        self.rules = rules
        self.is_held = False
        """True since `take` or `may_send` said no, until one of them says yes."""
        self._window = Window(rules.window_ms)

    def ended(self, now: float, count: int = 1) -> None:
        """`count` records finished, with any outcome. In lots: at least once per tenth of the window."""
        self._window.add(now, count, 0)

    def take(self, now: float) -> float:
        """0.0: a dead letter may leave, and is counted. Else seconds to wait; nothing is counted.

        Once per record, before its first try: counted only after its acknowledgement, all that are on their
        way at once would pass, and counted at each try, an outage of their topic would use the budget up.
        """
        if self.may_send(now):
            self.sent(now)
            return 0.0
        return seconds_until(self.until(now), now)

    def may_send(self, now: float) -> bool:
        """True while a dead letter may leave; counts nothing, keeps `is_held`."""
        window = self._window
        window.advance(now)
        self.is_held = not self._allows(window.total, window.marked)
        return not self.is_held

    def sent(self, now: float) -> None:
        """A dead letter leaves, allowed or not (somebody asked for it by hand)."""
        self._window.add(now, 0, 1)

    def until(self, now: float) -> float:
        """The first moment, `now` or later, at which one may leave if nothing happens before."""
        if self.may_send(now):
            return now
        return next(at for at, ended, sent in self._window.outlook(now) if self._allows(ended, sent))

    def _allows(self, ended: int, sent: int) -> bool:
        """One more fits. Those sent are records of the window too, also while their end is still to come."""
        rules = self.rules
        limit = max(rules.at_least, rules.share * (max(ended, sent) + 1))
        return sent + 1 <= limit and not (self.is_held and sent > limit * _RESUME_SHARE)
