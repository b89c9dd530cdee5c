"""The headers that asyncpar adds to records that it writes itself: dead letters, retries, replays.

Values are UTF-8 text, numbers in decimal. Written and read here only, so that the runtime, the
command line and users agree. Never here: a decision about a record.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from asyncpar.records import TopicPartition

PREFIX = "x-asyncpar-"
_NUMBER = re.compile("-?[0-9]{1,18}")

TOPIC = PREFIX + "topic"
"""Where the record was read first: with PARTITION and OFFSET it names the record for good."""
PARTITION = PREFIX + "partition"
OFFSET = PREFIX + "offset"
TIMESTAMP = PREFIX + "timestamp"
"""The original record's, milliseconds since the epoch."""
GROUP = PREFIX + "group"
HANDLER = PREFIX + "handler"
ATTEMPTS = PREFIX + "attempts"
"""How often a handler ran it, over all retry topics."""
FIRST_FAILED = PREFIX + "first-failed"
"""When it failed first, milliseconds since the epoch."""
FAILED = PREFIX + "failed"
"""When it failed last."""
ERROR_TYPE = PREFIX + "error-type"
"""Module and qualified name of the last error's class."""
ERROR_MESSAGE = PREFIX + "error-message"
REASON = PREFIX + "reason"
"""Why it is a dead letter: exhausted, too_old, permanent, undecodable, poison_key, blocked."""
PAYLOAD = PREFIX + "payload"
METADATA_ONLY = "metadata_only"
"""What PAYLOAD says when key and headers are there, but the value was left out on purpose."""
NOT_BEFORE = PREFIX + "not-before"
"""No handler is to run the record before this time, milliseconds since the epoch."""
REPLAYED = PREFIX + "replayed"
"""How often it was replayed from a dead-letter topic."""
INTENDED = PREFIX + "intended"
"""When it was to be sent by its schedule, milliseconds since the epoch: `asyncpar produce` writes it."""


def text(headers: Sequence[tuple[str, bytes]], name: str) -> str | None:
    """The header `name` as text; the last one where it occurs more than once; None without one."""
    for key, value in reversed(headers):
        if key == name:
            return (value or b"").decode("utf-8", "replace")  # the wire knows headers without a value
    return None


def number(headers: Sequence[tuple[str, bytes]], name: str) -> int | None:
    """The header `name` as a whole number; None without one, or when it is none."""
    found = text(headers, name)
    return int(found) if found is not None and _NUMBER.fullmatch(found) else None


def origin(headers: Sequence[tuple[str, bytes]]) -> tuple[TopicPartition, int] | None:
    """Partition and offset where the record was read first; None when the headers do not say."""
    topic, partition, offset = text(headers, TOPIC), number(headers, PARTITION), number(headers, OFFSET)
    if topic is None or partition is None or offset is None:
        return None
    return TopicPartition(topic, partition), offset


def with_values(
    headers: Iterable[tuple[str, bytes]], values: Iterable[tuple[str, str | int | None]]
) -> tuple[tuple[str, bytes], ...]:
    """`headers` with each of `values` set once, in place of what was there; None leaves one out."""
    given = dict(values)
    kept = tuple(pair for pair in headers if pair[0] not in given)
    added = tuple((name, str(value).encode()) for name, value in given.items() if value is not None)
    return kept + added
