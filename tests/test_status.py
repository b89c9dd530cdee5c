"""What a status says of what stands still: which handler, why, since when and what ends it; also as text."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from asyncpar import App, Breaker, DeadLetterBudget, RateLimit, Retry
from asyncpar.errors import DrainIncompleteError
from asyncpar.status import AppStatus, PartitionStatus, as_text
from asyncpar.testing import HaltedError, TestApp, UnsettledError

_SECONDS = 5.0


async def until(app: App, condition: Callable[[AppStatus], bool]) -> AppStatus:
    """The app's status as soon as `condition` holds of it."""
    async with asyncio.timeout(_SECONDS):
        while not condition(status := app.status()):  # noqa: ASYNC110 - a status is looked at, not told
            await asyncio.sleep(0.005)
    return status


def partition_where(condition: Callable[[PartitionStatus], bool]) -> Callable[[AppStatus], bool]:
    """Whether it holds of any partition."""
    return lambda status: any(condition(one) for one in status.groups[0].partitions)


def failing(**options: Any) -> App:
    """An app whose only handler fails."""
    app = App("shop", group="billing", max_blocking_duration_ms=1)

    @app.topic("payments", name="store", **options)
    async def store(payment: str) -> None:
        raise ConnectionError("db down")

    return app


async def test_an_open_breaker_is_told_with_what_opened_it() -> None:
    """The handler says so, its partition, readiness once the commit stands still, and a test that waits."""
    app = failing(breaker=Breaker(min_calls=1, open_ms=10_000, max_open_ms=10_000), dead_letter=".dlq")
    why = "1 of 1 calls failed, the last with ConnectionError: db down; it tries again by itself"
    async with TestApp(app, unsettled="ignore") as kafka:
        await kafka.send("payments", "x", key="k")
        status = await until(app, lambda status: status.groups[0].handlers[0].breaker_state == "open")
        (handler,), (partition,) = status.groups[0].handlers, status.groups[0].partitions
        assert (handler.hold_reason, partition.hold_reason) == (
            f"its breaker is open: {why}",
            f"the breaker of handler store is open: {why}",
        )
        with pytest.raises(
            UnsettledError, match="the partition is held: the breaker of handler store is open: 1"
        ):
            await kafka.settled(0.05)
        status = await until(app, lambda status: not status.ready)
    (reason,), text = status.not_ready, as_text(status)
    assert reason.startswith(
        "payments[0]: offset 0 blocks the commit for longer than max_blocking_duration_ms=1"
    )
    assert why in reason
    assert text.splitlines()[0].endswith("live, NOT READY")
    assert f"    for 1 s: its breaker is open: {why}" in text
    assert "  handler store of payments (async): 0 of " in text


async def test_a_breaker_of_a_shared_topic_is_told_too() -> None:
    """Its partition is not held, for the sake of the other handler: the text names the handler's trouble."""
    app = App(group="billing")

    @app.topic(
        "payments", name="cards", match=lambda _, raw: raw.key == b"card", breaker=Breaker(min_calls=1)
    )
    async def cards(payment: str) -> None:
        raise ConnectionError("bank away")

    @app.topic("payments", name="cash", match=lambda _, raw: raw.key == b"cash")
    async def cash(payment: str) -> None: ...

    async with TestApp(app, unsettled="ignore") as kafka:
        await kafka.send("payments", "x", key="card")
        await until(app, lambda status: status.groups[0].handlers[0].breaker_state == "open")
        with pytest.raises(
            UnsettledError, match="in handler cards .*; its breaker is open: 1 of 1 .* bank away"
        ):
            await kafka.settled(0.05)


async def test_a_budget_that_is_used_up_is_told() -> None:
    """What is given up waits to leave: the handler says so, and since when."""
    budget = DeadLetterBudget(share=0, at_least=1, window_ms=60_000)
    app = failing(retry=Retry(attempts=1), dead_letter=".dlq", dead_letter_budget=budget)
    with pytest.raises(DrainIncompleteError):  # noqa: PT012 - the end of the block raises it
        async with TestApp(app, unsettled="ignore", shutdown_drain_timeout_ms=50) as kafka:
            for key in "ab":
                await kafka.send("payments", "x", key=key)
            held = partition_where(lambda partition: partition.hold_reason is not None)
            (handler,) = (await until(app, held)).groups[0].handlers
            with pytest.raises(
                UnsettledError, match="leaving in handler store .* held: the dead-letter budget of"
            ):
                await kafka.settled(0.05)
    assert (handler.hold_reason or "").startswith("its dead-letter budget is used up")
    assert handler.hold_duration_seconds > 0


@pytest.mark.parametrize("limit", ["rate_limit", "key_rate_limit"])
async def test_a_rate_limit_is_not_taken_for_a_retry(limit: str) -> None:
    """What was never tried does not wait for a retry."""
    app = App(group="mails")

    @app.topic("mails", name="send", **{limit: RateLimit(per_second=0.01, burst=1)})
    async def send(mail: str) -> None: ...

    words = {
        "rate_limit": "waiting for the rate limit",
        "key_rate_limit": "waiting for the rate limit of its key",
    }
    async with TestApp(app, unsettled="ignore") as kafka:
        for _ in range(2):
            await kafka.send("mails", "x", key="k")
        await until(app, partition_where(lambda partition: partition.blocking_reason == words[limit]))
        with pytest.raises(UnsettledError, match=f"mails.0. offset 1: {words[limit]} in handler send for"):
            await kafka.settled(0.05)


async def test_a_record_in_a_retry_topic_waits_for_its_time() -> None:
    """It is not due yet, which is no retry that failed."""
    app = failing(retry=Retry(attempts=1), retry_topics=["payments.retry.1h"], order="unordered")
    async with TestApp(app, unsettled="ignore") as kafka:
        await kafka.send("payments", "x", key="k")
        await until(app, partition_where(lambda one: one.blocking_reason == "waiting for its time"))
        with pytest.raises(UnsettledError, match="waiting for its time in handler store .* due in"):
            await kafka.settled(0.05)


async def test_a_halt_is_told_with_its_age_and_its_end() -> None:
    """Readiness says which record and handler, why, since when, and what tries it again."""
    app = failing(retry=Retry(attempts=1))
    async with TestApp(app) as kafka:
        await kafka.send("payments", "x")
        with pytest.raises(HaltedError):
            await kafka.settled()
        (reason,) = app.status().not_ready
        text = as_text(app.status())
    why = "offset 0: failed once in handler store: ConnectionError: db down"
    assert reason == f"payments[0] is halted: {why} (for 0 s; retry_halted() or a restart tries it again)"
    assert "  payments[0]: halted, committed 0, lag 1, 0 in flight\n" in text
    assert f"    halted for 0 s, {why}\n" in text


async def test_a_healthy_app_is_a_few_lines() -> None:
    """Nothing but its figures."""
    app = App("shop", group="mails")

    @app.topic("mails", name="send")
    async def send(mail: str) -> None: ...

    async with TestApp(app) as kafka:
        await kafka.send("mails", "x")
        await kafka.settled()
        lines = as_text(app.status()).splitlines()
    assert lines[0].startswith("shop ")
    assert lines[0].endswith("live, ready")
    assert lines[1:] == [
        "",
        "group mails: joined, generation 1, 0 of 16 records in flight",
        "  handler send of mails (async): 0 of 100 run, 0 wait for a retry; 1 succeeded",
        "  mails[0]: open, committed 1, lag 0, 0 in flight",
    ]
