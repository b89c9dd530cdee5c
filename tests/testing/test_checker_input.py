"""What may be given to `check`, and what is refused rather than passed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asyncpar.testing import Event, Final, History, HistoryFile, Rules, TopicPartition, check, read
from tests.testing.tale import TP, Tale

MEMBER = "member"
GOOD = Tale().sent(0, 1).given(MEMBER).polled(MEMBER, 0, 2).ran(MEMBER, 0, 1).committed(MEMBER, 2).events


def test_a_history_is_taken_in_each_of_its_forms(tmp_path: Path) -> None:
    """A History, a HistoryFile, what `read` gives, any iterable: the counts are the same."""
    history, file = History(), HistoryFile(tmp_path / "history")
    for event in GOOD:
        history.append(event)
        file.append(event)
    counts = check(GOOD).counts
    assert counts["handled"] == 2
    for source in (history, file, read(file.path), iter(GOOD)):
        assert check(source).counts == counts
    file.close()


def changed(of: str, **fields: Any) -> list[Event]:
    """The good history, with its first event of that kind changed."""
    at = next(at for at, event in enumerate(GOOD) if event.kind == of)
    return [*GOOD[:at], GOOD[at]._replace(**fields), *GOOD[at + 1 :]]


@pytest.mark.parametrize(
    ("events", "error", "text"),
    [
        (changed("send", kind="sent"), ValueError, "there is no kind 'sent'; did you mean 'send'?: Event"),
        (changed("send", kind="?"), ValueError, "there is no kind '?'; give answer, assign, "),
        (
            changed("end", detail="okay"),
            ValueError,
            "the detail of 'end' cannot be 'okay'; did you mean 'ok'",
        ),
        (
            changed("end", detail=""),
            ValueError,
            "the detail of 'end' cannot be ''; give cancelled, failed, ok",
        ),
        (changed("answer", detail="acked"), ValueError, "the detail of 'answer' cannot be 'acked'; "),
        (
            changed("end", kind="done", detail="dead letter"),
            ValueError,
            "the detail of 'done' cannot be 'dead letter'; did you mean 'dead_letter'",
        ),
        (changed("poll", detail=""), ValueError, "the detail of 'poll' is a whole number, see Kind"),
        (changed("send", detail="ten"), ValueError, "the detail of 'send' is a whole number"),
        (changed("start", detail="1.5"), ValueError, "the detail of 'start' is a whole number"),
        (changed("send", key="k"), TypeError, "an event's key is bytes or None, not 'k': Event"),
        (changed("send", tp=("orders", 0)), TypeError, "an event's tp is a TopicPartition, not "),
        (changed("poll", offset="0"), TypeError, "an event's offset is a whole number, not '0'"),
        (changed("poll", at_ns=1.5), TypeError, "an event's at_ns is a whole number of nanoseconds"),
        ([tuple(GOOD[0])], TypeError, "check takes events, and this is none: ('send', "),
        ("history.txt", TypeError, "check takes events, not a path: check(read('history.txt'))"),
        (7, TypeError, "check takes a History or its events, not int"),
    ],
)
def test_what_cannot_be_judged_is_refused(events: Any, error: type[Exception], text: str) -> None:
    """A history of misspelt events would pass, or end in a traceback from inside a checker."""
    with pytest.raises(error) as caught:
        check(events)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"order": "keys"}, ValueError, "Rules(order='keys') is not allowed; give 'key' or 'partition' or"),
        ({"replays": "all"}, ValueError, "Rules(replays='all') is not allowed"),
        ({"offset_reset": "error"}, ValueError, "Rules(offset_reset='error') is not allowed"),
        ({"max_in_flight": "5"}, TypeError, "Rules(max_in_flight='5') is not allowed; give a whole number"),
        ({"finals": [(TP, 1)]}, TypeError, "give committed offset and end of the log of each partition"),
        ({"finals": {TP: 7}}, TypeError, "give committed offset and end of the log of each partition"),
        ({"finals": {TP: ("1", 2)}}, TypeError, "has Final(committed='1', end=2) for orders[0]"),
    ],
)
def test_wrong_rules_are_refused(options: dict[str, Any], error: type[Exception], text: str) -> None:
    """Rules that no checker knows would judge nothing."""
    with pytest.raises(error) as caught:
        Rules(**options)
    assert text in str(caught.value)


def test_rules_are_rules() -> None:
    """Finals may be plain tuples; a dict is no Rules."""
    rules = Rules(finals={("orders", 0): (2, 2)})  # type: ignore[dict-item]
    assert rules == Rules(finals={TopicPartition("orders", 0): Final(2, 2)})
    assert check(GOOD, rules).is_ok
    assert check(GOOD, replace(rules, finals={TP: Final(1, 2)})).broken == {"STUCK"}
    assert Rules(finals={}).finals == {}
    with pytest.raises(TypeError, match="check takes Rules"):
        check(GOOD, {"order": "key"})  # type: ignore[arg-type]


def test_one_is_not_many() -> None:
    """The line of counts has plural forms only where there are many."""
    text = check(Tale().sent(0).given(MEMBER).polled(MEMBER, 0, 1).ran(MEMBER, 0).committed(MEMBER, 1).events)
    assert text.explain().endswith(
        "0 stragglers, 0 late starts, 0 unclean losses, 1 commit, 1 acknowledged commit, 0 dead letters"
    )
