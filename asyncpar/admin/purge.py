"""Purging dead letters: which records of each partition are to go, as far as Kafka can delete them.

Lives here: the plan and what it leaves. Never here: asking for confirmation, printing. Called by the command
line. Always: Kafka deletes the beginning of a partition's log and nothing else, so a plan is one offset for
each partition, and a filter cannot be part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from asyncpar.admin.dead_letters import LetterLog, Span, spans
from asyncpar.admin.replay_memory import recalled, require_within
from asyncpar.errors import ConfigurationError
from asyncpar.records import TopicPartition

Bound: TypeAlias = Literal["offset", "time", "replayed", "all"]


@dataclass(frozen=True, slots=True)
class PurgeRequest:
    """What is to be deleted of `topic`, in `partitions` (all when empty).

    `bound`: everything below the offset `at`, or older than `at` (milliseconds since the epoch), or what
    `group` remembers as replayed, or all.
    """

    topic: str
    bound: Bound
    at: int = 0
    group: str = ""
    partitions: tuple[int, ...] = ()


class Cut(NamedTuple):
    """Offsets from `first` up to `before` go. `stays`: replayed ones above, which cannot go by themselves."""

    first: int
    before: int
    end: int
    stays: int = 0

    @property
    def offsets(self) -> int:
        """How many offsets go: as many letters, but for holes."""
        return self.before - self.first


async def plan(log: LetterLog, request: PurgeRequest) -> dict[TopicPartition, Cut]:
    """What would be deleted of each partition, be it nothing.

    Raises UnknownTopicError, and ConfigurationError for an offset where it does not say of which partition,
    and where what the group remembers cannot be used.
    """
    found = await spans(log, request.topic, request.partitions)
    if request.bound == "offset" and len(found) > 1:
        raise ConfigurationError(
            f"--before {request.at} is an offset, and {request.topic!r} has {len(found)} partitions: say "
            "which one with --partition, or give a time"
        )
    if request.bound == "replayed":
        return await _replayed(log, request, found)
    if request.bound == "time":
        first_kept = await log.offsets_at(found, request.at)
        bounds = {tp: span.end if first_kept[tp] is None else first_kept[tp] for tp, span in found.items()}
    elif request.bound == "offset":
        bounds = dict.fromkeys(found, request.at)
    else:
        bounds = {tp: span.end for tp, span in found.items()}
    return {tp: _cut(span, bounds[tp]) for tp, span in found.items()}


async def _replayed(
    log: LetterLog, request: PurgeRequest, found: Mapping[TopicPartition, Span]
) -> dict[TopicPartition, Cut]:
    committed = await log.committed(request.group, found)
    cuts: dict[TopicPartition, Cut] = {}
    for tp, span in found.items():
        memory = recalled(tp, committed[tp], request.group)
        require_within(memory, span, request.group, "or say what to delete with --before")
        cuts[tp] = _cut(span, memory.hwm, stays=memory.above)
    return cuts


def _cut(span: Span, before: int | None, stays: int = 0) -> Cut:
    # A bound above the end would be refused, and one below the beginning deletes nothing.
    before = span.end if before is None else min(max(before, span.first), span.end)
    return Cut(span.first, before, span.end, stays)


async def carry_out(log: LetterLog, cuts: Mapping[TopicPartition, Cut]) -> dict[TopicPartition, int]:
    """Delete what `cuts` say; the first offsets that are left."""
    return await log.delete_before({tp: cut.before for tp, cut in cuts.items() if cut.offsets})
