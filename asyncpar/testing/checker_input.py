"""What may be given to `check`: a history in one of its forms, made of events that the checkers can read.

Pure. Called by `checkers`. Always: what is misspelt is refused with one line that names the event, since a
checker that waits for `end` would pass a history of `finished` as one in which nothing went wrong. The
columns are looked at as a whole, which costs little beside the checks.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import get_args

from asyncpar.records import CommitAnswer, TopicPartition
from asyncpar.testing.history import (
    DEAD_LETTER,
    RETRY,
    SKIPPED,
    Event,
    History,
    HistoryFile,
    Kind,
    Recorder,
    read,
)

_KINDS = frozenset(get_args(Kind))
_WORDS: Mapping[str, frozenset[str]] = {
    "end": frozenset({"ok", "failed", "cancelled"}),
    "done": frozenset({SKIPPED, DEAD_LETTER, RETRY}),
    "answer": frozenset(answer.value for answer in CommitAnswer),
}
"""What the `detail` of an event of this kind may be."""
_NUMBERS = frozenset({"send", "poll", "revoke", "start"})
"""The `detail` of these is a whole number, or nothing but for `poll`."""
_COLUMNS: Mapping[str, tuple[frozenset[type], str]] = {
    "at_ns": (frozenset({int}), "a whole number of nanoseconds"),
    "member": (frozenset({str}), "text"),
    "tp": (frozenset({TopicPartition}), "a TopicPartition"),
    "offset": (frozenset({int}), "a whole number"),
    "key": (frozenset({bytes, type(None)}), "bytes or None"),
    "detail": (frozenset({str}), "text"),
}


def events_of(source: Iterable[Event] | Recorder) -> list[Event]:
    """The events of `source`, in its order. TypeError and ValueError for what cannot be judged."""
    if isinstance(source, History):
        source = source.events
    elif isinstance(source, HistoryFile):
        source = read(source.path)
    elif isinstance(source, str | Path):
        raise TypeError(f"check takes events, not a path: check(read({str(source)!r}))")
    if not isinstance(source, Iterable):
        raise TypeError(f"check takes a History or its events, not {type(source).__name__}")
    events = list(source)
    if set(map(type, events)) - {Event}:
        stranger = next(one for one in events if type(one) is not Event)
        raise TypeError(f"check takes events, and this is none: {stranger!r}; make it with Event(...)")
    if events:
        _check(events)
    return events


def _check(events: Sequence[Event]) -> None:
    columns = dict(zip(Event._fields, zip(*events, strict=True), strict=True))
    for name, (types, what) in _COLUMNS.items():
        column = columns[name]
        if set(map(type, column)) - types:
            at = next(at for at, value in enumerate(column) if type(value) not in types)
            raise TypeError(f"an event's {name} is {what}, not {column[at]!r}: {events[at]!r}")
    kinds, details = columns["kind"], columns["detail"]
    if not set(kinds) <= _KINDS:
        at = next(at for at, kind in enumerate(kinds) if kind not in _KINDS)
        raise ValueError(f"there is no kind {kinds[at]!r}{_hint(kinds[at], _KINDS)}: {events[at]!r}")
    pairs = list(zip(kinds, details, strict=True))
    numbers = "".join([detail for kind, detail in pairs if kind in _NUMBERS]).replace("-", "")
    if (numbers and not numbers.isdecimal()) or "" in [detail for kind, detail in pairs if kind == "poll"]:
        at = next(at for at, pair in enumerate(pairs) if not _is_number(*pair))
        raise ValueError(f"the detail of {kinds[at]!r} is a whole number, see Kind: {events[at]!r}")
    for name, words in _WORDS.items():
        wrong = {detail for kind, detail in pairs if kind == name} - words
        if wrong:
            at = next(at for at, pair in enumerate(pairs) if pair[0] == name and pair[1] in wrong)
            hint = _hint(details[at], words)
            raise ValueError(f"the detail of {name!r} cannot be {details[at]!r}{hint}: {events[at]!r}")


def _is_number(kind: str, detail: str) -> bool:
    """Whether this is no event with a number in it, or the number is there."""
    return kind not in _NUMBERS or detail.removeprefix("-").isdecimal() or (not detail and kind != "poll")


def _hint(word: object, known: Collection[str]) -> str:
    near = difflib.get_close_matches(str(word), known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; give {', '.join(sorted(known))}"
