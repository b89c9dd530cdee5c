"""A member that is killed: `python -m tests.letters.killed PLAN`. Every fifth record fails for good.

Run by `kills.py` through `tests.chaos.crew`, never imported. It is a static member, so that the next life
takes its place at once.
"""

from __future__ import annotations

import asyncio
import sys

from asyncpar import App, Record, Retry
from tests.letters.plan import ATTEMPTS, SETTINGS, KillPlan, is_bad
from tests.letters.watching import Steps, Watched, live

_WORK_SECONDS = 0.002


def member(plan: KillPlan) -> App:
    """Its app."""
    steps = Steps(plan.name, plan.aim, plan.told)
    settings = {**SETTINGS, "group_instance_id": "the-only-one"}
    watched = Watched(plan.name, plan.bootstrap, plan.group, plan.history, settings, steps)

    @watched.app.topic(plan.topic, dead_letter=".dlq", retry=Retry(attempts=ATTEMPTS, base_ms=5, max_ms=20))
    async def work(record: Record) -> None:
        with watched.handling(record):
            await asyncio.sleep(_WORK_SECONDS)
            if is_bad(record.value):
                steps.reach("failed")
                raise ValueError(f"{record.value!r} fails by plan")

    return watched.app


if __name__ == "__main__":
    sys.exit(live(member(KillPlan.from_argument(sys.argv[1]))))
