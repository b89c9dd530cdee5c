"""Tests of what is seen on two looks in a row, and of what is told at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from asyncpar.testing.simulation.watch import Watch


class FakeMember:
    """Says what it is told to say."""

    def __init__(self) -> None:
        self.says: dict[str, Sequence[str]] = {}

    def neglected(self) -> Sequence[str]:
        return self.says.get("neglected", ())

    def unserved(self) -> Sequence[str]:
        return self.says.get("unserved", ())

    def left_hanging(self) -> Sequence[str]:
        return self.says.get("hanging", ())


def looks(*says: dict[str, Sequence[str]]) -> list[list[str]]:
    """What each look tells, when the member says one after the other."""
    watch, member = Watch(), FakeMember()
    members: list[Any] = [member]
    told = []
    for one in says:
        member.says = one
        told.append(watch.look(members))
    return told


def test_what_lasts_for_two_looks_is_told_once() -> None:
    """A head beside a free slot and a call that hangs are right for a moment; each in its own time."""
    waits, hangs = {"unserved": ["a waits"]}, {"hanging": ["b hangs"]}
    assert looks(waits, waits | hangs, waits | hangs, {}) == [[], ["a waits"], ["b hangs"], []]


def test_what_has_gone_in_between_is_not_told() -> None:
    """It was served; that it waits once more is another moment."""
    assert looks({"unserved": ["a waits"]}, {}, {"unserved": ["a waits"]}) == [[], [], []]


def test_what_the_watchdog_found_is_told_at_once() -> None:
    """It has looked twice itself, and mends it."""
    assert looks({"neglected": ["b", "a"]}, {"neglected": ["a"]}) == [["a", "b"], []]
