"""One handler's workers: long-lived tasks that take what is ready and run it, one record at a time.

The hot path. Per record a worker reads one clock (the end of one record is the start of the next),
makes no task, timer or log line, and all of them together yield to the loop after 5 ms. It inlines the
plain case of `Queues.finish`. Rules (source: DECISIONS, Workers):

- Workers are spawned by the pool's owner task in a copy of a pristine context. After each record
  the context is compared with the first one; a worker whose handler changed it is retired.
- Whoever cancels a worker writes `cancel_reason` first. A CancelledError without one is an ordinary
  failure, unless someone outside cancelled the task: then the record stays unsettled.
- A success that comes back after our cancel counts, unless the generation changed.
- Going to sleep and looking at the queue happen in one breath, so no wake-up is lost.
"""

from __future__ import annotations

import asyncio
import contextvars
import decimal
from bisect import bisect_left
from collections.abc import Iterator

from asyncpar.context import CALL
from asyncpar.core.virtual_partitions import ANY_OFFSET, Queues, ReadyQueue, VirtualPartition
from asyncpar.metrics import HISTOGRAM_BOUNDS
from asyncpar.records import RawRecord, TopicPartition, Verdict
from asyncpar.runtime.admission import Gate
from asyncpar.runtime.bridges import BridgeWatch
from asyncpar.runtime.group_state import GroupState
from asyncpar.runtime.handlers import Handler
from asyncpar.runtime.tally import Tally
from asyncpar.runtime.verdicts import Verdicts
from asyncpar.runtime.worker import CallersContext, Interrupted, Worker, classify, watched

_YIELD_SECONDS = 0.005
_SAMPLE_MASK = 31


