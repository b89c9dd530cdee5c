"""Sending in batches: `BatchingProducer` is `asyncpar.ports.Producer` over anything that carries batches.

Lives here: which lane may send to which node when, what an answer means, deadlines, the end. Never here:
Kafka's bytes and connections (`aiokafka_producer_wire`); the in-memory broker carries batches too. Always:
at most one request per node and one batch per partition is under way; nobody waits longer than asked for; an
attempt is not cut short when its callers have gone, because only its end says what the next batch may be.

What callers may rely on beyond the port: while a partition cannot be written to, only the batch that was
under way has an unknown outcome. What waits behind it is dropped when its time is over, and was never sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Collection, Coroutine
from typing import Any

from aiokafka.partitioner import murmur2

from asyncpar.adapters.aiokafka_errors import code_name, one_line
from asyncpar.adapters.aiokafka_producer_lane import Batch, Entry, Lane, Numbers, Trouble
from asyncpar.adapters.aiokafka_producer_port import Answer, NotSentError, Wire
from asyncpar.adapters.aiokafka_producer_topics import (
    FORBIDDEN,
    FOUND,
    INVALID,
    UNKNOWN,
    Described,
    ProducerTopics,
)
from asyncpar.errors import PublishError
from asyncpar.ports import Late
from asyncpar.records import OutgoingRecord, TopicPartition

log = logging.getLogger(__name__)

# Brokers take requests of up to 100 MiB (`socket.request.max.bytes`) and hang up on a larger one.
RECORD_BYTES = 64 * 1024 * 1024
REQUEST_BYTES = 8 * 1024 * 1024
CLOSE_SECONDS = 1.0

_WRITTEN = frozenset({0, 46})  # 46: a copy of one that the broker has had for long
_TOO_LARGE = frozenset({10, 18})
_WRONG_RECORD = frozenset({32, 87})
_NO_RIGHT = frozenset({29, 31})
_MISNUMBERED = frozenset({45, 59})
_WRONG_ID = frozenset({47, 49, 90})
_LEADER_MOVED = frozenset({3, 5, 6})


class BatchingProducer:
    """`asyncpar.ports.Producer` over `wire`. Single-use: start once, stop once."""

    def __init__(self, wire: Wire, metadata_max_age_seconds: float) -> None:
        self._wire = wire
        self._topics = ProducerTopics(wire.describe, self._told, self._wake, metadata_max_age_seconds)
        self._lanes: dict[TopicPartition, Lane] = {}
        self._moving: dict[TopicPartition, Lane] = {}
        """The lanes where something waits."""
        self._busy: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns: defaultdict[str, int] = defaultdict(int)
        self._producer_id: int | None = None
        self._id_line = asyncio.Lock()
        self._is_woken = False
        self._is_started = False
        self._is_stopping = False
        self._is_stopped = False

    # -- life --------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect; see the port. Raises ConfigurationError for settings that do not fit."""
        try:
            await self._wire.connect()
        except BaseException:
            await self.stop(CLOSE_SECONDS)
            self._wire.abort()  # for one that was stopped while it started
            raise
        self._is_started = True

    async def stop(self, timeout_s: float) -> None:
        """Give what is under way some of the time, fail the rest, close; a second call does nothing."""
        if self._is_stopping:
            return
        self._is_stopping = True
        closing = min(CLOSE_SECONDS, timeout_s / 2)
        try:
            waiting = [entry.offset for lane in self._moving.values() for entry in lane.waiting()]
            if waiting:
                await asyncio.wait(waiting, timeout=timeout_s - closing)
            await _settle(self._end(), closing / 4)
            await _settle([asyncio.get_running_loop().create_task(self._wire.close())], closing / 4)
        finally:
            self._end()
            self._wire.abort()

    def _end(self) -> list[asyncio.Task[None]]:
        """Nothing is sent any more; the tasks to be waited for."""
        self._is_stopped = True
        for lane in self._moving.values():
            lane.fail(PublishError(f"record for {lane.tp} given up: the producer was stopped", "other"))
        for task in self._tasks:
            task.cancel()
        asking = self._topics.stop()
        return [task for task in (*self._tasks, asking) if task is not None]

    # -- what callers ask --------------------------------------------------------------------

    async def send(
        self, record: OutgoingRecord, timeout_s: float, late: Late | None = None
    ) -> tuple[TopicPartition, int]:
        """Write one record; see the port. Offset -1: it is there, and the broker forgot where."""
        self._check(record.topic)
        loop = asyncio.get_running_loop()
        began = loop.time()
        until = began + timeout_s
        try:
            async with asyncio.timeout_at(until):
                size = self._size_bytes(record)
                tp = TopicPartition(record.topic, await self._partition(record))
        except TimeoutError:
            raise PublishError(
                f"record for topic {record.topic!r} was not sent within {timeout_s} s: "
                f"{self._topics.trouble}",
                "unreachable",
            ) from None
        self._check(record.topic)
        lane = self._lanes.get(tp)
        if lane is None:
            lane = self._lanes[tp] = Lane(tp)
        entry = Entry(record, size, loop.create_future())
        lane.put(entry)
        self._moving[tp] = lane
        self._wake()
        try:
            while not await _ends(entry.offset, until - loop.time()):
                error = _too_late(lane, entry, loop.time() - began)
                if late is None or not lane.may_have_sent(entry):
                    raise error
                late(error)
                until += timeout_s
            return tp, entry.offset.result()
        finally:
            entry.offset.cancel()
            lane.drop(entry)

    async def partition_count(self, topic: str, timeout_s: float) -> int | None:
        """How many partitions `topic` has; see the port."""
        self._check(topic)
        try:
            async with asyncio.timeout(timeout_s):
                found = await self._topics.look_up(topic)
        except TimeoutError:
            raise PublishError(
                f"looking topic {topic!r} up failed within {timeout_s} s: {self._topics.trouble}",
                "unreachable",
            ) from None
        if found.code == FORBIDDEN:
            raise _no_right(topic)
        return len(found.leaders) if found.code == FOUND else None

    def _check(self, topic: str) -> None:
        if self._is_stopping or not self._is_started:
            state = "was stopped" if self._is_stopping else "was not started"
            raise PublishError(f"nothing is sent to topic {topic!r}: the producer {state}", "other")

    def _size_bytes(self, record: OutgoingRecord) -> int:
        try:
            size = self._wire.size_bytes(record)
        except (TypeError, ValueError, OverflowError, AttributeError) as error:
            raise PublishError(
                f"record for topic {record.topic!r} cannot be encoded ({one_line(error)}): key, value and "
                "values of headers are bytes, names of headers are text",
                "other",
            ) from error
        if size > RECORD_BYTES:
            raise PublishError(
                f"record for topic {record.topic!r} has {size} bytes: asyncpar sends {RECORD_BYTES} at most",
                "too_large",
            )
        return size

    async def _partition(self, record: OutgoingRecord) -> int:
        topic = record.topic
        leaders = self._topics.leaders(topic)
        if leaders is None or (record.partition is not None and record.partition not in leaders):
            found = await self._topics.look_up(topic)
            if (error := _topic_error(topic, found)) is not None:
                raise error
            leaders = found.leaders
        if record.partition is not None:
            if record.partition not in leaders:
                raise PublishError(
                    f"topic {topic!r} has no partition {record.partition}: it has {len(leaders)}",
                    "unknown_topic",
                )
            return record.partition
        if record.key is not None:
            # As Java's producers do: the same key goes the same way from everywhere.
            return (int(murmur2(record.key)) & 0x7FFFFFFF) % len(leaders)
        usable = sorted(part for part, leader in leaders.items() if leader != -1) or sorted(leaders)
        turn = self._turns[topic]
        self._turns[topic] = turn + 1
        return usable[turn % len(usable)]

    # -- sending -----------------------------------------------------------------------------

    def _wake(self) -> None:
        """Look for what can be sent, once those who run now have put what they have."""
        if not self._is_woken and not self._is_stopped:
            self._is_woken = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._is_woken = False
        if self._is_stopped:
            return
        ready: defaultdict[int, list[Lane]] = defaultdict(list)
        for tp, lane in list(self._moving.items()):
            if lane.is_busy or lane.pause_seconds:
                continue
            if not lane.is_waiting:
                del self._moving[tp]
                continue
            leader = self._topics.leader(tp)
            if leader is None:
                lane.trouble = Trouble("unreachable", f"{tp} has no leader that is known")
                self._topics.demand(tp.topic)
            elif leader not in self._busy:
                ready[leader].append(lane)
        for node, lanes in ready.items():
            self._busy.add(node)
            for lane in lanes:
                lane.is_busy = True
            self._spawn(self._serve(node, lanes))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name="asyncpar-producer")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, node: int, lanes: list[Lane]) -> None:
        """One request to `node` with a batch of each of `lanes`, as far as they fit."""
        try:
            await self._exchange(node, lanes)
        finally:
            self._busy.discard(node)
            for lane in lanes:
                lane.is_busy = False
                if lane.pause_seconds:
                    asyncio.get_running_loop().call_later(lane.pause_seconds, self._resume, lane)
            self._wake()

    def _resume(self, lane: Lane) -> None:
        lane.pause_seconds = 0.0
        self._wake()

    async def _exchange(self, node: int, lanes: list[Lane]) -> None:
        sent: dict[TopicPartition, Lane] = {}
        batches: dict[TopicPartition, Batch] = {}
        try:
            await self._give_numbers(lanes)
            room = REQUEST_BYTES
            for lane in lanes:
                if room > 0 and (batch := lane.batch()) is not None:
                    sent[lane.tp], batches[lane.tp] = lane, batch
                    room -= lane.size_bytes()
            answers = await self._wire.produce(node, batches) if batches else {}
        except Exception as error:
            if not isinstance(error, ConnectionError):
                log.exception("sending to node %s failed", node)
            trouble = Trouble("unreachable", one_line(error))
            for lane in lanes:
                if lane.tp in sent and not isinstance(error, NotSentError):
                    lane.may_be_written(trouble)
                else:
                    lane.was_not_sent(trouble)
                self._topics.demand(lane.tp.topic)
        else:
            for tp, lane in sent.items():
                self._judge(lane, answers[tp])

    async def _give_numbers(self, lanes: Collection[Lane]) -> None:
        """To lanes that have none. Raises NotSentError."""
        async with self._id_line:
            if self._producer_id is None:
                self._producer_id = await self._wire.producer_id()
            for lane in lanes:
                if lane.numbers is None:
                    lane.numbers = Numbers(self._producer_id, 0, 0)

    def _judge(self, lane: Lane, answer: Answer) -> None:
        code, tp = answer.code, lane.tp
        said = f"the broker answered {code_name(code)}"
        if code in _WRITTEN:
            lane.was_written(answer.offset)
        elif code in _TOO_LARGE:
            error = PublishError(
                f"record for {tp} is too large for its topic ({said}): raise its max.message.bytes",
                "too_large",
            )
            lane.was_found_wrong(error, is_size=True)
        elif code in _WRONG_RECORD:
            error = PublishError(f"record for {tp} was refused: {said}", "other")
            lane.was_found_wrong(error, is_size=False)
        elif code in _NO_RIGHT:
            lane.was_refused(_no_right(tp.topic))
        elif code in _MISNUMBERED or code in _WRONG_ID:
            log.warning("%s: %s to the numbers of a batch, which is sent with new ones", tp, said)
            if code in _WRONG_ID:
                self._producer_id = None
            lane.was_misnumbered(Trouble("other", said), needs_new_id=code in _WRONG_ID)
        else:
            lane.may_be_written(Trouble("unreachable" if code in _LEADER_MOVED else "other", said))
            if code in _LEADER_MOVED:
                self._topics.demand(tp.topic)

    def _told(self, topic: str, found: Described) -> None:
        """What waits for a topic that is gone fails now."""
        if (error := _topic_error(topic, found)) is None:
            return
        for lane in self._moving.values():
            if lane.tp.topic == topic and not lane.is_busy:
                lane.fail(error)


