"""`python -m tests.rebalances --times 50 --seed S`: clean joins and leaves under load, on a real Kafka.

Ends with 0 when every record ran once and in order, 1 when not, 2 when there is no verdict (no broker),
130 when interrupted. Needs Java and Maven. What fails keeps its folder.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

from tests.chaos.command import conduct, say
from tests.rebalances import table
from tests.rebalances.changes import Changes, Outcome


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.rebalances", description="Clean rebalances under load."
    )
    parser.add_argument("--times", type=int, default=50, help="how many members join or leave, in all")
    parser.add_argument("--seed", type=int, default=None, help="who and when; default: a new one")
    parser.add_argument("--rate", type=int, default=600, help="records sent per second")
    given = parser.parse_args()
    if given.times < 1 or given.rate < 1:
        parser.error("--times and --rate must be 1 or more")
    return given


def main() -> int:
    """The exit code."""
    given = _arguments()
    seed = random.SystemRandom().randrange(1_000_000) if given.seed is None else given.seed

    async def run(bootstrap: str, folder: Path) -> Outcome:
        say(f"seed {seed}: {given.times} members join or leave, {given.rate} records per second")
        return await Changes(bootstrap, given.times, seed, given.rate, folder, say).run()

    return conduct("rebalances", run, table.summary)


if __name__ == "__main__":
    sys.exit(main())
