"""What a replay group remembers of one partition: which letters were replayed, in one committed position.

The offset says that everything below it was; the metadata beside it has the runs above it, in the form that
`core.offset_codec` gives to commits. Pure. Never here: reading or committing. Called by `replay` and `purge`.
Always: holes of the log (markers, what was compacted away) cost no room.
"""

from __future__ import annotations

from asyncpar.admin.dead_letters import Span
from asyncpar.core import offset_codec
from asyncpar.core.offsets import Run, is_within, merge_runs
from asyncpar.errors import ConfigurationError
from asyncpar.records import Committed, TopicPartition


class ReplayMemory:
    """Of `tp`: offsets that are done, as ascending runs of which the first begins at 0."""

    def __init__(self, tp: TopicPartition, done_below: int, runs: list[Run]) -> None:
        self.tp = tp
        self._runs = merge_runs([(0, done_below), *runs])
        self._sealed: tuple[list[Run], offset_codec.Encoded] | None = None
        """The last runs that were encoded: what was found to fit is usually what is committed next."""

    @property
    def hwm(self) -> int:
        """Everything below it is done; it itself is not."""
        return self._runs[0][1] if self._runs and self._runs[0][0] == 0 else 0

    @property
    def above(self) -> int:
        """How many offsets above the HWM are done."""
        return sum(end - first for first, end in self._runs if first > 0)

    @property
    def end(self) -> int:
        """Nothing is done from here on."""
        return self._runs[-1][1] if self._runs else 0

    def is_done(self, offset: int) -> bool:
        """True when `offset` was replayed, or does not exist."""
        return is_within(self._runs, offset)

    def add(self, first: int, end: int) -> None:
        """The offsets from `first` up to `end` are done."""
        self._runs = self._with(first, end)

    def add_hole(self, first: int, end: int) -> None:
        """There is no letter from `first` up to `end`. Noted only where that makes no run of its own."""
        if first == 0 or self.is_done(first - 1):
            self.add(first, end)

    def _with(self, first: int, end: int) -> list[Run]:
        runs = self._runs
        if first >= end:
            return runs
        if not runs or first > runs[-1][1]:
            return [*runs, (first, end)]
        if runs[-1][0] <= first:  # the usual case: it goes on where the last one ended
            return [*runs[:-1], (runs[-1][0], max(runs[-1][1], end))]
        return merge_runs([*runs, (first, end)])

    def has_room_for(self, offset: int) -> bool:
        """True when all that is done, with `offset` added, can be remembered."""
        runs = self._with(offset, offset + 1)
        if len(runs) <= 1 and (not runs or runs[0][0] == 0):
            return True
        return not self._encoded(runs).truncated

    def commit(self) -> Committed:
        """What to commit."""
        return Committed(self.hwm, self._encoded(self._runs).text)

    def _encoded(self, runs: list[Run]) -> offset_codec.Encoded:
        if self._sealed is None or self._sealed[0] != runs:
            begins_at_0 = bool(runs) and runs[0][0] == 0
            hwm, above = (runs[0][1], runs[1:]) if begins_at_0 else (0, runs)
            self._sealed = runs, offset_codec.encode(self.tp, hwm, above)
        return self._sealed[1]


def recalled(tp: TopicPartition, committed: Committed | None, group: str) -> ReplayMemory:
    """What `group` remembers. Raises ConfigurationError for metadata that says something else or is damaged.

    Guessing would replay again what was replayed.
    """
    if committed is None:
        return ReplayMemory(tp, 0, [])
    runs = offset_codec.decode(tp, committed.offset, committed.metadata)
    if isinstance(runs, offset_codec.Ignored):
        raise ConfigurationError(
            f"what group {group!r} remembers of {tp} cannot be used ({runs.value}): name another group with "
            "--replay-group, or replay regardless of it with --again"
        )
    return ReplayMemory(tp, committed.offset, runs)


def require_within(memory: ReplayMemory, span: Span, group: str, instead: str) -> None:
    """Raises ConfigurationError when `group` remembers letters above the end of `span`: others."""
    if memory.end > span.end:
        raise ConfigurationError(
            f"group {group!r} remembers {memory.tp} up to offset {memory.end}, but it ends at {span.end}: "
            f"the topic was made anew; name another group with --replay-group, {instead}"
        )
