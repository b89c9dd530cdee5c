"""What a dead letter says, and reading a topic of them from where it begins to where it ended at the start.

Lives here: `LetterLog`, the narrow face of the cluster that this folder asks, and `DeadLetter`, a record with
its headers read. Never here: Kafka's client, printing, a decision about a letter. Called by the command line.
Always: a letter may lack any header, because other programs write to such topics too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

from asyncpar import headers
from asyncpar.errors import ConfigurationError, OffsetOutOfRangeError
from asyncpar.records import Committed, RawRecord, TopicPartition


class LetterLog(Protocol):
    """The cluster, as far as dead letters need it.

    Every method raises ConnectError when the cluster cannot be reached or refuses.
    """

    async def partitions(self, topic: str) -> tuple[TopicPartition, ...]:
        """All partitions of `topic`, by number. Raises UnknownTopicError."""

    async def bounds(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, tuple[int, int]]:
        """First offset and end of each: what `read` can deliver lies between them."""

    async def offsets_at(
        self, partitions: Collection[TopicPartition], time_ms: int
    ) -> dict[TopicPartition, int | None]:
        """Of each the first offset whose record has a timestamp of `time_ms` or later, or None."""

    async def read(self, tp: TopicPartition, offset: int) -> tuple[list[RawRecord], int]:
        """Some records from `offset` on, and where the next read goes on, which is always further.

        `offset` must lie below the end. Raises OffsetOutOfRangeError when it was deleted.
        """

    async def delete_before(self, offsets: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """Delete the records below the offset given for each; the first offsets that are left."""

    async def committed(
        self, group: str, partitions: Collection[TopicPartition]
    ) -> dict[TopicPartition, Committed | None]:
        """What `group` has committed for each, or None."""

    async def commit(self, group: str, offsets: Mapping[TopicPartition, Committed]) -> None:
        """Commit for `group`. Raises ConfigurationError while it has members."""


@dataclass(frozen=True)
class DeadLetter:
    """One record of a dead-letter topic. Times are milliseconds since the epoch; None: it does not say."""

    tp: TopicPartition
    record: RawRecord

    @property
    def offset(self) -> int:
        """Where it lies in its partition."""
        return self.record.offset

    @property
    def place(self) -> str:
        """`orders.dlq[0]@12`."""
        return f"{self.tp}@{self.record.offset}"

    @cached_property
    def origin(self) -> tuple[TopicPartition, int] | None:
        """Where the record was read that failed."""
        return headers.origin(self.record.headers)

    @cached_property
    def when_ms(self) -> int:
        """When it failed last, else when the letter was written."""
        failed = self.number(headers.FAILED)
        return self.record.timestamp if failed is None else failed

    @property
    def is_metadata_only(self) -> bool:
        """True when the value was left out on purpose: there is nothing to be replayed."""
        return self.text(headers.PAYLOAD) == headers.METADATA_ONLY

    def text(self, name: str) -> str | None:
        """The header `name` of asyncpar's as text."""
        return headers.text(self.record.headers, name)

    def number(self, name: str) -> int | None:
        """The header `name` of asyncpar's as a number."""
        return headers.number(self.record.headers, name)

    @cached_property
    def identity(self) -> Hashable | None:
        """Equal for two letters of one record that one handler gave up; None without an origin.

        After a crash between the letter's acknowledgement and the commit a record fails again: a double. The
        key and the record's own time tell it from one of an earlier topic of the same name.
        """
        if self.origin is None:
            return None
        says = (headers.GROUP, headers.HANDLER, headers.TIMESTAMP)
        return (self.origin, *map(self.text, says), self.record.key)


class Doubles:
    """Tells a letter from an earlier one of the same record and handler. Grows with the letters noted."""

    def __init__(self) -> None:
        self._first: dict[int, tuple[TopicPartition, int]] = {}

    def first_of(self, letter: DeadLetter) -> tuple[TopicPartition, int] | None:
        """Where the letter lies that `letter` doubles; None when it is the first."""
        # Hashes instead of identities: a topic may hold millions of letters.
        first = None if letter.identity is None else self._first.get(hash(letter.identity))
        return None if first == (letter.tp, letter.offset) else first

    def note(self, letter: DeadLetter) -> None:
        """From now on a letter with the identity of `letter` is a double of it."""
        if letter.identity is not None:
            self._first.setdefault(hash(letter.identity), (letter.tp, letter.offset))


class Span(NamedTuple):
    """Offsets from `first` up to, not including, `end`."""

    first: int
    end: int


class Passage(NamedTuple):
    """Letters that lie one after another, and the offset up to which nothing else lies."""

    letters: list[DeadLetter]
    position: int


async def spans(log: LetterLog, topic: str, partitions: Collection[int] = ()) -> dict[TopicPartition, Span]:
    """Where each partition of `topic` begins and ends now; of `partitions` only, unless there are none.

    Raises UnknownTopicError, and ConfigurationError for a partition that the topic does not have.
    """
    existing = await log.partitions(topic)
    numbers = {tp.partition for tp in existing}
    for wanted in partitions:
        if wanted not in numbers:
            raise ConfigurationError(
                f"topic {topic!r} has no partition {wanted}: it has {len(numbers)}, from 0 to {max(numbers)}"
            )
    chosen = [tp for tp in existing if not partitions or tp.partition in partitions]
    bounds = await log.bounds(chosen)
    return {tp: Span(*bounds[tp]) for tp in chosen}


async def passages(log: LetterLog, tp: TopicPartition, span: Span) -> AsyncIterator[Passage]:
    """The letters of `span`, in the order of their offsets. What is deleted meanwhile is passed over."""
    position = span.first
    while position < span.end:
        try:
            records, going_on = await log.read(tp, position)
        except OffsetOutOfRangeError:
            first, _ = (await log.bounds([tp]))[tp]
            if first <= position:
                raise
            records, going_on = [], first
        position = min(going_on, span.end)
        yield Passage([DeadLetter(tp, one) for one in records if one.offset < span.end], position)


async def letters(log: LetterLog, wanted: Mapping[TopicPartition, Span]) -> AsyncIterator[DeadLetter]:
    """The letters of all spans, one partition after another."""
    for tp, span in wanted.items():
        async for passage in passages(log, tp, span):
            for letter in passage.letters:
                yield letter


async def letter_at(log: LetterLog, topic: str, partition: int, offset: int) -> DeadLetter:
    """The letter at one place. Raises ConfigurationError when there is none."""
    ((tp, span),) = (await spans(log, topic, [partition])).items()
    if not span.first <= offset < span.end:
        reach = (
            f"its offsets go from {span.first} to {span.end - 1}" if span.end > span.first else "it is empty"
        )
        raise ConfigurationError(f"{tp} has no offset {offset}: {reach}")
    async for passage in passages(log, tp, Span(offset, offset + 1)):
        for letter in passage.letters:
            return letter
    raise ConfigurationError(
        f"{tp} has no record at offset {offset}: it is a transaction's marker, or aborted, or compacted away"
    )
