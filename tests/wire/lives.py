"""One life of a real App on a mock cluster, in which one fault strikes; what came of it is an `Outcome`.

What lives here: the records, the app, when the cluster is given the fault, and what is noted meanwhile. What
never does: whether that was right. Called by the tests of the wire. Always: every wait is bounded, and what
an app logs is found by the context that its tasks inherit, so that many lives may share one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from asyncpar import App, Record, topic
from tests.wire.case import ALWAYS, Case, Phase
from tests.wire.mock_cluster import TRANSPORT, MockCluster, Request
from tests.wire.proxy import Proxy, proxy

TOPIC = "orders"
PARTITIONS = 2
BATCH = 24
KEYS = 5
LIFE_SECONDS = 40.0
"""No life may last longer: what has not happened by then is a hang."""
_LOOK_SECONDS = 0.02
_OUTSIDE_LOOK_SECONDS = 0.2

SETTINGS: dict[str, Any] = {
    "http_port": 0,
    "session_timeout_ms": 3_000,
    "heartbeat_interval_ms": 200,
    "metadata_max_age_ms": 300,
    "fetch_max_wait_ms": 50,
    "commit_interval_ms": 100,
    "max_revoke_grace_ms": 500,
    "startup_timeout_ms": 15_000,
    "shutdown_drain_timeout_ms": 3_000,
    "concurrency": 8,
}

_notes: contextvars.ContextVar[list[logging.LogRecord]] = contextvars.ContextVar("notes")


class _Noting(logging.Handler):
    """Gives each line to the life whose task logged it."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(LookupError):
            _notes.get().append(record)


