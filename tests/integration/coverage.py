"""Which offsets a group's commits cover: what a restart must not run again, and what it must.

Called by tests of crashes. Reads what the broker holds, never the engine's own idea of it; only the format
of the metadata is asyncpar's, by its own codec.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from asyncpar.core.offset_codec import Ignored, decode
from asyncpar.records import TopicPartition
from asyncpar.testing.history import Event
from tests.kafka_tools import Committed, Produced


class Place(NamedTuple):
    """Where a record lies; equal to the plain tuple."""

    topic: str
    partition: int
    offset: int


def done_runs(topic: str, partition: int, commit: Committed) -> list[tuple[int, int]]:
    """The runs that a commit's metadata lists; fails when asyncpar would ignore it."""
    runs = decode(TopicPartition(topic, partition), commit.offset, commit.metadata)
    assert not isinstance(runs, Ignored), f"{topic}[{partition}]: {commit} is {runs}"
    return runs


def not_covered(topic: str, commits: Mapping[int, Committed], produced: Iterable[Produced]) -> set[Place]:
    """The produced records that `commits` do not declare done."""
    runs = {number: done_runs(topic, number, commit) for number, commit in commits.items()}

    def is_covered(partition: int, offset: int) -> bool:
        commit = commits.get(partition)
        if commit is None:
            return False
        return offset < commit.offset or any(first <= offset < end for first, end in runs[partition])

    return {
        Place(topic, record.partition, record.offset)
        for record in produced
        if not is_covered(record.partition, record.offset)
    }


def started(events: Iterable[Event], members: Collection[str]) -> list[Place]:
    """What `members` began to handle, in the order written."""
    return [_place(event) for event in events if event.kind == "start" and event.member in members]


def ended(events: Iterable[Event], members: Collection[str], how: str = "ok") -> list[Place]:
    """What `members` handled, in the order written; or where a call of theirs ended otherwise."""
    return [
        _place(event)
        for event in events
        if event.kind == "end" and event.detail == how and event.member in members
    ]


def _place(event: Event) -> Place:
    return Place(*event.tp, event.offset)
