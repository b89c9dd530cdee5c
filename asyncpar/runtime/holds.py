"""Partitions that are not fetched because their handler cannot work: its breaker is open, no child starts.

Never here: whether it can. Made by `admission.Gate` and `bridges.BridgeWatch`. Always: only partitions whose
records all go to that one handler are held, those that are opened meanwhile too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from asyncpar.records import TopicPartition

if TYPE_CHECKING:
    from asyncpar.runtime.workers import HandlerPool


class Trouble(NamedTuple):
    """Why nothing of a handler starts, or leaves, in words; and since when, monotonic seconds."""

    why: str
    since: float


class HandlerHold:
    """Of one handler, for one cause; `who` names it. Its owner logs when it begins and ends."""

    def __init__(self, pool: HandlerPool, who: str) -> None:
        self._pool = pool
        self._who = who
        self._why: str | None = None
        self.since = 0.0
        """When it began last: monotonic seconds."""

    @property
    def is_on(self) -> bool:
        """Whether it holds now."""
        return self._why is not None

    def begin(self, why: str) -> None:
        """Hold all partitions of the handler, because of `why`."""
        self._why = why
        self.since = self._pool.state.clock.monotonic()
        for tp in self._pool.state.partitions:
            self.hold_new(tp)

    def hold_new(self, tp: TopicPartition) -> None:
        """`tp` was opened: it is held as long as the others are."""
        state = self._pool.state
        if self._why is not None and state.pools_for(tp.topic) == [self._pool]:
            state.hold(tp, self._who, self._why, is_told=True)

    def end(self) -> None:
        """Fetching goes on."""
        self._why = None
        state = self._pool.state
        for tp in list(state.holds):
            if state.pools_for(tp.topic) == [self._pool]:  # two handlers may have one name
                state.let_go(tp, self._who, is_told=True)
