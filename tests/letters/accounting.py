"""What the dead letters say, held against the records that they are about.

What lives here: the verdicts on letters. What never does: Kafka, processes, and what the checkers judge
(calls and commits). Called by `kills.py` and `outage.py`. Always: pure. A letter and its record are brought
together by the record's value, which is unique, so that what the headers say is judged and not believed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from asyncpar.headers import ATTEMPTS, REASON, number, origin, text
from asyncpar.testing.checkers import Letter
from asyncpar.testing.history import NO_OFFSET, NO_PARTITION
from tests.letters.plan import MEMBER
from tests.letters.records import Written

_COUNTED_SHARE = 0.8
"""A window counts what lies 90 to 100 % of its length back; the rest is for a letter's way to its topic."""


@dataclass
class Account:
    """`failing`: records that fail; `letters`: dead letters, with the repeated ones; `lost`: in no letter.

    `doubles`: letters beyond a record's first one, by the step at which the process was killed that had
    written the letter before. `most_doubles` of one kill.
    """

    failing: int = 0
    letters: int = 0
    lost: int = 0
    doubles: Counter[str] = field(default_factory=Counter)
    most_doubles: int = 0
    findings: list[str] = field(default_factory=list)


def account(
    records: Sequence[Written],
    letters: Sequence[Written],
    is_bad: Callable[[bytes | None], bool],
    killed_at: Mapping[str, str],
) -> Account:
    """Nothing that fails is without a letter, and nothing is in two without a kill in between.

    `killed_at`: the step at which a member was killed, for those that were. A process writes one letter of a
    record at most, so between two of them there is always a kill: they are doubled once per crash at most.
    """
    bad = {record.value: record for record in records if is_bad(record.value)}
    of_record: dict[bytes | None, list[Written]] = defaultdict(list)
    for letter in letters:
        of_record[letter.value].append(letter)
    found = Account(len(bad), len(letters))
    by_kill: Counter[str] = Counter()
    for value, record in bad.items():
        found.lost += value not in of_record
        found.findings += _about(record, of_record.get(value, []), killed_at)
        for letter in of_record.get(value, [])[:-1]:
            by_kill[writer(letter)] += 1
    found.findings += [
        f"{_name(letter)} is a letter of no record that fails"
        for value, several in of_record.items()
        if value not in bad
        for letter in several
    ]
    found.findings += disorder(letters)
    for member, count in by_kill.items():
        found.doubles[killed_at.get(member, "not killed")] += count
    found.most_doubles = max(by_kill.values(), default=0)
    return found


def for_checkers(letters: Iterable[Written]) -> list[Letter]:
    """What the checkers want to know of them."""
    return [
        Letter(
            one.tp,
            one.offset,
            *(origin(one.headers) or (NO_PARTITION, NO_OFFSET)),
            one.key,
            number(one.headers, ATTEMPTS) or 0,
            text(one.headers, REASON) or "",
        )
        for one in letters
    ]


def writer(letter: Written) -> str:
    """The process that wrote it."""
    return text(letter.headers, MEMBER) or ""


def _about(record: Written, letters: Sequence[Written], killed_at: Mapping[str, str]) -> Iterator[str]:
    """What is wrong with the letters of one record."""
    if not letters:
        yield f"{_name(record)} fails, and is in no letter"
    for letter in letters:
        place = origin(letter.headers)
        if place != record[:2] or letter.key != record.key:
            says = "from nowhere" if place is None else f"{place[0]} offset {place[1]}"
            yield (
                f"{_name(letter)} says that it is {says} with key {letter.key!r}, "
                f"but its value is that of {_name(record)} with key {record.key!r}"
            )
    writers = [writer(letter) for letter in letters]
    if len(set(writers)) < len(writers):
        yield f"{_name(record)} has two letters of one process: {writers}"
    for member in writers[:-1]:
        if member not in killed_at:
            yield f"{_name(record)} has a second letter, although {member!r} was not killed: {writers}"


def disorder(letters: Iterable[Written]) -> Iterator[str]:
    """Letters of a key that do not ascend: each record's first one, and all that one process wrote."""
    first: dict[bytes | None, int] = {}
    of_process: dict[tuple[bytes | None, str], int] = {}
    seen: set[bytes | None] = set()
    for letter in letters:
        place = origin(letter.headers)
        offset = -1 if place is None else place[1]
        own = (letter.key, writer(letter))
        if letter.value not in seen and offset < first.get(letter.key, -1):
            yield f"{_name(letter)}, the first of offset {offset}, is behind that of {first[letter.key]}"
        if offset < of_process.get(own, -1):
            yield f"{_name(letter)} of offset {offset} is behind offset {of_process[own]} of the same process"
        seen.add(letter.value)
        first[letter.key] = max(offset, first.get(letter.key, -1))
        of_process[own] = max(offset, of_process.get(own, -1))


def over_budget(letters: Iterable[Written], at_least: int, window_ms: int) -> list[str]:
    """Where a process wrote more than `at_least` letters within `window_ms`."""
    of_process: dict[str, list[int]] = defaultdict(list)
    for letter in letters:
        of_process[writer(letter)].append(letter.timestamp_ms)
    found: list[str] = []
    for member, moments in of_process.items():
        moments.sort()
        for first, last in zip(moments, moments[at_least:], strict=False):
            if last - first < _COUNTED_SHARE * window_ms:
                found.append(
                    f"{member} wrote {at_least + 1} letters within {last - first} ms; "
                    f"its budget is {at_least} in {window_ms} ms"
                )
    return found


def _name(one: Written) -> str:
    return f"{one.tp} offset {one.offset}"
