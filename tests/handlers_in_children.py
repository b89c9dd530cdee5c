"""Handlers for child processes, as a user's module has them: imported by the tests and by the children.

Never imported by anything else. What a child did is seen in the journal that a record's header names: a line
of JSON for each run.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

from pydantic import BaseModel

from asyncpar import Context, Header, Key, Permanent, Record, RetryAfter, Skip, heartbeat, topic

_LOGGER = logging.getLogger("shop.images")


class Order(BaseModel):
    customer: str
    cents: int


class OutOfStockError(LookupError):
    """A user's own exception, whose arguments would not let it be unpickled."""

    def __init__(self, what: str, left: int) -> None:
        super().__init__(f"no {what}, {left} left")


@topic("orders", executor="process")
def keep(
    order: Order,
    customer: Annotated[str, Key],
    journal: Annotated[str, Header("journal")],
    record: Record,
    context: Context,
) -> None:
    """Write down all that it got."""
    _write(
        journal,
        order=order.model_dump(),
        customer=customer,
        place=[record.topic, record.partition, record.offset],
        attempt=record.attempt,
        state=context.state,
        group=context.group,
    )


def _write(journal: str, **values: object) -> None:
    line = json.dumps({**values, "pid": os.getpid(), "ppid": os.getppid(), "at": time.monotonic()})
    with Path(journal).open("a") as file:
        file.write(f"{line}\n")


@topic("naps", executor="process")
def nap(value: str, journal: Annotated[str, Header("journal")]) -> None:
    """Take as many seconds as the value says, and write that down at the start and the end."""
    _write(journal, what="start")
    time.sleep(float(value))
    _write(journal, what="end")


def _out_of_stock() -> NoReturn:
    raise OutOfStockError("bolts", 0)


def _skip() -> NoReturn:
    raise Skip("not for us")


def _retry_after() -> NoReturn:
    raise RetryAfter("the store is closed", delay_ms=300)


def _permanent() -> NoReturn:
    raise Permanent("never heard of it")


def _log() -> None:
    _LOGGER.warning("thumbnail of %s made", "a cat", extra={"bytes": 17})


def _beat() -> None:
    for _ in range(12):
        time.sleep(0.1)
        heartbeat()


def _hang() -> NoReturn:
    while True:
        time.sleep(1)


DEEDS: dict[str, Callable[[], None]] = {
    "ok": lambda: None,
    "out of stock": _out_of_stock,
    "skip": _skip,
    "retry after": _retry_after,
    "permanent": _permanent,
    "log": _log,
    "beat": _beat,
    "hang": _hang,
    "crash": os.abort,
}


@topic("deeds", executor="process")
def do(value: str, journal: Annotated[str | None, Header("journal")] = None) -> None:
    """What the value says; "deed, then deed" is one deed at the first run and another one at the next."""
    deeds = value.split(", then ")
    runs = 0
    if journal is not None:
        runs = len(Path(journal).read_text().splitlines()) if Path(journal).exists() else 0
        _write(journal, deed=value)
    DEEDS[deeds[min(runs, len(deeds) - 1)]]()


@contextmanager
def model() -> Iterator[str]:
    """What each child loads once."""
    yield f"model of {os.getpid()}"
