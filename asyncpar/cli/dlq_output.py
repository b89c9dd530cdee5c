"""Dead letters as people and programs read them: a table, one letter in full, JSON.

Pure but for `print_table`, which writes to stdout. Never here: reading letters. Called by `dlq.py`. Always:
control characters of keys, values and messages are shown as escapes, so that a letter cannot command the
terminal.
"""

from __future__ import annotations

import codecs
import datetime as dt
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from asyncpar import headers
from asyncpar.admin.dead_letters import DeadLetter
from asyncpar.records import TopicPartition

COLUMNS = ("part", "offset", "when", "origin", "key", "reason", "error", "attempts", "handler", "")
_NUMBERS = frozenset({"part", "offset", "attempts"})
_WIDTH_OF_A_PIPE = 240
_NEWLINES = "\n\t"

Place = tuple[TopicPartition, int]


def moment(time_ms: int) -> str:
    """`2030-01-31T12:00:00.123Z`; a dash for no time or one that no calendar has."""
    try:
        at = dt.datetime.fromtimestamp(time_ms / 1000, dt.UTC)
    except (OverflowError, ValueError, OSError):
        return "-"
    return "-" if time_ms < 0 else at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def printable(text: str, also: str = "") -> str:
    """`text` with what is not printable as Python's escapes, but for characters of `also`."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() or one in also else one.encode("unicode_escape").decode() for one in text
    )


def words(data: bytes | None) -> str:
    """Bytes on one line: as text when they are UTF-8, else 0x and hexadecimal digits; a dash for None."""
    if data is None:
        return "-"
    try:
        return printable(data.decode())
    except UnicodeDecodeError:
        return f"0x{data.hex()}"


# -- the table -----------------------------------------------------------------------------------


def row(letter: DeadLetter, double_of: Place | None) -> tuple[str, ...]:
    """The cells of one letter."""
    origin = letter.origin
    return (
        str(letter.tp.partition),
        str(letter.offset),
        moment(letter.when_ms),
        "-" if origin is None else printable(f"{origin[0]}@{origin[1]}"),
        words(letter.record.key),
        _says(letter, headers.REASON),
        _says(letter, headers.ERROR_TYPE).rpartition(".")[2],
        _says(letter, headers.ATTEMPTS),
        _says(letter, headers.HANDLER),
        _remark(letter, double_of),
    )


def _says(letter: DeadLetter, name: str) -> str:
    return printable(letter.text(name) or "-")


def _remark(letter: DeadLetter, double_of: Place | None) -> str:
    remarks = [] if double_of is None else [f"double of {double_of[0].partition}@{double_of[1]}"]
    remarks += ["no value"] if letter.is_metadata_only else []
    times = letter.number(headers.REPLAYED)
    remarks += [f"replayed {times}x before"] if times else []
    return ", ".join(remarks)


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print the table on stdout, as wide as the terminal; a pipe gets wide lines."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in COLUMNS:
        table.add_column(name, justify="right" if name in _NUMBERS else "left", overflow="fold")
    for cells in rows:
        table.add_row(*map(Text, cells))
    is_terminal = sys.stdout.isatty()
    Console(file=sys.stdout, width=None if is_terminal else _WIDTH_OF_A_PIPE).print(table)


# -- JSON ----------------------------------------------------------------------------------------


def facts(letter: DeadLetter, double_of: Place | None = None) -> dict[str, object]:
    """What a letter says, for JSON. Bytes that are no UTF-8 are `{"hex": ...}`."""
    origin = letter.origin
    return {
        "topic": letter.tp.topic,
        "partition": letter.tp.partition,
        "offset": letter.offset,
        "when": moment(letter.when_ms),
        "origin": None
        if origin is None
        else {
            "topic": origin[0].topic,
            "partition": origin[0].partition,
            "offset": origin[1],
            "timestamp_ms": letter.number(headers.TIMESTAMP),
        },
        "key": _data(letter.record.key),
        "reason": letter.text(headers.REASON),
        "error_type": letter.text(headers.ERROR_TYPE),
        "error_message": letter.text(headers.ERROR_MESSAGE),
        "attempts": letter.number(headers.ATTEMPTS),
        "handler": letter.text(headers.HANDLER),
        "group": letter.text(headers.GROUP),
        "first_failed_ms": letter.number(headers.FIRST_FAILED),
        "failed_ms": letter.number(headers.FAILED),
        "timestamp_ms": letter.record.timestamp,
        "replayed": letter.number(headers.REPLAYED) or 0,
        "metadata_only": letter.is_metadata_only,
        "double_of": None
        if double_of is None
        else {"partition": double_of[0].partition, "offset": double_of[1]},
    }


def everything(letter: DeadLetter) -> dict[str, object]:
    """`facts`, with all headers in their order and the whole value."""
    return {
        **facts(letter),
        "headers": [[name, _data(value)] for name, value in letter.record.headers],
        "value": _data(letter.record.value),
    }


def _data(data: bytes | None) -> object:
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"hex": data.hex()}


def line(fields: Mapping[str, object]) -> str:
    """One JSON object on one line."""
    return json.dumps(fields, ensure_ascii=True)


# -- one letter in full --------------------------------------------------------------------------


def in_full(letter: DeadLetter, max_bytes: int) -> str:
    """All of a letter, as lines: where it lies, its headers, key and value, each cut at `max_bytes`."""
    record = letter.record
    own = [(name, value) for name, value in record.headers if not name.startswith(headers.PREFIX)]
    ours = [(name, value) for name, value in record.headers if name.startswith(headers.PREFIX)]
    lines = [f"{letter.place}, written {moment(record.timestamp)}", "", "why it is here:"]
    named = _named((name.removeprefix(headers.PREFIX), value) for name, value in ours)
    lines += named or ["  (it does not say)"]
    lines += ["", "headers:", *(_named(own) or ["  (none)"])]
    lines += ["", _titled("key", record.key), *_content(record.key, max_bytes)]
    lines += ["", _titled("value", record.value), *_content(record.value, max_bytes)]
    if letter.is_metadata_only:
        lines.append(f"  (left out on purpose: payload {headers.METADATA_ONLY}; look for it at the origin)")
    return "\n".join(lines)


def _named(pairs: Iterable[tuple[str, bytes | None]]) -> list[str]:
    found = [(printable(name), _header(name, value)) for name, value in pairs]
    width = max((len(name) for name, _ in found), default=0)
    return [f"  {name.ljust(width)}  {value}" for name, value in found]


_TIMES = frozenset({"timestamp", "first-failed", "failed", "not-before"})


def _header(name: str, value: bytes | None) -> str:
    shown = words(value)
    if name in _TIMES and shown.isascii() and shown.isdigit():
        return f"{shown} ({moment(int(shown))})"
    return shown


def _titled(name: str, data: bytes | None) -> str:
    return f"{name}: none" if data is None else f"{name}, {len(data)} bytes:"


def _content(data: bytes | None, max_bytes: int) -> list[str]:
    """As indented lines: JSON laid out, other UTF-8 as text, else hexadecimal digits."""
    if data is None:
        return []
    shown = data[:max_bytes]
    cut = (
        []
        if len(data) <= max_bytes
        else [f"  ... cut after {max_bytes} of {len(data)} bytes: see --max-bytes"]
    )
    text = _json_or_text(data, shown)
    if text is None:
        text = "\n".join(shown[at : at + 32].hex(" ") for at in range(0, len(shown), 32))
    return [f"  {part}" for part in printable(text, _NEWLINES).split("\n")] + cut


def _json_or_text(data: bytes, shown: bytes) -> str | None:
    """None for what is no UTF-8. A character that the cut goes through is left out."""
    is_whole = len(shown) == len(data)
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(shown, final=is_whole)
    except UnicodeDecodeError:
        return None
    if is_whole and text.lstrip()[:1] in ("{", "["):
        with suppress(ValueError, RecursionError):
            return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    return text
