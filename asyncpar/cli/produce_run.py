"""Sending a load: each record at its time, with no regard to how the broker answers; and what came of it.

Lives here: the course of `asyncpar produce`, its report and the words for it. Never here: what is sent
(`produce_load.py`), options (`produce.py`). Always: an open loop. A record that could not be sent at its time
keeps that time in its header, so that what is measured by it includes the delay.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from asyncpar.assembly import client_config
from asyncpar.cli.dlq_connection import CLOSE_SECONDS
from asyncpar.cli.interruption import interruptible
from asyncpar.cli.produce_load import Load, LoadRequest
from asyncpar.cli.progress import ProgressLine
from asyncpar.errors import PublishError, UnknownTopicError
from asyncpar.records import OutgoingRecord
from asyncpar.settings import Settings

MOST_UNDER_WAY = 20_000
"""Records sent and not answered for; the next ones wait, and keep their times."""
_AT_ONCE = 100
_GIVE_UP_AFTER = 1_000
_FINAL = frozenset({"unknown_topic", "forbidden"})


class Writer(Protocol):
    """What records are sent with."""

    async def send(self, record: OutgoingRecord, answered: Callable[[PublishError | None], None]) -> None:
        """Put `record` under way; `answered` hears once what became of it."""


class Topics(Protocol):
    """What topics there are."""

    async def partitions(self, topic: str) -> Sequence[object]:
        """The partitions of `topic`. Raises UnknownTopicError."""

    async def create_topic(self, topic: str, partitions: int) -> object:
        """Make `topic`."""


class Place(NamedTuple):
    """Where to write: each is connected when it is entered."""

    topics: Callable[[], AbstractAsyncContextManager[Topics]]
    writer: Callable[[], AbstractAsyncContextManager[Writer]]


@dataclass(slots=True)
class Report:
    """What came of it. Times in seconds."""

    partitions: int = 0
    sent: int = 0
    acknowledged: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    """Records that were not acknowledged, by why."""
    seconds: float = 0.0
    """From the first record's time to the last answer."""
    latest_seconds: float = 0.0
    """How long after its time the latest record was sent."""
    is_interrupted: bool = False
    is_given_up: bool = False
    """It ended by itself: the topic takes nothing."""
    is_cut_off: bool = False
    """It was interrupted twice: what was under way may be there or not."""

    @property
    def not_acknowledged(self) -> int:
        """Records that were sent, or tried to be, and may be there or not."""
        return self.sent - self.acknowledged

    @property
    def rate(self) -> float:
        """Acknowledged records per second."""
        return self.acknowledged / self.seconds if self.seconds else 0.0


def kafka_place(chosen: Settings) -> Place:
    """The cluster of `chosen`."""
    config = client_config(chosen)

    @asynccontextmanager
    async def topics() -> AsyncIterator[Topics]:
        from asyncpar.adapters.aiokafka_admin import AiokafkaAdmin

        one = AiokafkaAdmin(config)
        try:
            await one.start()
            yield one
        finally:
            await one.stop(CLOSE_SECONDS)

    @asynccontextmanager
    async def writer() -> AsyncIterator[Writer]:
        from asyncpar.adapters.aiokafka_load import AiokafkaLoadProducer

        one = AiokafkaLoadProducer(config)
        try:
            await one.start()
            yield one
        finally:
            await one.stop(CLOSE_SECONDS)

    return Place(topics, writer)


async def produced(
    place: Place, request: LoadRequest, partitions: int | None, note: Callable[[str], None]
) -> Report:
    """Write all, until a signal stops it; what came of it. `partitions`: make the topic where it is missing.

    Raises ConnectError, UnknownTopicError, ConfigurationError.
    """
    report = Report()
    with interruptible() as stop:
        try:
            report.partitions = await _topic(place, request.topic, partitions, note, stop)
            if not stop.is_set():
                async with place.writer() as writer:
                    await _Sending(writer, request, report, stop).run()
        except asyncio.CancelledError:
            if not stop.is_set():
                raise
            report.is_cut_off = True
        report.is_interrupted = stop.is_set() and not report.is_given_up
    return report


async def _topic(
    place: Place, topic: str, partitions: int | None, note: Callable[[str], None], stop: asyncio.Event
) -> int:
    """How many partitions `topic` has; it is made where that was asked for, unless `stop` came before."""
    async with place.topics() as topics:
        try:
            count = len(await topics.partitions(topic))
        except UnknownTopicError as error:
            if partitions is None:
                raise UnknownTopicError(f"{error}, or add --partitions to have it made") from None
            if stop.is_set():
                return 0
            await topics.create_topic(topic, partitions)
            note(f"topic {topic} was made, with {partitions} partitions")
            return partitions
        if partitions not in (None, count):
            note(f"topic {topic} is there already, with {count} partitions; --partitions is not used")
        return count


