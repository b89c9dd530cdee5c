"""`python -m tests.chaos --faults N --seed S`: real faults until N have struck, each kind N/20 times or more.

Ends with 0 when nothing was found, 1 when something was, 2 when there is no verdict (no cluster, or the time
was over before the goal), 130 when interrupted. Needs Java and Maven; to fill a disk also the right to mount.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys

from tests.chaos import campaign, table
from tests.chaos.campaign import CampaignError, Goal, Tally
from tests.chaos.round import Outcome, Shape
from tests.kafka_jars import BrokerUnavailable, kafka_home, missing_tools

EXIT_FOUND = 1
EXIT_NO_VERDICT = 2
EXIT_INTERRUPTED = 130


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Real faults on a real Kafka.")
    parser.add_argument("--faults", type=int, default=1000, help="go on until so many have struck")
    parser.add_argument("--seed", type=int, default=None, help="all follows from it; default: a new one")
    parser.add_argument("--minutes", type=float, default=None, help="begin no round after so many")
    parser.add_argument("--brokers", type=int, choices=(1, 3), default=3, help="size of the cluster")
    parser.add_argument("--round", type=int, default=None, help="only this round of the seed")
    parser.add_argument("--broker-faults", type=int, default=6, help="a round ends after so many of them")
    parser.add_argument("--rate", type=int, default=300, help="records sent per second")
    return parser.parse_args()


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def _run(goal: Goal, seed: int, tally: Tally) -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)

    def say(outcome: Outcome) -> None:
        _say(table.round_line(tally, outcome, goal))
        if outcome.faults_found:
            _say(table.failure(outcome, goal))

    await campaign.run(goal, seed, tally, say)


def main() -> int:
    """The exit code."""
    given = _arguments()
    seed = random.SystemRandom().randrange(1_000_000) if given.seed is None else given.seed
    shape = Shape(given.broker_faults, given.rate)
    goal = Goal(given.faults, given.minutes, given.brokers, shape, given.round)
    tally = Tally()
    reason = missing_tools()
    try:
        if reason is not None:
            raise BrokerUnavailable(reason)
        kafka_home()
        _say(f"seed {seed}: {goal.faults} faults, each kind {goal.of_each_kind} times or more")
        asyncio.run(_run(goal, seed, tally))
    except (CampaignError, BrokerUnavailable) as error:
        _say(f"no verdict: {error}")
        return EXIT_NO_VERDICT
    except (KeyboardInterrupt, asyncio.CancelledError):
        return EXIT_INTERRUPTED
    finally:
        if tally.outcomes:
            _say(table.summary(tally, goal))
    if tally.failed:
        return EXIT_FOUND
    if given.round is None and not tally.has_reached(goal):
        _say("no verdict: the time was over before the goal was reached")
        return EXIT_NO_VERDICT
    return 0


if __name__ == "__main__":
    sys.exit(main())
