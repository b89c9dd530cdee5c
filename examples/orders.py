"""Bill orders: a typed payload, order per customer, and an optional ledger of what was handled.

    asyncpar run examples.orders:app --bootstrap-servers localhost:9092

With ORDERS_LEDGER=/var/lib/billing/orders.jsonl each call of the handler leaves two lines in that file: one
when it starts and one when it ends. A line is one write to a file opened for appending, so that not even
`kill -9` takes back what is written, and several instances can share the file. It is an audit trail that does
not depend on the engine: after a crash it shows that no order was left out and that no customer's orders
changed places.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel

from asyncpar import App, Context, Record


class Order(BaseModel):
    """What a producer puts on the topic: `{"order_id": 7, "customer": "c-42", "cents": 1999}`."""

    order_id: int
    customer: str
    cents: int = 0


class Ledger:
    """Appends one JSON object per line; `path` None writes nothing."""

    def __init__(self, path: Path | None) -> None:
        self._file: int | None = None
        if path is not None:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def write(self, event: str, record: Record) -> None:
        """One line, in the hands of the system when this returns. OSError when the disk is full."""
        if self._file is None:
            return
        line = {
            "event": event,
            "topic": record.topic,
            "partition": record.partition,
            "offset": record.offset,
            "key": None if record.key is None else record.key.decode(errors="backslashreplace"),
            "attempt": record.attempt,
            "monotonic_ns": time.monotonic_ns(),
            "pid": os.getpid(),
        }
        text = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        # A write to the page cache takes microseconds: no reason to leave the event loop for it.
        if os.write(self._file, text) != len(text):
            raise OSError("the ledger took only part of a line; is the disk full?")

    def close(self) -> None:
        """Close the file; nothing is buffered, so nothing is lost without it."""
        if self._file is not None:
            os.close(self._file)


@dataclass
class State:
    """What the handlers share: one per process, made by the lifespan."""

    ledger: Ledger
    billed_cents: Counter[str] = field(default_factory=Counter)


@asynccontextmanager
async def lifespan(_: App) -> AsyncIterator[State]:
    """Open what the handlers need, close it when the last one has ended."""
    path = os.environ.get("ORDERS_LEDGER")
    state = State(Ledger(Path(path) if path else None))
    try:
        yield state
    finally:
        state.ledger.close()


app = App("orders", group="billing", lifespan=lifespan)


@app.topic("orders")
async def bill(order: Order, record: Record, context: Context) -> None:
    """Bill one order. Orders with the same key (the customer) come one after the other, in their order."""
    state: State = context.state
    state.ledger.write("start", record)
    state.billed_cents[order.customer] += order.cents
    state.ledger.write("end", record)
