"""The demo's app: four handlers of different speed on one topic, one of which fails now and then.

Written as a user would write it, but that each handler notes what it does in the ledger. With `--cpu` it is
another app: one handler that computes, in child processes. Knows no terminal and no producer. Called by
`demo.py`; the load takes the keys from here.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from asyncpar.app import App
from asyncpar.cli import demo_hashing
from asyncpar.cli.demo_ledger import Ledger
from asyncpar.context import Context, Key
from asyncpar.middleware import Call, CallNext, Middleware
from asyncpar.policies import Retry
from asyncpar.records import Outcome, RawRecord
from asyncpar.settings import KNOBS, Settings
from asyncpar.settings_sources import Loaded
from asyncpar.topics import topic

# Which handler takes a key, by how busy the key is. The busiest keys go to the fast handler: a key's records
# run one after the other, so that a key can bring no more records in a second than its handler can take.
_KINDS = ("order", "order", "order", "payment", "order", "email", "order", "payment")
_REPORTS_FROM = 0.85
"""The least busy keys, from this part of all on, are reports."""
_NAME = "asyncpar demo"
_FAILS_EVERY, _SLOW_EVERY = 41, 151
"""Of a key's payments, every 41st fails twice and every 151st has a slow partner."""


@dataclass(frozen=True, slots=True)
class Sale:
    """The payload: the number of the record within its key."""

    number: int


class PartnerError(Exception):
    """What the payments handler fails with on purpose."""


def key_names(count: int) -> list[str]:
    """The keys, the busiest first."""
    return [f"{_kind(rank, count)}-{rank:05d}" for rank in range(count)]


def _kind(rank: int, count: int) -> str:
    if rank >= len(_KINDS) and rank >= count * _REPORTS_FROM:
        return "report"
    return _KINDS[rank % len(_KINDS)]


def demo_app(ledger: Ledger, topic_name: str, settings: Settings) -> App:
    """The app, configured with `settings` alone: no variable, no file has a say."""
    app = App(_NAME)
    app.configure(Loaded(settings, _origins(settings)))
    for function in (_orders(ledger), _payments(ledger), _emails(ledger), _reports(ledger)):
        name = function.__name__
        declared = topic(topic_name, name=name, match=_keys_of(name), retry=Retry(base_ms=50, max_ms=500))
        app.include(declared(function))
    return app


def cpu_app(ledger: Ledger, topic_name: str, settings: Settings) -> App:
    """The app of `--cpu`. Its handler is not in this process: a middleware, which is, writes the ledger."""
    app = App(_NAME, middlewares=[_noting(ledger)])
    app.configure(Loaded(settings, _origins(settings)))
    app.topic(topic_name, name=demo_hashing.NAME, executor="process")(demo_hashing.hashes)
    return app


def _noting(ledger: Ledger) -> Middleware:
    async def note(call: Call, call_next: CallNext) -> Outcome:
        (record,) = call.records
        assert record.key is not None
        assert record.value is not None
        with ledger.handling(record.key.decode(), json.loads(record.value)["number"]):
            outcome = await call_next(call)
            if outcome.error is not None:
                raise outcome.error
        return outcome

    return note


def _origins(settings: Settings) -> dict[str, str]:
    return {name: "App(...)" if name in settings.model_fields_set else "default" for name in KNOBS}


def _keys_of(name: str) -> Callable[[str, RawRecord], bool]:
    """Handler `orders` takes the keys `order-...`."""
    prefix = name.removesuffix("s").encode() + b"-"

    def matches(_: str, raw: RawRecord) -> bool:
        return raw.key is not None and raw.key.startswith(prefix)

    return matches


def _orders(ledger: Ledger) -> Callable[..., object]:
    async def orders(sale: Sale, key: Annotated[str, Key]) -> None:
        """Fast: a lookup in a cache."""
        with ledger.handling(key, sale.number):
            await asyncio.sleep(0.001)

    return orders


def _payments(ledger: Ledger) -> Callable[..., object]:
    async def payments(sale: Sale, key: Annotated[str, Key], context: Context) -> None:
        """A partner's API: mostly quick, now and then slow, and sometimes it fails twice in a row."""
        with ledger.handling(key, sale.number):
            await asyncio.sleep(0.8 if sale.number % _SLOW_EVERY == _SLOW_EVERY - 1 else 0.004)
            if sale.number % _FAILS_EVERY == _FAILS_EVERY - 1 and context.attempt <= 2:
                raise PartnerError("the partner does not answer")

    return payments


def _emails(ledger: Ledger) -> Callable[..., object]:
    def emails(sale: Sale, key: Annotated[str, Key]) -> None:
        """A library that blocks: a plain `def` runs in a thread."""
        with ledger.handling(key, sale.number):
            time.sleep(0.005)

    return emails


def _reports(ledger: Ledger) -> Callable[..., object]:
    async def reports(sale: Sale, key: Annotated[str, Key]) -> None:
        """Slow, each of them."""
        with ledger.handling(key, sale.number):
            await asyncio.sleep(0.3)

    return reports
