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
_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """All that is given must hold. Times are milliseconds since the epoch: since <= failed < until.

    `error`: a part of the error's class or message, whatever its case. `key`: as UTF-8, or 0x and hexadecimal
    digits. A letter that does not say how often it was attempted is in no range of attempts.
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
