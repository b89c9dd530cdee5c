"""A consumer's fetching: positions, what was fetched and not yet taken, waiting for more.

Lives here: the `RecordSource` face of the in-memory consumer. Never here: membership, offsets that are
committed. Called by `memory_consumer` (for the poller) and `memory_member` (what is assigned). Always: a
partition delivers nothing before a seek, and nothing once it is not wanted or not ours; waiting is for an
event, never a tick.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from functools import partial

from asyncpar.adapters.aiokafka_errors import no_right_on_topic
from asyncpar.errors import AsyncparError, FetchError, OffsetOutOfRangeError
from asyncpar.records import Chunk, TopicPartition
from asyncpar.testing.memory_broker import Fetched, MemoryBroker
from asyncpar.testing.memory_link import Code, LinkError, RefusedError, Waiter

# What one request brings of one partition: the buffer of a real client is bounded by bytes.
RECORDS_PER_REQUEST = 500
BACKOFF_SECONDS = 0.1


class _Buffered:
    """What was fetched of one partition and not taken yet."""

    __slots__ = ("code", "next_offset", "records")

    def __init__(self, answer: Fetched) -> None:
        self.code = answer.code
        self.records = answer.records
        self.next_offset = answer.next_offset


class MemoryFetch:
    """The fetching of consumer `name`. `check_group` raises what the group has to say, once."""

    def __init__(
        self,
        broker: MemoryBroker,
        name: str,
        committed: bool,
        request_timeout_s: float,
        check_group: Callable[[], None],
    ) -> None:
        self._broker = broker
        self._name = name
        self._committed = committed
        self._request_timeout_s = request_timeout_s
        self._check_group = check_group
        self._positions: dict[
            TopicPartition, int | None
        ] = {}  # None: assigned, but nobody has said from where
        self._stale: dict[TopicPartition, None] = {}  # worth asking for, the longest waiting one first
        self._buffer: dict[TopicPartition, _Buffered] = {}
        self._ends: dict[TopicPartition, tuple[int, int]] = {}
        self._held: AsyncparError | None = None
        self._waiter = Waiter()
        self._asking: asyncio.Task[None] | None = None
        self._asked: list[tuple[TopicPartition, int]] = []
        self._asked_at = 0.0
        self._epoch = 0
        self._is_suspended = True
        self._is_closed = False

    # -- what is assigned --------------------------------------------------------------------

    def suspend(self) -> None:
        """The group rebalances: nothing is delivered before the next assignment."""
        self._is_suspended = True

    def assign(self, partitions: Collection[TopicPartition], kept: Collection[TopicPartition] = ()) -> None:
        """`partitions` are ours; all but `kept` are parked, which means that they wait for a seek."""
        self._epoch += 1
        for tp in self._positions:
            if tp not in partitions or tp not in kept:
                self._unwatch(tp)
        self._positions = {tp: self._positions[tp] if tp in kept else None for tp in sorted(partitions)}
        for mine in (self._stale, self._buffer, self._ends):
            for tp in [tp for tp in mine if tp not in kept]:
                del mine[tp]
        self._stale.update(
            dict.fromkeys(sorted(kept))
        )  # what is under way for them belongs to an older assignment
        for tp in self._positions:
            if tp not in kept:
                self._broker.watch(tp, self._on_news)
        self._is_suspended = False
        self.wake()

    def _unwatch(self, tp: TopicPartition) -> None:
        self._broker.unwatch(tp, self._on_news)

    def _on_news(self, tp: TopicPartition) -> None:
        # Runs in the sender's context: it may note and wake, nothing else.
        if self._positions.get(tp) is not None:
            self._stale[tp] = None
            self.wake()

    def seek(self, tp: TopicPartition, offset: int) -> None:
        """The next fetch of `tp` starts at `offset`; ignored when it is not ours."""
        if tp in self._positions:
            self._positions[tp] = offset
            self._buffer.pop(tp, None)
            self._stale[tp] = None
            self.wake()

    def position(self, tp: TopicPartition) -> int | None:
        """The next offset that a fetch would deliver."""
        return self._positions.get(tp)

    def end_seen(self, tp: TopicPartition) -> tuple[int | None, int | None]:
        """`(high watermark, last stable offset)` of the last fetch of it."""
        return self._ends.get(tp, (None, None))

    # -- fetching ----------------------------------------------------------------------------

    async def fetch(
        self,
        wanted: Sequence[TopicPartition],
        max_records: int,
        timeout_ms: int,
        max_per_partition: int | None = None,
    ) -> list[Chunk]:
        """Records of `wanted`; see the port. [] once closed, not before `timeout_ms` is over."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_ms / 1000
        if self._is_closed:
            await asyncio.sleep(timeout_ms / 1000)
            return []
        if self._held is not None:
            held, self._held = self._held, None
            raise held
        while not self._is_closed:
            self._check_group()
            if self._is_suspended:
                await self._waiter.wait(None)
                continue
            if self._buffer and (chunks := self._take(wanted, max_records, max_per_partition or max_records)):
                return chunks
            now = loop.time()
            self._ask(wanted, now)
            if now >= deadline:
                break
            await self._waiter.wait(deadline)
        return []

    def wake(self) -> None:
        """Let a fetch that waits look again."""
        self._waiter.wake()

    def _take(self, wanted: Sequence[TopicPartition], max_records: int, share: int) -> list[Chunk]:
        """Move up to `max_records` out of the buffer, `share` of each; an error comes after the others."""
        among = set(wanted)
        chunks: list[Chunk] = []
        for tp in [tp for tp in self._buffer if tp in among]:
            if max_records <= 0:
                break
            found = self._buffer[tp]
            if found.code is not None:
                error = self._error(tp, self._buffer.pop(tp))
                if not chunks:
                    raise error
                self._held = error
                break
            records = found.records
            del self._buffer[tp]
            room = min(max_records, share)
            if len(records) > room:
                records, found.records = records[:room], records[room:]
                self._buffer[tp] = found  # at the end: the others come first
                self._positions[tp] = records[-1].offset + 1
            else:
                self._positions[tp] = found.next_offset
            if records:
                max_records -= len(records)
                chunks.append(Chunk(tp.topic, tp.partition, records))
        return chunks

    def _error(self, tp: TopicPartition, found: _Buffered) -> AsyncparError:
        self._stale[tp] = None
        offset = found.next_offset
        if found.code is Code.OFFSET_OUT_OF_RANGE:
            return OffsetOutOfRangeError({tp: offset})
        if found.code is Code.TOPIC_AUTHORIZATION_FAILED:
            return no_right_on_topic(repr(tp.topic))
        text = f"fetch {tp} at offset {offset} failed: {found.code!r}"
        return FetchError(text, partition=tp, offset=offset, unreadable=True)

    # -- asking the broker -------------------------------------------------------------------

    def _ask(self, wanted: Sequence[TopicPartition], now: float) -> None:
        """Begin a request for what may have more, unless one is under way."""
        if self._asking is not None:
            if now - self._asked_at < self._request_timeout_s:
                return
            self._asking.cancel()
            self._asking = None
            self._again(self._asked)
        if not self._stale:
            return
        among = set(wanted)
        asked: list[tuple[TopicPartition, int]] = []
        for tp in self._stale:
            position = self._positions[tp]
            if tp in among and position is not None and tp not in self._buffer:
                asked.append((tp, position))
        if asked:
            for tp, _ in asked:
                del self._stale[tp]
            self._asked, self._asked_at = asked, now
            self._asking = asyncio.get_running_loop().create_task(self._request(asked, self._epoch))

    async def _request(self, asked: list[tuple[TopicPartition, int]], epoch: int) -> None:
        task = asyncio.current_task()
        try:
            answers = await self._broker.ask(
                "Fetch",
                self._name,
                partial(self._broker.fetch, asked, RECORDS_PER_REQUEST, self._committed),
            )
        except RefusedError as refused:
            answers = {tp: Fetched(refused.code, [], at, False, -1, -1) for tp, at in asked}
        except LinkError:
            answers = {}
        pause = self._note(asked, answers) if epoch == self._epoch else self._again(asked)
        if pause:
            await asyncio.sleep(BACKOFF_SECONDS)
        if self._asking is task:
            self._asking = None
            self.wake()

    def _again(self, asked: list[tuple[TopicPartition, int]]) -> bool:
        """An answer of an older assignment is dropped: what we still have is asked for again."""
        self._stale.update((tp, None) for tp, _ in asked if self._positions.get(tp) is not None)
        return False

    def _note(self, asked: list[tuple[TopicPartition, int]], answers: dict[TopicPartition, Fetched]) -> bool:
        """Buffer `answers`; True when there is a reason to wait before the next request."""
        pause = False
        for tp, position in asked:
            answer = answers.get(tp)
            if self._positions.get(tp) != position:
                continue  # sought meanwhile, which asks again by itself
            if answer is None or answer.code not in _TOLD:
                pause = True
                self._stale[tp] = None
                continue
            if answer.code is None:
                self._ends[tp] = (answer.high_watermark, answer.last_stable_offset)
                if answer.has_more:
                    self._stale[tp] = None
                if answer.next_offset == position:
                    continue
            self._buffer[tp] = _Buffered(answer)
        return pause

    # -- the end -----------------------------------------------------------------------------

    async def close(self) -> None:
        """End a fetch that waits, and the request under way."""
        self._is_closed = True
        self.wake()
        for tp in self._positions:
            self._unwatch(tp)
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait({self._asking})


# Answers that are passed on; any other is asked again, which is what the client does.
_TOLD = {None, Code.OFFSET_OUT_OF_RANGE, Code.TOPIC_AUTHORIZATION_FAILED, Code.CORRUPT_MESSAGE}
