"""Records on their way to another topic, dead letters and retries: done once that topic acknowledged them.

Always true: the key of a record that leaves stays locked until its acknowledgement, so what leaves a key
leaves in order; no record waits for another one's acknowledgement, or for a budget that is not its own;
nothing is done that was not acknowledged. When a topic does not take one, only the partition that it came
from is held (it is not fetched), it is tried again for as long as it lasts, and the reason is logged once,
shown in the status and counted.

Called by workers (`take`), by the rebalancer (`idle`, `discard`) and by the runtime (`start`, `close`).
"""

from __future__ import annotations

import asyncio
import contextvars
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
    held_until: float = float("-inf")
    """When it may ask again, monotonic seconds."""


class Outbox:
    """All departures of one group: one task for each, one producer for all."""

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
        self._waiting: dict[TopicPartition, dict[Departure, asyncio.Task[None]]] = {}
        self._refused: dict[TopicPartition, dict[Departure, str]] = {}
        """Why those have not left that their topic, or their budget, did not take at the last try."""
        self._tasks: set[asyncio.Task[None]] = set()
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
        tasks = set(self._tasks)
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
        task = asyncio.get_running_loop().create_task(
            self._leave(tp, departure),
            name=f"asyncpar-outbox-{tp}@{departure.record.offset}",
            context=self._context.copy(),
        )
        self._waiting.setdefault(tp, {})[departure] = task
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
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
        """True when nothing of `partitions` is on its way any more, within `seconds`.

        What its budget holds for longer is not waited for: nothing would come of it.
        """
        ends = self._state.clock.monotonic() + seconds
        leaving = [one for tp in partitions for one in self._waiting.get(tp, {}).items()]
        tasks = [task for departure, task in leaving if departure.held_until <= ends]
        if tasks:
            await asyncio.wait(tasks, timeout=max(0.0, seconds))
        return all(task.done() for _, task in leaving)

    def is_sending(self, tp: TopicPartition) -> bool:
        """Something of `tp` has had its first try: it may be there already, or be written any moment."""
        return any(departure.may_leave is None for departure in self._waiting.get(tp, ()))

    def discard(self, queues: Queues) -> None:
        """Give up what comes from `queues`: its partition is not ours any more, or begins anew.

        What was sent already may still arrive: it will be there twice, and is recognised by its headers.
        """
        tp = queues.partition
        for departure, task in list(self._waiting.get(tp, {}).items()):
            if departure.vp.queues is queues:
                self._forget(tp, departure)
                task.cancel()

    def _forget(self, tp: TopicPartition, departure: Departure) -> None:
        """It is not on its way any more."""
        waiting = self._waiting.get(tp, {})
        waiting.pop(departure, None)
        if not waiting:
            self._waiting.pop(tp, None)
        refused = self._refused.get(tp, {})
        if refused.pop(departure, None) is None:
            return
        if refused:
            self._state.hold(tp, DEPARTURES, next(iter(refused.values())))
        else:
            del self._refused[tp]
            self._state.let_go(tp, DEPARTURES)

    def _refuse(self, tp: TopicPartition, departure: Departure, why: str) -> None:
        """It cannot leave now: what it came from is not fetched until it could."""
        self._refused.setdefault(tp, {})[departure] = why
        self._state.hold(tp, DEPARTURES, why)

    async def _leave(self, tp: TopicPartition, departure: Departure) -> None:
        """Try until it has left."""
        tries = 0
        while not await self._send(tp, departure):
            tries += 1
            chance = self._state.clock.uniform()
            await asyncio.sleep(exp_full_jitter(tries, _FIRST_PAUSE_MS, _LONGEST_PAUSE_MS, chance))

    async def _send(self, tp: TopicPartition, departure: Departure) -> bool:
        """One try, once its budget lets it go; True when it has left."""
        assert self._producer is not None
        await self._let_go(tp, departure)

        def refused(error: PublishError) -> None:
            count(self.sent, (departure.kind, departure.handler, "failed"))
            target, offset = departure.outgoing.topic, departure.record.offset
            self._refuse(tp, departure, f"{target} does not take offset {offset}: {error}")

        try:
            await self._producer.send(departure.outgoing, _SEND_SECONDS, refused)
        except PublishError as error:
            refused(error)
            return False
        count(self.sent, (departure.kind, departure.handler, "sent"))
        self._departed(departure)
        self._settle(tp, departure)
        return True

    async def _let_go(self, tp: TopicPartition, departure: Departure) -> None:
        """Wait until it may have its first try."""
        while departure.may_leave is not None:
            now = self._state.clock.monotonic()
            wait = departure.may_leave(now)
            if wait <= 0:
                departure.may_leave = None
                return
            why = "is used up: dead letters wait, and leave again as its window moves on"
            self._refuse(tp, departure, f"the dead-letter budget of handler {departure.handler} {why}")
            departure.held_until = now + wait
            await asyncio.sleep(wait)

    def _settle(self, tp: TopicPartition, departure: Departure) -> None:
        """It was acknowledged: its record is done."""
        self._forget(tp, departure)
        vp, offset = departure.vp, departure.record.offset
        queues = vp.queues
        if queues.unfinished.pop(offset, None) is None:
            self._state.late_completion(vp, offset, ok=True)
            return
        route = queues.finish(vp)
        if route is not None:
            self._state.wake(route)
