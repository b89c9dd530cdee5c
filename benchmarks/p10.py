"""Workload P10: members join and leave while records keep coming; how many run twice?

    python benchmarks/p10.py [--bootstrap-servers host:port] [--times N] [--rate N] [--rounds N] [--json FILE]

What lives here: the rounds, the sums and the target. The run itself is that of `python -m
tests.rebalances`: three or four member processes, 6 partitions of each of two topics, handlers of up to 55
ms that all end within the grace, and one clean change after the other. The broker's log and a history of
every call say what ran how often; the checkers judge loss and order, too. Beside the duplicates stands how
long a partition stood still around a change. Each round has a seed of its own, which is printed. Exit code
1 when a record was lost, ran twice or out of order, or when a run has no verdict.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script
    sys.path.insert(0, str(ROOT))

from benchmarks.course import (  # noqa: E402 - after the path
    Course,
    Measured,
    Measurements,
    at_most,
    conduct,
    middle,
    parsed,
    parser,
    say,
    spread,
)
from tests.rebalances.changes import FEWEST, KEYS, MOST, PARTITIONS, Changes, Outcome  # noqa: E402 - likewise

TIMES = 8
PER_SECOND = 600
NAME = "asyncpar"


@dataclass
class Changed(Measured):
    """One run of changes. Pauses are the longest time between two starts of a partition, in ms."""

    seed: int = 0
    changes: int = 0
    records: int = 0
    duplicates: int = 0
    calm_pause_ms: float = 0.0
    """Of the median partition, while nobody joined or left."""
    pause_ms: float = 0.0
    """Of the median partition around a change."""
    longest_pause_ms: float = 0.0


def changed(outcome: Outcome, seed: int) -> Changed:
    """What an outcome of `tests.rebalances` says."""
    found = Changed(seed=seed, changes=outcome.changes, records=outcome.records)
    found.faults += outcome.faults_found
    if outcome.void is not None:
        found.faults.append(f"no verdict: {outcome.void}")
    if outcome.report is not None:
        found.duplicates = outcome.report.counts.get("duplicates", 0)
    if outcome.calm is not None:
        found.calm_pause_ms = round(outcome.calm.median_ms, 1)
    pauses = [pause for step in outcome.steps for pause in step.pauses_ms]
    if pauses:
        found.pause_ms, found.longest_pause_ms = round(median(pauses), 1), round(max(pauses), 1)
    return found


def measure(rounds: int, times: int, per_second: int, bootstrap: str) -> Measurements:
    """One run in each round."""
    runs: dict[str, list[Measured]] = {NAME: []}
    for number in range(rounds):
        seed = random.SystemRandom().randrange(1_000_000)
        with tempfile.TemporaryDirectory(prefix="p10-") as folder:
            course = Changes(bootstrap, times, seed, per_second, Path(folder), lambda _: None)
            found = changed(asyncio.run(course.run()), seed)
        runs[NAME].append(found)
        what = f"seed {seed}: {found.changes} changes, {found.records} records, {found.duplicates} twice"
        say(number, NAME, f"{what}, pauses {found.pause_ms} ms", found.faults)
    return runs


def result(runs: Measurements) -> dict[str, object]:
    """Sums, medians and the target."""
    found = [one for one in runs[NAME] if isinstance(one, Changed)]
    duplicates = sum(one.duplicates for one in found)
    return {
        "changes": sum(one.changes for one in found),
        "records": sum(one.records for one in found),
        "duplicates": duplicates,
        "calm_pause_ms": middle([one.calm_pause_ms for one in found], 1),
        "pause_ms": middle([one.pause_ms for one in found], 1),
        "pause_ms_spread": spread([one.pause_ms for one in found], 1),
        "longest_pause_ms": max(one.longest_pause_ms for one in found),
        "targets": {"records that ran twice": at_most(0, duplicates)},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 1 when anything was wrong in any round."""
    made = parser("P10: members join and leave under load, and no record runs twice.")
    made.add_argument("--times", type=int, default=TIMES, help="members that join or leave, in each round")
    made.add_argument("--rate", type=int, default=PER_SECOND, help="records sent per second")
    options = parsed(made, arguments)
    settings = {
        "members": f"{FEWEST} or {MOST}",
        "changes": f"{options.times} in each round",
        "records_per_second": options.rate,
        "partitions": f"{PARTITIONS} in each of two topics",
        "keys": KEYS,
        "handlers": "up to 55 ms, all within the grace",
    }
    return conduct(
        options, Course(settings, partial(measure, options.rounds, options.times, options.rate), result)
    )


if __name__ == "__main__":
    sys.exit(main())
