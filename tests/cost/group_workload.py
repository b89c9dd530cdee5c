"""Records through a group as an app runs it: poller, admission, queues, workers, handler, commits.

What lives here: an app with default settings and a handler that does nothing, on a consumer in memory and
a loop whose time is a number, so that each run takes the same steps. Each call of the handler takes 5 us of
that time, which makes workers yield. What never does: limits, verdicts. Called by the tests and by
`python -m tests.cost`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from asyncpar.app import App
from asyncpar.assembly import Rigging
from asyncpar.core.offset_codec import decode
from asyncpar.records import Chunk, CommitAnswer, Committed, GroupToken, RawRecord, TopicPartition
from asyncpar.runtime.group_state import Clock
from asyncpar.settings import KNOBS, Settings
from asyncpar.settings_sources import Loaded
from asyncpar.testing.virtual_time import VirtualLoop, virtual_time
from tests.cost.counter import Cost, Counter
from tests.cost.load import STUCK, TOPIC, Load
from tests.runtime.fakes import FakeConsumer

_HANDLER_SECONDS = 5e-6
_BOUND_SECONDS = 600.0


class LoadedConsumer(FakeConsumer):
    """Hands a load out as a client does: what there is room for, of one partition after the other."""

    def __init__(self, loop: VirtualLoop, logs: dict[TopicPartition, list[RawRecord]]) -> None:
        super().__init__(logs)  # type: ignore[arg-type] # raw records are all that is read of them
        self._loop = loop
        self._turn = 0
        self.left = 0
        """How many records it may still hand out."""
        self.moved = asyncio.Event()
        """Set when more was handed out, and when more was committed."""

    async def fetch(
        self,
        wanted: Sequence[TopicPartition],
        max_records: int,
        timeout_ms: int,
        max_per_partition: int | None = None,
    ) -> list[Chunk]:
        """See the port."""
        self._turn += 1
        first = self._turn % max(1, len(wanted))
        chunks: list[Chunk] = []
        room = min(max_records, self.left)
        for tp in (*wanted[first:], *wanted[:first]):
            at = self.positions.get(tp)
            if at is None or room <= 0:
                continue
            records: list[Any] = self.logs[tp][at : at + min(room, max_per_partition or room)]
            if records:
                self.positions[tp] = at + len(records)
                self.left -= len(records)
                room -= len(records)
                chunks.append(Chunk(tp.topic, tp.partition, records))
                self.moved.set()
        if not chunks:
            await asyncio.sleep(timeout_ms / 1000)
        return chunks

    async def commit(
        self, token: GroupToken, offsets: Mapping[TopicPartition, Committed], timeout_s: float
    ) -> dict[TopicPartition, CommitAnswer]:
        """See the port."""
        answers = await super().commit(token, offsets, timeout_s)
        self.moved.set()
        return answers

    def is_committed(self) -> bool:
        """Everything that was handed out is, what is stuck at offset 0 excepted."""
        return all(self._is_committed(tp, position) for tp, position in self.positions.items())

    def _is_committed(self, tp: TopicPartition, position: int) -> bool:
        stored = self.stored.get(tp, Committed(0, ""))
        if stored.offset == position:
            return True
        return stored.offset == 0 and decode(tp, 0, stored.metadata) == [(1, position)][: position - 1]

    def lease_from(self) -> float:
        """Always fresh, by the loop's clock."""
        return self._loop.time()

    def drain_deadline(self) -> float:
        """See the port."""
        return self._loop.time() + self.seconds_to_drain


class ClockedApp(App):
    """An app on the loop's clock."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._clock = Clock(loop.time, loop.time, lambda: 0.5)


class GroupDriver:
    """An app that runs a load in portions; what comes before them is a portion of its own."""

    def __init__(self, loop: VirtualLoop, load: Load) -> None:
        self._loop = loop
        self._load = load
        self.consumer = LoadedConsumer(loop, load.logs())
        self.ending = asyncio.Event()
        self._app = ClockedApp(loop)
        self._app.topic(TOPIC)(self._handler())

    def _handler(self) -> Any:
        loop, ending = self._loop, self.ending

        async def handle(body: bytes) -> None:
            loop.now += _HANDLER_SECONDS
            if body == STUCK:
                await ending.wait()

        return handle

    async def run(self, portions: Iterable[tuple[int, AbstractContextManager[None]]]) -> None:
        """So many records, each within its context, from their fetch to their commit; then the app stops."""
        loaded = Loaded(
            Settings.model_validate({"group": "g", "http_port": 0}), dict.fromkeys(KNOBS, "default")
        )
        with self._app.rigged(loaded, Rigging(lambda _group: self.consumer)):
            running = self._loop.create_task(self._app.run())
            stuck = self._load.partitions if self._load.is_stuck else 0
            await self._hand_out(self._load.before + stuck, running)
            for records, context in portions:
                with context:
                    await self._hand_out(records, running)
            self.ending.set()
            self._app.stop()
            await running

    async def _hand_out(self, records: int, running: asyncio.Task[None]) -> None:
        """Let `records` more come, and wait until they are committed."""
        self.consumer.left = records
        bound = self._loop.time() + _BOUND_SECONDS
        while self.consumer.left or not self.consumer.is_committed():
            self.consumer.moved.clear()
            more = asyncio.ensure_future(self.consumer.moved.wait())
            await asyncio.wait({more, running}, return_when=asyncio.FIRST_COMPLETED, timeout=_BOUND_SECONDS)
            more.cancel()
            if running.done():
                running.result()  # raises: nothing else ends it before its load is done
            assert self._loop.time() < bound, f"{self.consumer.left} records are left over"


def group_cost(load: Load) -> Cost:
    """Of a record of `load` in a group."""
    counter = Counter()
    with virtual_time() as loop:
        loop.run_until_complete(GroupDriver(loop, load).run([(load.records, counter.counting())]))
    return counter.cost(load.records)


def group_seconds(load: Load, slices: int) -> list[float]:
    """CPU seconds that each of `slices` equal parts of `load` takes, one after the other."""
    seconds: list[float] = []

    @contextlib.contextmanager
    def timed() -> Iterator[None]:
        began = time.thread_time()
        yield
        seconds.append(time.thread_time() - began)

    portions = [(load.records // slices, timed()) for _ in range(slices)]
    with virtual_time() as loop:
        loop.run_until_complete(GroupDriver(loop, load).run(portions))
    return seconds
