"""What a run of rebalances says at its end: each step, how long it stopped work, and the verdict.

Pure: figures in, text out. Called by `__main__.py` and `test_changes.py`.
"""

from __future__ import annotations

from statistics import median

from tests.chaos.table import CHECKS
from tests.rebalances.changes import Outcome
from tests.rebalances.stillness import Stillness

_SHOWN = 8


def summary(outcome: Outcome) -> str:
    """All of it, as lines."""
    return "\n".join([*_pauses(outcome), "", *_figures(outcome), *_found(outcome)])


def _pauses(outcome: Outcome) -> list[str]:
    if outcome.calm is None:
        return []
    shown = [_line(number, one) for number, one in enumerate(outcome.steps, 1)]
    all_ms = [pause for one in outcome.steps for pause in one.pauses_ms]
    whole = f"{'':>4}  {'all steps':<24}{median(all_ms):>9.0f} ms{max(all_ms):>9.0f} ms" if all_ms else ""
    head = f"{'step':>4}  {'longest pause of a partition':<24}{'median':>8}{'max':>12}"
    return ["", head, _line(0, outcome.calm), *shown, whole]


def _line(number: int, one: Stillness) -> str:
    return f"{number or '':>4}  {one.window.what:<24}{one.median_ms:>9.0f} ms{one.max_ms:>9.0f} ms"


def _figures(outcome: Outcome) -> list[str]:
    counts = {} if outcome.report is None else outcome.report.counts
    found = [] if outcome.report is None else [fault.check for fault in outcome.report.faults]
    rows: list[tuple[str, int | str]] = [
        ("members that joined or left", f"{outcome.changes} in {outcome.seconds:.0f} s"),
        ("records", outcome.records),
        *counts.items(),
        *((text, found.count(check)) for text, check in CHECKS.items() if outcome.report is not None),
        ("other findings", len(outcome.findings)),
    ]
    return [f"{name:<38}{value}" for name, value in rows]


def _found(outcome: Outcome) -> list[str]:
    found = outcome.faults_found
    if outcome.void is not None:
        return [f"no verdict: {outcome.void}"]
    if not found:
        return ["ok: every record ran once"]
    return [f"FAILED ({len(found)}), kept: {outcome.folder}", *(f"  {text}" for text in found[:_SHOWN])]
