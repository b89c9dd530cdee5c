"""Done offsets above the HWM <-> the commit's metadata string (at most 4,096 characters).

`ap1:<crc32 of all that matters, 8 hex digits>:<base64url, no padding>`. The bytes are sections
`(id, length, payload)` with varint id and length, so that a later version can add one and this one skips
it: the runs are one of them, and how often the lowest unfinished records failed is another, written where
there is room. The checksum covers
topic, partition and the absolute committed offset: a tool that copies an offset to another cluster,
topic or position keeps the string, and there it must not be believed. The broker counts UTF-16
units; this is ASCII.

Runs are relative to the committed offset: alternately the length of an undone and of a done run.
They are written as varints or as a bitmap, deflated when that is shorter. When the whole does not
fit, the highest runs are left out: they run again after a crash, nothing else is lost.
"""

from __future__ import annotations

import base64
import binascii
import enum
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from asyncpar.core.offsets import Run
from asyncpar.records import TopicPartition

MAX_CHARS = 4096
"""The broker's default `offset.metadata.max.bytes`."""
MIN_CHARS = 64
"""Less than this holds hardly a run: not worth the trouble."""
MAX_SPAN = 1 << 40
"""No run may reach further above the committed offset than this: a bound on damaged input."""

_PREFIX = "ap1:"
_HEAD_CHARS = len(_PREFIX) + 9
_VARINTS, _BITMAP, _DEFLATED_VARINTS, _DEFLATED_BITMAP = 1, 2, 4, 5
_ATTEMPTS = 3
_MOST_ATTEMPTS = 32
"""Of so many records: whoever blocks a partition is among its lowest."""
_RUNS = frozenset({_VARINTS, _BITMAP, _DEFLATED_VARINTS, _DEFLATED_BITMAP})
_MAX_PLAIN_BYTES = 1 << 16
"""No section is longer than this before deflation: a bound on the work of reading damaged input."""
_SECTION_HEAD_BYTES = 4


