"""Middlewares: code around each attempt on a record, whatever the handler.

    asyncpar run examples.middleware:app

A handler's failure arrives here as an `Outcome`, not as an exception, and can be changed into another one.
"""

from __future__ import annotations

import logging
import time
from collections import Counter

from asyncpar import App, Call, Outcome, Verdict
from asyncpar.middleware import CallNext

log = logging.getLogger("examples.middleware")
outcomes: Counter[Verdict] = Counter()


async def timing(call: Call, call_next: CallNext) -> Outcome:
    """The outermost one: how long the rest took, and how it ended."""
    before = time.perf_counter()
    outcome = await call_next(call)
    outcomes[outcome.verdict] += 1
    milliseconds = (time.perf_counter() - before) * 1000
    log.info("%s attempt %d: %s in %.1f ms", call.handler, call.attempt, outcome.verdict.value, milliseconds)
    return outcome


async def skip_unknown_customers(call: Call, call_next: CallNext) -> Outcome:
    """Turns one kind of failure into a record that is passed over on purpose."""
    outcome = await call_next(call)
    if isinstance(outcome.error, LookupError):
        log.info("skipped: %s", outcome.error)
        return Outcome(Verdict.SKIPPED)
    return outcome


app = App("greetings", group="greeters", middlewares=[timing, skip_unknown_customers])

CUSTOMERS = {"c-1": "Ada", "c-2": "Grace"}


@app.topic("greetings")
async def greet(customer: str) -> None:
    """Knows nothing of the middlewares."""
    if customer not in CUSTOMERS:
        raise LookupError(f"no customer {customer}")
    log.info("hello, %s", CUSTOMERS[customer])
