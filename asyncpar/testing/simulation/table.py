"""What many lives met, as a table: every fault and every state must have been met, or the rig is at fault."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from asyncpar.testing.simulation.life import FAULTS_AND_STATES, Outcome


@dataclass
class Totals:
    """Sums over lives."""

    lives: int = 0
    failed: list[int] = field(default_factory=list)
    """Seeds of the lives that failed."""
    simulated_seconds: float = 0.0
    events: Counter[str] = field(default_factory=Counter)
    """How often each fault struck and each state was met."""
    lives_with: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    """What the checkers counted: records handled, duplicates, stragglers, ..."""

    def add(self, outcome: Outcome) -> None:
        """Count one life in."""
        self.lives += 1
        if not outcome.is_ok:
            self.failed.append(outcome.seed)
        self.simulated_seconds += outcome.simulated_seconds
        self.events.update(outcome.met)
        self.lives_with.update(name for name, times in outcome.met.items() if times)
        self.counts.update(outcome.counts)

    def never_met(self) -> list[str]:
        """Faults and states of which there was not one."""
        return [name for name in FAULTS_AND_STATES if not self.events[name]]


def render(totals: Totals) -> str:
    """The totals as lines of text."""
    known = [*FAULTS_AND_STATES, *sorted(set(totals.events) - set(FAULTS_AND_STATES))]
    width = max(map(len, known))
    lines = [f"{'met':<{width}}  {'times':>9}  {'in lives':>8}"]
    lines += [f"{name:<{width}}  {totals.events[name]:>9}  {totals.lives_with[name]:>8}" for name in known]
    lines.append("")
    lines += _columns(f"{value:,} {name}" for name, value in sorted(totals.counts.items()))
    hours = totals.simulated_seconds / 3600
    lines.append(f"{totals.lives:,} lives, {hours:,.1f} simulated hours, {len(totals.failed)} failed")
    return "\n".join(lines)


def _columns(parts: Iterable[str], width: int = 100) -> list[str]:
    lines, line = [], ""
    for part in parts:
        if line and len(line) + len(part) + 2 > width:
            lines.append(line)
            line = ""
        line = f"{line}, {part}" if line else part
    return [*lines, line] if line else lines
