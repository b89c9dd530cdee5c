"""The checkers as a whole: lives with several members and faults that are fine, and what a check costs."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from types import FrameType

from asyncpar.records import TopicPartition
from asyncpar.testing.checkers import Final, Report, Rules, check
from asyncpar.testing.history import Event
from tests.testing.tale import GRACE_MS, RULES, SESSION_MS, TP, Tale, fine

A, B, C = "member-a", "member-b", "member-c"


def test_a_long_good_life() -> None:
    """Holes, retries, a drained rebalance, a kick, a freeze, a death, a halt and a restart, to the end."""
    tale = Tale().sent(*range(5), *range(8, 20), key=b"k").sent(*range(20, 24), key=None)
    tale.note("join", A).given(A).polled(A, 0, 5).ran(A, 0, how="failed").ran(A, 0, 1).committed(A, 2)
    tale.note("join", B).began(A, 2).revoked(A).wait(200).ended(A, 2).committed(A, 3).released(A)
    tale.given(B, 3).polled(B, 3, 12).ran(B, 3, 4).committed(B, 8).ran(B, 8)
    tale.note("freeze", B).wait(SESSION_MS + 2_000).given(C, 8).polled(C, 8, 24).ran(C, 8)
    tale.note("thaw", B).began(B, 9, lease_ms=SESSION_MS + 2_100).note("lost", B).ended(B, 9, "cancelled")
    tale.ran(C, 9, 20, 22).committed(C, 10, (20, 21), (22, 23)).began(C, 10).note("dead", C)
    tale.given(A, 10).polled(A, 10, 24).ran(A, 10, how="failed").ran(A, 21).committed(A, 10, (20, 23))
    tale.note("seek", A, 10).polled(A, 10, 24).ran(A, *range(10, 20), 23).committed(A, 24)
    tale.note("leave", A)
    rules = replace(RULES, max_in_flight=100, finals={TP: Final(24, 24)}, shutdown_drain_timeout_ms=30_000)
    report = tale.judged(rules)
    assert report.is_ok, report.explain()
    assert report.counts["unclean losses"] == 2
    assert report.counts["handled"] == 21
    assert report.counts["duplicates"] == 1
    assert report.counts["late starts"] == 1


def test_events_count_by_time_not_by_place() -> None:
    """Processes may reach the file in another order than they took the time."""
    tale = Tale().sent(0, 1).given(A).polled(A, 0, 2).ran(A, 0, 1).committed(A, 2)
    assert check(reversed(tale.events), RULES).is_ok


def test_nothing_happened() -> None:
    """An empty history is fine; the report shows its zeroes."""
    report = check([])
    assert report.is_ok
    assert report.explain().startswith("0 handled, 0 duplicates")


def test_partitions_are_judged_apart() -> None:
    """The same offsets of another partition say nothing."""
    other = TopicPartition("orders", 1)
    tale = Tale().sent(0).note("send", offset=0, key=b"k", tp=other).given(A).polled(A, 0, 1)
    assert fine(tale.note("assign", B, tp=other).ran(A, 0).committed(A, 1))
    assert sorted(check([*tale.events, tale.events[-2]._replace(member=B, tp=other)], RULES).broken) == [
        "COMMIT",
        "LOST",
    ]


def made_up(records: int, seed: int = 1) -> list[Event]:
    """A good life of two members with about eight events per record: polls, calls, retries, commits."""
    draw = random.Random(seed)
    tale = Tale()
    for offset in range(records):
        tale.sent(offset, key=b"k%d" % draw.randrange(200))
    position, member, next_member = 0, A, B
    tale.given(member, 0)
    while position < records:
        end = min(records, position + 50)
        tale.polled(member, position, end)
        for offset in range(position, end):
            if draw.random() < 0.3:
                tale.began(member, offset, lease_ms=100).ended(member, offset, "failed")
            tale.began(member, offset, lease_ms=100).ended(member, offset)
            if draw.random() < 0.3:
                tale.committed(member, offset + 1)
        position = end
        if draw.random() < 0.2:
            tale.revoked(member).committed(member, end).released(member).given(next_member, end)
            member, next_member = next_member, member
    return tale.committed(member, records).events


ALL = Rules(
    session_timeout_ms=SESSION_MS,
    max_revoke_grace_ms=GRACE_MS,
    shutdown_drain_timeout_ms=30_000,
    max_in_flight=100,
    max_in_flight_bytes=1_000,
    chunk_bytes=500,
)


def lines_of(events: list[Event]) -> tuple[int, Report]:
    """The lines of code that a check runs: a cost that no busy machine changes."""
    lines = 0

    def count(_frame: FrameType, what: str, _arg: object) -> object:
        nonlocal lines
        lines += what == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        report = check(events, ALL)
    finally:
        sys.settrace(before)
    return lines, report


def test_cost_grows_with_the_events_only() -> None:
    """Ten times the events cost about ten times as much, not a hundred times."""
    few, many = made_up(300), made_up(3_000)
    cost_few, report = lines_of(few)
    assert report.is_ok, report.explain()
    cost_many, report = lines_of(many)
    assert report.is_ok, report.explain()
    assert cost_many / len(many) < 1.5 * cost_few / len(few)
