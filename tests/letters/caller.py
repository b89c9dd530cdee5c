"""A member whose handler calls a service: `python -m tests.letters.caller PLAN`.

Run by `outage.py` through `tests.chaos.crew`, never imported. With a breaker, or with a dead-letter budget.
"""

from __future__ import annotations

import sys
from typing import Any

from asyncpar import App, Breaker, DeadLetterBudget, Record, Retry
from tests.letters.downstream import Client
from tests.letters.plan import ATTEMPTS, SETTINGS, OutagePlan
from tests.letters.watching import Watched, live

_ATTEMPTS_BEHIND_A_BREAKER = 8
"""Far more than a record can use up before the breaker has seen enough, and too few for an outage."""


def _policies(plan: OutagePlan) -> dict[str, Any]:
    shape = plan.shape
    if plan.policy == "breaker":
        return {
            "retry": Retry(attempts=_ATTEMPTS_BEHIND_A_BREAKER),
            "breaker": Breaker(open_ms=shape.open_ms, max_open_ms=shape.max_open_ms),
        }
    return {
        "retry": Retry(attempts=ATTEMPTS, base_ms=20, max_ms=50),
        "dead_letter_budget": DeadLetterBudget(share=0.0, at_least=shape.at_least, window_ms=shape.window_ms),
    }


def member(plan: OutagePlan) -> App:
    """Its app."""
    client = Client(plan.port)
    settings = {**SETTINGS, "http_port": plan.http_ports[plan.name]}
    watched = Watched(plan.name, plan.bootstrap, plan.group, plan.history, settings)

    @watched.app.topic(plan.topic, dead_letter=".dlq", **_policies(plan))
    async def call(record: Record) -> None:
        with watched.handling(record):
            await client.tell(record.partition, record.offset)

    return watched.app


if __name__ == "__main__":
    sys.exit(live(member(OutagePlan.from_argument(sys.argv[1]))))
