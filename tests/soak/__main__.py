"""`python -m tests.soak --minutes 30 --rate-share 0.5 --seed S`: does anything grow that must not?

Ends with 0 when nothing does and every record ran once and in order, 1 when not, 2 when there is no verdict
(no broker, no /proc), 130 when interrupted. Needs Linux, Java and Maven. What fails keeps its folder.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

from tests.chaos.command import EXIT_NO_VERDICT, conduct, say
from tests.soak import table
from tests.soak.sampling import PROC
from tests.soak.soaking import Outcome, Shape, Soak


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description="A member at half of its capacity: does anything grow?"
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="how long, after the measurement")
    parser.add_argument("--rate-share", type=float, default=0.5, help="of what one member can do")
    parser.add_argument("--seed", type=int, default=None, help="of the records; default: a new one")
    given = parser.parse_args()
    if given.minutes <= 0 or not 0 < given.rate_share <= 1:
        parser.error("--minutes must be above 0, and --rate-share above 0 and at most 1")
    return given


def main() -> int:
    """The exit code."""
    given = _arguments()
    if not (PROC / "self" / "status").exists():
        say(f"no verdict: there is no {PROC}/PID/status here, and a soak needs it: run it on Linux")
        return EXIT_NO_VERDICT
    seed = random.SystemRandom().randrange(1_000_000) if given.seed is None else given.seed
    shape = Shape(given.minutes, given.rate_share)

    async def run(bootstrap: str, folder: Path) -> Outcome:
        say(f"seed {seed}: what one member can do is measured for {shape.measure_seconds:.0f} s")
        return await Soak(bootstrap, shape, seed, folder, say).run()

    return conduct("soak", run, table.summary)


if __name__ == "__main__":
    sys.exit(main())
