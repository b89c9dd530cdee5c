"""What a campaign says: one line for each round, and a summary of all of them.

Pure: figures in, text out. Called by `__main__.py`; the rebalances name the laws alike.
"""

from __future__ import annotations

from collections import Counter

from asyncpar.testing.checkers import Check
from tests.chaos.campaign import Goal, Tally
from tests.chaos.faults import BROKER_KINDS, MEMBER_KINDS, NETWORK_KINDS
from tests.chaos.round import Outcome

_SHOWN = 8
CHECKS: dict[str, Check] = {
    "lost": "LOST",
    "reordered": "ORDER",
    "overlaps, hasty ends, stale starts": "SERIAL",
    "wrong commits": "COMMIT",
    "stuck": "STUCK",
    "duplicates without a cause": "DUPLICATES",
    "over budget": "BUDGET",
}


def round_line(tally: Tally, outcome: Outcome, goal: Goal) -> str:
    """How a round went and how far the campaign is."""
    counts = {} if outcome.report is None else outcome.report.counts
    figures = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in counts.items())
    if outcome.void is not None:
        verdict = f"VOID: {outcome.void}"
    else:
        verdict = f"FAILED ({len(outcome.faults_found)})" if outcome.faults_found else "ok"
    return (
        f"round {outcome.seed}: {verdict}; {outcome.struck.total()} faults in {outcome.seconds:.0f} s; "
        f"{outcome.records} records ({figures}); {tally.struck.total()} of {goal.faults} faults, "
        f"{tally.seconds / 60:.1f} min"
    )


def failure(outcome: Outcome, goal: Goal) -> str:
    """What a round found, and how to look at it again."""
    seed, number = outcome.seed.split("/")
    found = outcome.faults_found
    options = f"--seed {seed} --round {number} --brokers {goal.brokers}"
    shape = f"--broker-faults {goal.shape.broker_faults} --rate {goal.shape.records_per_second}"
    lines = [
        f"round {outcome.seed} failed ({len(found)} findings), kept: {outcome.folder}",
        f"again: python -m tests.chaos {options} {shape}",
    ]
    return "\n".join([*lines, *(f"  {text}" for text in found[:_SHOWN])])


def summary(tally: Tally, goal: Goal) -> str:
    """The mix of faults and what came of them."""
    struck, missed = tally.struck, tally.missed
    lines = ["", f"{'fault':<22}{'struck':>8}{'met nobody':>12}"]
    for kind in (*MEMBER_KINDS, *NETWORK_KINDS, *BROKER_KINDS):
        if kind in tally.kinds:
            mark = "" if struck[kind] >= goal.of_each_kind else f"   FEWER THAN {goal.of_each_kind}"
            lines.append(f"{kind:<22}{struck[kind]:>8}{missed[kind]:>12}{mark}")
        else:
            lines.append(f"{kind:<22}{'LEFT OUT':>8}   {_why_left_out(kind, tally)}")
    lines.append(f"{'all':<22}{struck.total():>8}{missed.total():>12}")
    lines += ["", *_figures(tally)]
    return "\n".join(lines)


def _why_left_out(kind: str, tally: Tally) -> str:
    if kind == "disk full" and tally.no_disk is not None:
        return f"NO DISK CAN BE FILLED HERE: {tally.no_disk}"
    return "it needs several brokers"


def _figures(tally: Tally) -> list[str]:
    counts: Counter[str] = Counter()
    found: Counter[str] = Counter()
    for outcome in tally.outcomes:
        if outcome.report is not None:
            counts.update(outcome.report.counts)
            found.update(fault.check for fault in outcome.report.faults)
    rows: list[tuple[str, int | str]] = [
        ("rounds", f"{len(tally.outcomes)} in {tally.seconds / 60:.1f} min, {len(tally.failed)} failed"),
        ("void rounds", len(tally.void)),
        ("records", sum(outcome.records for outcome in tally.outcomes)),
        *((name.replace("_", " "), number) for name, number in counts.items()),
        ("starts without a cluster", sum(outcome.refused_starts for outcome in tally.outcomes)),
        ("stops with work left", sum(outcome.unfinished_stops for outcome in tally.outcomes)),
        *((text, found.pop(check, 0)) for text, check in CHECKS.items()),
        *found.items(),
        ("other findings", sum(len(outcome.findings) for outcome in tally.outcomes)),
    ]
    return [f"{name:<38}{value}" for name, value in rows]
