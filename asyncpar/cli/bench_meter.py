"""What `asyncpar bench` measures of each record: around every call of a handler, and nowhere else.

Lives here: `Meter` and, per handler, `HandlerMeter`. Never here: sampling of the engine (`bench_limits.py`),
starting and stopping (`bench_run.py`), words. Made by `bench_run.py`, called on the event loop. Always: a
handler gets exactly what it would get without it, and what it raises passes through.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

from asyncpar import headers
from asyncpar.cli.bench_figures import BIN_SECONDS, BusiestKeys, Durations
from asyncpar.errors import DecodeError, NotStartedError, Skip
from asyncpar.records import Outcome, RawRecord
from asyncpar.runtime.handlers import Handler
from asyncpar.runtime.outbox import Departure

_NEVER = float("inf")


class HandlerMeter:
    """What one handler did."""

    def __init__(self, group: str, handler: Handler) -> None:
        self.group = group
        self.name = handler.name
        self.executor = handler.executor
        self.concurrency = handler.concurrency
        self.done = 0
        """Calls that ended well, or passed their record over."""
        self.failed = 0
        """Calls that raised; a record can have several."""
        self.seconds = Durations()
        """From the start of a call to its end; of a child process with the way there and back."""
        self.latency = Durations()
        """From when a record was to be sent (by its header) to when it was done."""
        self.age = Durations()
        """From a record's timestamp to when it was done, of those without that header."""
        self.keys: BusiestKeys[tuple[str, int, Hashable]] = BusiestKeys()
        """What runs one after another: by partition and ordering key."""
        self.left: Counter[str] = Counter()
        """Records that left for another topic, by kind: dead_letter, retry."""


class Meter:
    """Counts until `close`. `limit`: closes, and sets `reached`, when so many records are done."""

    def __init__(
        self,
        limit: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.handlers: list[HandlerMeter] = []
        self.done = 0
        self.first: float | None = None
        """When the first counted call began, by `clock`."""
        self.last = 0.0
        """When the last counted record was done."""
        self.bins: Counter[int] = Counter()
        """Records done in each `BIN_SECONDS` since `first`."""
        self.reached = asyncio.Event()
        self.recent_after_ms = _NEVER
        """Latency is that of records sent at this time or later, in milliseconds since the epoch."""
        self._limit = limit
        self._clock = clock
        self._wall = wall
        self._is_closed = False

    def begin_latency(self) -> None:
        """Whatever is sent from now on finds the handlers ready: its latency counts."""
        if self.recent_after_ms == _NEVER:
            self.recent_after_ms = self._wall() * 1000

    def close(self) -> None:
        """Count nothing more: what ends from now on ends while the app stops."""
        self._is_closed = True

    @property
    def elapsed_seconds(self) -> float:
        """From the start of the first record to the end of the last one."""
        return 0.0 if self.first is None else max(0.0, self.last - self.first)

    def left(self, group: str, departure: Departure) -> None:
        """A record left for another topic."""
        for one in self.handlers:
            if (one.group, one.name) == (group, departure.handler):
                one.left[departure.kind] += 1

    def watched(self, group: str, handler: Handler) -> Handler:
        """`handler`, with its calls measured."""
        meter, clock, invoke = HandlerMeter(group, handler), self._clock, handler.invoke
        self.handlers.append(meter)

        async def call(topic: str, partition: int, raw: RawRecord, attempt: int, generation: int) -> Any:
            began = clock()
            try:
                result = await invoke(topic, partition, raw, attempt, generation)
            except Skip:
                self._ended(meter, handler, began, topic, partition, raw)
                raise
            except NotStartedError:
                raise  # it was no call
            except Exception:
                self._failed(meter, began)
                raise
            if not handler.judged or not isinstance(result, Outcome) or result.ok:
                self._ended(meter, handler, began, topic, partition, raw)
            else:
                self._failed(meter, began)
            return result

        return dataclasses.replace(handler, invoke=call)

    def _failed(self, meter: HandlerMeter, began: float) -> None:
        if not self._is_closed:
            meter.failed += 1
            meter.seconds.add(self._clock() - began)

    def _ended(
        self, meter: HandlerMeter, handler: Handler, began: float, topic: str, partition: int, raw: RawRecord
    ) -> None:
        if self._is_closed:
            return
        now = self._clock()
        if self.first is None:
            self.first = began
        self.last = now
        self.bins[int((now - self.first) / BIN_SECONDS)] += 1
        self.done += 1
        meter.done += 1
        meter.seconds.add(now - began)
        key = _ordering_key(handler, topic, raw)
        if key is not None:
            meter.keys.add((topic, partition, key))
        if raw.timestamp >= self.recent_after_ms:
            self._note_latency(meter, raw)
        if self.done == self._limit:
            self.close()
            self.reached.set()

    def _note_latency(self, meter: HandlerMeter, raw: RawRecord) -> None:
        now_ms = self._wall() * 1000
        intended = headers.number(raw.headers, headers.INTENDED)
        if intended is None:
            meter.age.add((now_ms - raw.timestamp) / 1000)
        elif intended >= self.recent_after_ms:
            meter.latency.add((now_ms - intended) / 1000)


def _ordering_key(handler: Handler, topic: str, raw: RawRecord) -> Hashable:
    """What `raw` waits in line by; None: by nothing."""
    if handler.key_of is None:
        return raw.key
    try:
        return handler.key_of(topic, raw)
    except DecodeError:
        return None
