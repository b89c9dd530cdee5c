"""Looks at the members now and then for what no history shows: work beside a free slot, calls left hanging.

Lives here: what counts as a problem on two looks in a row. Never here: the laws, which the checkers judge.
Called by the world. Always: the watchdog mends a lost wake-up, so it has to be caught in the act.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncpar.testing.simulation.member import Member


class Watch:
    """What was seen on the last look, and what was found so far."""

    def __init__(self) -> None:
        self._suspected: frozenset[str] = frozenset()
        self._told: set[str] = set()

    def look(self, members: Iterable[Member]) -> list[str]:
        """What is wrong and was not told before, in a fixed order. To be called every half a second."""
        suspected: set[str] = set()
        found: set[str] = set()
        for member in members:
            found.update(member.neglected())
            suspected.update(member.unserved(), member.left_hanging())
        found |= suspected & self._suspected
        self._suspected = frozenset(suspected)
        new = sorted(found - self._told)
        self._told |= found
        return new