class HandlerPool:
    """The bounded task group of one handler."""

    def __init__(self, handler: Handler, state: GroupState) -> None:
        self.handler = handler
        self.state = state
        self.queue = ReadyQueue(handler.name)
        self.tallies: dict[str, Tally] = {}
        self.workers: dict[Worker, None] = {}  # a set that keeps its order: what is done to all is repeatable
        self.retired = 0
        self.retries = 0
        self.timeouts = 0
        self._idle: list[Worker] = []
        self._turn = 0
        """How often the loop has gone on to others since a worker asked to be told (`_when_it_turns`)."""
        self._is_told = False
        self._slice_began = 0.0
        """When the first of the workers that run in this turn of the loop began."""
        self._to_spawn = 0
        self._spawn = asyncio.Event()
        self._closing = False
        self._pristine = contextvars.copy_context()
        self.verdicts = Verdicts(self)
        self.gate = None if handler.admissions is None else Gate(self, handler.admissions)
        is_watched = handler.timeout_seconds is not None or state.config.on_blocked != "warn"
        self._invoke = handler.invoke
        if is_watched and handler.bridge is None:  # children keep their own time
            self._invoke = watched(handler.invoke, state.clock.monotonic, handler.timeout_seconds)
        self.children = None if handler.bridge is None else BridgeWatch(self, handler.bridge)

    # -- seen from outside -------------------------------------------------------------------

    def tally(self, topic: str) -> Tally:
        """The counters of this handler and `topic`."""
        tally = self.tallies.get(topic)
        if tally is None:
            self.tallies[topic] = tally = Tally()
        return tally

    def running(self) -> Iterator[VirtualPartition]:
        """The virtual partitions whose head runs now."""
        return (worker.vp for worker in self.workers if worker.vp is not None)

    def busy(self) -> list[Worker]:
        """The workers that run a record now."""
        return [worker for worker in self.workers if worker.vp is not None]

    def deadline(self, worker: Worker, seconds: float) -> float:
        """When what `worker` runs has run for so long; inf while it waits for a child process."""
        return worker.deadline(seconds) if self.children is None else self.children.deadline(worker, seconds)

    def completed(self) -> int:
        """Attempts that ended well since the start."""
        return sum(tally.succeeded + tally.skipped for tally in self.tallies.values())

    def wake(self) -> None:
        """There may be work: let as many workers look as there are heads ready.

        Only the first is woken here. A worker whose handler waits wakes the others, so a handler
        that never waits is not paid for with wake-ups of workers that would find nothing.
        """
        if self.queue.ready:
            self._wake(1)

    def _wake(self, wanted: int) -> None:
        idle = self._idle
        while wanted and idle:
            future = idle.pop().wake
            if future is not None and not future.done():
                future.set_result(None)
                wanted -= 1
        room = self.handler.concurrency - len(self.workers) - self._to_spawn
        if wanted and room > 0:
            self._to_spawn += min(wanted, room)
            self._spawn.set()

    def _when_it_turns(self, now: float) -> None:
        """Have `_turned` called once as soon as the worker that runs now lets go of the loop."""
        if not self._is_told:
            self._is_told, self._slice_began = True, now
            asyncio.get_running_loop().call_soon(self._turned)

    def _turned(self) -> None:
        """The loop goes round: what is ready while a handler waits is for the other workers."""
        self._is_told = False
        self._turn += 1
        ready, gate = self.queue.ready, self.gate
        if (
            ready
            and any(worker.vp is not None for worker in self.workers)
            and (gate is None or gate.may_start(self.state.clock.monotonic()))
        ):
            self._wake(len(ready))

    def close(self) -> None:
        """No new work is coming: idle workers end, busy ones after their record."""
        self._closing = True
        if self.gate is not None:
            self.gate.close()
        self._spawn.set()
        for worker in self._idle:
            if worker.wake is not None and not worker.wake.done():
                worker.wake.set_result(None)
        self._idle.clear()

    # -- the owner task ----------------------------------------------------------------------

    async def run(self) -> None:
        """Own the workers until `close()`; raises when a worker fails (a defect of ours)."""
        try:
            await self._own_workers()
        finally:
            self.verdicts.close()

    async def _own_workers(self) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                await self._spawn.wait()
                if self._closing:
                    return
                self._spawn.clear()
                wanted, self._to_spawn = self._to_spawn, 0
                for _ in range(wanted):
                    worker = Worker(self.state.clock.monotonic, self._pristine.copy())
                    self.workers[worker] = None
                    worker.task = group.create_task(
                        self._life(worker),
                        name=f"asyncpar-worker-{self.handler.name}",
                        context=worker.context,
                    )

    async def _life(self, me: Worker) -> None:
        try:
            await self._work(me)
        except asyncio.CancelledError:
            pass  # cancelled while idle, or from outside: the slot is free again
        finally:
            self._settle_waiter(me)
            self.workers.pop(me, None)
            if me in self._idle:
                self._idle.remove(me)
            if not self._closing:
                self.wake()

    async def _sleep_until_woken(self, me: Worker) -> None:
        me.wake = asyncio.get_running_loop().create_future()
        self._idle.append(me)
        await me.wake

    # -- the hot path ------------------------------------------------------------------------

    async def _work(self, me: Worker) -> None:  # noqa: C901, PLR0912, PLR0915 - one loop, inlined on purpose
        decimal.getcontext()  # sets a context variable: before the first comparison, not after
        CALL.set(me)
        home = contextvars.copy_context()
        context = me.context if me.context == home else CallersContext()
        state, ready = self.state, self.queue.ready
        invoke, judged, gate = self._invoke, self.handler.judged, self.gate
        of_value = getattr(invoke, "of_value", None)
        clock = state.clock.monotonic
        task = asyncio.current_task()
        assert task is not None
        cancelling = task.cancelling
        success = Verdict.SUCCESS  # a member of an enum costs as much as the clock
        vp: VirtualPartition | None
        record: RawRecord | None
        queues: Queues | None
        known: Queues | None = None
        error: BaseException | None
        tally = Tally()
        processing, turn = tally.processing, -1
        now = clock()
        while True:
            if (
                not ready
                or (now > state.lease_until and not state.renew_lease(now))
                or (gate is not None and not gate.may_start(now))
            ):
                if self._closing:
                    return
                # An idle worker keeps nothing alive: neither a record nor what is left of its partition.
                vp = record = queues = known = value = result = error = None
                await self._sleep_until_woken(me)
                now = clock()
                continue
            vp = ready.popleft()
            record = vp.head
            assert record is not None
            queues = vp.queues
            if queues is not known:  # seldom: a fetched chunk is of one partition
                known, tally = queues, self.tally(queues.topic)
                processing = tally.processing
            offset = record.offset
            if queues.start_below is not ANY_OFFSET and offset >= queues.start_below:
                queues.hold(vp)
                continue
            if gate is not None and not gate.admit(me, vp, now):
                continue
            if self._turn != turn:
                # Only where a call begins: one that may not start would wake others, who may not either.
                turn = self._turn
                self._when_it_turns(now)
            me.vp, me.record, me.started = vp, record, now
            attempt = queues.attempts.get(offset, 0) + 1 if queues.attempts else 1
            verdict, error = success, None
            try:
                if of_value is None or (value := record.value) is None:
                    result = await invoke(queues.topic, queues.number, record, attempt, queues.generation)
                else:
                    result = await of_value(value)
                if judged:
                    verdict, error = result.verdict, result.error
                    if me.cancel_reason is not None and verdict is Verdict.FAILED:
                        raise error or RuntimeError("no reason given")  # as without middlewares
            except BaseException as raised:  # noqa: BLE001 - sorted by classify
                try:
                    verdict, error = classify(me, task, raised)
                except Interrupted as interrupted:
                    if gate is not None:
                        gate.interrupted(me)
                    self._unsettled(me, vp, offset)
                    if interrupted.worker_ends:
                        raise asyncio.CancelledError from None
                    await self._absorb_cancellation(me, task)
                    if self._has_changed(context, home):
                        self.retired += 1
                        return
                    now = clock()
                    continue
            started, now = now, clock()
            me.vp = me.record = None
            seconds = now - started
            processing.counts[bisect_left(HISTOGRAM_BOUNDS, seconds)] += 1
            processing.total += seconds
            is_free = gate is not None and self.verdicts.judge(me, vp, offset, verdict, error)
            if verdict is not success:
                self.verdicts.settle(vp, record, attempt, verdict, error, tally, is_free=is_free)
            elif queues.unfinished.pop(offset, None) is None:
                tally.succeeded += 1
                state.late_completion(vp, offset, ok=True)
            else:
                tally.succeeded += 1
                rest = vp.rest
                if queues.route is None or queues.attempts:
                    self.finish(vp)
                elif rest:
                    vp.head = rest.popleft()
                    ready.append(vp)
                elif vp.key is not None:
                    del queues.by_key[vp.key]
                if not tally.succeeded & _SAMPLE_MASK:
                    self._sample(tally, queues.partition, record, started)
            if me.finished is not None:
                self._settle_waiter(me)
            if cancelling() or me.cancel_reason is not None:
                await self._absorb_cancellation(me, task)
                now = clock()
            try:
                has_changed = context != home
            except Exception:  # noqa: BLE001 - a user's value may refuse to be compared
                has_changed = True
            if has_changed:
                self.retired += 1
                return
            if now - self._slice_began > _YIELD_SECONDS and self._turn == turn:
                await asyncio.sleep(0)
                now = clock()

    @staticmethod
    def _has_changed(context: contextvars.Context | CallersContext, home: contextvars.Context) -> bool:
        """True when a handler left a context variable behind (a comparison that raises counts)."""
        try:
            return context != home
        except Exception:  # noqa: BLE001 - a user's value may refuse to be compared
            return True

    def _unsettled(self, me: Worker, vp: VirtualPartition, offset: int) -> None:
        """The attempt was interrupted: the record is neither done nor failed."""
        me.vp = me.record = None
        if vp.queues.unfinished.get(offset) is None:
            self.state.late_completion(vp, offset, ok=False)
        else:
            vp.queues.again(vp)
        self._settle_waiter(me)

    @staticmethod
    def _settle_waiter(me: Worker) -> None:
        if me.finished is not None:
            if not me.finished.done():
                me.finished.set_result(None)
            me.finished = None

    @staticmethod
    async def _absorb_cancellation(me: Worker, task: asyncio.Task[None]) -> None:
        """Forget a cancellation that was meant for the record that has ended.

        Before 3.13 `uncancel()` leaves a cancellation that was not delivered yet behind: it is
        taken here, not by the next record.
        """
        me.cancel_reason = None
        while task.cancelling():
            task.uncancel()
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            while task.cancelling():
                task.uncancel()

    # -- the slow path -----------------------------------------------------------------------

    def finish(self, vp: VirtualPartition) -> None:
        """The head is done; where handlers share a topic, the next one may be another's."""
        route = vp.queues.finish(vp)
        if route is not None and route is not self.queue:
            self.state.wake(route)

    def _sample(self, tally: Tally, tp: TopicPartition, record: RawRecord, started: float) -> None:
        """Waiting time and end-to-end latency, of one record in 32."""
        arrived = self.state.arrived_at(tp, record.offset)
        if arrived is not None:
            tally.queue_wait.add(started - arrived)
        if record.timestamp > 0:
            tally.end_to_end.add(self.state.clock.wall() - record.timestamp / 1000)
