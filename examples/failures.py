"""Payments that fail in every way a handler can fail, and what becomes of each record.

    asyncpar run examples.failures:app --bootstrap-servers localhost:9092

Needs the topics payments, receipts, reminders and statements, payments.dlq and receipts.dlq,
receipts.retry.500ms and receipts.retry.1s: asyncpar creates none. The bank is a stand-in with test cards, and
each of them fails in its own way. With `BANK_DOWN=/tmp/down` it is out while that file exists.

The pages "When handlers fail" (docs/failures) explain every knob that is used here.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel

from asyncpar import (
    App,
    Breaker,
    Context,
    DeadLetterBudget,
    Deduplicate,
    Header,
    Key,
    MemoryStore,
    Permanent,
    PoisonKeys,
    RateLimit,
    Record,
    Retry,
    RetryAfter,
    Skip,
    heartbeat,
)

log = logging.getLogger("examples.failures")

# -- the bank ------------------------------------------------------------------------------------


class CardRefusedError(Permanent):
    """No attempt will ever succeed. A `Permanent` says nothing of the bank: it does not open the breaker."""


class AlreadyPaidError(Exception):
    """What the bank says to a payment that it has seen."""


@dataclass
class Bank:
    """Stands in for the client of a bank. While the file `down` exists it cannot be reached."""

    down: Path | None = None
    asked: Counter[str] = field(default_factory=Counter)

    async def charge(self, payment_id: str, card: str, cents: int) -> None:
        """Raises whatever the test card `card` stands for."""
        await asyncio.sleep(0.005)
        if self.down is not None and self.down.exists():
            raise ConnectionError("the bank cannot be reached")
        self.asked[payment_id] += 1
        is_first = self.asked[payment_id] == 1
        if card == "tok_refused":
            raise CardRefusedError("insufficient funds")
        if card == "tok_paid":
            raise AlreadyPaidError(payment_id)
        if card == "tok_unreadable":
            raise ValueError(f"{cents} cents of what?")
        if card == "tok_flaky" and is_first:
            raise ConnectionError("connection reset")
        if card == "tok_busy" and is_first:
            raise RetryAfter("the bank asks for patience", delay_ms=300)
        if card == "tok_hangs" and is_first:
            await asyncio.Event().wait()


@asynccontextmanager
async def lifespan(_: App) -> AsyncIterator[Bank]:
    """What handlers get as `context.state`."""
    path = os.environ.get("BANK_DOWN")
    yield Bank(Path(path) if path else None)


# -- the same payment twice ----------------------------------------------------------------------


def payment_of(record: Record) -> bytes | None:
    """What must happen once: the payment that a record names. Records without the header are let through."""
    return record.header("payment-id")


# This store is of one process. Instances that share their work need one that all of them see: RedisStore or
# PostgresStore.
once = Deduplicate(key=payment_of, ttl_ms=86_400_000, lease_ms=10_000, store=MemoryStore(max_keys=100_000))

app = App("payments", group="payments", lifespan=lifespan, middlewares=[once])

# -- payments: in order per customer, and never given up for an outage -----------------------------


class Payment(BaseModel):
    """`{"payment_id": "p-1", "card": "tok_visa", "cents": 250}`; the key is the customer."""

    payment_id: str
    card: str
    cents: int


@app.topic(
    "payments",
    concurrency=50,
    retry=Retry(attempts=3, base_ms=100, max_ms=2_000),
    timeout_ms=500,
    on_error={AlreadyPaidError: "skip"},
    dead_letter=".dlq",
    # A wave of dead letters is no longer about single records: the next ones wait for somebody to look.
    dead_letter_budget=DeadLetterBudget(share=0.1, at_least=50),
    # An outage: nothing is called but a probe now and then, and nothing is given up.
    breaker=Breaker(min_calls=20, open_ms=500, max_open_ms=10_000),
    # Twice `attempts`: two records of a customer in a row that failed each time they were tried.
    poison_keys=PoisonKeys(failures=6, cool_down_ms=60_000),
)
async def charge(payment: Payment, customer: Annotated[str, Key], context: Context) -> None:
    """Charge one card. Customers wait for nobody but themselves."""
    if payment.cents == 0:
        raise Skip("nothing to charge")
    bank: Bank = context.state
    await bank.charge(payment.payment_id, payment.card, payment.cents)
    log.info("%s charged to %s, attempt %d", payment.payment_id, customer, context.attempt)


@app.topic("payments.dlq", group="payments-support", order="partition")
async def tell_support(
    customer: Annotated[str, Key],
    reason: Annotated[str, Header("x-asyncpar-reason")],
    attempts: Annotated[int, Header("x-asyncpar-attempts")],
    offset: Annotated[int, Header("x-asyncpar-offset")],
) -> None:
    """Dead letters are records like others: somebody reads them."""
    log.info("support: payments offset %d of %s: %s, attempts %d", offset, customer, reason, attempts)


# -- receipts: no order, so a failing one waits in a topic and holds up nobody ---------------------


@app.topic(
    "receipts",
    order="unordered",
    retry_topics=["receipts.retry.500ms", "receipts.retry.1s"],
    dead_letter=".dlq",
)
async def send_receipt(address: str, record: Record) -> None:
    """An attempt in each topic; what fails in all three is a dead letter."""
    is_last = record.topic == "receipts.retry.1s"
    if address.endswith("@gone.example") or (address.endswith("@slow.example") and not is_last):
        raise ConnectionError(f"the mail server of {address} does not answer")
    log.info("receipt sent to %s from %s", address, record.topic)


# -- reminders: others set the pace ----------------------------------------------------------------


@app.topic(
    "reminders",
    rate_limit=RateLimit(per_second=100, burst=10),  # what the provider allows us
    key_rate_limit=RateLimit(per_second=5, burst=1),  # what a customer puts up with
)
async def remind(text: str, customer: Annotated[str, Key]) -> None:
    """What comes too soon waits in its place, without a slot."""
    log.info("reminded %s: %s", customer, text)


# -- statements: long, but alive -------------------------------------------------------------------


@app.topic("statements", timeout_ms=300)
async def print_statement(pages: int, customer: Annotated[str, Key]) -> None:
    """May take minutes, as long as no page takes 300 ms: each one begins the time-out anew."""
    for _ in range(pages):
        await asyncio.sleep(0.1)
        heartbeat()
    log.info("statement of %d pages for %s", pages, customer)