@contextlib.contextmanager
def noting() -> Iterator[None]:
    """While it lasts, warnings and worse are given to the lives they belong to."""
    handler = _Noting(logging.WARNING)
    loggers = [logging.getLogger(name) for name in ("asyncpar", "aiokafka", "asyncio")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


@dataclass
class Outcome:
    """What came of a life. Record number n is offset n // PARTITIONS of partition n % PARTITIONS."""

    handled: list[tuple[bytes, int]] = field(default_factory=list)
    """`(key, number)` in the order in which handlers ended."""
    produced: int = 0
    error: BaseException | None = None
    """What the run raised."""
    committed: dict[int, int] = field(default_factory=dict)
    """By partition, seen from outside; below 0 is none."""
    hung: str = ""
    """What did not happen in time; empty when all did."""
    unused: int = 0
    """How often the cluster was still to answer with the fault at the end."""
    was_red: bool = False
    """Whether readiness was red at some moment after the fault."""
    stalled_seconds: float = 0.0
    """The longest time for which this process did not run: others had the processor."""
    lines: list[logging.LogRecord] = field(default_factory=list)

    def lost(self) -> set[int]:
        """Numbers of records that no handler ended."""
        return set(range(self.produced)) - self._numbers()

    def _numbers(self) -> set[int]:
        return {number for _, number in self.handled}

    def repeated(self) -> int:
        """How many handlers ended more than once for their record."""
        return len(self.handled) - len(self._numbers())

    def uncovered(self) -> set[int]:
        """Numbers of records below a committed offset that no handler ended."""
        below = {
            offset * PARTITIONS + partition
            for partition, end in self.committed.items()
            for offset in range(max(0, end))
        }
        return below - self._numbers()

    def is_stored(self) -> bool:
        """Whether everything that was produced is committed."""
        return self.committed == dict.fromkeys(range(PARTITIONS), self.produced // PARTITIONS)

    def is_ordered(self) -> bool:
        """Per partition and key, records were handled for the first time in the order of their offsets."""
        first: dict[tuple[int, bytes], list[int]] = {}
        for key, number in self.handled:
            seen = first.setdefault((number % PARTITIONS, key), [])
            if number not in seen:
                seen.append(number)
        return all(numbers == sorted(numbers) for numbers in first.values())

    def tracebacks(self) -> list[str]:
        """Lines that were logged with one."""
        return [f"{line.name}: {line.getMessage()}" for line in self.lines if line.exc_info]

    def said(self) -> str:
        """Every warning and error, one a line."""
        return "\n".join(f"{line.levelname} {line.name}: {line.getMessage()}" for line in self.lines)


class Life:
    """An app that handles `TOPIC` of `cluster`, alone in its group, from `start()` to `end()`."""

    def __init__(self, cluster: MockCluster, group: str, **settings: Any) -> None:
        self.cluster = cluster
        self.group = group
        self.outcome = Outcome()
        self.running = 0
        """How many handlers have begun and not ended."""
        self.gate = asyncio.Event()
        """Handlers wait for it."""
        self.gate.set()
        self._given = {"bootstrap_servers": cluster.bootstrap, **SETTINGS, **settings}
        self._deadline = time.monotonic() + LIFE_SECONDS
        self._is_watched = False
        self._looked_at = time.monotonic()

    async def produce(self) -> None:
        """Append `BATCH` records; their numbers go on from those before."""
        numbers = range(self.outcome.produced, self.outcome.produced + BATCH)
        records = [(number % PARTITIONS, b"k%d" % (number % KEYS), b"%d" % number) for number in numbers]
        await asyncio.to_thread(self.cluster.produce, TOPIC, records)
        self.outcome.produced += BATCH

    def start(self) -> None:
        """Begin to run; returns at once."""
        self.app = App(group=self.group, **self._given)

        @topic(TOPIC)
        async def note(raw: Record) -> None:
            self.running += 1
            try:
                await asyncio.sleep(0)
                await self.gate.wait()
                self.outcome.handled.append((raw.key or b"", int(raw.value or b"-1")))
            finally:
                self.running -= 1

        self.app.include(note)
        context = contextvars.copy_context()
        context.run(_notes.set, self.outcome.lines)
        self._run = asyncio.get_running_loop().create_task(self.app.run(), context=context)

    def watch(self) -> None:
        """From now on note when readiness is red."""
        self._is_watched = True

    @property
    def has_ended(self) -> bool:
        """Whether the app's run is over."""
        return self._run.done()

    async def until(self, what: str, condition: Callable[[], bool]) -> bool:
        """Wait until `condition` holds; False when the app ended before, or time was up (a hang, noted)."""
        while not condition():
            if not self._may_go_on(what):
                return False
            await asyncio.sleep(_LOOK_SECONDS)
        return True

    def _may_go_on(self, what: str) -> bool:
        now = time.monotonic()
        self.outcome.stalled_seconds = max(self.outcome.stalled_seconds, now - self._looked_at)
        self._looked_at = now
        if self.has_ended:
            return False
        if now > self._deadline:
            self.outcome.hung = self.outcome.hung or what
            return False
        self.outcome.was_red |= self._is_watched and not self.app.status().ready
        return True

    async def until_stored(self) -> bool:
        """Wait until every record that was produced has been handled and, seen from outside, committed."""
        if not await self.until("records were not handled", lambda: not self.outcome.lost()):
            return False
        await self.look_from_outside()
        while not self.outcome.is_stored():
            if not self._may_go_on("offsets were not committed"):
                return False
            await asyncio.sleep(_OUTSIDE_LOOK_SECONDS)
            await self.look_from_outside()
        return True

    async def until_ended(self) -> None:
        """Wait for the app to end by itself."""
        await self.until("the run did not end", lambda: False)

    async def end(self) -> None:
        """Stop the app and wait for its end."""
        self.app.stop()
        done, _ = await asyncio.wait({self._run}, timeout=max(1.0, self._deadline - time.monotonic()))
        if not done:
            self.outcome.hung = self.outcome.hung or "the stop did not end"
            self._run.cancel()
            await asyncio.wait({self._run}, timeout=1.0)
        elif not self._run.cancelled():
            self.outcome.error = self._run.exception()

    async def look_from_outside(self) -> None:
        """Read what the group has committed, by another client."""
        self.outcome.committed = await asyncio.to_thread(
            self.cluster.committed, self.group, TOPIC, PARTITIONS
        )


@contextlib.asynccontextmanager
async def life(group: str, brokers: int = 1, **settings: Any) -> AsyncIterator[Life]:
    """A cluster with `TOPIC` and its first records, and an app that has not been started."""
    cluster = await asyncio.to_thread(_cluster, group, brokers)
    try:
        made = Life(cluster, group, **settings)
        await made.produce()
        yield made
    finally:
        await asyncio.to_thread(cluster.close)


def _cluster(group: str, brokers: int) -> MockCluster:
    """Where there are several brokers, the first coordinates the group and leads every partition."""
    cluster = MockCluster(brokers)
    cluster.create_topic(TOPIC, PARTITIONS)
    if brokers > 1:
        cluster.set_coordinator(group, 1)
        cluster.set_leaders(TOPIC, dict.fromkeys(range(PARTITIONS), 1))
    return cluster


class Striker:
    """Gives a case's fault to the cluster, and takes a lasting one away again."""

    def __init__(self, case: Case, cluster: MockCluster, before: Proxy | None) -> None:
        self._case = case
        self._cluster = cluster
        self._proxy = before

    async def strike(self) -> None:
        """From now on the fault is there."""
        case, cluster = self._case, self._cluster
        for request, code in case.beside:
            cluster.fail(request, code)
        if case.rewrite is not None:
            assert self._proxy is not None
            self._proxy.rewrite(case.request, case.code, case.rewrite, case.times)
        elif self._is_of_topic():
            await asyncio.to_thread(cluster.set_topic_error, TOPIC, case.code)
        elif case.times == ALWAYS:
            cluster.fail_always(case.request, case.code)
        else:
            cluster.fail(case.request, *[case.code] * case.times, delay_ms=case.delay_ms)

    async def heal(self) -> None:
        """What lasted is over."""
        if self._is_of_topic():
            await asyncio.to_thread(self._cluster.set_topic_error, TOPIC, 0)
        elif self._case.times == ALWAYS:
            self._cluster.heal(self._case.request)

    def follow_up(self) -> None:
        """What a real broker answers next."""
        for request, code in self._case.after:
            self._cluster.fail(request, code)

    def _is_of_topic(self) -> bool:
        return self._case.request is Request.METADATA and self._case.code != TRANSPORT

    def unused(self) -> int:
        """How often the fault is still to be answered; 0 for a lasting one."""
        if self._proxy is not None:
            return self._proxy.left
        if self._case.times == ALWAYS or self._is_of_topic():
            return 0
        return self._cluster.unused(self._case.request)


async def live(case: Case) -> Outcome:
    """A life with the fault of `case`, from the first record to the look from outside after the end."""
    async with contextlib.AsyncExitStack() as stack:
        one = await stack.enter_async_context(life(case.name, **case.settings))
        before = None
        if case.rewrite is not None:
            before = await stack.enter_async_context(proxy(one.cluster.bootstrap))
            await asyncio.to_thread(one.cluster.advertise, 1, before.port)
        striker = Striker(case, one.cluster, before)
        await _PLOTS[case.phase](case, one, striker)
        one.gate.set()
        await one.end()
        one.outcome.unused = striker.unused()
        await striker.heal()
        await one.look_from_outside()
        return one.outcome


async def _from_the_start(case: Case, one: Life, striker: Striker) -> None:
    await striker.strike()
    one.start()
    one.watch()
    await _through(case, one, striker)


async def _while_running(case: Case, one: Life, striker: Striker) -> None:
    one.start()
    if await one.until_stored():
        one.watch()
        await striker.strike()
        await _through(case, one, striker)


async def _through(case: Case, one: Life, striker: Striker) -> None:
    """The fault is there: until the app has ended, or has recovered and handled what came later."""
    if case.request is Request.OFFSET_COMMIT:
        await one.produce()  # else there is nothing to commit
    if case.ends is not None:
        await one.until_ended()
        return
    if case.heal_seconds:
        await one.until("", _after(case.heal_seconds))
        await striker.heal()
    if await one.until("the fault did not strike", lambda: striker.unused() == 0):
        striker.follow_up()
        await one.produce()
        await one.until_stored()


def _after(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


async def _at_the_stop(case: Case, one: Life, striker: Striker) -> None:
    one.start()
    if not await one.until_stored():
        return
    if case.request is Request.OFFSET_COMMIT:
        one.gate.clear()
        await one.produce()
        await one.until("no handler ran", lambda: one.running > 0)
    await striker.strike()
    one.app.stop()


_PLOTS = {
    Phase.START: _from_the_start,
    Phase.RUNNING: _while_running,
    Phase.STOP: _at_the_stop,
}
