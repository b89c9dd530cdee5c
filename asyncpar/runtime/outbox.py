"""Records on their way to another topic, dead letters and retries: done once that topic acknowledged them.

Always true: the key of a record that leaves stays locked until its acknowledgement, so what leaves a key
leaves in order; nothing is done that was not acknowledged. When a topic does not take them, only the
partition that they came from is held (it is not fetched), they are tried again for as long as it lasts,
and the reason is logged once, shown in the status and counted.

Called by workers (`take`), by the rebalancer (`idle`, `discard`) and by the runtime (`start`, `close`).
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from asyncpar.core.backoff import exp_full_jitter
from asyncpar.core.virtual_partitions import Queues, VirtualPartition
from asyncpar.errors import PublishError, UnknownTopicError
from asyncpar.ports import Producer, ProducerFactory
from asyncpar.records import OutgoingRecord, RawRecord, TopicPartition
from asyncpar.runtime.group_state import GroupState
from asyncpar.runtime.tally import count

DEPARTURES = "records that leave it"
"""What holds a partition whose records cannot leave."""
_TOGETHER = 100
"""So many of a partition's records are under way at once: what shares requests."""
_SEND_SECONDS = 10.0
_START_SECONDS = 10.0
_STOP_SECONDS = 3.0
_FIRST_PAUSE_MS = 200
_LONGEST_PAUSE_MS = 30_000


@dataclass(slots=True, eq=False)
class Departure:
    """A record that leaves: where it comes from, what is written, and how it is counted."""

    vp: VirtualPartition
    record: RawRecord
    outgoing: OutgoingRecord
    kind: str
    """dead_letter | retry"""
    handler: str
    may_leave: Callable[[float], float] | None = None
    """Asked at a moment before its first try: the seconds that it has to wait; 0.0: it may leave."""


