"""Letters made by hand: what is right passes, and each thing that may be wrong is found."""

from __future__ import annotations

from asyncpar import headers
from asyncpar.records import TopicPartition
from tests.letters.accounting import account, disorder, over_budget
from tests.letters.downstream import Heard
from tests.letters.outage import Rates, called_on, gave_up, rates, unheard
from tests.letters.plan import MEMBER, Shape
from tests.letters.records import Written

SOURCE, DEAD = TopicPartition("t", 0), TopicPartition("t.dlq", 0)
RECORDS = [Written(SOURCE, offset, b"k", b"v%d" % offset) for offset in range(6)]
KILLED = {"m1": "publishing", "m2": "committing"}


def is_bad(value: bytes | None) -> bool:
    """The records at offsets 1, 3 and 5."""
    return value in (b"v1", b"v3", b"v5")


def letter(at: int, offset: int, member: str, *, says: int | None = None, ms: int = 0) -> Written:
    """At `at` in the dead letters: of the record at `offset`, though it may say otherwise."""
    place = offset if says is None else says
    values: list[tuple[str, str | int | None]] = [
        (headers.TOPIC, "t"),
        (headers.PARTITION, 0),
        (headers.OFFSET, place),
        (MEMBER, member),
    ]
    return Written(DEAD, at, b"k", b"v%d" % offset, headers.with_values((), values), ms)


WELL = [letter(0, 1, "m1"), letter(1, 3, "m1"), letter(2, 3, "m2"), letter(3, 5, "m2"), letter(4, 5, "m3")]


def test_a_letter_each_and_doubles_behind_a_kill_are_well() -> None:
    """Doubles count for the kill of the process that wrote the letter before."""
    found = account(RECORDS, WELL, is_bad, KILLED)
    assert found.findings == []
    assert (found.failing, found.letters, found.lost) == (3, 5, 0)
    assert found.doubles == {"publishing": 1, "committing": 1}
    assert found.most_doubles == 1


def test_a_failing_record_without_a_letter_is_lost() -> None:
    """With its place."""
    found = account(RECORDS, WELL[:3], is_bad, KILLED)
    assert found.lost == 1
    assert found.findings == ["t[0] offset 5 fails, and is in no letter"]


def test_two_letters_of_one_process_are_found() -> None:
    """Nobody was killed between them."""
    found = account(RECORDS, [*WELL, letter(5, 5, "m3")], is_bad, KILLED)
    assert any("two letters of one process" in text for text in found.findings)


def test_a_double_that_no_kill_excuses_is_found() -> None:
    """Another process wrote it, while the first one lived."""
    found = account(RECORDS, WELL, is_bad, {"m1": "publishing"})
    assert found.findings == ["t[0] offset 5 has a second letter, although 'm2' was not killed: ['m2', 'm3']"]


def test_a_letter_that_tells_another_origin_is_found() -> None:
    """A reader could not know it for a double."""
    found = account(RECORDS, [*WELL[:4], letter(4, 5, "m3", says=4)], is_bad, KILLED)
    assert "t.dlq[0] offset 4 says that it is t[0] offset 4 with key b'k', " in found.findings[0]


def test_a_letter_of_a_record_that_does_not_fail_is_found() -> None:
    """What is well is no dead letter."""
    found = account(RECORDS, [letter(0, 0, "m1"), *WELL], is_bad, KILLED)
    assert found.findings == ["t.dlq[0] offset 0 is a letter of no record that fails"]


def test_first_letters_of_a_key_ascend() -> None:
    """A repetition may step back, a first letter may not, and neither may what one process wrote."""
    assert list(disorder(WELL)) == []
    repeated = [letter(0, 1, "m1"), letter(1, 3, "m1"), letter(2, 1, "m2"), letter(3, 3, "m2")]
    assert list(disorder(repeated)) == []
    assert len(list(disorder([letter(0, 3, "m1"), letter(1, 1, "m2")]))) == 1
    assert len(list(disorder([*repeated, letter(4, 1, "m2")]))) == 1


def test_more_letters_than_the_budget_allows_are_found() -> None:
    """Within a window, and by process."""
    slow = [letter(at, 1, "m1", ms=500 * at) for at in range(10)]
    both = [letter(at, 1, f"m{at % 2}", ms=100 * at) for at in range(4)]
    assert over_budget(slow, at_least=2, window_ms=1000) == []
    assert over_budget(both, at_least=2, window_ms=1000) == []
    assert len(over_budget([*slow, letter(10, 1, "m1", ms=4700)], at_least=2, window_ms=1000)) == 1


def test_what_came_nowhere_is_found() -> None:
    """To the service or into one letter, each record must have come."""
    places = [(0, offset) for offset in range(6)]
    heard = [Heard(1.0, 0, offset) for offset in (0, 2, 4)]
    letters = [letter(0, 1, "m1"), letter(1, 3, "m1"), letter(2, 5, "m1")]
    assert unheard(places, heard, letters) == []
    assert unheard(places, heard, letters[:2]) == ["1 records are lost, such as [0] offset 5"]
    assert unheard(places, heard, [*letters, letter(3, 5, "m2")]) == ["[0] offset 5 is in 2 letters"]


def test_the_speed_before_and_after_is_told_from_what_the_service_heard() -> None:
    """A breaker that lets the work crawl after the outage is found; so is one that lets letters through."""
    shape = Shape(10.0, calm_seconds=10.0, settle_seconds=2.0, after_seconds=5.0)
    calm = [Heard(10 + at / 10, at % 4, at) for at in range(100)]
    back = [Heard(31 + at / 10, at % 4, at) for at in range(60)]
    seen = rates([*calm, *back], shape, down_at=20.0, up_at=30.0)
    assert (seen.before, seen.after, seen.best) == (10.0, 10.0, 10)
    assert round(seen.first_seconds, 1) == 1.0
    assert round(seen.all_partitions_seconds, 1) == 1.3
    assert gave_up(0, seen, 10) == []
    crawling = Rates(10.0, 7.0, 9, 1.0, 1.3)
    assert gave_up(0, crawling, 10) == ["7 records/s after the outage, 10 before it"]
    assert gave_up(0, crawling, 8) == []
    assert gave_up(3, seen, 10) == ["3 dead letters: an outage is no fault of the records"]
    assert rates(calm, shape, 20.0, 30.0) == Rates(10.0, 0.0, 0, -1.0, -1.0)


def test_calls_that_no_breaker_lets_through_are_found() -> None:
    """In an outage of 10 s, with a probe every second: 20 failures and 30 keys of two members, and probes."""
    shape = Shape(10.0, open_ms=1000, keys=30)
    assert called_on(2 * (20 + 30 + 11), shape) == []
    assert called_on(123, shape) == ["123 calls while the service was out, at most 122 are to be"]