class _Sending:
    """One run of `asyncpar produce`."""

    def __init__(self, writer: Writer, request: LoadRequest, report: Report, stop: asyncio.Event) -> None:
        self._writer = writer
        self._request = request
        self._report = report
        self._stop = stop
        self._under_way = 0
        self._room = asyncio.Event()
        """Set while more may be sent."""
        self._empty = asyncio.Event()
        """Set while nothing is under way."""
        self._failed_in_a_row = 0
        self._progress = ProgressLine()

    async def run(self) -> None:
        """Send all, or until stopped; returns when all answers are there."""
        self._room.set()
        self._empty.set()
        began = time.monotonic()
        try:
            await self._send_all(began)
            await self._empty.wait()
        finally:
            self._report.seconds = time.monotonic() - began
            self._progress.end()

    async def _send_all(self, began: float) -> None:
        request, load, report = self._request, Load(self._request), self._report
        began_ms = time.time() * 1000
        while not self._stop.is_set() and (not request.records or report.sent < request.records):
            now = time.monotonic()
            offset = report.sent / request.rate if request.rate else now - began
            if began + offset > now:
                await self._until(began + offset)
                continue
            if not self._room.is_set() or not report.sent % _AT_ONCE:
                # Also in a burst others have their turn: the answers, and the signal to stop.
                await asyncio.sleep(0)
                await self._room.wait()
                self._show(began)
            report.latest_seconds = max(report.latest_seconds, time.monotonic() - began - offset)
            record = load.record(report.sent, round(began_ms + offset * 1000))
            report.sent += 1
            self._under_way += 1
            self._empty.clear()
            if self._under_way >= MOST_UNDER_WAY:
                self._room.clear()
            await self._writer.send(record, self._answered)

    async def _until(self, moment: float) -> None:
        """Wait for `moment`, or for the signal to stop."""
        with suppress(TimeoutError):
            async with asyncio.timeout(moment - time.monotonic()):
                await self._stop.wait()

    def _answered(self, error: PublishError | None) -> None:
        """One record has its answer."""
        self._under_way -= 1
        self._room.set()
        if not self._under_way:
            self._empty.set()
        if error is None:
            self._report.acknowledged += 1
            self._failed_in_a_row = 0
            return
        self._report.errors[str(error)] += 1
        self._failed_in_a_row += 1
        if error.reason in _FINAL or self._failed_in_a_row >= _GIVE_UP_AFTER:
            self._report.is_given_up = True
            self._stop.set()

    def _show(self, began: float) -> None:
        if self._progress.is_due:
            report, seconds = self._report, time.monotonic() - began
            speed = report.acknowledged / seconds if seconds > 0 else 0.0
            done, waiting = report.acknowledged, self._under_way
            self._progress.show(f"{seconds:6.1f} s  {done:,} written  {speed:,.0f}/s  {waiting:,} under way")


# -- the report ----------------------------------------------------------------------------------


def summary(report: Report, request: LoadRequest) -> list[str]:
    """What came of it, as lines."""
    asked = "" if request.rate is None else f" of {request.rate:,.6g} asked for"
    where = f"{request.topic} ({report.partitions} partitions)"
    speed = f"in {report.seconds:.2f} s: {report.rate:,.0f} a second{asked}"
    lines = [f"wrote {report.acknowledged:,} records to {where} {speed}"]
    if request.rate is not None and report.sent:
        lines.append(f"the latest one was sent {report.latest_seconds * 1000:.0f} ms after its time")
    if report.not_acknowledged:
        lines.append(f"{report.not_acknowledged:,} were not acknowledged: they may be there or not")
    lines += [f"{count:,} times: {why}" for why, count in report.errors.most_common(3)]
    if report.is_given_up:
        lines.append(f"given up after {report.sent:,} records: the topic takes none")
    if report.is_interrupted:
        of = f" of {request.records:,}" if request.records else ""
        lines.append(f"stopped by a signal after {report.sent:,}{of} records")
    return lines


def as_json_fields(report: Report, request: LoadRequest) -> dict[str, Any]:
    """The same for programs. Times in seconds, rates per second."""
    return {
        "topic": request.topic,
        "partitions": report.partitions,
        "records": request.records,
        "rate_asked": request.rate,
        "rate": report.rate,
        "sent": report.sent,
        "acknowledged": report.acknowledged,
        "not_acknowledged": report.not_acknowledged,
        "errors": dict(report.errors),
        "seconds": report.seconds,
        "latest_seconds": report.latest_seconds,
        "interrupted": report.is_interrupted,
        "given_up": report.is_given_up,
    }