class Outbox:
    """All departures of one group: one task per partition that has any, one producer for all."""

    def __init__(
        self,
        state: GroupState,
        producers: ProducerFactory,
        died: Callable[[BaseException], None],
        departed: Callable[[Departure], None] = lambda _: None,
    ) -> None:
        self._state = state
        self._producers = producers
        self._died = died
        self._departed = departed
        self._context = contextvars.copy_context()
        """Of the group: what a handler set (a span, a tenant) must not travel with another one's record."""
        self._producer: Producer | None = None
        self._waiting: dict[TopicPartition, deque[Departure]] = {}
        self._tasks: dict[TopicPartition, asyncio.Task[None]] = {}
        self.sent: dict[tuple[str, str, str], int] = {}
        """By kind, handler and result (sent, failed): records acknowledged, and attempts that were not."""

    # -- life --------------------------------------------------------------------------------

    async def start(self, topics: Iterable[tuple[str, str]]) -> None:
        """Connect, and see that each of `topics`, (handler, topic), exists.

        Raises UnknownTopicError, ConnectError, and PublishError when that cannot be found out.
        """
        self._producer = self._producers()
        await self._producer.start()
        for handler, topic in topics:
            if await self._producer.partition_count(topic, _START_SECONDS) is None:
                raise UnknownTopicError(
                    f"handler {handler}: its topic {topic!r} for what fails does not exist; create it, "
                    "asyncpar creates no topics"
                )

    async def close(self) -> None:
        """Give up what has not left, and close, within a bound. What was given up runs again."""
        tasks = set(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._producer is not None:
            await self._producer.stop(_STOP_SECONDS)

    # -- in ----------------------------------------------------------------------------------

    def take(self, departure: Departure) -> None:
        """`departure` leaves as soon as it can; the head of its key stays unfinished until then."""
        tp = departure.vp.queues.partition
        self._waiting.setdefault(tp, deque()).append(departure)
        if tp not in self._tasks:
            self._tasks[tp] = task = asyncio.get_running_loop().create_task(
                self._serve(tp), name=f"asyncpar-outbox-{tp}", context=self._context.copy()
            )
            task.add_done_callback(lambda task: self._ended(tp, task))

    def _ended(self, tp: TopicPartition, task: asyncio.Task[None]) -> None:
        if self._tasks.get(tp) is task:
            del self._tasks[tp]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._died(error)

    def waiting(self, tp: TopicPartition) -> frozenset[int]:
        """The offsets of `tp` that are on their way."""
        return frozenset(departure.record.offset for departure in self._waiting.get(tp, ()))

    def count_waiting(self) -> int:
        """How many records are on their way."""
        return sum(map(len, self._waiting.values()))

    # -- out ---------------------------------------------------------------------------------

    async def idle(self, partitions: Iterable[TopicPartition], seconds: float) -> bool:
        """True when nothing of `partitions` is on its way any more, within `seconds`."""
        tasks = {self._tasks[tp] for tp in partitions if tp in self._tasks}
        if not tasks:
            return True
        _, late = await asyncio.wait(tasks, timeout=max(0.0, seconds))
        return not late

    def discard(self, queues: Queues) -> None:
        """Give up what comes from `queues`: its partition is not ours any more, or begins anew.

        What was sent already may still arrive: it will be there twice, and is recognised by its headers.
        """
        tp = queues.partition
        kept = deque(
            departure for departure in self._waiting.get(tp, ()) if departure.vp.queues is not queues
        )
        self._waiting[tp] = kept
        if not kept:
            self._waiting.pop(tp)
            self._state.let_go(tp, DEPARTURES)
            if (task := self._tasks.pop(tp, None)) is not None:
                task.cancel()

    async def _serve(self, tp: TopicPartition) -> None:
        """Send what waits of one partition, until nothing does."""
        tries = 0
        state = self._state
        while batch := tuple(self._waiting.get(tp, ()))[:_TOGETHER]:
            pauses = await asyncio.gather(*(self._send(tp, departure) for departure in batch))
            waits = [pause for pause in pauses if pause]
            if not waits:
                tries = 0
                state.let_go(tp, DEPARTURES)
                continue
            tries += 1
            pause = min(waits)
            if pause < 0:
                pause = exp_full_jitter(tries, _FIRST_PAUSE_MS, _LONGEST_PAUSE_MS, state.clock.uniform())
            await asyncio.sleep(pause)
        # In one breath with the look that found nothing: who takes a record from here on starts another task.
        self._waiting.pop(tp, None)
        del self._tasks[tp]
        state.let_go(tp, DEPARTURES)

    async def _send(self, tp: TopicPartition, departure: Departure) -> float:
        """0.0 when it has left; else how long to wait, negative: the usual pause."""
        assert self._producer is not None
        state = self._state
        target = departure.outgoing.topic
        if departure.may_leave is not None:
            wait = departure.may_leave(state.clock.monotonic())
            if wait > 0:
                state.hold(
                    tp, DEPARTURES, f"the dead-letter budget of handler {departure.handler} is used up"
                )
                return wait
            departure.may_leave = None

        def refused(error: PublishError) -> None:
            count(self.sent, (departure.kind, departure.handler, "failed"))
            state.hold(tp, DEPARTURES, f"{target} does not take offset {departure.record.offset}: {error}")

        try:
            await self._producer.send(departure.outgoing, _SEND_SECONDS, refused)
        except PublishError as error:
            refused(error)
            return -1.0
        count(self.sent, (departure.kind, departure.handler, "sent"))
        self._departed(departure)
        self._settle(tp, departure)
        return 0.0

    def _settle(self, tp: TopicPartition, departure: Departure) -> None:
        """It was acknowledged: its record is done."""
        waiting = self._waiting.get(tp)
        if waiting is not None and departure in waiting:
            waiting.remove(departure)
        vp, offset = departure.vp, departure.record.offset
        queues = vp.queues
        if queues.unfinished.pop(offset, None) is None:
            self._state.late_completion(vp, offset, ok=True)
            return
        route = queues.finish(vp)
        if route is not None:
            self._state.wake(route)
