"""Replaying dead letters: back to the topic that they came from, each once, in the order in which they lie.

Lives here: the course of a replay, what is skipped and why, when what was done is committed. Never here:
signals, printing, connections. Called by the command line. Always: a letter counts as replayed only when it
was acknowledged, and what is committed never counts one that was not; so a replay that is killed writes at
most those again that were acknowledged since the last commit, `commit_every` of them.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from asyncpar import headers
from asyncpar.admin.dead_letters import DeadLetter, Doubles, LetterLog, Span, passages, spans
from asyncpar.admin.filters import LetterFilter, NamesSeen
from asyncpar.admin.replay_memory import ReplayMemory, recalled, require_within
from asyncpar.core.rate_limit import RateRules, TokenBucket
from asyncpar.errors import (
    AsyncparError,
    AuthorizationError,
    BrokerUnreachableError,
    ConfigurationError,
    EngineError,
    PublishError,
    UnknownTopicError,
)
from asyncpar.ports import Producer
from asyncpar.records import Committed, OutgoingRecord, TopicPartition

COMMIT_SECONDS = 1.0
"""What was acknowledged is committed after so long at the latest."""
SEND_SECONDS = 30.0
PLACES_NAMED = 5
_PUBLISH_ERRORS: Mapping[str, type[AsyncparError]] = {
    "unreachable": BrokerUnreachableError,
    "forbidden": AuthorizationError,
    "unknown_topic": UnknownTopicError,
}


def default_group(topic: str) -> str:
    """The group that remembers what was replayed from `topic`."""
    return f"asyncpar-dlq-replay-{topic}"


@dataclass(frozen=True, slots=True)
class ReplayRequest:
    """What is to be replayed, and how.

    `partitions`: all when empty. `to`: instead of the topic of each letter's origin. `per_second`: at most so
    many letters. `again`: also those that the group remembers. `commit_every`: letters between two commits.
    """

    topic: str
    group: str
    wanted: LetterFilter = field(default_factory=LetterFilter)
    partitions: tuple[int, ...] = ()
    to: str | None = None
    limit: int | None = None
    per_second: float | None = None
    again: bool = False
    commit_every: int = 1


@dataclass(slots=True)
class ReplayReport:
    """What a replay did. Letters are counted once, by the first of these that holds."""

    replayed: Counter[str] = field(default_factory=Counter)
    """By topic written to."""
    filtered: int = 0
    """Not meant by the filters."""
    remembered: int = 0
    """Replayed before, as the group remembers."""
    metadata_only: int = 0
    """Without the value that would be replayed; left as they are."""
    doubles: int = 0
    """Of a letter that was replayed; they count as replayed too."""
    without_origin: int = 0
    """Left: they do not say where they came from, and no `to` was given."""
    own_topic: int = 0
    """Left: they came from the topic in which they lie, and no `to` was given."""
    too_large: int = 0
    """Left: the topic that they came from does not take records of that size."""
    left: list[str] = field(default_factory=list)
    """The places of the first ones that were left for one of these three reasons."""
    interrupted: bool = False
    limited: bool = False
    memory_full: str = ""
    """The place of the letter that could not have been remembered: it ended there."""

    @property
    def is_complete(self) -> bool:
        """True when no letter that was meant was left for a reason that somebody has to see to."""
        return not (self.without_origin or self.own_topic or self.too_large or self.memory_full)

    def name(self, letter: DeadLetter) -> None:
        """`letter` is left."""
        if len(self.left) < PLACES_NAMED:
            self.left.append(letter.place)


class Replay:
    """One replay, to be run once. Without a `producer` nothing is written and nothing committed.

    `stop`: set, it ends after the letter that is under way. `advanced(offsets)` is told how far it came,
    `announce(letter, topic)` what is written, or would be.
    """

    def __init__(
        self,
        request: ReplayRequest,
        log: LetterLog,
        producer: Producer | None,
        stop: asyncio.Event,
        advanced: Callable[[int], None],
        announce: Callable[[DeadLetter, str], None],
    ) -> None:
        self.report = ReplayReport()
        self._request = request
        self._log = log
        self._producer = producer
        self._stop = stop
        self._advanced = advanced
        self._announce = announce
        rate = request.per_second
        # What a tenth of a second brings may pile up: else a late wake-up would be lost for good.
        self._bucket = None if rate is None else TokenBucket(RateRules(rate, max(1, int(rate / 10))))
        self._memories: dict[TopicPartition, ReplayMemory] = {}
        self._firsts: dict[TopicPartition, int] = {}
        """Where each partition begins."""
        self._committed: dict[TopicPartition, Committed] = {}
        self._others: dict[TopicPartition, Committed | None] = {}
        """What the group had committed for partitions that are not meant."""
        self._doubles = Doubles()
        self._known_topics: set[str] = set()
        self.names = NamesSeen()
        self._changed: set[TopicPartition] = set()
        self._uncommitted = 0
        self._committed_at = self._alone_at = time.monotonic()

    # -- the course --------------------------------------------------------------------------

    async def plan(self) -> dict[TopicPartition, Span]:
        """What will be read: from the first letter that the group does not remember to the end.

        Raises ConfigurationError where what the group remembers cannot be used.
        """
        request = self._request
        found = await spans(self._log, request.topic, request.partitions)
        every = found
        if request.partitions and not request.again:
            # Of the others, too: the double of a letter without a key may lie in any partition.
            every = {**await spans(self._log, request.topic, ()), **found}
        before = await self._log.committed(request.group, every)
        self._others = {tp: before[tp] for tp in every.keys() - found.keys()}
        for tp, span in every.items():
            memory = self._recall(tp, before[tp], span)
            self._memories[tp] = memory
            self._firsts[tp] = span.first
            memory.add(0, span.first)
        self._changed.update(found)
        if not request.again:
            for tp, span in found.items():
                found[tp] = Span(max(span.first, min(self._memories[tp].hwm, span.end)), span.end)
        if self._producer is not None:
            # Also what tells, before anything is written, whether the group can be committed for.
            await self._commit()
        return found

    def _recall(self, tp: TopicPartition, before: Committed | None, span: Span) -> ReplayMemory:
        request = self._request
        try:
            memory = recalled(tp, before, request.group)
            require_within(memory, span, request.group, "or replay regardless of it with --again")
        except ConfigurationError:
            if not request.again:
                raise
            memory = ReplayMemory(tp, 0, [])
        return memory

    async def run(self, planned: Mapping[TopicPartition, Span]) -> ReplayReport:
        """Replay what `plan` gave. Raises AsyncparError; what was done is committed and in `report` then."""
        try:
            if not self._request.again and any(span.end > span.first for span in planned.values()):
                await self._recognise()
            for tp, span in planned.items():
                if not await self._run_partition(tp, span):
                    break
        except Exception:
            with suppress(AsyncparError):  # the first error is the one to be told
                await self._commit()
            raise
        await self._commit()
        return self.report

    async def _recognise(self) -> None:
        """Read what was replayed before: a double of it, in whichever partition, is not replayed again."""
        for tp, memory in self._memories.items():
            async for passage in passages(self._log, tp, Span(self._firsts[tp], memory.end)):
                for letter in passage.letters:
                    self.names.note(letter)
                    if memory.is_done(letter.offset):
                        self._doubles.note(letter)
                if self._stop.is_set():
                    return

    async def _run_partition(self, tp: TopicPartition, span: Span) -> bool:
        """Replay the letters of `span`; False when all is to end."""
        memory, position = self._memories[tp], span.first
        async for passage in passages(self._log, tp, span):
            self._changed.add(tp)
            for letter in passage.letters:
                memory.add_hole(position, letter.offset)
                if not await self._take(letter, memory):
                    return False
                self._advanced(letter.offset + 1 - position)
                position = letter.offset + 1
            self._changed.add(tp)
            memory.add_hole(position, passage.position)
            self._advanced(passage.position - position)
            position = passage.position
            self.report.interrupted = self._stop.is_set()
            if self.report.interrupted:
                return False
        return True

    # -- one letter --------------------------------------------------------------------------

    async def _take(self, letter: DeadLetter, memory: ReplayMemory) -> bool:
        """Replay `letter` or pass it over; False, and nothing done, when all is to end."""
        report = self.report
        self.names.note(letter)
        was_replayed = memory.is_done(letter.offset)
        if was_replayed and not self._request.again:
            self._doubles.note(letter)
            report.remembered += 1
        elif not self._request.wanted.accepts(letter):
            report.filtered += 1
        elif letter.is_metadata_only:
            report.metadata_only += 1
        elif not memory.has_room_for(letter.offset):
            report.memory_full = letter.place
            return False
        elif self._doubles.first_of(letter) is not None:
            self._remember(letter, memory)
            report.doubles += 1
        else:
            return await self._send(letter, memory)
        return True

    def _remember(self, letter: DeadLetter, memory: ReplayMemory) -> None:
        memory.add(letter.offset, letter.offset + 1)
        self._changed.add(letter.tp)

    async def _send(self, letter: DeadLetter, memory: ReplayMemory) -> bool:
        topic = self._request.to or (letter.origin and letter.origin[0].topic)
        if not topic or topic == letter.tp.topic:
            self.report.without_origin += not topic
            self.report.own_topic += bool(topic)
            self.report.name(letter)
            return True
        if not await self._may_go_on():
            return False
        await self._require(topic, letter)
        self._announce(letter, topic)
        if self._producer is None or await self._write(self._producer, letter, topic):
            self.report.replayed[topic] += 1
            self._doubles.note(letter)
            self._remember(letter, memory)
            self._uncommitted += 1
            if self._uncommitted >= self._request.commit_every or self._is_commit_due(0.0):
                await self._commit()
        return True

    async def _may_go_on(self) -> bool:
        """Wait for the rate; False when it is to end instead."""
        report = self.report
        report.limited = report.replayed.total() == self._request.limit
        if report.limited:
            return False
        while not self._stop.is_set():
            wait = 0.0
            if self._bucket is not None and self._producer is not None:
                wait = self._bucket.take(time.monotonic())
            if wait == 0.0:
                return True
            if self._uncommitted and self._is_commit_due(wait):
                await self._commit()
                continue
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), wait)
        report.interrupted = True
        return False

    async def _require(self, topic: str, letter: DeadLetter) -> None:
        if topic in self._known_topics:
            return
        try:
            await self._log.partitions(topic)
        except UnknownTopicError as error:
            whence = "" if self._request.to else f", where letter {letter.place} comes from"
            raise UnknownTopicError(
                f"topic {topic!r}{whence}, does not exist: create it, or name another one with --to"
            ) from error
        self._known_topics.add(topic)

    async def _write(self, producer: Producer, letter: DeadLetter, topic: str) -> bool:
        """True once it is acknowledged, False when it is too large for `topic`. Raises AsyncparError."""
        try:
            await producer.send(replayed_record(letter, topic), SEND_SECONDS)
        except PublishError as error:
            if error.reason == "too_large":
                self.report.too_large += 1
                self.report.name(letter)
                return False
            kind = _PUBLISH_ERRORS.get(error.reason, EngineError)
            raise kind(f"letter {letter.place}: {error}; it was not counted as replayed") from error
        return True

    # -- what is remembered ------------------------------------------------------------------

    def _is_commit_due(self, in_seconds: float) -> bool:
        return time.monotonic() + in_seconds >= self._committed_at + COMMIT_SECONDS

    async def _commit(self) -> None:
        """Commit what changed. Raises EngineError when somebody else commits for the group, too."""
        if self._producer is None:
            return
        now = {tp: self._memories[tp].commit() for tp in self._changed}
        news = {tp: at for tp, at in now.items() if self._committed.get(tp) != at}
        if news:
            if time.monotonic() >= self._alone_at + COMMIT_SECONDS:
                await self._require_solitude()
                self._alone_at = time.monotonic()
            await self._log.commit(self._request.group, news)
            self._committed.update(news)
        self._changed.clear()
        self._uncommitted = 0
        self._committed_at = time.monotonic()

    async def _require_solitude(self) -> None:
        """Two replays of one group would write each letter twice: see that ours is the only one."""
        group = self._request.group
        expected = {**self._others, **self._committed}
        found = await self._log.committed(group, expected)
        for tp, at in expected.items():
            if found[tp] != at:
                raise EngineError(
                    f"another replay of {tp} with group {group!r} runs, or its offsets were changed: letters "
                    "may be doubled; run one at a time, or each with a --replay-group of its own"
                )


def replayed_record(letter: DeadLetter, topic: str) -> OutgoingRecord:
    """`letter` on its way to `topic`: same key, value and headers, one replay more, due at once."""
    record = letter.record
    values = [
        (headers.REPLAYED, (letter.number(headers.REPLAYED) or 0) + 1),
        (headers.NOT_BEFORE, None),
    ]
    return OutgoingRecord(topic, record.key, record.value, headers.with_values(record.headers, values))
