"""Which records `asyncpar produce` writes: their keys, their values, and when each is to be sent.

Lives here: `LoadRequest`, the kinds of values, and `Load`, which makes one record after another. Never here:
sending, clocks. Called by `produce.py` and `produce_run.py`. Pure but for reading a file of values. Always:
the same request makes the same keys and values (but for `{{time_ms}}`).
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, TypeAlias

from asyncpar import headers
from asyncpar.errors import ConfigurationError
from asyncpar.policies import suggestion
from asyncpar.records import OutgoingRecord

_PLACEHOLDER = re.compile(r"\{\{\s*(\w*)\s*\}\}")
_DRAWN_AT_ONCE = 1_000
_RANDOM_BELOW = 1_000_000_000
_NUMBER_WIDTH = 10
_MOST_SKEWED_KEYS = 1_000_000
"""Each of them has a weight in memory."""


class Slot(NamedTuple):
    """What a value may be made of: the record's number (from 0), its key, its time and a random number."""

    number: int
    key: str
    time_ms: int
    random: int


Values: TypeAlias = Callable[[Slot], bytes]
"""The value of a record."""


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """What to write. `records` 0: no end. `rate` None: as fast as it goes. `keys` 0: none."""

    topic: str
    values: Values
    records: int = 10_000
    rate: float | None = None
    keys: int = 1_000
    key_skew: float = 0.0
    seed: int = 0

    def check(self) -> None:
        """Raises ConfigurationError for what nothing can be drawn or timed by."""
        if self.key_skew and self.keys > _MOST_SKEWED_KEYS:
            raise ConfigurationError(
                f"--keys {self.keys}: at most {_MOST_SKEWED_KEYS:,} keys can be drawn with --key-skew; give "
                "fewer, or leave --key-skew out"
            )


def of_size(size: int) -> Values:
    """Text of `size` bytes, which begins with the record's number as far as there is room."""
    filling = b"." * size

    def value(slot: Slot) -> bytes:
        number = b"%0*d" % (_NUMBER_WIDTH, slot.number)
        return (number + filling)[:size]

    return value


def filled(template: str) -> Values:
    """`template` with its placeholders filled in.

    Raises ConfigurationError for a placeholder that there is not, and for what is no text.
    """
    try:
        template.encode()
    except UnicodeEncodeError as error:
        raise ConfigurationError(
            f"--value is no UTF-8 text (at character {error.start + 1}); check the quoting"
        ) from None
    for name in _PLACEHOLDER.findall(template):
        if name not in Slot._fields:
            raise ConfigurationError(
                f"--value: there is nothing to fill in for {{{{{name}}}}}; {suggestion(name, Slot._fields)}"
            )

    def value(slot: Slot) -> bytes:
        return _PLACEHOLDER.sub(lambda found: str(getattr(slot, found[1])), template).encode()

    return value


def from_file(path: Path) -> Values:
    """The lines of `path` in turn; empty ones are left out. ConfigurationError for what is no JSON."""
    try:
        # At line feeds only: what else ends lines of text may stand within a JSON value.
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise ConfigurationError(f"--values-from {path} cannot be read: {reason}; check the path") from None
    values = []
    for at, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            json.loads(line)
        except ValueError as error:
            raise ConfigurationError(
                f"--values-from {path}, line {at} is no JSON ({error}); write one value on each line"
            ) from None
        except RecursionError:
            raise ConfigurationError(
                f"--values-from {path}, line {at} is nested too deeply to be read; write a flatter value"
            ) from None
        values.append(line.strip().encode())
    if not values:
        raise ConfigurationError(f"--values-from {path} has no line; write one JSON value on each line")
    return lambda slot: values[slot.number % len(values)]


class Load:
    """The records of `request`, one after another."""

    def __init__(self, request: LoadRequest) -> None:
        self._request = request
        self._chance = random.Random(request.seed)
        self._keys = self._drawn_keys()

    def record(self, number: int, intended_ms: int) -> OutgoingRecord:
        """The record with this number, from 0; they have to be asked for in their order."""
        key = next(self._keys, None)
        slot = Slot(number, key or "", intended_ms, self._chance.randrange(_RANDOM_BELOW))
        return OutgoingRecord(
            self._request.topic,
            None if key is None else key.encode(),
            self._request.values(slot),
            ((headers.INTENDED, b"%d" % intended_ms),),
        )

    def _drawn_keys(self) -> Iterator[str]:
        """Keys by Zipf's law; none where there are none."""
        request = self._request
        if not request.keys:
            return
        # Of its own, so that values do not depend on how many keys are drawn at once.
        chance = random.Random(request.seed)
        numbers = range(request.keys)
        weights = None
        if request.key_skew:
            weights = list(accumulate((1 + number) ** -request.key_skew for number in numbers))
        while True:
            for number in chance.choices(numbers, cum_weights=weights, k=_DRAWN_AT_ONCE):
                yield f"key-{number}"
