"""Each option of a filter on its own, all of them together, and moments in words."""

from __future__ import annotations

from typing import Any

import pytest

from asyncpar.admin.filters import LetterFilter, NamesSeen, moment_ms
from asyncpar.errors import ConfigurationError
from tests.admin.letters import letter, read_back, stray

LETTER = read_back(letter(7, key=b"acme", handler="bill", reason="exhausted", attempts=5, failed_ms=10_000))
NOW_MS = 1_900_000_000_000


@pytest.mark.parametrize(
    ("option", "holds", "fails"),
    [
        ("origin_topic", "orders", "order"),
        ("error", "VALUEerr", "KeyError"),
        ("error", "such customer", "other customer"),
        ("key", "acme", "acm"),
        ("key", "0x61636D65", "0x61"),
        ("handler", "bill", "bil"),
        ("reason", "exhausted", "permanent"),
        ("since_ms", 10_000, 10_001),
        ("until_ms", 10_001, 10_000),
        ("min_attempts", 5, 6),
        ("max_attempts", 5, 4),
    ],
)
def test_each_option_tells_letters_apart(option: str, holds: Any, fails: Any) -> None:
    """It holds for the one value and not for the other; a foreign record has nothing that it holds for."""
    assert LetterFilter(**{option: holds}).accepts(LETTER)
    assert not LetterFilter(**{option: fails}).accepts(LETTER)
    assert LetterFilter().accepts(read_back(stray(key=None)))
    if not option.endswith("_ms"):
        assert not LetterFilter(**{option: holds}).accepts(read_back(stray(key=None)))


def test_all_options_must_hold() -> None:
    """One that does not is enough."""
    assert LetterFilter(handler="bill", key="acme").accepts(LETTER)
    assert not LetterFilter(handler="bill", key="other").accepts(LETTER)


def test_names_that_no_letter_has_are_answered_with_those_that_there_are() -> None:
    """For what is compared as a whole: who wrote a part, or misspelled it, sees what to write."""
    names = NamesSeen()
    assert names.hints(LetterFilter(handler="bill")) == [], "nothing was read"
    for one in (letter(handler="app.bill"), letter(handler="app.mail", reason="permanent"), stray()):
        names.note(read_back(one))
    wanted = LetterFilter(handler="bill", reason="permanent", origin_topic="order")
    assert names.hints(wanted) == [
        "no letter has --origin-topic order; there are: orders",
        "no letter has --handler bill; there are: app.bill, app.mail",
    ]
    for number in range(100):
        names.note(read_back(letter(handler=f"h{number:02}")))
    assert names.hints(LetterFilter(handler="x"))[0].endswith("h16, h17, ...")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"since_ms": 5, "until_ms": 5}, "--since is not before --until"),
        ({"min_attempts": 3, "max_attempts": 2}, "--min-attempts 3 is above --max-attempts 2"),
    ],
)
def test_options_that_no_letter_can_hold_for_together_are_refused(
    options: dict[str, int], message: str
) -> None:
    """Instead of a search that finds nothing."""
    with pytest.raises(ConfigurationError, match=message):
        LetterFilter(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "time_ms"),
    [
        ("30s", NOW_MS - 30_000),
        ("15m", NOW_MS - 900_000),
        ("2h", NOW_MS - 7_200_000),
        ("1.5d", NOW_MS - 129_600_000),
        ("1w", NOW_MS - 604_800_000),
        ("2030-01-31", 1_896_048_000_000),
        ("2030-01-31T12:00:00", 1_896_091_200_000),
        ("2030-01-31T12:00:00Z", 1_896_091_200_000),
        ("2030-01-31 14:00:00+02:00", 1_896_091_200_000),
    ],
)
def test_moments_are_so_long_ago_or_a_date(text: str, time_ms: int) -> None:
    """A date without a zone is UTC."""
    assert moment_ms(text, NOW_MS) == time_ms


@pytest.mark.parametrize("text", ["yesterday", "2x", "", "h", "-2h", "31.01.2030"])
def test_other_words_are_refused(text: str) -> None:
    """With what is allowed."""
    with pytest.raises(ConfigurationError, match="is no time: write 30s, 15m"):
        moment_ms(text, NOW_MS)