async def _ends(future: asyncio.Future[int], seconds: float) -> bool:
    """Whether `future` is done within `seconds`; it goes on if not."""
    if not future.done():
        await asyncio.wait([future], timeout=max(0.0, seconds))
    return future.done()


def _too_late(lane: Lane, entry: Entry, seconds: float) -> PublishError:
    reason, why = lane.trouble or Trouble("unreachable", "the broker has not answered yet")
    how = "may be there, but was not acknowledged" if lane.may_have_sent(entry) else "was not sent"
    return PublishError(f"record for {lane.tp} {how} within {round(seconds, 1)} s: {why}", reason)


async def _settle(tasks: Collection[asyncio.Task[None]], seconds: float) -> None:
    """Wait for `tasks`, cancel those that are still there, read how they ended."""
    if not tasks:
        return
    _, late = await asyncio.wait(tasks, timeout=seconds)
    for task in late:
        task.cancel()
    if late:
        await asyncio.wait(late, timeout=seconds)
    for task in tasks:
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            log.debug("closing a producer: %s", one_line(error))


def _topic_error(topic: str, found: Described) -> PublishError | None:
    if found.code == FORBIDDEN:
        return _no_right(topic)
    if found.code in (UNKNOWN, INVALID):
        return PublishError(
            f"topic {topic!r} does not exist: create it, asyncpar creates none", "unknown_topic"
        )
    return None


def _no_right(topic: str) -> PublishError:
    return PublishError(f"no right to write to topic {topic!r}: grant WRITE on it to this user", "forbidden")
