"""What a run says at its end: how often and where was killed, what became of it, and the verdict.

Pure: figures in, text out. Called by `__main__.py` and the tests.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from asyncpar.testing.checkers import Check, Report
from tests.chaos.table import CHECKS
from tests.letters import kills, outage
from tests.letters.plan import LONGEST_DELAY_MS, STEPS

_SHOWN = 8
_LAWS: dict[str, Check] = {**CHECKS, "wrong dead letters": "DEAD LETTER"}

Row = tuple[str, int | str]


class Outcome(Protocol):
    """What the outcomes of both runs have in common."""

    folder: Path
    report: Report | None
    findings: list[str]
    void: str | None

    @property
    def faults_found(self) -> list[str]: ...


def of_kills(outcome: kills.Outcome) -> str:
    """All of it, as lines."""
    letters = outcome.letters
    lines = ["", f"{'killed at':<16}{'times':>7}{'right there':>13}{'doubled letters':>17}"]
    for step in STEPS:
        doubles = 0 if letters is None else letters.doubles[step]
        lines.append(f"{step:<16}{outcome.struck[step]:>7}{outcome.stood[step]:>13}{doubles:>17}")
    total = 0 if letters is None else letters.doubles.total()
    lines.append(f"{'all':<16}{outcome.struck.total():>7}{outcome.stood.total():>13}{total:>17}")
    lines.append(f"(the others up to {LONGEST_DELAY_MS:.0f} ms later)")
    seconds, times = outcome.seconds, outcome.struck.total()
    rows: list[Row] = [
        ("kills", f"{times} in {seconds:.0f} s, {seconds / max(times, 1):.1f} s each"),
        ("records", outcome.records),
    ]
    if letters is not None:
        rows += [
            ("records that fail", letters.failing),
            ("letters in their topic", letters.letters),
            ("doubled", f"{total}, by one kill {letters.most_doubles} at most"),
            ("failing records without a letter", letters.lost),
        ]
    return "\n".join([*lines, "", *_end(outcome, rows, "ok: nothing lost, doubled only by a kill, in order")])


def of_outage(outcome: outage.Outcome) -> str:
    """All of it, as lines."""
    rows: list[Row] = [
        ("policy", outcome.policy),
        ("records", outcome.records),
        ("letters in their topic", f"{outcome.letters}, {outcome.late_letters} sent after the return"),
        ("calls while the service was out", outcome.calls),
        ("partitions that said they are held", f"{len(outcome.held)}, in {outcome.held_share:.0%} of looks"),
        ("all done, from the return", f"{outcome.rest_seconds:.0f} s"),
    ]
    if outcome.rates is not None:
        seen = outcome.rates
        rows += [
            ("records per second before", f"{seen.before:.0f}"),
            ("records per second settled after", f"{seen.after:.0f}"),
            ("best second after the return", seen.best),
            ("first call after the return", f"{seen.first_seconds:.1f} s"),
            ("all partitions work again", f"{seen.all_partitions_seconds:.1f} s"),
        ]
    good = {
        "breaker": "ok: nothing lost, nothing given up, in order, full speed again",
        "budget": "ok: nothing lost, in order, no more given up than the budget allows",
    }
    return "\n".join(["", *_end(outcome, rows, good[outcome.policy])])


def _end(outcome: Outcome, rows: list[Row], good: str) -> list[str]:
    report, found = outcome.report, outcome.faults_found
    if report is not None:
        checks = [fault.check for fault in report.faults]
        broken = [(text, checks.count(one)) for text, one in _LAWS.items()]
        rows = [*rows, *report.counts.items(), *broken]
    lines = [f"{name:<38}{value}" for name, value in rows]
    if outcome.void is not None:
        return [*lines, f"no verdict: {outcome.void}"]
    if not found:
        return [*lines, good]
    shown = [f"  {text}" for text in found[:_SHOWN]]
    return [*lines, f"FAILED ({len(found)}), kept: {outcome.folder}", *shown]
