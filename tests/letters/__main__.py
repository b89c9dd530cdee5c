"""`python -m tests.letters kills --times 100` and `python -m tests.letters outage --minutes 3`.

Ends with 0 when all is well, 1 when not, 2 when there is no verdict (no broker), 130 when interrupted. Needs
Java and Maven. What fails keeps its folder.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

from tests.chaos.command import conduct, say
from tests.letters import kills, outage, table
from tests.letters.kills import Kills
from tests.letters.outage import Outage
from tests.letters.plan import Policy, Shape

_MOST_SEEDS = 1_000_000


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.letters", description="Dead letters under kills, and in an outage."
    )
    runs = parser.add_subparsers(dest="run", required=True)
    killing = runs.add_parser("kills", help="kill -9 between failure, send, acknowledgement and commit")
    killing.add_argument("--times", type=int, default=100, help="how many kills")
    killing.add_argument("--rate", type=int, default=200, help="records sent per second")
    lasting = runs.add_parser("outage", help="what the handler depends on is out, and comes back")
    lasting.add_argument("--minutes", type=float, default=3.0, help="for how long, once with each policy")
    for one in (killing, lasting):
        one.add_argument("--seed", type=int, default=None, help="who, when and what; default: a new one")
    given = parser.parse_args()
    if given.run == "kills" and (given.times < 1 or given.rate < 1):
        parser.error("--times and --rate must be 1 or more")
    if given.run == "outage" and given.minutes <= 0:
        parser.error("--minutes must be above 0")
    return given


def _kills(times: int, rate: int, seed: int) -> int:
    async def run(bootstrap: str, folder: Path) -> kills.Outcome:
        say(f"seed {seed}: {times} kills, {rate} records per second, every fifth fails")
        return await Kills(bootstrap, times, seed, rate, folder, say).run()

    return conduct("kills", run, table.of_kills)


def _outage(policy: Policy, minutes: float, seed: int) -> int:
    shape = Shape(60 * minutes)

    async def run(bootstrap: str, folder: Path) -> outage.Outcome:
        say(f"seed {seed}, {policy}: {shape.per_second} records per second")
        return await Outage(bootstrap, policy, shape, seed, folder, say).run()

    return conduct(f"outage-{policy}", run, table.of_outage)


def main() -> int:
    """The exit code."""
    given = _arguments()
    seed = random.SystemRandom().randrange(_MOST_SEEDS) if given.seed is None else given.seed
    if given.run == "kills":
        return _kills(given.times, given.rate, seed)
    policies: tuple[Policy, ...] = ("breaker", "budget")
    for policy in policies:
        if code := _outage(policy, given.minutes, seed):
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
