"""What a record looks like that leaves for a retry topic or the dead letters: as it was, with more headers.

Never here: whether a record becomes one (`core/failures.py`), or how it travels (`outbox.py`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from asyncpar import headers
from asyncpar.core.failures import Action, Decision
from asyncpar.core.virtual_partitions import VirtualPartition
from asyncpar.errors import RemoteHandlerError
from asyncpar.records import OutgoingRecord, RawRecord, TopicPartition
from asyncpar.runtime.group_state import GroupState
from asyncpar.runtime.handlers import Handler
from asyncpar.runtime.outbox import Departure

MAX_MESSAGE_CHARS = 1_000


class Source(NamedTuple):
    """A record, and where it was read first: before any retry topic."""

    tp: TopicPartition
    offset: int
    record: RawRecord
    first_timestamp: int | None = None
    """Of the record that was read first; None: it is this one."""

    @property
    def timestamp(self) -> int:
        """When it was produced, milliseconds since the epoch."""
        return self.record.timestamp if self.first_timestamp is None else self.first_timestamp


@dataclass(frozen=True, slots=True)
class Failure:
    """Why and when a record was given up. Times are milliseconds since the epoch."""

    group: str
    handler: str
    attempts: int
    reason: str
    error: BaseException | None
    first_failed_ms: int
    failed_ms: int


def departure(
    state: GroupState,
    handler: Handler,
    vp: VirtualPartition,
    record: RawRecord,
    decision: Decision,
    error: BaseException | None,
) -> Departure:
    """The head of `vp` on its way to the next retry topic, or to the dead letters."""
    queues, now = vp.queues, state.clock.monotonic()
    wall_ms = round(state.clock.wall() * 1000)
    first = queues.first_failed.get(record.offset, now)
    travelled = queues.topic in dict(handler.retry_topics)
    before = headers.number(record.headers, headers.ATTEMPTS) if travelled else None
    first_ms = headers.number(record.headers, headers.FIRST_FAILED) if travelled else None
    failure = Failure(
        group=state.group,
        handler=handler.name,
        attempts=(before or 0) + queues.attempts.get(record.offset, 0),
        reason=decision.reason,
        error=error,
        first_failed_ms=first_ms or wall_ms - round((now - first) * 1000),
        failed_ms=wall_ms,
    )
    source = _source(handler, record) if travelled else None
    if source is None:
        source = Source(queues.partition, record.offset, record)
    stop = handler.next_retry(queues.topic) if decision.action is Action.RETRY_TOPIC else None
    if stop is not None:
        outgoing = retry_record(stop[0], source, failure, not_before_ms=wall_ms + round(stop[1] * 1000))
        return Departure(vp, record, outgoing, "retry", handler.name)
    assert handler.dead_letter is not None
    topic = dead_letter_topic(handler.dead_letter, _first_topic(handler, source))
    outgoing = dead_letter(topic, source, failure, metadata_only=handler.metadata_only)
    return Departure(vp, record, outgoing, "dead_letter", handler.name)


def _source(handler: Handler, record: RawRecord) -> Source | None:
    """Where a record of a retry topic was read first, by its headers; None: not a topic of `handler`."""
    stops = dict(handler.retry_topics)
    origin = headers.origin(record.headers)
    if origin is None or origin[0].topic in stops or not handler.takes(origin[0].topic):
        return None
    return Source(*origin, record, headers.number(record.headers, headers.TIMESTAMP))


def _first_topic(handler: Handler, source: Source) -> str:
    """The topic whose dead letters it joins: of what somebody else put into a retry topic, the first one."""
    stops = dict(handler.retry_topics)
    named = [name for name in handler.topics if name not in stops]
    return source.tp.topic if source.tp.topic not in stops or not named else named[0]


def dead_letter_topic(declared: str, source: str) -> str:
    """The topic that `declared` means for records of `source`: a name, or a suffix that begins with a dot."""
    return source + declared if declared.startswith(".") else declared


def dead_letter_topics(declared: str, sources: Collection[str]) -> list[str]:
    """All that `declared` means for `sources`; without any, as for a pattern, the one topic that it names."""
    if not sources and not declared.startswith("."):
        return [declared]
    return sorted({dead_letter_topic(declared, source) for source in sources})


def dead_letter(topic: str, source: Source, failure: Failure, *, metadata_only: bool) -> OutgoingRecord:
    """A record for the dead-letter `topic`: same key, its own headers, then ours."""
    values = [*_history(source, failure), (headers.REASON, failure.reason)]
    payload = headers.METADATA_ONLY if metadata_only else None
    values += [(headers.PAYLOAD, payload), (headers.NOT_BEFORE, None)]
    record = source.record
    return OutgoingRecord(
        topic=topic,
        key=record.key,
        value=None if metadata_only else record.value,
        headers=headers.with_values(record.headers, values),
    )


def retry_record(topic: str, source: Source, failure: Failure, *, not_before_ms: int) -> OutgoingRecord:
    """A record for a retry `topic`: the same, with the time before which it is not to run."""
    values = [*_history(source, failure), (headers.NOT_BEFORE, not_before_ms)]
    record = source.record
    return OutgoingRecord(topic, record.key, record.value, headers.with_values(record.headers, values))


def _history(source: Source, failure: Failure) -> list[tuple[str, str | int | None]]:
    """Where a record comes from, and how it failed."""
    error = failure.error
    return [
        (headers.TOPIC, source.tp.topic),
        (headers.PARTITION, source.tp.partition),
        (headers.OFFSET, source.offset),
        (headers.TIMESTAMP, source.timestamp),
        (headers.GROUP, failure.group),
        (headers.HANDLER, failure.handler),
        (headers.ATTEMPTS, failure.attempts),
        (headers.FIRST_FAILED, failure.first_failed_ms),
        (headers.FAILED, failure.failed_ms),
        (headers.ERROR_TYPE, None if error is None else _name(error)),
        (headers.ERROR_MESSAGE, None if error is None else _message(error)),
    ]


def _name(error: BaseException) -> str:
    """Of its class; of what a child process raised there, of the class there."""
    if isinstance(error, RemoteHandlerError) and error.ancestors:
        return error.ancestors[0]
    return f"{type(error).__module__}.{type(error).__qualname__}"


def _message(error: BaseException) -> str:
    try:
        text = error.message if isinstance(error, RemoteHandlerError) else str(error)
    except Exception:  # noqa: BLE001 - a user's exception may refuse to be shown
        return "(its message cannot be shown)"
    # Lone surrogates cannot be written as UTF-8.
    return text[:MAX_MESSAGE_CHARS].encode("utf-8", "backslashreplace").decode()
