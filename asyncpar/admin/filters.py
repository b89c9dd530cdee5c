"""Which dead letters are meant: one filter from all that the command line can say, and moments in words.

Pure. Never here: reading letters, the clock. Called by the command line; `LetterFilter.accepts` by all that
goes through letters.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from dataclasses import dataclass

from asyncpar import headers
from asyncpar.admin.dead_letters import DeadLetter
from asyncpar.errors import ConfigurationError

_UNIT_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_WHOLE = {
    "origin_topic": (headers.TOPIC, "--origin-topic"),
    "handler": (headers.HANDLER, "--handler"),
    "reason": (headers.REASON, "--reason"),
}
_MOST_NAMES = 20
_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """All that is given must hold. Times are milliseconds since the epoch: since <= failed < until.

    `error`: a part of the error's class or message, whatever its case. `key`: as UTF-8, or 0x and hexadecimal
    digits. `origin_topic`, `handler` and `reason` are compared as a whole. A letter that does not say how
    often it was attempted is in no range of attempts. Raises ConfigurationError for what no letter can be.
    """

    origin_topic: str | None = None
    error: str | None = None
    key: str | None = None
    handler: str | None = None
    reason: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    min_attempts: int | None = None
    max_attempts: int | None = None

    def __post_init__(self) -> None:
        since, until, least, most = self.since_ms, self.until_ms, self.min_attempts, self.max_attempts
        if since is not None and until is not None and since >= until:
            raise ConfigurationError("--since is not before --until: no letter lies between them")
        if least is not None and most is not None and least > most:
            raise ConfigurationError(
                f"--min-attempts {least} is above --max-attempts {most}: no letter is in between"
            )

    def accepts(self, letter: DeadLetter) -> bool:
        """True when `letter` is meant."""
        return all(check(self, letter) for check in _CHECKS)


def _is_of_origin(wanted: LetterFilter, letter: DeadLetter) -> bool:
    return wanted.origin_topic in (None, letter.text(headers.TOPIC))


def _has_error(wanted: LetterFilter, letter: DeadLetter) -> bool:
    if wanted.error is None:
        return True
    texts = (letter.text(headers.ERROR_TYPE), letter.text(headers.ERROR_MESSAGE))
    return any(text is not None and wanted.error.lower() in text.lower() for text in texts)


def _has_key(wanted: LetterFilter, letter: DeadLetter) -> bool:
    if wanted.key is None:
        return True
    key = letter.record.key
    return key is not None and (key == wanted.key.encode() or f"0x{key.hex()}" == wanted.key.lower())


def _is_of_handler(wanted: LetterFilter, letter: DeadLetter) -> bool:
    return wanted.handler in (None, letter.text(headers.HANDLER))


def _has_reason(wanted: LetterFilter, letter: DeadLetter) -> bool:
    return wanted.reason in (None, letter.text(headers.REASON))


def _is_of_time(wanted: LetterFilter, letter: DeadLetter) -> bool:
    if wanted.since_ms is not None and letter.when_ms < wanted.since_ms:
        return False
    return wanted.until_ms is None or letter.when_ms < wanted.until_ms


def _has_attempts(wanted: LetterFilter, letter: DeadLetter) -> bool:
    if wanted.min_attempts is None and wanted.max_attempts is None:
        return True
    attempts = letter.number(headers.ATTEMPTS)
    if attempts is None or (wanted.min_attempts is not None and attempts < wanted.min_attempts):
        return False
    return wanted.max_attempts is None or attempts <= wanted.max_attempts


_CHECKS: tuple[Callable[[LetterFilter, DeadLetter], bool], ...] = (
    _is_of_origin,
    _has_error,
    _has_key,
    _is_of_handler,
    _has_reason,
    _is_of_time,
    _has_attempts,
)


class NamesSeen:
    """What the letters that were read say where a filter compares the whole text: for who misspelled one."""

    def __init__(self) -> None:
        self._seen: dict[str, set[str]] = {field: set() for field in _WHOLE}

    def note(self, letter: DeadLetter) -> None:
        """`letter` was read, be it meant or not."""
        for field, (header, _) in _WHOLE.items():
            seen = self._seen[field]
            if len(seen) <= _MOST_NAMES and (text := letter.text(header)) is not None:
                seen.add(text)

    def hints(self, wanted: LetterFilter) -> list[str]:
        """A line for each text that `wanted` asks for and no letter has."""
        lines = []
        for field, (_, option) in _WHOLE.items():
            asked, seen = getattr(wanted, field), sorted(self._seen[field])
            if asked is None or asked in seen or not seen:
                continue
            more = ", ..." if len(seen) > _MOST_NAMES else ""
            lines.append(f"no letter has {option} {asked}; there are: {', '.join(seen[:_MOST_NAMES])}{more}")
        return lines


def moment_ms(text: str, now_ms: int) -> int:
    """What `text` means in milliseconds since the epoch: `2h` (ago; s, m, h, d, w), or an ISO date and time.

    A time without a zone is UTC, as all that is shown. Raises ConfigurationError.
    """
    ago = _AGO.fullmatch(text.strip())
    if ago is not None:
        return now_ms - round(float(ago[1]) * _UNIT_MS[ago[2]])
    try:
        moment = dt.datetime.fromisoformat(text.strip())
    except ValueError:
        raise ConfigurationError(
            f"{text!r} is no time: write 30s, 15m, 2h, 3d or 1w for so long ago, or 2030-01-31T12:00:00Z"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    return round(moment.timestamp() * 1000)