class Ignored(enum.Enum):
    """Why restored metadata was not used."""

    FOREIGN = "foreign"
    """Not written by asyncpar, or by a version that this one does not know."""
    DAMAGED = "damaged"
    """Ours by its looks, but it cannot be read."""
    MISPLACED = "misplaced"
    """Ours, but of another topic, partition or offset (or altered)."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """`text` for the commit; `truncated` when the highest runs did not fit."""

    text: str
    truncated: bool


def encode(
    partition: TopicPartition,
    hwm: int,
    runs: Sequence[Run],
    max_chars: int = MAX_CHARS,
    attempts: Mapping[int, int] = MappingProxyType({}),
) -> Encoded:
    """Metadata for a commit of `hwm` with `runs` done above it. An empty text for nothing to say.

    `attempts`: failed runs by offset, at or above `hwm`. Left out, the highest first, where there is no room.
    """
    if not runs and not attempts:
        return Encoded("", False)
    room = max(0, (max_chars - _HEAD_CHARS) * 6 // 8)
    body = _pack(hwm, runs) if runs else b""
    if len(body) > room:
        fitting = _longest_prefix(hwm, runs, room - _SECTION_HEAD_BYTES)
        if not fitting:
            return Encoded("", True)
        return Encoded(_seal(partition, hwm, _pack(hwm, runs[:fitting])), True)
    body += _pack_attempts(hwm, attempts, room - len(body)) if attempts else b""
    return Encoded(_seal(partition, hwm, body) if body else "", False)


def _pack_attempts(hwm: int, attempts: Mapping[int, int], room: int) -> bytes:
    """Pairs of a distance from the one before and a count, as one section; b"" without room for any."""
    payload, cursor = b"", hwm
    for offset in sorted(attempts)[:_MOST_ATTEMPTS]:
        pair = _varint(offset - cursor) + _varint(attempts[offset])
        if len(payload) + len(pair) + _SECTION_HEAD_BYTES > room:
            break
        payload, cursor = payload + pair, offset
    return _varint(_ATTEMPTS) + _varint(len(payload)) + payload if payload else b""


def _longest_prefix(hwm: int, runs: Sequence[Run], room: int) -> int:
    """How many of the lowest runs fit into `room` bytes undeflated: one cheap pass, no search."""
    in_bitmap = in_varints = used = 0
    cursor = hwm
    for first, end in runs:
        used += len(_varint(first - cursor)) + len(_varint(end - first))
        cursor = end
        in_varints += used <= room
        in_bitmap += end - hwm <= room * 8
    return max(in_varints, in_bitmap)


def decode(partition: TopicPartition, offset: int, text: str) -> list[Run] | Ignored:
    """The done runs above committed `offset`, or why `text` is ignored. [] for an empty text."""
    read = _read(partition, offset, text)
    return read if isinstance(read, Ignored) else read[0]


def decode_attempts(partition: TopicPartition, offset: int, text: str) -> dict[int, int]:
    """How often the records from committed `offset` on have failed, by offset; {} for what is ignored."""
    read = _read(partition, offset, text)
    return {} if isinstance(read, Ignored) else read[1]


def _read(partition: TopicPartition, offset: int, text: str) -> tuple[list[Run], dict[int, int]] | Ignored:
    if not text:
        return [], {}
    if not text.startswith(_PREFIX) or len(text) < _HEAD_CHARS or text[_HEAD_CHARS - 1] != ":":
        return Ignored.FOREIGN
    packed = text[_HEAD_CHARS:]
    try:
        body = base64.b64decode(packed + "=" * (-len(packed) % 4), altchars=b"-_", validate=True)
        stated = int(text[len(_PREFIX) : _HEAD_CHARS - 1], 16)
    except (binascii.Error, ValueError):
        return Ignored.DAMAGED
    if stated != _checksum(partition, offset, body):
        return Ignored.MISPLACED
    try:
        return _unpack(offset, body)
    except (ValueError, IndexError, zlib.error):
        return Ignored.DAMAGED


def _seal(partition: TopicPartition, hwm: int, body: bytes) -> str:
    packed = base64.urlsafe_b64encode(body).rstrip(b"=").decode("ascii")
    return f"{_PREFIX}{_checksum(partition, hwm, body):08x}:{packed}"


def _checksum(partition: TopicPartition, offset: int, body: bytes) -> int:
    place = f"{partition.topic}\x00{partition.partition}\x00{offset}\x00".encode()
    return zlib.crc32(body, zlib.crc32(place))


def _pack(hwm: int, runs: Sequence[Run]) -> bytes:
    """The shortest of the four forms, as one section."""
    varints = _as_varints(hwm, runs)
    forms = [(_VARINTS, varints)]
    if len(varints) <= _MAX_PLAIN_BYTES:
        forms.append((_DEFLATED_VARINTS, zlib.compress(varints, 6)))
    if runs[-1][1] - hwm <= _MAX_PLAIN_BYTES * 8:
        bitmap = _as_bitmap(hwm, runs)
        forms += [(_BITMAP, bitmap), (_DEFLATED_BITMAP, zlib.compress(bitmap, 6))]
    section, payload = min(forms, key=lambda form: len(form[1]))
    return _varint(section) + _varint(len(payload)) + payload


def _as_varints(hwm: int, runs: Sequence[Run]) -> bytes:
    parts = bytearray()
    cursor = hwm
    for first, end in runs:
        parts += _varint(first - cursor)
        parts += _varint(end - first)
        cursor = end
    return bytes(parts)


def _as_bitmap(hwm: int, runs: Sequence[Run]) -> bytes:
    """Bit n is offset `hwm + n`. By way of a text of digits: that costs the span, not span times runs."""
    digits: list[str] = []
    cursor = hwm
    for first, end in runs:
        digits += ("0" * (first - cursor), "1" * (end - first))
        cursor = end
    span = cursor - hwm
    return int("".join(digits)[::-1], 2).to_bytes((span + 7) // 8, "little")


def _unpack(offset: int, body: bytes) -> tuple[list[Run], dict[int, int]]:
    at = 0
    runs: list[Run] | None = None
    attempts: dict[int, int] | None = None
    while at < len(body):
        section, at = _read_varint(body, at)
        length, at = _read_varint(body, at)
        payload = body[at : at + length]
        if len(payload) != length:
            raise ValueError("a section is cut off")
        at += length
        if section == _ATTEMPTS:
            if attempts is not None:
                raise ValueError("the attempts are there twice")
            attempts = _read_attempts(offset, payload)
        elif section in _RUNS:
            if runs is not None:
                raise ValueError("the runs are there twice")
            runs = _read_runs(offset, section, payload)
    return runs or [], attempts or {}


def _read_attempts(offset: int, payload: bytes) -> dict[int, int]:
    found: dict[int, int] = {}
    at, cursor = 0, offset
    while at < len(payload):
        distance, at = _read_varint(payload, at)
        count, at = _read_varint(payload, at)
        cursor += distance
        if cursor in found or not count or cursor - offset > MAX_SPAN:
            raise ValueError("a count of attempts makes no sense")
        found[cursor] = count
    return found


def _read_runs(offset: int, section: int, payload: bytes) -> list[Run]:
    if section in (_DEFLATED_VARINTS, _DEFLATED_BITMAP):
        payload = _inflate(payload)
    if section in (_VARINTS, _DEFLATED_VARINTS):
        return _from_varints(offset, payload)
    return _from_bitmap(offset, payload)


def _inflate(payload: bytes) -> bytes:
    inflater = zlib.decompressobj()
    plain = inflater.decompress(payload, _MAX_PLAIN_BYTES)
    if inflater.unconsumed_tail or not inflater.eof:
        raise ValueError("a section is longer than any of ours")
    return plain


def _from_varints(offset: int, payload: bytes) -> list[Run]:
    runs: list[Run] = []
    at, cursor = 0, offset
    while at < len(payload):
        undone, at = _read_varint(payload, at)
        done, at = _read_varint(payload, at)
        if not done or not undone:
            raise ValueError("a run is empty")
        first, cursor = cursor + undone, cursor + undone + done
        if cursor - offset > MAX_SPAN:
            raise ValueError("a run reaches too far")
        runs.append((first, cursor))
    return runs


def _from_bitmap(offset: int, payload: bytes) -> list[Run]:
    """Runs of set bits, by one pass over the digits from edge to edge."""
    digits = format(int.from_bytes(payload, "little"), "b")[::-1] + "0"
    if digits[0] == "1":
        raise ValueError("the committed offset itself cannot be done")
    runs: list[Run] = []
    end = 0
    while (first := digits.find("1", end)) >= 0:
        end = digits.index("0", first)
        runs.append((offset + first, offset + end))
    return runs


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _read_varint(body: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = body[at]
        number |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return number, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")
