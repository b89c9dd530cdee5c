"""Payloads by annotation: the type in the signature says how the bytes are read.

asyncpar run examples.typed_payloads --group readers

What does not fit its type is undecodable. It is never retried: it halts its partition, or is passed over
with `on_decode_error="skip"`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, TypedDict

from pydantic import BaseModel, Field

from asyncpar import Header, Key, Record, topic

log = logging.getLogger("examples.typed_payloads")


class Payment(BaseModel):
    """A pydantic model: checked and converted."""

    payment_id: int
    cents: int = Field(gt=0)
    at: datetime


@dataclass
class Click:
    """A dataclass: the same, with what the standard library has."""

    page: str
    milliseconds: int = 0


class Profile(TypedDict):
    """A dict with known keys."""

    name: str
    email: str


@topic("payments", on_decode_error="skip")
async def pay(payment: Payment, trace: Annotated[str | None, Header("trace-id")] = None) -> None:
    """A model, and a header that may be missing."""
    log.info("payment %d of %d cents, trace %s", payment.payment_id, payment.cents, trace)


@topic("clicks", order="unordered")
async def count(click: Click) -> None:
    """Clicks need no order, so none waits for another one of its key."""
    log.info("%s was seen for %d ms", click.page, click.milliseconds)


@topic("profiles")
async def store(profile: Profile | None, user: Annotated[str, Key]) -> None:
    """A compacted topic: None is a tombstone, which means that the profile is deleted."""
    if profile is None:
        log.info("%s is gone", user)
    else:
        log.info("%s is now called %s", user, profile["name"])


@topic("blobs")
async def keep(blob: bytes, record: Record) -> None:
    """The bytes as they are, and where they came from."""
    log.info("%d bytes from %s[%d] at %d", len(blob), record.topic, record.partition, record.offset)
