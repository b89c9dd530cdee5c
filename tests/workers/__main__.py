"""`python -m tests.workers --minutes 1 --seed S`: children of a member are killed every 200 ms, under load.

Ends with 0 when nothing was lost, reordered or run twice at a time, 1 when not, 2 when there is no verdict
(no broker), 130 when interrupted. Needs Linux, Java and Maven. What fails keeps its folder.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

from tests.chaos.command import conduct, say
from tests.workers.killing import Killing, Outcome

_SHOWN = 8


def summary(outcome: Outcome) -> str:
    """Figures and verdict, as lines."""
    counts = {} if outcome.report is None else outcome.report.counts
    rows: list[tuple[str, int | str]] = [
        ("records", outcome.records),
        ("children killed", outcome.kills),
        ("runs cut off", outcome.cut_off),
        ("records given up (killed twice)", outcome.given_up),
        ("records per second, undisturbed", f"{outcome.calm_rate:.0f}"),
        ("records per second, under kills", f"{outcome.killed_rate:.0f} ({outcome.ratio:.2f} of it)"),
        *counts.items(),
    ]
    found = outcome.faults_found
    verdict = ["ok: 0 lost, 0 reordered, 0 overlaps, attempts counted for what ran"]
    if found:
        verdict = [
            f"FAILED ({len(found)}), kept: {outcome.folder}",
            *(f"  {text}" for text in found[:_SHOWN]),
        ]
    return "\n".join([*(f"{name:<38}{value}" for name, value in rows), *verdict])


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.workers", description="Kills of child processes.")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long children are killed")
    parser.add_argument("--seed", type=int, default=None, help="which ones; default: a new one")
    given = parser.parse_args()
    if given.minutes <= 0:
        parser.error("--minutes must be above 0")
    seed = random.SystemRandom().randrange(1_000_000) if given.seed is None else given.seed

    async def run(bootstrap: str, folder: Path) -> Outcome:
        say(f"seed {seed}: a child is killed every 200 ms for {given.minutes:g} minutes")
        return await Killing(bootstrap, 60 * given.minutes, seed, folder, say).run()

    return conduct("workers", run, summary)


if __name__ == "__main__":
    sys.exit(main())
