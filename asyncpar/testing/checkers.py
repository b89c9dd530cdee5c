"""The one set of checkers: does a history keep the laws?

Lives here: `check`, its `Report`, and which checkers there are; they are in the files beside it. Called by
the simulation, by the tests on a real Kafka, and by whoever records a history. Always: nothing is taken
from the engine; stragglers, losses, replays and what is in flight are derived from the events.

    report = check(history, Rules(max_revoke_grace_ms=5_000))
    assert report.is_ok, report.explain()
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter

from asyncpar.testing.checker_budget import Budget
from asyncpar.testing.checker_calls import Order, Serial
from asyncpar.testing.checker_commits import CommitLaws, Lost, Stuck
from asyncpar.testing.checker_duplicates import Duplicates
from asyncpar.testing.checker_input import events_of
from asyncpar.testing.checker_letters import DeadLetters
from asyncpar.testing.checker_model import Check, Checker, Fault
from asyncpar.testing.checker_replay import Replay
from asyncpar.testing.checker_rules import Final, Letter, Rules
from asyncpar.testing.history import Event, History, HistoryFile

__all__ = ["Check", "Fault", "Final", "Letter", "Report", "Rules", "check"]

_SHOWN = 3


@dataclass(frozen=True)
class Report:
    """What `check` found.

    `counts`: handled (records with a successful call), duplicates (successful calls beyond each one's first),
    stragglers, late starts, unclean losses, commits, acknowledged commits, dead letters (acknowledged).
    """

    faults: tuple[Fault, ...]
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_ok(self) -> bool:
        """No law was broken."""
        return not self.faults

    @property
    def broken(self) -> frozenset[Check]:
        """The checks that found something."""
        return frozenset(fault.check for fault in self.faults)

    def explain(self) -> str:
        """One line of counts, then how many faults of each check, and the first three of them."""
        lines = [
            ", ".join(f"{n} {_ONE.get(name, name) if n == 1 else name}" for name, n in self.counts.items())
        ]
        for name in sorted(self.broken):
            of_check = [fault for fault in self.faults if fault.check == name]
            lines.append(f"  {len(of_check)} {name}")
            lines += [f"    {fault}" for fault in of_check[:_SHOWN]]
        return "\n".join(lines)


_COUNTED = (
    "handled",
    "duplicates",
    "stragglers",
    "late starts",
    "unclean losses",
    "commits",
    "acknowledged commits",
    "dead letters",
)
_ONE = {
    "duplicates": "duplicate",
    "stragglers": "straggler",
    "late starts": "late start",
    "unclean losses": "unclean loss",
    "commits": "commit",
    "acknowledged commits": "acknowledged commit",
    "dead letters": "dead letter",
}


def check(events: Iterable[Event] | History | HistoryFile, rules: Rules | None = None) -> Report:
    """Judge a history by `rules` (default: nothing known of the settings). Events may come in any order.

    Events of one moment count in the order given. TypeError and ValueError name an event that is none, or
    that says something that `Kind` does not know.
    """
    if not isinstance(rules, Rules | None):
        raise TypeError(f"check takes Rules(...), not {rules!r}")
    rules = rules or Rules()
    ordered = sorted(events_of(events), key=attrgetter("at_ns"))
    faults: list[Fault] = []

    def found(check: Check, text: str, *culprits: Event) -> None:
        faults.append(Fault(check, text, culprits))

    replay = Replay(ordered, rules)
    # SERIAL before DUPLICATES: it tells which starts are late.
    checkers: list[Checker] = [
        Order(rules, found),
        Serial(rules, found, replay.freezes, replay.counts),
        Lost(rules, found),
        CommitLaws(rules, found),
        Stuck(rules, found, replay.gone),
    ]
    if rules.replays == "recorded":
        checkers.append(Duplicates(rules, found))
    if rules.letters is not None:
        checkers.append(DeadLetters(rules, found, ordered))
    limits = (rules.max_in_flight, rules.max_in_flight_bytes, rules.concurrency)
    if any(limit is not None for limit in limits):
        checkers.append(Budget(rules, found, ordered))
    replay.run(checkers)
    for checker in checkers:
        checker.finished(replay.parts)
    return Report(tuple(faults), {name: replay.counts[name] for name in _COUNTED})
